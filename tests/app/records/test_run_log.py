import json
import math
import os
from pathlib import Path

import pytest

from app.records.run_log import JsonLines


def test_lines_are_json_even_for_values_that_json_lacks(tmp_path):
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.write({"step": 1, "loss": math.nan, "groups": {"a": {"norm": math.inf}}})
    lines.close()
    (line,) = (tmp_path / "x.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 1, "loss": "nan", "groups": {"a": {"norm": "inf"}}}


def test_resuming_drops_what_was_written_after_the_checkpoint(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"ste')
    lines = JsonLines(path, keep_to_step=20)
    lines.write({"step": 21})
    lines.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 21]
    assert os.listdir(tmp_path) == ["x.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_reported_with_the_name_of_the_file(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    file = JsonLines(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match=r"metrics.jsonl could not be written: the disk is full$"):
        file.write({"step": 1})
