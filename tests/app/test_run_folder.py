import json
import math
import os

from app.run_folder import JsonLines, create_run_folder, newest_checkpoint


def test_a_second_run_of_a_name_gets_a_number(tmp_path):
    names = [create_run_folder(tmp_path / "runs", "fusion").name for _ in range(3)]
    assert names == ["fusion", "fusion-2", "fusion-3"]


def test_the_newest_checkpoint_of_a_name_is_found_and_other_names_are_not(tmp_path):
    assert newest_checkpoint(tmp_path, "fusion") is None
    for i, name in enumerate(["fusion-3", "fusion", "fusion-2", "fusion-wide", "fusion-1e-4", "fusion-2-b"]):
        path = tmp_path / name / "checkpoints" / "last.pt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (i, i))
    assert newest_checkpoint(tmp_path, "fusion") == tmp_path / "fusion-2" / "checkpoints" / "last.pt"


def test_lines_are_json_even_for_values_that_json_lacks(tmp_path):
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.write({"step": 1, "loss": math.nan, "groups": {"a": {"norm": math.inf}}})
    lines.close()
    (line,) = (tmp_path / "x.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 1, "loss": "nan", "groups": {"a": {"norm": "inf"}}}


def test_resuming_drops_what_was_written_behind_the_checkpoint(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"ste')
    lines = JsonLines(path, keep_to_step=20)
    lines.write({"step": 21})
    lines.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 21]
    assert os.listdir(tmp_path) == ["x.jsonl"]
