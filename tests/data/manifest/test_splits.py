"""Words of splits, splits by hash, what splits and classes must have, and the order of classes."""

import random
from collections import Counter

import pytest
from pydantic import ValidationError
from scipy.stats import binom

from data.manifest.cells import SPLIT_WORDS
from data.manifest.config import FractionsConfig
from data.manifest.splits import class_names_of, labels_alike, split_findings, split_of_rows
from data.manifest.table import Row, read_table

FRACTIONS = FractionsConfig().model_dump()


@pytest.fixture
def table(tmp_path):
    """The table of these lines of a .csv."""

    def read(*lines, **how):
        path = tmp_path / "my.csv"
        path.write_text("\n".join(lines), encoding="utf-8")
        return read_table(path, **how)

    return read


def lines_of(findings):
    return [finding.line("my.csv") for finding in findings]


def test_words_of_splits(table):
    words = [word for words in SPLIT_WORDS.values() for word in words]
    assert words == "train training validation valid dev val test testing eval evaluation".split()
    rows = [f"{i}.png,a.wav,cat,{word}" for i, word in enumerate(words + [word.title() for word in words])]
    splits, findings = split_of_rows(table("image,wav,label,split", *rows), FRACTIONS)
    assert splits == (["train"] * 2 + ["val"] * 4 + ["test"] * 4) * 2 and findings == []


def test_other_words_and_rows_without_one(table):
    rows = [
        "a.png,a.wav,cat,trian",
        "b.png,b.wav,cat,",
        "c.png,c.wav,cat",
        "d.png,d.wav,,unused",
        "e.png,e.wav,cat,VAL",
    ]
    splits, findings = split_of_rows(table("image,wav,label,split", *rows), FRACTIONS)
    assert splits == [None, None, None, None, "val"]
    allowed = (
        "allowed: train, training, validation, valid, dev, val, test, testing, eval, evaluation, or no split column"
    )
    assert lines_of(findings) == [
        f"my.csv row 2, column split, 'trian': is not a split; {allowed} at all",
        f"my.csv row 3, column split, '': is not a split; {allowed} at all",
        f"my.csv row 5, column split, 'unused': is not a split; {allowed} at all",
    ]  # and row 4 has too few cells, which the table tells


def test_a_group_in_two_splits(table):
    rows = ["val,s1", "train,s1", "train,s1", "test,s1", "test,s2", "val,s2", "test,s2", "train,", "val,", "odd,s3"]
    rows = [f"{i}.png,,cat,{row}" for i, row in enumerate(rows)]
    found = table("image,wav,label,split,speaker", *rows, "x,x.wav,cat,train,s9")
    splits, findings = split_of_rows(found, FRACTIONS)
    assert splits[:7] == ["val", "train", "train", "test", "test", "val", "test"]
    assert lines_of(findings)[1:] == [
        "my.csv row 2, column speaker, 's1': is in val here and in train in row 3; a group belongs to one split",
        "my.csv row 5, column speaker, 's1': is in test here and in train in row 3; a group belongs to one split",
        "my.csv row 7, column speaker, 's2': is in val here and in test in row 6; a group belongs to one split",
    ]


# Digests of `printf 'id\0r1' | b2sum -l 64` and so on: a split must never change from one version to the next.
@pytest.mark.parametrize(
    ("row", "digest"),
    [
        (Row(2, "a.png", "a.wav", "cat", None, None, "r1", ()), "4699041b7177f59d"),
        (Row(2, "a.png", "a.wav", "cat", None, "s1", "r1", ()), "67cf874aa2d14f9f"),
        (Row(2, "a.png", "a.wav", "cat", None, None, None, ()), "6765e5906213c305"),
        (Row(2, None, "b.wav", "cat", None, None, None, ()), "23f446efb153cf27"),
        (Row(2, None, "b.wav", "cat", None, "Zoë", None, ()), "58b5edbc2ec6d24f"),
    ],
)
def test_the_split_is_the_digest_against_the_fractions(table, row, digest):
    position = int(digest, 16) / 2**64
    read = table("image,wav,label", "a.png,a.wav,cat")
    read.rows[:] = [row]
    margin = 1e-9
    for fractions, expected in (
        ({"train": position + margin, "val": 0.001}, "train"),
        ({"train": position - margin, "val": 0.001}, "val"),
        ({"train": position / 2, "val": position / 2 + margin}, "val"),
        ({"train": position / 2, "val": position / 2 - margin}, "test"),
    ):
        assert split_of_rows(read, fractions) == ([expected], [])


def test_added_removed_and_moved_rows_move_no_other(table):
    rows = [f"{i}.png,{i}.wav,cat" for i in range(500)]
    before, _ = split_of_rows(table("image,wav,label", *rows), FRACTIONS)
    known = dict(zip(rows, before, strict=True))
    assert set(before) == {"train", "val", "test"}
    shuffled = random.Random(0).sample(rows, 300) + [f"new/{i}.png,,dog" for i in range(300)]
    random.Random(1).shuffle(shuffled)
    after, _ = split_of_rows(table("image,wav,label", *shuffled), FRACTIONS)
    kept = [(known[row], split) for row, split in zip(shuffled, after, strict=True) if row in known]
    assert len(kept) == 300 and all(old == new for old, new in kept)


@pytest.mark.parametrize("fractions", [FRACTIONS, {"train": 0.5, "val": 0.3, "test": 0.2}])
@pytest.mark.parametrize("header", ["image,wav,label,id", "image,wav,label,age", "image,wav,label,group"])
def test_fractions_come_out_within_chance(table, header, fractions):
    n = 5000
    rows = [f"{i}.png,{i}.wav,cat,{f's{i}' if header.endswith(('id', 'group')) else 7}" for i in range(n)]
    splits, findings = split_of_rows(table(header, *rows), fractions)
    assert findings == []
    count = Counter(splits)
    for split, fraction in fractions.items():
        low, high = binom.interval(0.999, n, fraction)
        assert low <= count[split] <= high


def test_all_rows_of_a_group_are_in_one_split(table):
    rows = [f"{i}.png,{i}.wav,cat,s{i % 60},{i}" for i in range(600)]
    splits, _ = split_of_rows(table("image,wav,label,subject,id", *rows), FRACTIONS)
    assert set(splits) == {"train", "val", "test"}
    assert all(len(set(splits[group::60])) == 1 for group in range(60))
    # Rows of no group are each drawn by itself.
    alone = [f"{i}.png,{i}.wav,cat,,{i}" for i in range(100)]
    splits, _ = split_of_rows(table("image,wav,label,subject,id", *alone), FRACTIONS)
    same, _ = split_of_rows(table("image,wav,label,id", *[row.replace("cat,,", "cat,") for row in alone]), FRACTIONS)
    assert splits == same and set(splits) == {"train", "val", "test"}
    unknown = [row.replace("cat,,", "cat,NA,") for row in alone]
    assert split_of_rows(table("image,wav,label,subject,id", *unknown), FRACTIONS)[0] == splits


# What the rows that are left must have


DRAWN, SAID = {"label": "kind"}, {"label": "kind", "split": "subset"}


def left(columns, *labels_and_splits):
    """What is told where these rows are left."""
    rows = [Row(i, f"{i}.png", None, label, None, None, None, ()) for i, (label, _) in enumerate(labels_and_splits)]
    return lines_of(split_findings(rows, [split for _, split in labels_and_splits], columns))


def test_nothing_is_wrong_where_each_class_is_in_each_split():
    assert left(DRAWN, *[(label, split) for label in "ab" for split in SPLIT_WORDS]) == []


def test_a_class_that_lacks_a_split():
    rows = [("a", "train"), ("a", "val"), ("a", "test"), ("b", "train"), ("b", "train"), ("c", "val"), ("c", "test")]
    assert left(DRAWN, *rows) == [
        f"my.csv, column kind: 1 of 3 classes have no {title} rows: '{name}'; add rows, raise data.fractions.{split}, "
        "or add a split column"
        for title, split, name in (("training", "train", "c"), ("validation", "val", "b"), ("test", "test", "b"))
    ]
    assert left(SAID, *rows) == [  # a class that the table's own split leaves out of validation or test is no mistake
        "my.csv, column kind: 1 of 3 classes have no training rows: 'c'; write train in the column subset of some rows"
    ]


def test_many_classes_that_lack_a_split_are_one_finding():
    """As where the column of the names of the rows is taken for that of the classes."""
    (line, _) = left(DRAWN, *[(f"{i:04}", "train") for i in range(2000)], ("0000", "val"), ("0000", "test"))
    assert (
        "1,999 of 2,000 classes have no validation rows: '0001', '0002', " in line and "'0010' and 1,989 more" in line
    )


def test_splits_without_rows():
    rows = [("a", "train"), ("b", "train"), ("a", "test")]
    assert left(SAID, *rows) == [
        "my.csv, column subset: has no validation rows; write validation in the column subset of some rows",
    ]
    assert left(DRAWN, *rows)[0] == (
        "my.csv: has no validation rows; add rows, raise data.fractions.val, or add a split column"
    )


def test_one_class_or_none():
    assert left(DRAWN, *[("a", split) for split in SPLIT_WORDS]) == [
        "my.csv, column kind: every row is of the class 'a'; a classifier needs two or more"
    ]
    assert left(DRAWN) == ["my.csv: no row is left with which to train"]


# Classes


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "2", "-1", "2", "+3"], ("-1", "2", "+3", "10")),
        (["1", "01", "0", "1"], ("0", "01", "1")),
        (["10", "2", "x"], ("10", "2", "x")),
        (["10", "2", "1.5"], ("1.5", "10", "2")),
        (["b", "a", "B", "ä", "a"], ("B", "a", "b", "ä")),
        (["9" * 5000, "10"], ("10", "9" * 5000)),
        (["٣", "10"], ("10", "٣")),
        ([], ()),
    ],
)
def test_the_order_of_classes(labels, names):
    assert class_names_of(labels) == names
    assert class_names_of(reversed(labels)) == names
    assert class_names_of(iter(labels)) == names


def test_labels_that_may_be_one_class():
    labels = ["Cat", "dog", "cat", " cat", "Zoe\u0308", "Zo\u00eb", "new  york", "new york", "01", "1", "2"]
    assert [*labels_alike(labels)] == [
        f"{text} classes; if they are meant to be one, write them alike"
        for text in (
            "' cat', 'Cat', 'cat' are 3",
            "'01', '1' are 2",
            "'Zoe\u0308', 'Zo\u00eb' are 2",
            "'new  york', 'new york' are 2",
        )
    ]
    assert [*labels_alike(["a", "b", "1", "-1"])] == []


def test_fractions():
    assert FRACTIONS == {"train": 0.7, "val": 0.15, "test": 0.15}
    assert FractionsConfig(train=0.1, val=0.2, test=0.7).test == 0.7
    FractionsConfig(train=0.3333333, val=0.3333333, test=0.3333333)
    for wrong, words in (
        ({"train": 0.8}, "train 0.8 \\+ val 0.15 \\+ test 0.15 is 1.1, must be 1"),
        ({"train": 0.70001}, "must be 1"),
        ({"train": 0.85, "val": 0.0}, "val\n.*greater than 0"),
        ({"train": 1.0, "val": 0.15, "test": -0.15}, "test\n.*greater than 0"),
        ({"valid": 0.15}, "valid\n.*not permitted"),
    ):
        with pytest.raises(ValidationError, match=words):
            FractionsConfig(**wrong)
