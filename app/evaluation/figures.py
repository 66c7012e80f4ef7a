"""Pictures: a grid of samples with their predictions, and the confusion matrix."""

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

_RIGHT, _WRONG = (23, 105, 56), (178, 24, 43)


def prediction_grid(
    images: torch.Tensor,
    probabilities: torch.Tensor,
    labels: torch.Tensor,
    class_names: list[str],
    columns: int = 8,
) -> torch.Tensor:
    """images (N, 3, H, W) in [0, 1], probabilities (N, C), labels (N,) -> (3, H', W') in [0, 1].

    Each image stands above a bar with the predicted class and its probability, green if right; if wrong, red
    and with the true class.
    """
    side, bar = 96, 18
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * side, rows * (side + bar)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    pixels = (images.permute(0, 2, 3, 1).cpu().numpy() * 255).astype(np.uint8)
    for i, (array, row, label) in enumerate(zip(pixels, probabilities.tolist(), labels.tolist(), strict=True)):
        x, y = i % columns * side, i // columns * (side + bar)
        canvas.paste(Image.fromarray(array).resize((side, side), Image.Resampling.NEAREST), (x, y))
        predicted = int(np.argmax(row))
        text = f"{class_names[predicted]}  {row[predicted]:.0%}"
        if predicted != label:
            text += f"  (is {class_names[label]})"
        draw.rectangle((x, y + side, x + side - 1, y + side + bar), fill=_RIGHT if predicted == label else _WRONG)
        draw.text((x + 4, y + side + 1), text, fill="white", font=font)
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1) / 255


def confusion_figure(counts: torch.Tensor, class_names: list[str], title: str) -> Figure:
    """counts (C, C): rows are true classes, columns predictions. Cell numbers up to 20 classes."""
    size = min(4 + 0.4 * len(class_names), 16)
    figure = Figure(figsize=(size, size * 0.9), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    picture = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="true class")
    plain = {"parse_math": False}  # a name may have a $
    axes.set_title(title, **plain)
    axes.set_xticks(range(len(class_names)), class_names, rotation=90 if len(class_names) > 12 else 0, **plain)
    axes.set_yticks(range(len(class_names)), class_names, **plain)
    if len(class_names) <= 20:
        for (row, column), count in np.ndenumerate(counts.numpy()):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=9)
    return figure
