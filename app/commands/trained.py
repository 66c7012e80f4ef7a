"""A checkpoint -> a model that can predict, and the data to predict."""

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from app.commands.build import ModelAndData, build_loader, build_model_and_data, build_objective
from app.commands.open_run import SKIPPED
from app.commands.root_config import not_default, read_part
from app.evaluation.modality_use import answers, describe_use
from app.evaluation.predictions import Predictions, predict
from app.messages import Findings, warn
from app.randomness import make_deterministic
from app.records.checkpoint import load_checkpoint, save_checkpoint
from app.records.run_folder import lock_run_folder, run_folder_of
from app.training.objective import BRANCHES, Objective
from app.training.precision import choose_device, slow_precision
from app.training.state import ModelState
from data.loaders import Batches
from data.spec import SPLITS, DataConfig, DataSpec
from data.split import Split
from models.fusion_classifier import FusionClassifier
from models.temporal_branch import lstm_in_fp32

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

    def cells(self, split: str) -> list[dict[str, str]]:
        """Of each row, by column."""
        rows = self.parts.splits[split]
        return [rows.cells(i) for i in range(len(rows))]

    @property
    def temperature(self) -> float:
        """That the logits of the fusion are divided by, where one is stored with the checkpoint; else 1."""
        return self.saved.get("temperature", 1.0)

    def predict(self, split: str, *, raw: bool = False) -> Predictions:
        """raw: as if no temperature were stored."""
        return self._predict(self.parts.splits[split], 1.0 if raw else self.temperature)

    def _predict(self, dataset: Split, temperature: float) -> Predictions:
        found = predict(self.parts.model, self._batches(dataset), self.class_names, **self.placement)
        return found.scaled(temperature)

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
        batches = self._batches(self.parts.splits[split], batch_size, shuffle=True)
        return describe_use(answers(self.parts.model, batches, **self.placement), self.stand_ins)

    def _batches(self, dataset: Split, batch_size: int | None = None, **order: Any) -> Batches:
        config = self.data_config.model_copy(update={"batch_size": batch_size} if batch_size else {})
        return build_loader(config, dataset, self.placement["device"], **order)

    def tell(self, split: str, of: str = "") -> None:
        """Prints what is not as it was in training, and what decides over the predictions and is not in the config.

        of: what a warning begins with.
        """
        for line in self.warnings(split):
            warn(f"{of}{line}")
        for line in self.of_precision:
            print(f"note: {self.path}: {line}")
        if "temperature" in self.saved:
            stored = f"{self.path} has a stored temperature, {self.temperature:.4f}"
            print(f"note: {stored}: all its probabilities are with it")

    def warnings(self, split: str) -> list[str]:
        """What is not as it was in training, a line each."""
        lines: list[str] = []
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


def build_trained(
    checkpoint: Path,
    device_name: str,
    manifest: Path | None = None,
    root: Path | None = None,
    precision: str | None = None,
) -> Trained:
    """Reads of the checkpoint's config only what a prediction needs.

    Args:
        manifest, root: see build_model_and_data.
        precision: None: that of the training, but fp32 where bf16 is clearly slower.
    """
    make_deterministic()  # the numbers that training gave
    saved = load_checkpoint(checkpoint)
    tree = copy.deepcopy(saved["config"])
    if isinstance(tree["model"]["image_branch"], dict):
        tree["model"]["image_branch"]["weights"] = "none"  # they come from the checkpoint
    keys = ("data", "model", "loss", "run.seed", "run.precision")
    try:
        data, model_config, loss, seed, trained_in = (read_part(tree, key) for key in keys)
    except Findings as error:
        remedy = "use the release of Duet that wrote it, or train again"
        raise ValueError(f"checkpoint {checkpoint}: its config is of another release ({error}); {remedy}") from None
    device = choose_device(device_name)
    rows = {"saved": saved, "manifest": manifest, "root": root}
    parts = build_model_and_data(model_config, data, seed=seed, device=device, **rows)
    load_model(parts.model, saved, checkpoint)
    objective = build_objective(loss, DataSpec.from_dict(saved["data_spec"]), torch.device("cpu"))
    placement = {"device": device, "precision": precision or trained_in}
    notes = []
    slow = slow_precision(parts.model, parts.first_batch, **placement, training=False)
    if slow and precision is None:
        placement["precision"] = "fp32"
        notes.append(f"trained in bf16, evaluated in fp32: {slow}; --precision bf16 takes it all the same")
    elif slow:
        notes.append(f"{slow}; --precision fp32 is the remedy")
    if note := lstm_in_fp32(parts.model.temporal_branch, **placement):
        notes.append(note)
    return Trained(checkpoint, saved, parts, objective, data, placement, notes)


def output_folder(first: Trained, split: str, manifest: Path | None, kind: str = "") -> Path:
    """Where an evaluation writes. The folder of a table is never that of a split.

    Args:
        first: of the checkpoints, the one whose run it is written into.
        kind: what its name begins with.
    """
    name = manifest.resolve().stem if manifest else split
    if manifest and name.removeprefix("late_fusion-").removeprefix("compare-") in SPLITS:
        name = f"{name}-table"
    return (run_folder_of(first.path) or first.path.parent) / "evaluation" / f"{kind}{name}"


def load_model(model: FusionClassifier, saved: dict[str, Any], path: Path) -> None:
    """The weights of a checkpoint. Raises ValueError that names `path` if they are another model's."""
    try:
        ModelState(model).load_state_dict(saved["model"])
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}") from None
