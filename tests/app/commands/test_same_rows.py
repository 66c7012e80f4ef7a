"""What models must have in common to be compared or joined. tests/test_models_trained_apart.py does so."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from app.commands.same_rows import check_late_fusion, check_same_rows, read_otherwise, smoothed
from app.commands.trained import Trained
from app.training.objective import Objective, balanced_weights
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


def member(
    name,
    branches=BOTH,
    *,
    classes="abc",
    config=None,
    labels="l",
    image="i",
    sequence="s",
    cells=({},),
    counts=(6, 3, 1),
    balanced=False,
    smoothing=0.0,
):
    parts = SimpleNamespace(
        branches=[*branches],
        class_names=[*classes],
        source=Source(labels, image, sequence),
        splits={"test": Listed(cells)},
    )
    weights = balanced_weights(dict(zip(classes, counts, strict=True))) if balanced else None
    spec = {"class_names": [*classes], "num_features": 5, "normalisation": {}, "class_counts": counts, "absent": (0, 0)}
    saved = {"data_spec": {**spec, "rows": {}}}
    return Trained(Path(name), saved, parts, Objective(weights, smoothing), config or DigitsConfig(**DIGITS), {}, [])


def refusal(*models):
    with pytest.raises(ValueError) as error:
        check_same_rows("--compare", *models, "test")
    assert str(error.value).startswith("--compare: ")
    return str(error.value).removeprefix("--compare: ")


@pytest.mark.parametrize(
    ("classes", "other"), [("abd", "a.pt has c, b.pt has d;"), ("ab", "a.pt has c, b.pt has None")]
)
def test_other_classes_are_refused(classes, other):
    text = refusal(member("a.pt"), member("b.pt", classes=classes, counts=range(1, len(classes) + 1)))
    assert text.startswith(f"the classes must be the same; {other}")


def test_rows_are_the_same_where_the_inputs_that_both_read_are():
    fused, cells = member("a.pt"), ({"row": "2", "sequence": "NA"},)
    for same in (
        member("b.pt"),
        member("b.pt", BOTH[:1], sequence="x", cells=cells),
        member("b.pt", BOTH[1:], image="x"),
    ):
        check_same_rows("--compare", fused, same, "test")
        check_same_rows("--compare", same, fused, "test")
    for other in (member("b.pt", image="x"), member("b.pt", BOTH[:1], image="x")):
        assert refusal(fused, other).startswith("images of the rows of test must be the same; a.pt has i, b.pt has x; ")
    assert refusal(fused, member("b.pt", sequence="x")).startswith("sequences of the rows of test must be the same;")
    assert refusal(fused, member("b.pt", labels="x")).startswith(
        "the order and labels of the rows of test must be the "
    )
    fewer = refusal(fused, member("b.pt", image="x", cells=()))
    assert fewer.startswith("the number of the rows of test must be the same; a.pt has 1, b.pt has 0; give checkpoints")

    image, sequence = member("a.pt", BOTH[:1], cells=cells), member("b.pt", BOTH[1:], cells=cells)
    check_same_rows("--compare", image, sequence, "test")
    refusal(image, member("b.pt", BOTH[1:], cells=cells, labels="x"))
    other = refusal(image, member("b.pt", BOTH[1:], cells=({"row": "3"},)))
    assert other.startswith(
        "the rows of test must be the same; a.pt has {'row': '2', 'sequence': 'NA'}, b.pt has {'row"
    )


def test_noise_on_an_input_that_both_read_must_be_the_same():
    fused, noisier = member("a.pt"), DigitsConfig(**DIGITS | {"sequence_noise": 2.0})
    assert refusal(fused, member("b.pt", config=noisier)) == (
        "data.sequence_noise must be the same; a.pt has 1.5, b.pt has 2.0; give checkpoints of the same data, and rows "
        "that each of them can read"
    )
    check_same_rows("--compare", fused, member("b.pt", BOTH[:1], config=noisier), "test")
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


def refused_fusion(*models):
    with pytest.raises(ValueError) as error:
        check_late_fusion(*models)
    return str(error.value)


def test_of_a_late_fusion_the_first_reads_images_and_the_second_sequences():
    image, sequence, both = member("i.pt", BOTH[:1]), member("s.pt", BOTH[1:]), member("b.pt")
    check_late_fusion(image, sequence)
    remedy = "give one that was trained with model."
    assert refused_fusion(both, sequence) == (
        "--late-fusion: b.pt reads images and sequences; the first checkpoint must be of a model that reads images "
        f"only: {remedy}temporal_branch=null"
    )
    assert refused_fusion(image, both).endswith(
        f"the second checkpoint must be of a model that reads sequences only: {remedy}image_branch=null"
    )
    assert refused_fusion(sequence, image).startswith("--late-fusion: s.pt reads sequences; the first checkpoint must")


@pytest.mark.parametrize(
    ("image", "sequence", "message"),
    [
        ({}, {"counts": (6, 4, 0)}, "share of 'b' in training must be the same; it was 0.300000 in i.pt, 0.400000 in "),
        (
            {"balanced": True},
            {},
            "share of 'a' in training must be the same; it was 0.333333 in i.pt, 0.600000 in s.pt",
        ),
    ],
)
def test_other_shares_of_the_classes_are_refused(image, sequence, message):
    assert message in refused_fusion(member("i.pt", BOTH[:1], **image), member("s.pt", BOTH[1:], **sequence))


def test_classes_balanced_in_two_ways_are_balanced_alike():
    config = DigitsConfig(**DIGITS, sampler="class_balanced")
    check_late_fusion(member("i.pt", BOTH[:1], balanced=True), member("s.pt", BOTH[1:], config=config))


def test_smoothed_labels_are_told():
    (line,) = smoothed([member("i.pt", BOTH[:1]), member("s.pt", BOTH[1:], smoothing=0.3)])
    assert line.startswith("s.pt was trained with loss.label_smoothing=0.3: ")
