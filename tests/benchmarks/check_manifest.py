"""What does it cost to check a table of many small files?

    python -m tests.benchmarks.check_manifest [rows] [recordings]

100,000 rows and 2,000 recordings unless told otherwise. Each row names a grey PNG of 32 x 32 pixels and a .npy of 20 x
13 values, no two files alike; then a table of recordings, WAV files of one second. `python -m app.commands.manifest
check` runs on each as a process of its own, its start included; the files were just written, so they come from the
system's cache. CPU: user and system time of all its processes. Memory, the most found at any half second, Linux only:
what the process and its workers hold, pages that they share counted once, and of mapped files (libraries) what the
process with most of them holds.
"""

import csv
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from app.messages import format_table

NUM_CLASSES = 10
SPLITS = ("train", "train", "val", "test")  # said by the table: a draw may leave a class of a small one without a split
LEAST_ROWS = NUM_CLASSES * len(SPLITS)  # each class in each split
INTERVAL = 0.5  # seconds between two looks at the memory


def write_png(path: Path, drawn: np.random.Generator) -> None:
    rows = np.zeros((32, 33), np.uint8)  # each begins with its filter: 0, none
    rows[:, 1:] = drawn.integers(0, 256, (32, 32), np.uint8)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 1)),
        (b"IEND", b""),
    )
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)


def write_npy(path: Path, drawn: np.random.Generator) -> None:
    np.save(path, drawn.standard_normal((20, 13), np.float32))


def write_wav(path: Path, drawn: np.random.Generator) -> None:
    soundfile.write(path, drawn.standard_normal(16000, np.float32) / 10, 16000)


def write_table(folder: Path, num_rows: int, writers: dict[str, tuple[str, Callable]]) -> Path:
    """
    Args:
        writers: column -> suffix, and what writes one file.
    """
    drawn = np.random.default_rng(0)
    for column in writers:
        (folder / column).mkdir(parents=True)
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow((*writers, "label", "split"))
        for row in range(num_rows):
            names = [f"{column}/{row:06}{suffix}" for column, (suffix, _) in writers.items()]
            for name, (_, write) in zip(names, writers.values(), strict=True):
                write(folder / name, drawn)
            table.writerow((*names, f"class {row % NUM_CLASSES}", SPLITS[row // NUM_CLASSES % len(SPLITS)]))
    return folder / "table.csv"


def in_kib(file: Path) -> dict[str, int]:
    """The entries of /proc/PID/status or smaps_rollup that are a number; none where the process has just ended."""
    try:
        entries = [line.split(":", 1) for line in file.read_text().splitlines() if ":" in line]
    except OSError:
        return {}
    return {name: int(words[0]) for name, text in entries if (words := text.split()) and words[0].isdigit()}


def with_descendants(pid: int) -> list[Path]:
    """The process and all that it started, in /proc."""
    parents = {int(entry.name): in_kib(entry / "status").get("PPid") for entry in Path("/proc").glob("[0-9]*")}
    found = [pid]
    for known in found:
        found += [process for process, parent in parents.items() if parent == known]
    return [Path(f"/proc/{process}") for process in found]


def memory_of(processes: list[Path]) -> float:
    """MiB."""
    status = [in_kib(process / "status") for process in processes]
    shares = [in_kib(process / "smaps_rollup") for process in processes]
    own = sum(share.get("Pss_Anon", 0) + share.get("Pss_Shmem", 0) for share in shares)
    return (own + max(entries.get("RssFile", 0) for entries in status)) / 1024


def measure(table: Path, overrides: list[str]) -> dict[str, float]:
    before, start = os.times(), time.perf_counter()
    with open(table.parent / "output.txt", "w+") as output:
        command = [sys.executable, "-m", "app.commands.manifest", "check", str(table), *overrides]
        process = subprocess.Popen(command, stdout=output, stderr=output)
        memory, processes = 0.0, 1
        while process.poll() is None:
            if Path("/proc").is_dir():
                alive = with_descendants(process.pid)
                memory, processes = max(memory, memory_of(alive)), max(processes, len(alive))
            time.sleep(INTERVAL)
        wall, after = time.perf_counter() - start, os.times()
        output.seek(0)
        if process.returncode or "findings: none" not in output.read():
            output.seek(0)
            raise RuntimeError(f"the table should have been found right: {output.read()[-2000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall": wall, "cpu": cpu, "memory": memory, "processes": processes}


def main(num_rows: int = 100_000, num_recordings: int = 2000) -> None:
    if min(num_rows, num_recordings) < LEAST_ROWS:
        sys.exit(f"found {num_rows} rows and {num_recordings} recordings; give at least {LEAST_ROWS} of each")
    small = {"image": (".png", write_png), "sequence": (".npy", write_npy)}
    kinds = {
        "PNG and .npy": (num_rows, small, []),
        "WAV of 1 s": (num_recordings, {"audio": (".wav", write_wav)}, ["model.image_branch=null"]),
    }
    lines = [("files", "rows", "wall (s)", "CPU (s)", "files per s", "processes", "memory (MiB)")]
    with tempfile.TemporaryDirectory() as folder:
        for name, (rows, writers, overrides) in kinds.items():
            table = write_table(Path(folder) / name.replace(" ", "_"), rows, writers)
            found = measure(table, overrides)
            speed = rows * len(writers) / found["wall"]
            figures = (f"{found['wall']:.1f}", f"{found['cpu']:.1f}", f"{speed:,.0f}")
            lines.append((name, f"{rows:,}", *figures, f"{found['processes']}", f"{found['memory']:.0f}"))
    print(f"{os.cpu_count()} cores")
    print(format_table(lines))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
