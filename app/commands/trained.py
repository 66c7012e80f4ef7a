"""A checkpoint -> a model that can predict, and the data to predict; and two such models as one."""

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from app.commands.build import ModelAndData, build_loader, build_model_and_data, build_objective
from app.commands.open_run import SKIPPED
from app.commands.pictures import samples_to_draw
from app.commands.root_config import not_default, read_part
from app.evaluation.late_fusion import join_predictions
from app.evaluation.modality_use import answers, describe_use
from app.evaluation.predictions import INPUTS, Predictions, predict
from app.evaluation.scores import share
from app.randomness import make_deterministic
from app.records.checkpoint import load_checkpoint, save_checkpoint
from app.records.environment import changed_environment
from app.records.run_folder import lock_run_folder, run_folder_of
from app.training.objective import BRANCHES, Objective
from app.training.precision import choose_device, slow_precision
from app.training.state import ModelState
from data.loaders import Batches
from data.noise import Noisy
from data.spec import DataConfig, DataSpec
from data.split import Split
from models.fusion_classifier import FusionClassifier
from models.temporal_branch import lstm_in_fp32

# Keys of `data` that change no row of validation or test, or that each model has for itself.
NOT_OF_THE_ROWS = {"batch_size", "workers", "on_device", "sampler", "augmentation", "image_size", "redraw"}


# Deviations of the noise that robustness is measured with; see data/noise.py for their units.
NOISE = {"image": (0.0, 0.125, 0.25, 0.5, 1.0), "sequence": (0.0, 0.5, 1.0, 2.0, 4.0)}
SHUFFLED_TOGETHER = 64  # samples among which an input is shuffled, at least


@dataclass
class Trained:
    """A checkpoint, ready to predict."""

    path: Path
    saved: dict[str, Any]  # the checkpoint
    parts: ModelAndData
    objective: Objective
    data_config: DataConfig
    placement: dict[str, Any]  # device and precision
    changed: list[str]  # what it reads from the environment, and read otherwise in training
    of_precision: list[str] = field(default_factory=list)  # notes

    @property
    def branches(self) -> list[str]:
        return self.parts.branches

    @property
    def class_names(self) -> list[str]:
        return self.parts.class_names

    @property
    def stand_ins(self) -> Mapping[str, torch.Tensor]:
        """By branch, what the model reads in place of an input that is not there."""
        return self.parts.model.fusion_head.absent

    @property
    def prior(self) -> torch.Tensor:
        """(C,) float64, sum 1: the shares of the classes that its probabilities start from. Those of the training
        rows, as the sampler drew them and the loss weighed them: with balanced classes all alike."""
        counts = torch.tensor(DataSpec.from_dict(self.saved["data_spec"]).class_counts, dtype=torch.float64)
        shares = (counts > 0).double() if self.data_config.sampler == "class_balanced" else counts
        weights = self.objective.class_weights
        shares = shares if weights is None else shares * weights.double()
        return shares / shares.sum()

    @property
    def evaluations(self) -> Path:
        """The folder of all evaluations of it."""
        return (run_folder_of(self.path) or self.path.parent) / "evaluation"

    def folder_name(self, rows: str) -> str:
        """Of the evaluation of those rows, in that folder."""
        return rows

    def dataset(self, split: str) -> Split:
        return self.parts.splits[split]

    @property
    def temperature(self) -> float:
        """That the logits of the fusion are divided by, where one is stored with the checkpoint; else 1."""
        return self.saved.get("temperature", 1.0)

    def predict(self, split: str, *, raw: bool = False) -> Predictions:
        """raw: as if no temperature were stored."""
        return self._predict(self.dataset(split), 1.0 if raw else self.temperature)

    def _predict(self, dataset: Split, temperature: float) -> Predictions:
        found = predict(self.parts.model, self._batches(dataset), self.class_names, **self.placement)
        return found.scaled(temperature)

    def notes(self) -> list[str]:
        """What decides over the predictions and is not in the config, a line each."""
        lines = [f"{self.path}: {note}" for note in self.of_precision]
        if "temperature" in self.saved:
            lines.append(
                f"{self.path} has a stored temperature, {self.temperature:.4f}: all its probabilities are with it"
            )
        return lines

    def store_temperature(self, temperature: float) -> None:
        """In the checkpoint. Raises ValueError where another process trains there, or has trained; or OSError."""
        with ExitStack() as at_end:
            if folder := run_folder_of(self.path):
                at_end.enter_context(lock_run_folder(folder))
            content = load_checkpoint(self.path)
            if content["saved_at"] != self.saved["saved_at"]:
                raise ValueError(
                    f"--temperature: {self.path} was saved anew while it was evaluated; evaluate it again, for the "
                    "temperature is that of its weights before"
                )
            save_checkpoint(self.path, content | {"temperature": temperature})
            self.saved["temperature"] = temperature

    def modality_use(self, split: str) -> dict[str, Any]:
        """See app.evaluation.modality_use.describe_use; empty for a model of one input."""
        if len(self.branches) < len(BRANCHES):
            return {}
        batch_size = max(self.data_config.batch_size, SHUFFLED_TOGETHER)
        batches = self._batches(self.dataset(split), batch_size, shuffle=True)
        return describe_use(answers(self.parts.model, batches, **self.placement), self.stand_ins)

    def robustness(self, split: str) -> dict[str, list[dict[str, Any]]]:
        """{input: what is right of the labelled samples that have it, for each deviation of the noise on it}"""
        found: dict[str, list[dict[str, Any]]] = {}
        for branch in self.branches:
            curve = found.setdefault(INPUTS[branch], [])
            for deviation in NOISE[INPUTS[branch]]:
                dataset = Noisy(self.dataset(split), **{INPUTS[branch]: deviation})
                predictions = self._predict(dataset, self.temperature).labelled()
                right = predictions.correct[predictions.has(branch)]
                accuracy = share(int(right.sum()), len(right))
                curve.append({"noise": deviation, "samples": len(right), "accuracy": accuracy["value"]})
                curve[-1]["interval_95"] = accuracy["interval_95"]
        return found

    def samples(self, split: str, predictions: Predictions) -> dict[str, torch.Tensor]:
        """What the model reads of these samples, to be drawn."""
        return samples_to_draw(self.dataset(split), predictions.index, self.parts.image_weights)

    def _batches(self, dataset: Split, batch_size: int | None = None, **order: Any) -> Batches:
        config = self.data_config.model_copy(update={"batch_size": batch_size} if batch_size else {})
        return build_loader(config, dataset, self.placement["device"], **order)

    def warnings(self, split: str) -> list[str]:
        """What is not as it was in training, a line each."""
        lines = [f"{change} than in training" for change in self.changed]
        if split in self.parts.data_spec.rows:  # not those of a table that it was not trained on
            others = self.parts.other_rows(self.saved, split)
            lines += [f"{other}; the checkpoint was trained beside the former" for other in others]
        if skipped := self.parts.source.skipped:
            lines.append(
                f"rows are left out for {len(skipped)} findings (data.on_error=skip), see {SKIPPED} of the run"
            )
        return lines

    def origin(self) -> dict[str, Any]:
        """For the report."""
        return {
            "checkpoint": str(self.path),
            "epoch": self.saved["position"]["epoch"],
            "step": self.saved["position"]["step"],
            "weights": self.parts.image_weights.description,
            "groups": self.saved["groups"],
            "reductions": self.saved["learning_rates"]["reduction"],
            **({"temperature": self.temperature} if "temperature" in self.saved else {}),
            "versions": self.saved["versions"],
            "rows": self.saved["data_spec"]["rows"],  # those it was trained beside, whatever the data are by now
            "not_default": not_default(self.saved["config"]),
        }


@dataclass
class LateFusion:
    """Two models of one branch each that were trained apart, as one: see app/evaluation/late_fusion.py. Has what
    Trained has for an evaluation.

    Raises ValueError for models that do not read one input each, in this order, or that learnt other classes or other
    shares of them.
    """

    image: Trained
    sequence: Trained

    stand_ins = {}  # a model has no say where a sample lacks its input
    temperature = 1.0  # of the joint probabilities; each model may have its own

    def __post_init__(self):
        self._check_inputs()
        self._check_classes()

    @property
    def branches(self) -> list[str]:
        return [*BRANCHES]

    @property
    def class_names(self) -> list[str]:
        return self.image.class_names

    @property
    def objective(self) -> Objective:
        return self.image.objective

    @property
    def evaluations(self) -> Path:
        return self.image.evaluations

    def folder_name(self, rows: str) -> str:
        return f"late_fusion-{rows}"

    def dataset(self, split: str) -> Split:
        return self.image.dataset(split)

    def modality_use(self, split: str) -> dict[str, Any]:
        """Nothing: both are joined by a rule, and nothing has learnt to use them."""
        return {}

    def notes(self) -> list[str]:
        return [*self.image.notes(), *self.sequence.notes()]

    def samples(self, split: str, predictions: Predictions) -> dict[str, torch.Tensor]:
        """See Trained.samples: of each what that model reads."""
        of_sequences = self.sequence.samples(split, predictions)
        return of_sequences | {"image": self.image.samples(split, predictions)["image"]}

    def predict(self, split: str) -> Predictions:
        of_images, of_sequences = (model.predict(split) for model in (self.image, self.sequence))
        return join_predictions(of_images, of_sequences, self.image.prior)

    def warnings(self, split: str) -> list[str]:
        lines = [f"{member.path}: {line}" for member in (self.image, self.sequence) for line in member.warnings(split)]
        lines += made_otherwise(self.image, self.sequence)
        for member in (self.image, self.sequence):
            if smoothing := member.objective.label_smoothing:
                lines.append(
                    f"{member.path} was trained with loss.label_smoothing={smoothing:g}: its probabilities are not "
                    "those of the classes, so joining them is not exact"
                )
        return lines

    def origin(self) -> dict[str, Any]:
        prior = dict(zip(self.class_names, self.image.prior.tolist(), strict=True))
        return {"prior": prior, "checkpoints": [self.image.origin(), self.sequence.origin()]}

    def _check_inputs(self) -> None:
        if [self.sequence.branches, self.image.branches] == [[branch] for branch in BRANCHES]:
            raise ValueError(
                f"--late-fusion: {self.image.path} reads sequences and {self.sequence.path} images; give the one that "
                "reads images first"
            )
        for member, place, branch, other in (
            (self.image, "first", *BRANCHES),
            (self.sequence, "second", *BRANCHES[::-1]),
        ):
            if member.branches != [branch]:
                reads = " and ".join(f"{INPUTS[own]}s" for own in member.branches)
                raise ValueError(
                    f"--late-fusion: {member.path} reads {reads}; the {place} checkpoint must be of a model that reads "
                    f"{INPUTS[branch]}s only: give one that was trained with model.{other}=null"
                )

    def _check_classes(self) -> None:
        where = f"{self.image.path} and {self.sequence.path}"
        for a, b in zip_longest(self.image.class_names, self.sequence.class_names, fillvalue=""):
            if a != b:
                raise ValueError(
                    f"--late-fusion: {where} must have the same classes; where the former has '{a}', the latter has "
                    f"'{b}'; train both on the same data"
                )
        shares = zip(self.class_names, self.image.prior.tolist(), self.sequence.prior.tolist(), strict=True)
        for name, a, b in shares:
            if abs(a - b) > 1e-6:
                raise ValueError(
                    f"--late-fusion: {where} must have been trained with the same share of each class; that of "
                    f"'{name}' was {a:.6f} in the former, {b:.6f} in the latter; train both on the same rows, with the "
                    "same data.sampler and loss.class_weights"
                )


def build_trained(
    checkpoint: Path,
    device_name: str,
    manifest: Path | None = None,
    root: Path | None = None,
    precision: str | None = None,
) -> Trained:
    """Reads of the checkpoint's config only what a prediction needs: a variable of the environment that another key
    reads may be missing.

    Args:
        manifest, root: see build_model_and_data.
        precision: None: that of the training, but fp32 where bf16 is clearly slower.
    """
    make_deterministic()  # the numbers that training gave
    saved = load_checkpoint(checkpoint)
    tree = copy.deepcopy(saved["config"])
    if isinstance(tree["model"]["image_branch"], dict):
        tree["model"]["image_branch"]["weights"] = "none"  # they come from the checkpoint
    used = ("data", "model", "loss", "run.seed", "run.precision")
    data, model_config, loss, seed, trained_in = (read_part(tree, key) for key in used)
    device = choose_device(device_name)
    rows = {"saved": saved, "manifest": manifest, "root": root}
    parts = build_model_and_data(model_config, data, seed=seed, device=device, **rows)
    load_model(parts.model, saved, checkpoint)
    objective = build_objective(loss, DataSpec.from_dict(saved["data_spec"]), torch.device("cpu"))
    changed = changed_environment(saved, tree, used)
    placement = {"device": device, "precision": precision or trained_in}
    notes = []
    slow = slow_precision(parts.model, parts.first_batch(data), **placement, training=False)
    if slow and precision is None:
        placement["precision"] = "fp32"
        notes.append(f"trained in bf16, evaluated in fp32: {slow}; --precision bf16 takes it all the same")
    elif slow:
        notes.append(f"{slow}; --precision fp32 is the remedy")
    if note := lstm_in_fp32(parts.model.temporal_branch, **placement):
        notes.append(note)
    return Trained(checkpoint, saved, parts, objective, data, placement, changed, notes)


def build_late_fusion(
    image: Path, sequence: Path, device_name: str, split: str, precision: str | None = None
) -> LateFusion:
    """Of two checkpoints, to predict that split. Raises ValueError for two that do not belong together."""
    members = (build_trained(path, device_name, precision=precision) for path in (image, sequence))
    fusion = LateFusion(*members)
    check_same_rows(fusion.image, fusion.sequence, split)
    return fusion


def check_same_rows(first: Trained, second: Trained, split: str) -> None:
    """Raises ValueError where the two would predict other rows. Of a table of files each has read, and so digested,
    its own files only: there the cells of the rows tell."""
    a, b = (member.parts.data_spec.rows[split] for member in (first, second))
    if a == b:
        return
    cells, others = (
        [dataset.cells(i) for i in range(len(dataset))] for dataset in (first.dataset(split), second.dataset(split))
    )
    if not any(cells) or cells != others:
        raise ValueError(
            f"--late-fusion: the rows of {split} must be the same; {first.path} has {a}, {second.path} has {b}; give "
            "two checkpoints of the same data, without rows that one of the two leaves out"
        )


def made_otherwise(first: Trained, second: Trained) -> list[str]:
    """A line for each setting by which the two read the same rows otherwise."""
    a, b = (member.data_config.model_dump(exclude=NOT_OF_THE_ROWS) for member in (first, second))
    return [
        f"data.{key} is {a[key]} in {first.path}, {b.get(key)} in {second.path}: each model predicts the rows as its "
        "own config makes them"
        for key in a
        if a[key] != b.get(key)
    ]


def load_model(model: FusionClassifier, saved: dict[str, Any], path: Path) -> None:
    """The weights of a checkpoint. Raises ValueError that names `path` if they are another model's."""
    try:
        ModelState(model).load_state_dict(saved["model"])
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}") from None
