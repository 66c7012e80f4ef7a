"""Tables of real files, for tests."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog")
SPLITS = ("train", "train", "train", "val", "test")
MANIFEST = {"source": "manifest", "batch_size": 4, "image_size": 8}


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def good_rows(folder: Path, *, frames: int = 6, features: int = 3) -> list[dict[str, str]]:
    """Ten rows, five of a class: 3 training, 1 validation, 1 test; row i + 2 of the file has image i and sequence i."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(10):
        image, sequence = f"{i}.png", f"{i}.npy"
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / image)
        np.save(folder / sequence, generator.normal(size=(frames + i, features)))
        rows.append({"image": image, "sequence": sequence, "label": CLASSES[i % 2], "split": SPLITS[i // 2]})
    return rows
