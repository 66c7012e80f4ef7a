"""What --compare takes and writes. tests/test_models_trained_apart.py compares trained models."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from app.commands.compare import check_paths, comparison_rows, letters, report_left_out
from app.evaluation.predictions import Predictions


def refusal(paths):
    with pytest.raises(ValueError) as error:
        check_paths(paths)
    return str(error.value)


def test_one_checkpoint_and_one_given_twice_are_refused(tmp_path):
    one, other = tmp_path / "a.pt", tmp_path / "b.pt"
    one.touch()
    other.symlink_to(one)
    assert refusal([one]) == f"--compare: found one checkpoint, {one}; give two or more"
    assert refusal([one, Path("c.pt"), one]) == f"--compare: {one} and {one} are the same file; give each file once"
    assert refusal([one, other]).startswith(f"--compare: {one} and {other} are the same file; ")
    check_paths([one, Path("c.pt")])


def test_letters():
    names = [*islice(letters(), 703)]
    assert names[:2] + names[25:28] + names[-1:] == ["A", "B", "Z", "AA", "AB", "AAA"]


def predictions_of(*logits):
    label, size = torch.tensor([0, 1]), len(logits)
    return Predictions(["x", "y"], torch.tensor([4, 7]), label, torch.ones(size, 2), torch.tensor(logits), {})


def test_a_row_has_what_each_model_says():
    tables = {"A": predictions_of([0.0, 0.0], [-2.0, 2.0]), "B": predictions_of([0.0, 3.0], [1.0, 0.0])}
    first, second = comparison_rows(tables)
    assert first == {
        "index": 4, "label": "x", "prediction A": "x", "probability A": "0.500000", "prediction B": "y",
        "probability B": "0.952574",
    }  # fmt: skip
    assert [*second.values()] == [7, "y", "y", "0.982014", "x", "0.731059"]


def test_rows_that_are_left_out_are_told(capsys):
    source = SimpleNamespace(
        unreadable={3: "bad"}, unlabelled={2: "odd"}, not_rows=[], table=SimpleNamespace(rows=[0] * 9)
    )
    model = SimpleNamespace(parts=SimpleNamespace(source=source))
    assert report_left_out(model, 5) == 1
    told = capsys.readouterr()
    assert told.out == "2 of 9 rows have no label, and are left out\n"
    assert told.err.splitlines() == [f"error: row {row}; left out of the comparison" for row in ("2: odd", "3: bad")]
    source.unreadable, source.unlabelled = {}, {}
    assert report_left_out(model, 9) == 0 and capsys.readouterr() == ("", "")
