"""Figures by matplotlib: of a report, and of samples before and after augmentation."""

import textwrap

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from app.messages import shortened

COLORS = ("#0072B2", "#D55E00")  # of Okabe and Ito: told apart by the colour-blind too
_LONGEST = 30  # characters of a class' name
_NOTHING = "0.85"  # grey, which is no colour of the heat map


def confusion_figure(counts: torch.Tensor, class_names: list[str], title: str) -> Figure:
    """counts (C, C): rows are true classes, columns predictions. Cell numbers up to 20 classes; long names are cut."""
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
    axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0, **plain)
    axes.set_yticks(range(len(names)), names, **plain)
    if len(class_names) <= 20:
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


def robustness_figure(curves: dict[str, list[dict[str, float]]]) -> Figure:
    """curves: by input, "accuracy" along "noise", with its "interval_95"."""
    figure = Figure(figsize=(3.6 * len(curves), 3.0), layout="constrained")
    units = {"image": "1 is black to white", "sequence": "deviations"}
    for axes, (name, curve), color in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), COLORS, strict=False
    ):
        noise, accuracy = ([of[key] for of in curve] for key in ("noise", "accuracy"))
        low, high = zip(*(of["interval_95"] for of in curve), strict=True)
        axes.fill_between(noise, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(noise, accuracy, color=color, marker="o", markersize=4)
        axes.set(ylim=(0, 1.02), xlabel=f"noise on the {name} ({units[name]})", ylabel="accuracy")
        _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def augmentation_figure(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], class_names: list[str]
) -> Figure:
    """A row for each of N samples: its class, its image before and after, its sequence before and after.

    Sequences have one colour scale in all rows, white being 0, and one scale of time in a row. A modality that no
    sample has is left out.

    Args:
        before, after: batches (see data/loaders.py) of the same samples, but `image` (N, 3, H, W) in [0, 1]; `after`
            has `partner_label` and `share` where they are mixed.
    """
    labels = _mixtures(after, class_names)
    columns = [column for column, is_there in enumerate(before["present"].any(0).tolist()) if is_there]
    figure = Figure(figsize=(0.9 + sum((2.8, 7.3)[c] for c in columns), 0.9 + 1.45 * len(labels)), layout="constrained")
    widths = [(1.0, 2.3)[column] for column in columns for _ in range(2)]
    grid = figure.subplots(len(labels), len(widths), squeeze=False, width_ratios=widths)
    real = torch.arange(before["sequence"].shape[1]) < before["length"].cpu()[:, None]
    values = before["sequence"].cpu()[real].abs()
    limit = max(float(np.quantile(values.numpy(), 0.98)) if values.numel() else 0.0, 1e-6)
    for row, label in enumerate(labels):
        grid[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=12, parse_math=False)
        for place, (column, batch) in enumerate((column, batch) for column in columns for batch in (before, after)):
            axes = grid[row, place]
            if row == 0:
                axes.set_title(f"{('image', 'sequence')[column]} {'after' if place % 2 else 'before'}", fontsize=12)
            if not before["present"][row, column]:
                axes.set(xticks=[], yticks=[], facecolor=_NOTHING, box_aspect=(1, None)[column])
                axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", fontsize=11)
            elif column == 0:
                axes.imshow(batch["image"][row].permute(1, 2, 0).cpu().clamp(0, 1).numpy())
                axes.set(xticks=[], yticks=[])
            else:
                _draw_sequence(axes, batch["sequence"][row, : batch["length"][row]].cpu(), limit)
                axes.set_xlim(0, max(int(of["length"][row]) for of in (before, after)))
    if 1 in columns:
        for axes in grid[-1, -2:]:
            axes.set_xlabel("frame", fontsize=11)
        pictures = [axes.images[0] for axes in grid[:, -1] if axes.images]
        figure.colorbar(
            pictures[0], ax=grid[:, -1], label="value of a feature (features go up)", extend="both", aspect=60
        )
    return figure


def pixels_of(figure: Figure) -> torch.Tensor:
    """(3, H, W) in [0, 1]"""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[:, :, :3].copy()).permute(2, 0, 1) / 255


def _draw_sequence(axes: Axes, frames: torch.Tensor, limit: float) -> None:
    """frames: (T, F). Features go up, time to the right; grey where the sequence has ended."""
    length, features = frames.shape
    scale = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    axes.imshow(frames.T.numpy(), **scale, aspect="auto", origin="lower", extent=(0, length, 0, features))
    axes.set_facecolor(_NOTHING)
    axes.tick_params(labelsize=9)
    axes.locator_params(integer=True)


def _mixtures(batch: dict[str, torch.Tensor], class_names: list[str]) -> list[str]:
    """Of each sample the class or, where it is mixed, both and their shares."""
    names = ["\n".join(textwrap.wrap(name[:40], 14)) for name in class_names]
    labels = [names[label] for label in batch["label"].tolist()]
    if "partner_label" not in batch:
        return labels
    partners, shares = (names[label] for label in batch["partner_label"].tolist()), batch["share"].tolist()
    return [f"{share:.0%} {a}\n{1 - share:.0%} {b}" for share, a, b in zip(shares, labels, partners, strict=True)]
