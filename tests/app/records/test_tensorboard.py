import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.records.tensorboard import TensorBoard
from tests.conftest import ROOT

# pytest turns what a thread would print on stderr into this warning.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


def test_a_full_disk_is_reported_at_the_next_call_and_by_no_traceback(small_disk):
    folder = small_disk("64k") / "tensorboard"
    board = TensorBoard(folder, ["image_branch"], [])
    with pytest.raises(OSError, match=r"tensorboard could not be written: the disk is full$"):
        for step in range(100_000):
            board.train(step, {"loss": 1.0})
    with contextlib.suppress(OSError):
        board.close()


def test_what_the_thread_could_not_write_is_reported_when_the_board_is_closed(small_disk):
    disk = small_disk("64k")
    board = TensorBoard(disk / "tensorboard", ["image_branch"], [])
    board.writer.flush()
    with pytest.raises(OSError):
        (disk / "filler").write_bytes(bytes(2**17))
    worker = board.writer.file_writer.event_writer._async_writer._worker
    worker._next_flush_time = 0  # instead of waiting 2 minutes
    board.about("x" * 5000, [[{"group": "a"}]], {"lr": 0.1})
    while worker.is_alive():
        time.sleep(0.01)
    small_disk("1m")  # so that only what is lost is left to be told
    with pytest.raises(OSError, match=r"tensorboard could not be written: the disk is full$"):
        board.close()


def test_a_board_that_cannot_be_written_leaves_no_thread_behind(small_disk):
    before = threading.active_count()
    board = TensorBoard(small_disk("64k") / "run", ["image_branch", "fusion_head"], [])
    with pytest.raises(OSError):
        for step in range(100_000):
            board.train(step, {"loss": 1.0})
    with contextlib.suppress(OSError):
        board.close()
    assert threading.active_count() == before


HOLDS_BACK = """
import os, signal, sys, time
from pathlib import Path
from app.records.tensorboard import TensorBoard

board = TensorBoard(Path(sys.argv[1]), ["image_branch", "fusion_head"], [])
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    print("held back")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    time.sleep(0.1)
except KeyboardInterrupt:
    print("heeded")
board.close()
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="nothing is forked on Windows")
def test_an_interrupt_that_the_main_thread_holds_back_is_not_heeded_because_of_the_boards_threads(tmp_path):
    """In a process of its own, without the threads that other tests have left. OpenMP's would get it too."""
    command = [sys.executable, "-c", HOLDS_BACK, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.split("\n") == ["held back", "heeded", ""], done.stderr


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../../out", "new parts", "a.b", "日本"])
def test_a_group_of_any_name_has_a_sub_run_inside_the_run(tmp_path, name):
    board = TensorBoard(tmp_path / "run", [name, "other"], ["image_branch"])
    board.groups(1, {name: {"lr": 0.5}, "other": {"param_norm": 2.0}})
    board.validation(1, {"image_branch/loss": 3.0}, {"plateau_best": {name: 4.0, f"{name}.1": 5.0}})
    board.close()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    folders = {path.parent.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("events.*")}
    (own,) = folders - {Path("."), Path("groups/other"), Path("branches/image_branch")}
    assert own.parent == Path("groups")
    events = EventAccumulator(str(tmp_path / "run" / own)).Reload()
    assert set(events.Tags()["scalars"]) == {"2_groups/lr", "6_rules/plateau_best", "6_rules/plateau_best.1"}


@pytest.mark.parametrize(("classes", "drawn"), [(20, 20), (21, 0)])
def test_the_recall_of_each_class_is_drawn_up_to_20_classes(tmp_path, classes, drawn):
    board = TensorBoard(tmp_path, ["image_branch"], [])
    recall = {f"recall/class {i}": i / classes for i in range(classes)}
    board.validation(5, {"loss": 1.0, "balanced_accuracy": 0.5, **recall}, {})
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags == {
        "1_val/loss",
        "7_classes/balanced_accuracy",
        *(f"7_classes/{name}" for name in list(recall)[:drawn]),
    }


def test_of_a_long_recording_the_beginning_can_be_heard(tmp_path):
    board = TensorBoard(tmp_path, [], [])
    board.recordings([(np.ones(100, np.float32), 1000), (np.zeros(30_000, np.float32), 1000)])
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    heard = [events.Audio(f"val/recording_{i}")[0] for i in (1, 2)]
    assert [sound.sample_rate for sound in heard] == [1000, 1000]
    # 16 bit, after the header.
    assert [len(sound.encoded_audio_string) - 44 for sound in heard] == [2 * 100, 2 * 20_000]


def test_what_a_stopped_run_wrote_after_its_checkpoint_is_hidden_in_each_sub_run(tmp_path):
    for resume_after, steps in ((None, range(1, 11)), (5, range(6, 9))):
        board = TensorBoard(tmp_path, ["a"], ["image_branch"], resume_after)
        for step in steps:
            board.train(step, {"loss": float(step)})
            board.groups(step, {"a": {"lr": float(step)}})
            board.validation(step, {"image_branch/loss": float(step)}, {})
        board.close()
        time.sleep(1.1)  # files are named, and so read in order, by the second
    for run, tag in ((".", "4_train/loss"), ("groups/a", "2_groups/lr"), ("branches/image_branch", "1_val/loss")):
        events = EventAccumulator(str(tmp_path / run)).Reload()
        assert [event.step for event in events.Scalars(tag)] == [*range(1, 9)], run
