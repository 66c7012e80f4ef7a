"""Samples as pictures: both inputs, the truth, and what the fusion and each branch alone make of them."""

import textwrap
from collections.abc import Iterator

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from app.evaluation.predictions import INPUTS, Predictions

LINES = 8  # features up to which a sequence is drawn as a line for each
_NOTHING = "0.85"  # grey, which is no colour of the heat map
_RIGHT, _WRONG = "#0072B2", "#D55E00"  # told apart also by a mark before the text


def draw_samples(samples: dict[str, torch.Tensor], predictions: Predictions, columns: int = 2) -> Figure:
    """A card for each of N samples: its image, its sequence (lines up to 8 features, else a heat map), and in words its
    class, the prediction with its probability, and each branch's own.

    Args:
        samples: `image` (N, 3, H, W) in [0, 1], `sequence` (N, T, F), `length` (N,).
        predictions: of the same N samples, N at least 1.
    """
    shown = [column for column, branch in enumerate(INPUTS) if branch in predictions.unimodal_logits]
    size, rows = len(predictions), -(-len(predictions) // columns)
    width = sum((1.5, 2.9)[column] for column in shown)
    figure = Figure(figsize=(columns * (width + 0.4), rows * 2.35), layout="constrained")
    cards = figure.subfigures(rows, columns, squeeze=False).flatten()
    limit = _limit(samples, predictions.present[:, 1])
    for place, (card, lines) in enumerate(zip(cards[:size], _texts(predictions), strict=True)):
        right = bool(predictions.correct[place])
        card.suptitle(
            "\n".join(lines), fontsize=11, x=0.02, ha="left", color=_RIGHT if right else _WRONG, parse_math=False
        )
        axes = card.subplots(1, len(shown), squeeze=False, width_ratios=[(1.0, 2.1)[column] for column in shown])[0]
        for column, own in zip(shown, axes, strict=True):
            if predictions.present[place, column]:
                _draw_input(own, samples, place, column, limit)
            else:
                _draw_nothing(own)
    return figure


def _texts(predictions: Predictions) -> Iterator[list[str]]:
    names = [textwrap.shorten(name, 24, placeholder="…") for name in predictions.class_names]

    def says(logits: torch.Tensor) -> str:
        probability, best = logits.softmax(0).max(0)
        return f"{names[int(best)]} ({_percent(float(probability))})"

    for i, label in enumerate(predictions.label.tolist()):
        truth = f"is {names[label]}" if label >= 0 else "class unknown"
        mark = "✓" if label < 0 or predictions.correct[i] else "✗"
        own = [
            f"{INPUTS[branch]}: {says(logits[i]) if predictions.has(branch)[i] else 'none'}"
            for branch, logits in predictions.unimodal_logits.items()
        ]
        yield [f"{mark} {truth}, predicted {says(predictions.logits[i])}", "alone: " + "; ".join(own)]


def _percent(probability: float) -> str:
    """Never 100 % of what is not certain."""
    return f"{100 * probability:.0f} %" if probability < 0.995 else f"{min(100 * probability, 99.9):.1f} %"


def _limit(samples: dict[str, torch.Tensor], has_sequence: torch.Tensor) -> float:
    """Of the colours of all heat maps: most values lie within."""
    real = torch.arange(samples["sequence"].shape[1]) < samples["length"][:, None]
    values = samples["sequence"][real & has_sequence[:, None]].abs()
    return max(float(np.quantile(values.numpy(), 0.98)) if values.numel() else 0.0, 1e-6)


def _draw_nothing(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[], facecolor=_NOTHING)
    axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", fontsize=11)


def _draw_input(axes: Axes, samples: dict[str, torch.Tensor], place: int, column: int, limit: float) -> None:
    axes.set(xticks=[], yticks=[])
    if column == 0:
        axes.imshow(samples["image"][place].permute(1, 2, 0).clamp(0, 1).numpy())
    else:
        frames = samples["sequence"][place, : samples["length"][place]]
        if frames.shape[1] <= LINES:
            axes.plot(frames.numpy(), linewidth=1)
            axes.set_xlim(0, max(len(frames) - 1, 1))
        else:
            draw_heat_map(axes, frames, limit)


def draw_heat_map(axes: Axes, frames: torch.Tensor, limit: float) -> None:
    """frames: (T, F). Features go up, time to the right, white is 0; grey where the sequence has ended."""
    length, features = frames.shape
    scale = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    axes.imshow(frames.T.numpy(), **scale, aspect="auto", origin="lower", extent=(0, length, 0, features))
    axes.set_facecolor(_NOTHING)
