"""What checkpoints must have in common to be compared. tests/test_models_trained_apart.py compares trained ones."""

import csv
import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from app.commands.compare import (
    check_classes,
    check_paths,
    check_rows,
    check_what_is_added,
    comparison_rows,
    folder_name,
    letters,
    read_otherwise,
    report_left_out,
    write_comparison,
)
from app.commands.trained import Trained
from app.evaluation.predictions import Predictions
from data.digits import DigitsConfig
from data.manifest.config import ManifestConfig

BOTH = ("image_branch", "temporal_branch")
DIGITS = {"source": "digits", "batch_size": 8, "image_size": 32, "image_noise": 0.25, "sequence_noise": 1.5}
FILES = {"source": "manifest", "batch_size": 8, "image_size": 32, "manifest": "a.csv"}


class Source:
    def __init__(self, labels, image, sequence):
        self.digests = {None: labels, "image": image, "sequence": sequence}

    def fingerprint(self, split, modality):
        assert split == "test"
        return self.digests[modality]


class Listed:
    def __init__(self, cells):
        self.all = cells

    def __len__(self):
        return len(self.all)

    def cells(self, index):
        return self.all[index]


def member(name, branches=BOTH, *, classes="abc", config=None, labels="l", image="i", sequence="s", cells=({},)):
    parts = SimpleNamespace(
        branches=[*branches],
        class_names=[*classes],
        source=Source(labels, image, sequence),
        splits={"test": Listed(cells)},
    )
    return Trained(Path(name), {}, parts, None, config or DigitsConfig(**DIGITS), {}, [])


def refusal(check, *arguments):
    with pytest.raises(ValueError) as error:
        check(*arguments)
    assert str(error.value).startswith("--compare: ")
    return str(error.value).removeprefix("--compare: ")


def test_one_checkpoint_and_one_given_twice_are_refused(tmp_path):
    one, other = tmp_path / "a.pt", tmp_path / "b.pt"
    one.touch()
    other.symlink_to(one)
    assert refusal(check_paths, [one]) == f"found one checkpoint, {one}; give two or more"
    assert refusal(check_paths, [one, Path("c.pt"), one]).startswith(f"{one} is given twice, and ")
    assert refusal(check_paths, [one, other]).startswith(f"{one} and {other} are the same file, and ")
    check_paths([one, Path("c.pt")])


@pytest.mark.parametrize(("classes", "where"), [("abd", "'c', the latter has 'd'"), ("ab", "'c', the latter has ''")])
def test_other_classes_are_refused(classes, where):
    assert where in refusal(check_classes, member("a.pt"), member("b.pt", classes=classes))
    check_classes(member("a.pt"), member("b.pt"))


def test_rows_are_the_same_where_the_inputs_that_both_read_are():
    fused, cells = member("a.pt"), ({"row": "2", "sequence": "NA"},)
    for same in (
        member("b.pt"),
        member("b.pt", BOTH[:1], sequence="x", cells=cells),
        member("b.pt", BOTH[1:], image="x"),
    ):
        check_rows(fused, same, "test")
        check_rows(same, fused, "test")
    for other in (member("b.pt", image="x"), member("b.pt", sequence="x"), member("b.pt", BOTH[:1], image="x")):
        assert (
            "the rows of test must be the same; a.pt has 1 rows, b.pt has 1 rows, which differ in order, "
            in refusal(check_rows, fused, other, "test")
        )
    fewer = refusal(check_rows, fused, member("b.pt", image="x", cells=()), "test")
    assert "a.pt has 1 rows, b.pt has 0 rows, which differ in number" in fewer

    image, sequence = member("a.pt", BOTH[:1], cells=cells), member("b.pt", BOTH[1:], cells=cells)
    check_rows(image, sequence, "test")
    refusal(check_rows, image, member("b.pt", BOTH[1:], cells=cells, labels="x"), "test")
    refusal(check_rows, image, member("b.pt", BOTH[1:], cells=({"row": "3"},)), "test")


def test_noise_on_an_input_that_both_read_must_be_the_same():
    fused, noisier = member("a.pt"), DigitsConfig(**DIGITS | {"sequence_noise": 2.0})
    assert refusal(check_what_is_added, fused, member("b.pt", config=noisier)) == (
        "data.sequence_noise must be the same, as it changes the rows; it is 1.5 in a.pt, 2.0 in b.pt; give "
        "checkpoints that were trained with the same"
    )
    check_what_is_added(fused, member("b.pt", BOTH[:1], config=noisier))
    assert [*read_otherwise(fused, member("b.pt", BOTH[:1], config=noisier))] == []


def test_rows_that_are_read_otherwise_are_told_and_where_they_came_from_is_not():
    first = member("a.pt", config=ManifestConfig(**FILES))
    same = {"manifest": "b.csv", "image_size": 64, "cache": "none", "batch_size": 9, "skip_limit": 0.5}
    assert [*read_otherwise(first, member("b.pt", config=ManifestConfig(**FILES | same)))] == []
    other = ManifestConfig(**FILES, max_length=40, too_long="truncate")
    assert [*read_otherwise(first, member("b.pt", config=other))] == [
        "data.max_length is None in a.pt, 40 in b.pt: each model reads the rows as its own config says",
        "data.too_long is error in a.pt, truncate in b.pt: each model reads the rows as its own config says",
    ]


def test_names():
    names = [*islice(letters(), 703)]
    assert names[:2] + names[25:28] + names[-1:] == ["A", "B", "Z", "AA", "AB", "AAA"]
    assert folder_name("val", None) == "compare-val" and folder_name("test", Path("x/new.csv")) == "compare-new"
    assert folder_name("test", Path("val.csv")) == "compare-val-table"


def predictions_of(*logits):
    label, size = torch.tensor([0, 1]), len(logits)
    return Predictions(["x", "y"], torch.tensor([4, 7]), label, torch.ones(size, 2), torch.tensor(logits), {})


def test_a_row_has_what_each_model_says(tmp_path):
    tables = {"A": predictions_of([0.0, 0.0], [-2.0, 2.0]), "B": predictions_of([0.0, 3.0], [1.0, 0.0])}
    rows = comparison_rows(tables)
    assert write_comparison(tmp_path / "out", {"samples": 2, "x": float("nan")}, rows) == (
        "comparison.json, comparison.csv"
    )
    with open(tmp_path / "out" / "comparison.csv", newline="") as file:
        assert [*csv.reader(file)] == [
            ["index", "label", "prediction A", "probability A", "prediction B", "probability B"],
            ["4", "x", "x", "0.500000", "y", "0.952574"],
            ["7", "y", "y", "0.982014", "x", "0.731059"],
        ]
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == {"samples": 2, "x": "nan"}


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
