"""Processes that make batches, in real runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
HANG_GUARD = 10 * 60  # seconds


def smoke(folder, *overrides):
    config = str(ROOT / "configs" / "smoke.yaml")
    return ["--config", config, f"run.folder={folder}", "run.device=cpu", "run.limit_batches=5", *overrides]


def test_runs_with_workers_equal_runs_without_and_resume_without_them(tmp_path):
    assert train.main([*smoke(tmp_path, "run.name=none")]) == 0
    assert train.main([*smoke(tmp_path, "run.name=two", "data.workers=2", "data.on_device=always")]) == 0
    assert train.main([*smoke(tmp_path, "run.name=mixed", "data.workers=2", "run.epochs=1")]) == 0
    last = tmp_path / "mixed" / "checkpoints" / "last.pt"
    assert train.main([*smoke(tmp_path, "run.name=mixed", "--resume", str(last))]) == 0
    saved = [
        torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True) for name in ("none", "two", "mixed")
    ]
    assert saved[0]["position"]["epoch"] == 2
    for other in saved[1:]:
        assert all(torch.equal(saved[0]["model"][name], other["model"][name]) for name in saved[0]["model"])


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_the_run(tmp_path, end):
    """A Ctrl-C reaches all processes of a terminal, another signal the one that it is sent to."""
    command = [sys.executable, str(ROOT / "train.py"), *smoke(tmp_path, "run.epochs=1000", "data.workers=2")]
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True, **heed
    )
    last, started = tmp_path / "smoke" / "checkpoints" / "last.pt", time.monotonic()
    while not last.exists() and process.poll() is None and time.monotonic() - started < HANG_GUARD:
        time.sleep(0.1)
    workers = children_of(process.pid)
    assert len(workers) >= 2
    if end == signal.SIGINT:
        os.killpg(process.pid, end)
    else:
        process.send_signal(end)
    output, error = process.communicate(timeout=HANG_GUARD)
    gone = time.monotonic()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() - gone < (2 if sys.platform == "linux" else 30)
        time.sleep(0.1)
    if end == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in error and f"interrupted; continue with --resume {last}" in error
    assert train.main(smoke(tmp_path, "run.epochs=1", "--resume", str(last))) == 0


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
