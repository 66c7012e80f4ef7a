import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.records.tensorboard import TensorBoard

# pytest turns what a thread would print on stderr into this warning.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


def test_a_full_disk_is_reported_at_the_next_call_and_by_no_traceback(small_disk):
    folder = small_disk("64k") / "tensorboard"
    board = TensorBoard(folder, ["image_branch"], [])
    with pytest.raises(OSError, match=r"tensorboard could not be written: the disk is full$"):
        for step in range(100_000):
            board.train(step, {"loss": 1.0})


def test_what_the_thread_could_not_write_is_reported_when_the_board_is_closed(small_disk):
    disk = small_disk("64k")
    board = TensorBoard(disk / "tensorboard", ["image_branch"], [])
    board.writer.flush()
    with pytest.raises(OSError):
        (disk / "filler").write_bytes(bytes(2**17))
    worker = board.writer.file_writer.event_writer._async_writer._worker
    worker._next_flush_time = 0  # instead of waiting 2 minutes
    board.config("x" * 5000)
    while worker.is_alive():
        time.sleep(0.01)
    small_disk("1m")  # so that only what is lost is left to be told
    with pytest.raises(OSError, match=r"tensorboard could not be written: the disk is full$"):
        board.close()


@pytest.mark.parametrize(("classes", "drawn"), [(20, 20), (21, 0)])
def test_the_recall_of_each_class_is_drawn_up_to_20_classes(tmp_path, classes, drawn):
    board = TensorBoard(tmp_path, ["image_branch"], [])
    recall = {f"recall/class {i}": i / classes for i in range(classes)}
    board.validation(5, {"loss": 1.0, "balanced_accuracy": 0.5, **recall}, {})
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags == {"val/loss", "val/balanced_accuracy", *(f"val/{name}" for name in list(recall)[:drawn])}
