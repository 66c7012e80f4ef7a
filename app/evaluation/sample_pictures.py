"""Pictures that are made at every validation, so by Pillow, which takes a tenth of matplotlib's time: samples with both
inputs, the truth and what the model makes of them, the confusion matrix, and tables of words."""

from collections.abc import Iterator
from functools import lru_cache

import matplotlib
import numpy as np
import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from app.evaluation.predictions import INPUTS, Predictions
from app.messages import shortened

LINES = 8  # features up to which a sequence is drawn as a line for each
NAMED = 20  # classes up to which a confusion matrix has names and numbers
_NOTHING = "#d9d9d9"  # grey, which is no colour of the heat map
_RIGHT, _WRONG, _INK = "#0072b2", "#d55e00", "#1b1f24"  # also told apart by a mark before the text
_LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
# Pixels: of a card (as TensorBoard shows a picture, so that no letter is scaled), of what it shows, between, of type.
_WIDTH, _SIDE, _GAP, _TYPE = 350, 92, 8, 12


def draw_samples(samples: dict[str, torch.Tensor], predictions: Predictions, columns: int = 1) -> Image.Image:
    """A card for each of N samples: in words its class, the prediction with its probability, and each branch's own; its
    image; its sequence, as lines up to 8 features, else as a heat map (features go up, white is 0).

    Args:
        samples: `image` (N, 3, H, W) in [0, 1], `sequence` (N, T, F), `length` (N,), on the CPU.
        predictions: of the same N samples, N at least 1.
    """
    line = round(1.3 * _TYPE)
    height = 2 * line + _SIDE + 2 * _GAP
    canvas = Image.new("RGB", (columns * _WIDTH, -(-len(predictions) // columns) * height), "white")
    draw, font = ImageDraw.Draw(canvas), _font(_TYPE)
    limit = _limit(samples, predictions.present[:, 1])
    shown = [column for column, branch in enumerate(INPUTS) if branch in predictions.unimodal_logits]
    for place, (mark, color, *lines) in enumerate(_texts(predictions)):
        left, top = place % columns * _WIDTH + _GAP, place // columns * height + _GAP // 2
        draw.text((left, top), f"{mark} {lines[0]}", fill=color, font=font)
        draw.text((left, top + line), lines[1], fill=_INK, font=font)
        top += 2 * line
        for column in shown:
            size = (_SIDE if column == 0 else _WIDTH - 3 * _GAP - (_SIDE if 0 in shown else 0), _SIDE)
            if not predictions.present[place, column]:
                draw.rectangle((left, top, left + size[0] - 1, top + size[1] - 1), fill=_NOTHING)
                draw.text((left + size[0] // 2, top + size[1] // 2), "none", fill=_INK, font=font, anchor="mm")
            elif column == 0:
                canvas.paste(_picture(samples["image"][place], size), (left, top))
            else:
                frames = samples["sequence"][place, : samples["length"][place]].numpy()
                canvas.paste(
                    _lines(frames, size) if frames.shape[1] <= LINES else _heat(frames, size, limit), (left, top)
                )
            left += size[0] + _GAP
    return canvas


def draw_confusion(counts: torch.Tensor, class_names: list[str]) -> Image.Image:
    """counts (C, C): rows are true classes, columns predictions; darker is a larger share of the true class."""
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    named = len(class_names) <= NAMED
    cell = 30 if named else max(1, 480 // len(class_names))
    names = [shortened(name, 12) for name in class_names] if named else []
    font, small = _font(_TYPE), _font(11)
    margin = round(max((font.getlength(name) for name in names), default=0)) + 2 * _GAP
    side = cell * len(class_names)
    canvas = Image.new("RGB", (margin + side + _GAP, 2 * _TYPE + _GAP + side + (margin if named else _GAP)), "white")
    draw, top = ImageDraw.Draw(canvas), 2 * _TYPE + _GAP
    draw.text((_GAP, _GAP // 2), "true class: rows; predicted: columns", fill=_INK, font=small)
    colors = (255 * matplotlib.colormaps["Blues"](shares)[..., :3]).astype(np.uint8)
    canvas.paste(Image.fromarray(colors).resize((side, side), Image.Resampling.NEAREST), (margin, top))
    for i, name in enumerate(names):
        middle = top + round((i + 0.5) * cell)
        draw.text((margin - _GAP, middle), name, fill=_INK, font=font, anchor="rm")
        label = Image.new("RGB", (margin - _GAP, cell), "white")
        ImageDraw.Draw(label).text((margin - _GAP - 1, cell // 2), name, fill=_INK, font=font, anchor="rm")
        canvas.paste(label.rotate(90, expand=True), (margin + i * cell, top + side + 2))
        for j, count in enumerate(counts[i].tolist()):
            if count:
                ink, middle_x = "white" if shares[i, j] > 0.5 else _INK, margin + round((j + 0.5) * cell)
                draw.text((middle_x, middle), str(count), fill=ink, font=small, anchor="mm")
    return canvas


def draw_table(rows: list[dict[str, str]]) -> Image.Image:
    """Texts by column. 350 pixels wide where that is enough, as TensorBoard shows a picture: so no letter is scaled."""
    size, line = 11, 15
    font, gap = _font(size), 8
    names = list(rows[0])
    cells = [names, *([row[name] for name in names] for row in rows)]
    widths = [max(font.getlength(row[column]) for row in cells) for column in range(len(names))]
    wanted = round(sum(widths)) + gap * (len(names) + 1)
    spare = max(0, 350 - wanted) / len(names)
    canvas = Image.new("RGB", (max(350, wanted), line * len(cells) + gap), "white")
    draw = ImageDraw.Draw(canvas)
    for i, row in enumerate(cells):
        left = gap
        for text, width in zip(row, widths, strict=True):
            draw.text((round(left), gap // 2 + i * line), text, fill=_INK, font=font)
            left += width + gap + spare
    draw.line((gap, gap // 2 + line - 1, canvas.width - gap, gap // 2 + line - 1), fill=_INK)
    return canvas


def _texts(predictions: Predictions) -> Iterator[tuple[str, str, str, str]]:
    """Of each sample a mark, its colour, and two lines."""
    names = [shortened(name, 18) for name in predictions.class_names]

    def says(logits: torch.Tensor) -> str:
        probability, best = logits.softmax(0).max(0)
        return f"{names[int(best)]} ({_percent(float(probability))})"

    for i, label in enumerate(predictions.label.tolist()):
        truth = f"is {names[label]}" if label >= 0 else "class unknown"
        right = label < 0 or bool(predictions.correct[i])
        own = [
            f"{INPUTS[branch]} {says(logits[i]) if predictions.has(branch)[i] else 'none'}"
            for branch, logits in predictions.unimodal_logits.items()
        ]
        mark = ("✓", _RIGHT) if right else ("✗", _WRONG)
        yield *mark, f"{truth}, predicted {says(predictions.logits[i])}", f"alone: {', '.join(own)}"


def _percent(probability: float) -> str:
    """Never 100 % of what is not certain."""
    return f"{100 * probability:.0f} %" if probability < 0.995 else f"{min(100 * probability, 99.9):.1f} %"


def _limit(samples: dict[str, torch.Tensor], has_sequence: torch.Tensor) -> float:
    """Of the colours of all heat maps: most values lie within."""
    real = torch.arange(samples["sequence"].shape[1]) < samples["length"][:, None]
    values = samples["sequence"][real & has_sequence[:, None]].abs()
    return max(float(np.quantile(values.numpy(), 0.98)) if values.numel() else 0.0, 1e-6)


def _picture(image: torch.Tensor, size: tuple[int, int]) -> Image.Image:
    pixels = (image.permute(1, 2, 0).clamp(0, 1) * 255).to(torch.uint8).numpy()
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def _heat(frames: np.ndarray, size: tuple[int, int], limit: float) -> Image.Image:
    colors = matplotlib.colormaps["RdBu_r"](0.5 + frames.T[::-1] / (2 * limit))[..., :3]
    return Image.fromarray((255 * colors).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


def _lines(frames: np.ndarray, size: tuple[int, int]) -> Image.Image:
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=_NOTHING)
    low, high = float(frames.min()), float(frames.max())
    x = np.linspace(2, size[0] - 3, len(frames))
    for values, color in zip(frames.T, _LINE_COLORS, strict=False):
        y = size[1] - 4 - (values - low) / (high - low or 1) * (size[1] - 8)
        points = np.stack([x, y], 1).flatten().tolist()
        draw.line(points if len(frames) > 1 else points + [size[0] - 3, points[1]], fill=color, width=2)
    return canvas


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's own."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
