"""The cache of decoded files, built by real processes: two at once, killed ones, full disks."""

import os
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from app.commands.root_config import load_config
from data.manifest import cache as cache_module
from data.manifest.cache import Cache, folder_of
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
    command = [sys.executable, "train.py", "--config", str(CONFIG), "--dry-run", f"data.manifest={table}"]
    command += [f"data.cache_folder={top}", "model.image_branch.weights=none"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes, **settings)


def end(process, code=0):
    """How many files it decoded, and its errors, without the progress bar."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code and "Traceback" not in err, err
    note = re.search(r"cache: 800 files, (\d+) decoded now; ", out)
    return note and int(note[1]), [line[line.index("error: ") :] for line in err.splitlines() if "error: " in line]


def config_of(table, top):
    return load_config(CONFIG, [f"data.manifest={table}", f"data.cache_folder={top}"])[0].data


def num_entries(top):
    return sum(len(names) for _, _, names in os.walk(top))


def assert_whole(table, top, monkeypatch):
    """All files are there, and what is read is, to the bit, what a decoded file gives."""
    config = config_of(table, top)
    plain = Cache(table.parent, config)
    expected = {
        (kind, f"{i}.{end}"): None for i in range(ROWS) for kind, end in (("image", "png"), ("sequence", "npy"))
    }
    expected = {file: plain.read(*file) for file in expected}
    monkeypatch.setattr(cache_module, "decode", lambda *args: pytest.fail("was not there"))
    checked = check(config, ("image", "sequence"), folder=folder_of(config))
    assert checked.findings == [] and checked.cache.num_decoded == 0
    for file, stored in expected.items():
        found = checked.cache.read(*file)
        assert found.dtype == stored.dtype and found.tobytes() == stored.tobytes()


def test_two_build_it_at_once(table, tmp_path, monkeypatch):
    both = [build(table, tmp_path) for _ in range(2)]
    for process in both:
        _, errors = end(process)
        assert errors == []
    assert_whole(table, tmp_path, monkeypatch)
    assert num_entries(tmp_path) == 2 * ROWS


@pytest.mark.parametrize("whom", ["the process that leads", "all of them"])
def test_one_that_is_killed_leaves_what_it_wrote(table, tmp_path, monkeypatch, whom):
    """Three times, each time when there is more than before. Without their leader processes do what they have."""
    for least in (1, 200, 400):
        process = build(table, tmp_path)
        while num_entries(tmp_path) < least:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        (os.killpg if whom == "all of them" else os.kill)(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close(), process.stderr.close()
    decoded, _ = end(build(table, tmp_path))
    assert decoded < 2 * ROWS - 350
    assert_whole(table, tmp_path, monkeypatch)


def test_a_disk_that_is_full_while_it_is_built(table, small_disk, monkeypatch):
    """About 9 MiB are needed."""
    disk = small_disk("6m")
    _, errors = end(build(table, disk), code=2)
    remedy = "make room, name another folder (data.cache_folder), or set data.cache=none"
    folder = folder_of(config_of(table, disk))
    assert errors == [f"error: data.cache: {folder} cannot be written (No space left on device); {remedy}"]
    small_disk("60m")
    decoded, _ = end(build(table, disk))
    assert 0 < decoded < 2 * ROWS
    assert_whole(table, disk, monkeypatch)


def test_a_limit_of_the_size_of_files(table, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    _, errors = end(build(table, tmp_path, preexec_fn=limit), code=2)
    assert len(errors) == 1 and "cannot be written (File too large); make room" in errors[0]
