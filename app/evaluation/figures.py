"""Figures by matplotlib: of a report, of samples, of text; and how they become pixels."""

import io
import warnings
from collections.abc import Iterable

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from app.evaluation.predictions import INPUTS, Predictions
from app.messages import shortened

COLORS = ("#0072B2", "#D55E00")  # of Okabe and Ito: told apart by the colour-blind too
LINES = 8  # features up to which a sequence is drawn as a line for each
_LONGEST = 30  # characters of a class' name
_NOTHING = "0.85"  # grey, which is no colour of the heat map


def confusion_figure(counts: torch.Tensor, class_names: list[str], title: str) -> Figure:
    """counts (C, C): rows are true classes, columns predictions. Numbers up to 20 classes, and names, long ones cut, up
    to 60: there is no room for more."""
    names = [shortened(name, _LONGEST) for name in class_names]
    size = min(4 + 0.4 * len(names) + 0.07 * max(map(len, names)), 16)
    figure = Figure(figsize=(size, size * 0.9), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    picture = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="true class")
    plain = {"parse_math": False}  # a name may have a $
    axes.set_title(title, **plain)
    upright = len(names) > 12 or sum(map(len, names)) > 60  # side by side they would run into each other
    axes.set(xticks=[], yticks=[])
    if len(names) <= 60:
        axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0, **plain)
        axes.set_yticks(range(len(names)), names, **plain)
    if len(names) <= 20:
        for (row, column), count in np.ndenumerate(counts.numpy()):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=9)
    return figure


def reliability_figure(curves: dict[str, list[dict[str, float]]]) -> Figure:
    """curves: what to call it -> "bins" of certainty.describe_certainty. The share that is right above the probability
    that the model gave; below the diagonal it is too sure. The area of a point is the number of its samples."""
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="as sure as it is right")
    total = max((sum(of["samples"] for of in bins) for bins in curves.values()), default=1)
    for (name, bins), color, marker in zip(curves.items(), COLORS, "os", strict=False):
        x, y = [of["probability"] for of in bins], [of["accuracy"] for of in bins]
        axes.plot(x, y, color=color, linewidth=1.2, alpha=0.6)
        sizes = [12 + 150 * of["samples"] / total for of in bins]
        axes.scatter(x, y, s=sizes, color=color, marker=marker, label=name, alpha=0.85)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="probability of the prediction", ylabel="share that is right")
    axes.legend(frameon=False, fontsize=9, loc="upper left", markerscale=0.7)
    _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def samples_figure(
    titles: list[str], *batches: dict[str, torch.Tensor], colors: list[str] | None = None, columns: int = 1
) -> Figure:
    """A card for each of N samples: its title, and what it is in each of the batches: its images, then its sequences.

    A sequence is drawn as lines up to 8 features, else as a heat map: features go up, white is 0, with one scale of
    colours for all. The time of a card has one scale; grey is no frame. A modality that no sample has is left out.

    Args:
        batches: of the same samples, on the CPU: `image` (N, 3, H, W) in [0, 1], `sequence` (N, T, F), `length` (N,),
            `present` (N, 2).
        colors: of the titles.
        columns: cards side by side.
    """
    there = torch.stack([batch["present"] for batch in batches]).any(0).any(0).tolist()
    panels = [(kind, batch) for kind in (0, 1) if there[kind] or not any(there) for batch in batches]
    rows, widths = -(-len(titles) // columns), [(1.0, 2.6)[kind] for kind, _ in panels]
    # 350 pixels for a card, as TensorBoard shows a picture.
    figure = Figure(figsize=(3.5 * columns * len(batches), 1.3 * rows), dpi=100)
    grid = figure.subplots(rows, columns * len(panels), squeeze=False, width_ratios=widths * columns)
    ends = {"bottom": 0.05 / (1.3 * rows), "top": 1 - 0.37 / (1.3 * rows)}
    figure.subplots_adjust(**ends, left=0.02 / columns, right=1 - 0.02 / columns, hspace=0.5, wspace=0.08)
    cards, limit = grid.reshape(rows * columns, len(panels)), _limit(batches)
    for i, (card, title) in enumerate(zip(cards, titles, strict=False)):
        color, longest = colors[i] if colors else "black", max(int(batch["length"][i]) for batch in batches)
        card[0].set_title(title, loc="left", fontsize=8, pad=3, color=color, parse_math=False)
        for axes, (kind, batch) in zip(card, panels, strict=True):
            axes.set(xticks=[], yticks=[], anchor="W")
            if not batch["present"][i, kind]:
                axes.set_facecolor(_NOTHING)
                axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", fontsize=8)
            elif kind == 0:
                axes.imshow(batch["image"][i].permute(1, 2, 0).clamp(0, 1).numpy())
            else:
                _draw_sequence(axes, batch["sequence"][i, : batch["length"][i]].numpy(), longest, limit)
    for axes in cards[len(titles) :].flat:
        axes.set_axis_off()
    return figure


def titles_of(predictions: Predictions) -> tuple[list[str], list[str]]:
    """Of each sample, in two lines, its class, the prediction with its probability, and each branch's own; and a color,
    by whether the prediction is right."""
    names = [shortened(name, 15) for name in predictions.class_names]
    titles, colors = [], []

    def says(logits: torch.Tensor) -> str:
        probability, best = logits.softmax(0).max(0)
        return f"{names[int(best)]} ({_percent(float(probability))})"

    for i, label in enumerate(predictions.label.tolist()):
        own = [
            f"{INPUTS[branch]} {says(logits[i]) if predictions.has(branch)[i] else 'none'}"
            for branch, logits in predictions.unimodal_logits.items()
        ]
        wrong = label >= 0 and not predictions.correct[i]
        truth = f"{'✗' if wrong else '✓'} is {names[label]}" if label >= 0 else "class unknown"
        titles.append(f"{truth}, predicted {says(predictions.logits[i])}\nalone: {', '.join(own)}")
        colors.append(COLORS[wrong])
    return titles, colors


def classes_of(batch: dict[str, torch.Tensor], class_names: list[str]) -> list[str]:
    """Of each sample its class or, where it is mixed (data/augmentation/mixup.py), both and their shares."""
    names = [shortened(name, _LONGEST) for name in class_names]
    labels = [names[label] for label in batch["label"].tolist()]
    if "partner_label" not in batch:
        return labels
    partners, shares = (names[label] for label in batch["partner_label"].tolist()), batch["share"].tolist()
    return [f"{share:.0%} {a}, {1 - share:.0%} {b}" for share, a, b in zip(shares, labels, partners, strict=True)]


def text_figure(text: str) -> Figure:
    """Of lines in which each character has the same width."""
    lines = text.splitlines()
    figure = Figure(figsize=(0.2 + 0.07 * max(map(len, lines)), 0.15 + 0.15 * len(lines)), dpi=100)
    place = {"transform": None, "va": "top", "family": "monospace", "fontsize": 8, "linespacing": 1.3}
    figure.text(8, figure.get_figheight() * 100 - 6, text, parse_math=False, **place)
    return figure


def pixels_of(figure: Figure, dpi: int = 100) -> np.ndarray:
    """(H, W, 3) uint8"""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a name in letters that the font lacks
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def as_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    imsave(file, pixels_of(figure, dpi=144), format="png")
    return file.getvalue()


def _draw_sequence(axes: Axes, frames: np.ndarray, longest: int, limit: float) -> None:
    """frames: (T, F); longest: frames that there is room for."""
    length, features = frames.shape
    if features <= LINES:
        axes.plot(np.arange(length) + 0.5, frames, linewidth=1, marker="." if length == 1 else None)
    else:
        scale = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        axes.imshow(frames.T, **scale, aspect="auto", origin="lower", extent=(0, length, 0, features))
    axes.axvspan(length, longest, color=_NOTHING, linewidth=0)
    axes.set_xlim(0, longest)


def _limit(batches: Iterable[dict[str, torch.Tensor]]) -> float:
    """Of the colours of all heat maps: most values lie within."""
    values = []
    for batch in batches:
        real = torch.arange(batch["sequence"].shape[1]) < batch["length"][:, None]
        values.append(batch["sequence"][real & batch["present"][:, 1:]].abs().flatten().numpy())
    together = np.concatenate(values)
    return max(float(np.quantile(together, 0.98)) if together.size else 0.0, 1e-6)


def _percent(probability: float) -> str:
    """Never 100 % of what is not certain."""
    return f"{100 * probability:.0f} %" if probability < 0.995 else f"{min(100 * probability, 99.9):.1f} %"
