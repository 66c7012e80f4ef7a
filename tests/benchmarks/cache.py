"""What does the cache of decoded files cost, and what does it save?

    python -m tests.benchmarks.cache [rows] [photos]

A table of small files (a grey PNG of 32 x 32 pixels and a .npy of 20 x 13 values a row, no two alike) and one of JPEG
photos of 500 x 400 pixels: the check without a folder, with an empty one, and with what that left, in one process and
its workers; the files were just written, so they come from the system's cache. Then one read of a file, the mean over
2,000 in random order, the best of 5 rounds: from the folder, and by decoding it.
"""

import os
import sys
import tempfile
import time
import timeit
from pathlib import Path

import numpy as np
from PIL import Image

from app.messages import format_table, in_words
from data.manifest.cache import Cache
from data.manifest.check import check
from data.manifest.config import ManifestConfig
from tests.benchmarks.check_manifest import write_npy, write_png, write_table

READS = 2000


def write_photo(path: Path, drawn: np.random.Generator) -> None:
    """Smooth shapes, which JPEG makes small, as it does of a photo."""
    coarse = Image.fromarray(drawn.integers(0, 256, (25, 20, 3), dtype=np.uint8))
    coarse.resize((500, 400), Image.Resampling.BICUBIC).save(path, quality=90)


def checks(table: Path, folder: Path, modalities: list[str], image_size: int) -> list[str]:
    """Seconds, as "wall (CPU of all processes)"."""
    config = ManifestConfig(source="manifest", manifest=str(table), batch_size=2, image_size=image_size)
    found = []
    for kept in (None, folder, folder):
        start, before = time.perf_counter(), os.times()
        checked = check(config, modalities, folder=kept)
        wall, after = time.perf_counter() - start, os.times()
        found.append(f"{wall:.1f} ({sum(after[:4]) - sum(before[:4]):.1f})")
    return [f"{len(checked.facts):,}", in_words(checked.cache.size), *found]


def time_of_reads(folder: Path, kind: str, values: np.ndarray, suffix: str) -> list[str]:
    """Microseconds. All files have the same values, but for one."""
    config = ManifestConfig(source="manifest", manifest="", batch_size=2, image_size=max(8, values.shape[-1]))
    values = values.copy()
    for i in range(READS):
        values.flat[:2] = i % 256, i // 256
        if kind == "image":
            Image.fromarray(values.transpose(1, 2, 0)).save(folder / f"{i}{suffix}", compress_level=1)
        else:
            np.save(folder / f"{i}{suffix}", values)
    files, found = [(kind, f"{i}{suffix}") for i in np.random.default_rng(0).permutation(READS)], []
    for kept in (folder / "decoded", None):
        cache = Cache(folder, config, kept)
        cache.look_at(files)
        rounds = timeit.repeat(lambda: [cache.read(*file) for file in files], number=1, repeat=5)  # noqa: B023
        found.append(f"{min(rounds) / READS * 1e6:.0f}")
    return found


def main(num_rows: int = 10_000, num_photos: int = 1000) -> None:
    small = {"image": (".png", write_png), "sequence": (".npy", write_npy)}
    lines = [("seconds (CPU)", "files", "size", "check", "with a folder", "again")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_table(folder / "small", num_rows, small)
        lines.append(("small files", *checks(table, folder / "a", ["image", "sequence"], 32)))
        table = write_table(folder / "photos", num_photos, {"image": (".jpg", write_photo)})
        lines.append(("photos, 224 x 224", *checks(table, folder / "b", ["image"], 224)))
        print(f"{os.cpu_count()} cores")
        print(format_table(lines), "\n")
        drawn = np.random.default_rng(0)
        lines = [("one read (us)", "folder", "none")]
        for size in (64, 224):
            pixels = drawn.integers(0, 256, (3, size, size), dtype=np.uint8)
            lines.append((f"image {size} x {size} x 3", *time_of_reads(folder, "image", pixels, ".png")))
        frames = drawn.normal(size=(100, 39)).astype(np.float32)
        lines.append(("sequence 100 x 39", *time_of_reads(folder, "sequence", frames, ".npy")))
        print(format_table(lines))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
