"""A checkpoint -> a model that can predict, and the data to predict."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.commands.build import ModelAndData, build_model_and_data, build_objective
from app.commands.root_config import read_part
from app.evaluation.metrics import ClassificationMetrics
from app.randomness import make_deterministic
from app.records.checkpoint import load_checkpoint
from app.records.environment import changed_environment
from app.training.precision import choose_device
from app.training.state import ModelState
from data.spec import DataConfig, DataSpec
from models.fusion_classifier import FusionClassifier


@dataclass
class Trained:
    """A checkpoint, ready to predict."""

    saved: dict[str, Any]  # the checkpoint
    parts: ModelAndData
    metrics: ClassificationMetrics
    data_config: DataConfig
    placement: dict[str, Any]  # device and precision
    changed: list[str]  # what it reads from the environment, and read otherwise in training


def build_trained(
    checkpoint: Path, device_name: str, manifest: Path | None = None, root: Path | None = None
) -> Trained:
    """Reads of the checkpoint's config only what a prediction needs: a variable of the environment that another key
    reads may be missing.

    manifest, root: see build_model_and_data.
    """
    make_deterministic()  # the numbers that training gave
    saved = load_checkpoint(checkpoint)
    tree = saved["config"]
    if isinstance(tree["model"]["image_branch"], dict):
        tree["model"]["image_branch"]["weights"] = "none"  # they come from the checkpoint
    used = ("data", "model", "loss", "run.seed", "run.precision")
    data, model_config, loss, seed, precision = (read_part(tree, key) for key in used)
    device = choose_device(device_name)
    rows = {"saved": saved, "manifest": manifest, "root": root}
    parts = build_model_and_data(model_config, data, seed=seed, device=device, **rows)
    load_model(parts.model, saved, checkpoint)
    objective = build_objective(loss, DataSpec.from_dict(saved["data_spec"]), device)
    changed = changed_environment(saved, tree, used)
    placement = {"device": device, "precision": precision}
    return Trained(saved, parts, parts.new_metrics(objective), data, placement, changed)


def load_model(model: FusionClassifier, saved: dict[str, Any], path: Path) -> None:
    """The weights of a checkpoint. Raises ValueError that names `path` if they are another model's."""
    try:
        ModelState(model).load_state_dict(saved["model"])
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}") from None
