"""Pictures of a run's samples."""

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from app.commands.build import Run
from app.commands.trained import Trained
from app.evaluation.certainty import describe_certainty
from app.evaluation.figures import augmentation_figure, pixels_of, reliability_figure
from app.evaluation.predictions import Predictions
from app.evaluation.sample_pictures import draw_confusion, draw_samples
from app.evaluation.scores import confusion_counts, worst_mistakes
from data.augmentation.augmented import Augmented
from data.split import PreparedSplit, Split
from data.transforms import network_image_to_rgb
from models.pretrained import ImageWeights

_SHOWN = 8  # training samples
_PREDICTIONS = 4  # samples for validation


def draw_validation(run: Run, found: Predictions) -> dict[str, torch.Tensor]:
    """Of a validation, each (3, H, W) in [0, 1]: a few samples, the worst mistakes where there are any, and the
    confusion matrix."""
    counts = torch.from_numpy(confusion_counts(found))
    shown = {"predictions": found.take(_a_few(len(found)))}
    shown["worst_mistakes"] = found.take(worst_mistakes(found, _PREDICTIONS))
    split, weights = run.parts.splits["val"], run.parts.image_weights
    pictures = {
        name: draw_samples(samples_to_draw(split, taken.index, weights), taken)
        for name, taken in shown.items()
        if len(taken)
    }
    pictures["confusion_matrix"] = draw_confusion(counts, run.parts.class_names)
    return {name: to_tensor(picture) for name, picture in pictures.items()}


def draw_reliability(run: Run, found: Predictions) -> torch.Tensor:
    """Of a validation, (3, H, W) in [0, 1]."""
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


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """(3, H, W) in [0, 1]"""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


def samples_to_draw(split: Split, places: torch.Tensor, weights: ImageWeights) -> dict[str, torch.Tensor]:
    """For draw_samples: images in [0, 1] and sequences without their deltas; of several windows the first.

    places: (N,) int64, in the split.
    """
    batch = split[0, places]
    counts = batch.get("windows", torch.ones_like(places))
    first = counts.cumsum(0) - counts
    sequence = batch["sequence"][first]
    if isinstance(split, PreparedSplit) and split.prepare.deltas:
        sequence = sequence[:, :, : sequence.shape[2] // 3]
    image = network_image_to_rgb(batch["image"], weights.mean, weights.std)
    return {"image": image, "sequence": sequence, "length": batch["length"][first]}


def draw_mistakes(models: list[Trained], split: str, predictions: Predictions) -> Image.Image | None:
    """The worst ones of labelled predictions, with both inputs; None where there are none.

    models: one, or that of images and that of sequences.
    """
    taken = predictions.take(worst_mistakes(predictions))
    if not len(taken):
        return None
    of_images, of_sequences = (
        samples_to_draw(model.parts.splits[split], taken.index, model.parts.image_weights)
        for model in (models[0], models[-1])
    )
    return draw_samples(of_sequences | {"image": of_images["image"]}, taken, columns=2)


def draw_augmentation(run: Run) -> Figure:
    """The first training samples of the epoch, before and after their augmentation."""
    varied, weights = run.loaders["train"].dataset, run.parts.image_weights
    plain = varied.split if isinstance(varied, Augmented) else varied
    epoch, indices = next(iter(run.loaders["train"].sampler))
    before, after = (
        batch | {"image": network_image_to_rgb(batch["image"], weights.mean, weights.std)}
        for batch in (split[epoch, indices[:_SHOWN]] for split in (plain, varied))
    )
    return augmentation_figure(before, after, run.parts.class_names)
