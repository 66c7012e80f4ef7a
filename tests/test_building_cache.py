"""The cache of decoded files, built by real processes: two at once, killed ones, full disks."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from app.commands.root_config import load_config
from data.manifest import reading
from data.manifest.cache import FolderCache, Uncached, folder_of
from data.manifest.check import check
from tests.conftest import ROOT
from tests.data.manifest.tables import write_rows

pytestmark = pytest.mark.slow
ROWS = 400
CONFIG = ROOT / "configs" / "manifest.yaml"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """400 images of noise, each a few ms to decode, and 400 arrays."""
    folder = tmp_path_factory.mktemp("data")
    generator, rows = np.random.default_rng(0), []
    for i in range(ROWS):
        pixels = generator.integers(0, 256, (300, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png", compress_level=1)
        np.save(folder / f"{i}.npy", generator.normal(size=(50, 20)).astype(np.float32))
        split = ("train", "train", "val", "test")[i // 2 % 4]
        rows.append({"image": f"{i}.png", "sequence": f"{i}.npy", "label": "ab"[i % 2], "split": split})
    return write_rows(folder / "table.csv", rows)


def build(table, top, **settings):
    """A process that builds the cache below the folder `top`, in a process group of its own."""
    command = [sys.executable, "-m", "app.commands.manifest", "cache", str(table), "--config", str(CONFIG)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [*command, f"data.cache_folder={top}"], cwd=ROOT, start_new_session=True, **pipes, **settings
    )


def end(process, code=0):
    """What it printed: its output, and its errors without the progress bar."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code and "Traceback" not in err, err
    return out, [line[line.index("error: ") :] for line in err.splitlines() if "error: " in line]


def config_of(table, top):
    return load_config(CONFIG, [f"data.manifest={table}", f"data.cache_folder={top}"])[0].data


def num_found(out):
    return int(out.split(", ")[1].removesuffix(" were there; " + out.split("; ")[-1]).split()[0])


def assert_whole(table, top, monkeypatch):
    """All files are there, and what is read is, to the bit, what a file decoded anew gives."""
    config = config_of(table, top)
    cache, samples = FolderCache(config), Uncached(table.parent, config)
    monkeypatch.setattr(reading, "decode", lambda *args: pytest.fail("was not there"))
    checked = check(config, ("image", "sequence"), cache=cache)
    assert len(checked.facts) == 2 * ROWS and checked.findings == []
    for file in checked.facts:
        found, expected = cache.read(*file), samples.read(*file)
        assert found.dtype == expected.dtype and found.tobytes() == expected.tobytes()


def test_two_build_it_at_once(table, tmp_path, monkeypatch):
    both = [build(table, tmp_path) for _ in range(2)]
    for process in both:
        out, errors = end(process)
        assert out.startswith("cache: 800 files, ") and errors == []
    assert_whole(table, tmp_path, monkeypatch)


@pytest.mark.parametrize("whom", ["the process that leads", "all of them"])
def test_one_that_is_killed_leaves_what_it_wrote(table, tmp_path, monkeypatch, whom):
    """Four times, each time when there is more than before. Without their leader processes do what they have."""
    data = folder_of(config_of(table, tmp_path)) / "data.mdb"
    for least in (1, 4, 5, 6):  # MiB, of about 9 and a half
        process = build(table, tmp_path)
        while not data.exists() or data.stat().st_size < least * 2**20:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        (os.killpg if whom == "all of them" else os.kill)(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close(), process.stderr.close()
    found = num_found(end(build(table, tmp_path))[0])
    assert 0 < found < 2 * ROWS if whom == "all of them" else 0 < found
    assert_whole(table, tmp_path, monkeypatch)


def test_a_disk_that_is_full_while_it_is_built(table, tmp_path, small_disk, monkeypatch):
    """About 9 MiB are needed. The images from which the size is estimated become small ones, the others fill it."""
    folder = tmp_path / "data"
    shutil.copytree(table.parent, folder)
    drawn = np.random.default_rng(0).permutation(ROWS)[: reading._LOOKED_AT]
    for i in range(ROWS):
        np.save(folder / f"{i}.npy", np.random.default_rng(i).normal(size=(50 if i in drawn else 500, 20)))
    table = folder / "table.csv"
    disk = small_disk("24m")
    (disk / "another").write_bytes(bytes(10 * 2**20))  # LMDB may take as much as the disk has in all
    out, errors = end(build(table, disk), code=2)
    remedy = "make room, name another folder (data.cache_folder), or set data.cache=memory or none"
    assert out == "" and errors == [
        f"error: data.cache: the disk of {folder_of(config_of(table, disk))} is full (or fails); {remedy}"
    ]
    small_disk("60m")
    assert num_found(end(build(table, disk))[0]) > 0
    assert_whole(table, disk, monkeypatch)


def test_a_disk_that_is_too_small(table, small_disk):
    out, errors = end(build(table, small_disk("6m")), code=2)
    assert out == "" and len(errors) == 1
    assert "are needed, and 5." in errors[0] and "MiB are free on the disk of" in errors[0]


def test_a_limit_of_the_size_of_files(table, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 2**20, 4 * 2**20))

    out, errors = end(build(table, tmp_path, preexec_fn=limit), code=2)
    assert out == "" and len(errors) == 1 and "is full (or fails); make room" in errors[0]
