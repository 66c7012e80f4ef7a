"""What does the cache of decoded files cost, and what does it save?

    python -m tests.benchmarks.cache [rows] [photos]

A table of small files (a grey PNG of 32 x 32 pixels and a .npy of 20 x 13 values a row, no two alike) and one of JPEG
photos of 500 x 400 pixels: `python -m app.commands.manifest` check, cache, and cache again, each as a process of its
own, its start included; the files were just written, so they come from the system's cache. Then one read of an item,
the mean over 2,000 in random order, the best of 5 rounds: from a folder, from memory, and by decoding such a file.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

import numpy as np
from PIL import Image

from app.messages import format_table
from data.manifest.cache import Answer, FolderCache, MemoryCache, Uncached
from data.manifest.config import ManifestConfig
from data.manifest.facts import ImageFacts
from data.manifest.items import pack
from tests.benchmarks.check_manifest import write_npy, write_png, write_table

READS = 2000
ONE_BRANCH = [
    "model.temporal_branch=null",
    "optimizer.groups={image_branch: {lr: 1e-3}, fusion_head: {lr: 1e-3}, unimodal_heads: {lr: 1e-3}}",
    "learning_rates.reductions=[]",
]


def write_photo(path: Path, drawn: np.random.Generator) -> None:
    """Smooth shapes, which JPEG makes small, as it does of a photo."""
    coarse = Image.fromarray(drawn.integers(0, 256, (25, 20, 3), dtype=np.uint8))
    coarse.resize((500, 400), Image.Resampling.BICUBIC).save(path, quality=90)


def seconds_of(command: str, table: Path, overrides: list[str]) -> tuple[str, str]:
    """As "wall (CPU of all its processes)", and what it printed."""
    start, before = time.perf_counter(), os.times()
    arguments = [sys.executable, "-m", "app.commands.manifest", command, str(table), *overrides]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return f"{wall:.1f} ({cpu:.1f})", done.stdout


def starts(table: Path, top: Path, overrides: list[str]) -> tuple[str, ...]:
    overrides = [f"data.cache_folder={top}", *overrides]
    (check, _), (first, _), (second, told) = (
        seconds_of(command, table, overrides) for command in ("check", "cache", "cache")
    )
    files, size = re.search(r"cache: ([\d,]+) files, \1 were there; (.*) in ", told).groups()
    return files, size, check, first, second


def time_of_reads(folder: Path, kind: str, stored: np.ndarray, suffix: str) -> tuple[str, ...]:
    """Microseconds. The file that is decoded holds just these values; its item in the caches is there 2,000 times."""
    config = ManifestConfig(
        source="manifest",
        manifest=str(folder / f"{stored.shape}.csv"),
        batch_size=2,
        image_size=stored.shape[-1] if kind == "image" else 8,
        cache_folder=str(folder),
    )
    cells = [f"{i}{suffix}" for i in np.random.default_rng(0).permutation(READS)]
    item = pack(ImageFacts(bytes(16), 1, 1, "uint8", 0.0, 1.0), stored)
    in_folder, in_memory = FolderCache(config), MemoryCache()
    for cache in (in_folder, in_memory):
        cache.open()
        answers = [Answer(None, int(i).to_bytes(16, "little"), item, len(item)) for i in range(READS)]
        answers = cache.keep(cache.put(answers))
        cache.finish({(kind, f"{i}{suffix}"): answer.key for i, answer in enumerate(answers)}, 0)
    if kind == "image":
        Image.fromarray(stored.transpose(1, 2, 0)).save(folder / f"0{suffix}")
    else:
        np.save(folder / f"0{suffix}", stored)
    found = []
    for samples, names in ((in_folder, cells), (in_memory, cells), (Uncached(folder, config), [f"0{suffix}"] * 200)):
        rounds = timeit.repeat(lambda: [samples.read(kind, cell) for cell in names], number=1, repeat=5)  # noqa: B023
        found.append(min(rounds) / len(names) * 1e6)
    return tuple(f"{value:.0f}" for value in found)


def main(num_rows: int, num_photos: int) -> None:
    small = {"image": (".png", write_png), "sequence": (".npy", write_npy)}
    lines = [("seconds (CPU)", "files", "size", "check", "cache", "cache again")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_table(folder / "small", num_rows, small)
        lines.append(("small files", *starts(table, folder, ["data.image_size=32"])))
        photos = write_table(folder / "photos", num_photos, {"image": (".jpg", write_photo)})
        lines.append(("photos, 224 x 224", *starts(photos, folder, ["data.image_size=224", *ONE_BRANCH])))
        start, _ = seconds_of("--help", table, [])
        print(f"{os.cpu_count()} cores; the start of a process takes {start}")
        print(format_table(lines), "\n")
        drawn = np.random.default_rng(0)
        lines = [("one read (us)", "folder", "memory", "none")]
        for size in (64, 224):
            pixels = drawn.integers(0, 256, (3, size, size), dtype=np.uint8)
            lines.append((f"image {size} x {size} x 3", *time_of_reads(folder, "image", pixels, ".png")))
        frames = drawn.normal(size=(100, 39)).astype(np.float32)
        lines.append(("sequence 100 x 39", *time_of_reads(folder, "sequence", frames, ".npy")))
        print(format_table(lines))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]) if len(sys.argv) > 1 else (10_000, 1000))
