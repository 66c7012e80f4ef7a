"""Pictures of a run's samples."""

import numpy as np
import torch
from matplotlib.figure import Figure

from app.commands.build import ModelAndData, Run
from app.commands.trained import Trained
from app.evaluation.certainty import describe_certainty
from app.evaluation.figures import (
    classes_of,
    confusion_figure,
    pixels_of,
    reliability_figure,
    samples_figure,
    titles_of,
)
from app.evaluation.predictions import Predictions
from app.evaluation.scores import confusion_counts, worst_mistakes
from app.training.objective import BRANCHES
from data.split import PreparedSplit
from data.transforms import network_image_to_rgb

_SHOWN = 8  # training samples
_PREDICTIONS = 4  # samples for validation


def draw_validation(run: Run, found: Predictions) -> dict[str, np.ndarray]:
    """Of a validation, by name, each (H, W, 3) uint8: a few samples, the worst mistakes where there are any, and the
    confusion matrix."""
    shown = {"predictions": found.take(_a_few(len(found)))}
    shown["worst_mistakes"] = found.take(worst_mistakes(found, _PREDICTIONS))
    pictures = {
        name: pixels_of(draw_predictions(taken, samples_to_draw(run.parts, "val", taken)))
        for name, taken in shown.items()
        if len(taken)
    }
    title = f"epoch {run.position.epoch}, {len(found)} samples"
    confusion = confusion_figure(torch.from_numpy(confusion_counts(found)), found.class_names, title)
    return pictures | {"confusion_matrix": pixels_of(confusion, dpi=60)}


def draw_reliability(run: Run, found: Predictions) -> np.ndarray:
    """Of a validation, (H, W, 3) uint8."""
    bins = describe_certainty(found)["bins"]
    return pixels_of(reliability_figure({f"epoch {run.position.epoch}": bins}))


def recordings(run: Run) -> list[tuple[np.ndarray, int]]:
    """Of a few samples for validation, those that were recordings: (samples,) float32, rate in Hz."""
    split = run.parts.splits["val"]
    heard = (split.recording(place) for place in _a_few(len(split)).tolist())
    return [recording for recording in heard if recording is not None]


def _a_few(size: int) -> torch.Tensor:
    """Places, the same each time, from all over the samples: they may be sorted by class."""
    return torch.arange(min(_PREDICTIONS, size)) * size // min(_PREDICTIONS, max(size, 1))


def samples_to_draw(parts: ModelAndData, split: str, predictions: Predictions) -> dict[str, torch.Tensor]:
    """The samples that are predicted: images in [0, 1] and sequences without their deltas; of several windows the
    first."""
    dataset, places = parts.splits[split], predictions.index
    batch = dataset[0, places]
    counts = batch.get("windows", torch.ones_like(places))
    first = counts.cumsum(0) - counts
    sequence = batch["sequence"][first]
    if isinstance(dataset, PreparedSplit) and dataset.prepare.deltas:
        sequence = sequence[:, :, : sequence.shape[2] // 3]
    image = network_image_to_rgb(batch["image"], parts.image_weights.mean, parts.image_weights.std)
    return {"image": image, "sequence": sequence, "length": batch["length"][first]}


def draw_predictions(predictions: Predictions, samples: dict[str, torch.Tensor], columns: int = 1) -> Figure:
    """Of each sample what is predicted, and what the model reads of it."""
    titles, colors = titles_of(predictions)
    reads = torch.tensor([branch in predictions.unimodal_logits for branch in BRANCHES])
    samples = samples | {"present": predictions.present & reads}
    return samples_figure(titles, samples, colors=colors, columns=columns)


def draw_mistakes(models: list[Trained], split: str, predictions: Predictions) -> Figure | None:
    """The worst ones of labelled predictions; None where there are none.

    models: one, or that of images and that of sequences.
    """
    taken = predictions.take(worst_mistakes(predictions))
    if not len(taken):
        return None
    of_images, of_sequences = (samples_to_draw(model.parts, split, taken) for model in (models[0], models[-1]))
    return draw_predictions(taken, of_sequences | {"image": of_images["image"]}, columns=2)


def draw_augmentation(run: Run) -> np.ndarray:
    """The first training samples of the epoch, before and after their augmentation, (H, W, 3) uint8."""
    varied, weights = run.loaders["train"].dataset, run.parts.image_weights
    epoch, indices = next(iter(run.loaders["train"].sampler))
    before, after = (
        batch | {"image": network_image_to_rgb(batch["image"], weights.mean, weights.std)}
        for batch in (split[epoch, indices[:_SHOWN]] for split in (varied.split, varied))
    )
    titles = [f"{name}\nbefore and after" for name in classes_of(after, run.parts.class_names)]
    return pixels_of(samples_figure(titles, before, after))
