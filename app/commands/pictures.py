"""Pictures of a run's samples."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from app.commands.build import Run
from app.evaluation.figures import augmentation_figure, prediction_grid
from app.evaluation.predictions import Predictions, predict
from app.evaluation.sample_pictures import draw_samples
from app.evaluation.scores import worst_mistakes
from app.messages import writing
from data.augmentation.augmented import Augmented
from data.split import PreparedSplit, Split
from data.transforms import network_image_to_rgb
from models.pretrained import ImageWeights

_SHOWN = 8  # training samples


def draw_predictions(run: Run) -> torch.Tensor:
    """The first 16 samples for validation with their predictions, as one picture (3, H, W) in [0, 1]."""
    batch, output = next(predict(run.parts.model, run.loaders["val"], **run.placement))
    weights = run.parts.image_weights
    images = network_image_to_rgb(batch["image"][:16], weights.mean, weights.std)
    images[~batch["present"][:16, 0]] = 1.0  # white: there is none
    probabilities = output.logits[:16].float().softmax(1)
    return prediction_grid(images, probabilities, batch["label"][:16], run.parts.class_names)


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


def draw_mistakes(trained: Any, split: str, predictions: Predictions) -> Figure | None:
    """The worst ones of labelled predictions, with both inputs; None where there are none.

    trained: a Trained or a LateFusion of app/commands/trained.py.
    """
    taken = predictions.take(worst_mistakes(predictions))
    return draw_samples(trained.samples(split, taken), taken) if len(taken) else None


def draw_augmentation(run: Run) -> Figure:
    """The first training samples of the first epoch, before and after their augmentation."""
    varied, weights = run.loaders["train"].dataset, run.parts.image_weights
    plain = varied.split if isinstance(varied, Augmented) else varied
    epoch, indices = next(iter(run.loaders["train"].sampler))
    before, after = (
        batch | {"image": network_image_to_rgb(batch["image"], weights.mean, weights.std)}
        for batch in (split[epoch, indices[:_SHOWN]] for split in (plain, varied))
    )
    return augmentation_figure(before, after, run.parts.class_names)


def save_picture(figure: Figure, path: str) -> None:
    """In the format of the path's suffix; PNG where it has none. Raises OSError or ValueError."""
    with writing(path):
        figure.savefig(path, format=Path(path).suffix[1:] or "png")  # without a format it might name the file otherwise
