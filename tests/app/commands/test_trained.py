"""What two models must have in common to be joined. tests/test_models_trained_apart.py joins trained ones."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from app.commands.trained import LateFusion, Trained, check_same_rows
from app.training.objective import Objective, balanced_weights
from data.digits import DigitsConfig


class Listed:
    def __init__(self, cells):
        self.all = cells

    def __len__(self):
        return len(self.all)

    def cells(self, index):
        return self.all[index]


def member(
    name, branches, *, classes="abc", counts=(6, 3, 1), sampler="shuffle", balanced=False, rows="4 rows, 00", cells=()
):
    spec = {"class_names": [*classes], "num_features": 5, "normalisation": {}, "class_counts": counts, "absent": (0, 0)}
    parts = SimpleNamespace(
        branches=[*branches],
        class_names=[*classes],
        data_spec=SimpleNamespace(rows={"test": rows}),
        splits={"test": Listed(cells)},
    )
    weights = balanced_weights(dict(zip(classes, counts, strict=True))) if balanced else None
    objective = Objective(weights)
    placement = {"device": torch.device("cpu"), "precision": "fp32"}
    saved = {"data_spec": {**spec, "rows": {}}}
    return Trained(Path(name), saved, parts, objective, SimpleNamespace(sampler=sampler), placement, [])


def of_images(**settings):
    return member("i.pt", ["image_branch"], **settings)


def of_sequences(**settings):
    return member("s.pt", ["temporal_branch"], **settings)


def refusal(*members, split=None):
    with pytest.raises(ValueError) as error:
        LateFusion(*members)
        check_same_rows(*members, split)
    return str(error.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.6, 0.3, 0.1]),
        ({"balanced": True}, [1 / 3] * 3),
        ({"sampler": "class_balanced"}, [1 / 3] * 3),
        ({"sampler": "class_balanced", "counts": (6, 0, 2)}, [1 / 2, 0, 1 / 2]),
        # drawn alike, and weighed by 1 / 6, 1 / 3, 1
        ({"sampler": "class_balanced", "balanced": True}, [1 / 9, 2 / 9, 6 / 9]),
    ],
)
def test_the_prior_is_what_training_showed_of_each_class(settings, expected):
    prior = of_images(**settings).prior
    torch.testing.assert_close(prior, torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=0)


def test_the_first_reads_images_and_the_second_sequences():
    both = member("b.pt", ["image_branch", "temporal_branch"])
    remedy = "give one that was trained with model."
    assert refusal(of_sequences(), of_images()) == (
        "--late-fusion: s.pt reads sequences and i.pt images; give the one that reads images first"
    )
    assert refusal(both, of_sequences()) == (
        "--late-fusion: b.pt reads images and sequences; the first checkpoint must be of a model that reads images "
        f"only: {remedy}temporal_branch=null"
    )
    assert refusal(of_images(), both).endswith(
        f"the second checkpoint must be of a model that reads sequences only: {remedy}image_branch=null"
    )
    assert refusal(of_images(), of_images()).startswith("--late-fusion: i.pt reads images; the second checkpoint must")
    assert refusal(of_sequences(), of_sequences()).startswith("--late-fusion: s.pt reads sequences; the first ")


@pytest.mark.parametrize(
    ("image", "sequence", "message"),
    [
        (
            {"classes": "abd"},
            {},
            "must have the same classes; where the former has 'd', the latter has 'c'; train both",
        ),
        ({}, {"classes": "ab", "counts": (6, 3)}, "where the former has 'c', the latter has ''; train both"),
        (
            {},
            {"counts": (6, 4, 0)},
            "that of 'b' was 0.300000 in the former, 0.400000 in the latter; train both on the",
        ),
        ({"balanced": True}, {}, "that of 'a' was 0.333333 in the former, 0.600000 in the latter; train both on the "),
    ],
)
def test_other_classes_or_shares_of_them_are_refused(image, sequence, message):
    text = refusal(of_images(**image), of_sequences(**sequence))
    assert text.startswith("--late-fusion: i.pt and s.pt must have") and message in text


def test_rows_are_the_same_by_their_digest_or_else_by_their_cells():
    cells, other = [{"row": "2", "id": "x"}], [{"row": "2", "id": "y"}]
    check_same_rows(of_images(), of_sequences(), "test")
    check_same_rows(of_images(cells=cells), of_sequences(cells=cells, rows="4 rows, 11"), "test")
    for of_first, of_second in ((cells, other), (cells, cells * 2), ([{}], [{}]), ([], [])):
        text = refusal(of_images(cells=of_first), of_sequences(cells=of_second, rows="4 rows, 11"), split="test")
        assert text.startswith("--late-fusion: the rows of test must be the same; i.pt has 4 rows, 00, s.pt has 4 rows")


def test_classes_balanced_in_two_ways_are_balanced_alike():
    fusion = LateFusion(of_images(balanced=True), of_sequences(sampler="class_balanced"))
    assert fusion.branches == ["image_branch", "temporal_branch"] and fusion.class_names == [*"abc"]


def test_rows_that_are_made_otherwise_and_smoothed_labels_are_told(monkeypatch):
    monkeypatch.setattr(Trained, "warnings", lambda member, split: [])

    def warnings(smoothing=0.0, **changes):
        values = {"source": "digits", "batch_size": 2, "image_size": 32, "image_noise": 0.25, "sequence_noise": 1.5}
        image, sequence = (
            replace(of(), data_config=DigitsConfig(**{**values, **other}))
            for of, other in ((of_images, {}), (of_sequences, changes))
        )
        sequence.objective = Objective(label_smoothing=smoothing)
        return LateFusion(image, sequence).warnings("test")

    assert warnings(batch_size=7, image_size=64, redraw=False) == []
    assert warnings(sequence_noise=0.0) == [
        "data.sequence_noise is 1.5 in i.pt, 0.0 in s.pt: each model predicts the rows as its own config makes them"
    ]
    (line,) = warnings(smoothing=0.3)
    assert line.startswith("s.pt was trained with loss.label_smoothing=0.3: ")
