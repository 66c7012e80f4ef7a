import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from app.config import save_config
from app.records.checkpoint import save_checkpoint
from app.records.run_folder import create_run_folder, lock_run_folder, newest_checkpoint, run_folder_of
from tests.conftest import ROOT


def test_a_second_run_of_a_name_gets_a_number(tmp_path):
    names = [create_run_folder(tmp_path / "runs", "fusion").name for _ in range(3)]
    assert names == ["fusion", "fusion-2", "fusion-3"]


def test_runs_that_start_at_once_never_get_the_same_folder(tmp_path):
    with ThreadPoolExecutor(20) as pool:
        names = [path.name for path in pool.map(lambda _: create_run_folder(tmp_path / "runs", "fusion"), range(20))]
    assert sorted(names) == sorted(["fusion", *(f"fusion-{i}" for i in range(2, 21))])


def test_a_folder_in_which_no_run_can_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"no run can be made in .*file \(File exists\); give another run.folder"):
        create_run_folder(tmp_path / "file", "fusion")
    with pytest.raises(ValueError, match=r"no run can be made in .*file/runs \(Not a directory\)"):
        create_run_folder(tmp_path / "file" / "runs", "fusion")


@pytest.fixture
def saved_run(checkpoint_content):
    def save(folder: Path, name: str | None, saved_at: float) -> Path:
        path = folder / "checkpoints" / "last.pt"
        save_checkpoint(path, {**checkpoint_content, "saved_at": float(saved_at)})
        save_config({"run": {"name": name, "folder": "runs"}} if name else {"other": 1}, folder / "config.yaml")
        return path

    return save


def test_the_run_to_continue_is_known_by_its_name_in_the_config_and_by_the_time_in_its_checkpoint(
    tmp_path, monkeypatch, saved_run
):
    assert newest_checkpoint(tmp_path, "smoke") is None
    assert newest_checkpoint(tmp_path / "nowhere", "smoke") is None
    saved_run(tmp_path / "smoke", "smoke", 3)
    last = saved_run(tmp_path / "moved", "smoke", 5)
    saved_run(tmp_path / "smoke-2", "smoke", 4)
    saved_run(tmp_path / "smoke-7", "smoke-7", 9)  # so its user called it
    saved_run(tmp_path / "smoke-3", None, 9)  # of another program
    saved_run(tmp_path / "smoke-4", "${oc.env:NAME}", 9)  # nor is it of this one
    (tmp_path / "smoke-5").mkdir()
    save_config({"run": {"name": "smoke"}}, tmp_path / "smoke-5" / "config.yaml")  # stopped before its first checkpoint
    os.utime(last, (0, 0))  # as a copy may have
    assert newest_checkpoint(tmp_path, "smoke") == last
    assert newest_checkpoint(tmp_path, "smoke-7").parts[-3] == "smoke-7"
    assert newest_checkpoint(tmp_path, "smoke-2") is None
    monkeypatch.setenv("NAME", "smoke")
    assert newest_checkpoint(tmp_path, "smoke") == last


def test_a_checkpoint_belongs_to_the_run_whose_config_lies_beside_it(tmp_path, saved_run):
    assert run_folder_of(saved_run(tmp_path / "smoke", "smoke", 1)) == tmp_path / "smoke"
    for copied in (tmp_path / "mine" / "checkpoints" / "last.pt", tmp_path / "smoke" / "last.pt"):
        assert run_folder_of(copied) is None


def test_a_run_that_cannot_be_read_is_not_passed_over(tmp_path, saved_run):
    saved_run(tmp_path / "smoke", "smoke", 1)
    damaged = saved_run(tmp_path / "smoke-2", "smoke", 2)
    damaged.write_bytes(damaged.read_bytes()[:-50])
    remedy = f"give --resume PATH, or move {tmp_path / 'smoke-2'} out of {tmp_path}"
    with pytest.raises(ValueError) as error:
        newest_checkpoint(tmp_path, "smoke")
    assert str(damaged) in str(error.value) and remedy in str(error.value)
    assert newest_checkpoint(tmp_path, "other") is None

    config = tmp_path / "smoke-2" / "config.yaml"
    config.write_text("run: {na")
    with pytest.raises(ValueError) as error:
        newest_checkpoint(tmp_path, "other")
    assert str(config) in str(error.value) and remedy in str(error.value)
    damaged.unlink()
    assert newest_checkpoint(tmp_path, "smoke").parts[-3] == "smoke"


HOLD = """
import sys, time
from pathlib import Path
from app.records.run_folder import lock_run_folder
with lock_run_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock until it reads a line."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_held_run_folder_is_refused_and_free_again_after_a_clean_end(tmp_path, holder, capsys):
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert {path.name for path in files} == {"lock", "lock.json"}
    with pytest.raises(ValueError) as error, lock_run_folder(tmp_path):
        pass
    owner = json.loads((tmp_path / "lock.json").read_text())
    assert (owner["host"], owner["pid"]) == (socket.gethostname(), holder.pid)
    assert abs(datetime.fromisoformat(owner["started"]).timestamp() - time.time()) < 600
    told = f"{tmp_path} is in use by process {holder.pid} on {owner['host']}, started {owner['started']}; wait for"
    assert str(error.value).startswith(told)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files

    holder.communicate("\n")
    assert holder.returncode == 0 and list(tmp_path.iterdir()) == []
    with lock_run_folder(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_lock_of_a_killed_process_is_taken_over_and_said(tmp_path, holder, capsys):
    holder.kill()
    holder.wait()
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "lock.json"}
    with lock_run_folder(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"taking over {tmp_path}, which process {holder.pid} on {socket.gethostname()}, started 20")
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_given_up_after_an_error_too(tmp_path):
    with pytest.raises(KeyboardInterrupt), lock_run_folder(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(ValueError, match=r"run folder .* cannot be written \(Is a directory\); make it writable"):
        with lock_run_folder(tmp_path):
            pass
    (tmp_path / "lock").rmdir()
    (tmp_path / "lock.tmp").mkdir()
    with pytest.raises(ValueError, match=r"run folder .* cannot be written \(Is a directory\); make it writable"):
        with lock_run_folder(tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock.tmp"]
