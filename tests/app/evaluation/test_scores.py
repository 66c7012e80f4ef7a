import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from sklearn import metrics as sklearn_metrics

from app.evaluation import scores
from app.evaluation.predictions import Predictions

NAMES = ["a", "b", "c", "never"]


def predictions_of(label, guess, certainty=None, names=NAMES):
    """certainty: (N,) logit of the guess, all others being 0."""
    label, guess = torch.tensor(label), torch.tensor(guess)
    size = len(label)
    logits = torch.zeros(size, len(names))
    logits[torch.arange(size), guess] = 1.0 if certainty is None else torch.tensor(certainty)
    present = torch.ones(size, 2, dtype=torch.bool)
    return Predictions(names, torch.arange(size) + 100, label, present, logits, {})


@pytest.fixture
def some():
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, 300)
    guess = np.where(generator.random(300) < 0.7, label, generator.integers(0, 3, 300))
    return predictions_of(label.tolist(), guess.tolist())


def test_scores_of_classes_are_scikit_learns(some):
    found = scores.scores_of_classes(some)
    label, guess = some.label.numpy(), some.prediction.numpy()
    expected = sklearn_metrics.precision_recall_fscore_support(label, guess, labels=range(4), zero_division=math.nan)
    for key, values in zip(("precision", "recall", "f1"), expected, strict=False):
        assert [found[name][key]["value"] for name in NAMES] == pytest.approx(values.tolist(), nan_ok=True)
    assert [found[name]["samples"] for name in NAMES] == expected[3].tolist()
    assert math.isnan(found["never"]["f1"]["value"]) and math.isnan(found["never"]["recall"]["interval_95"][0])


def test_a_share_has_wilsons_interval_worked_by_hand():
    """8 of 10, z = 1.96: centre (0.8 + 1.9208 / 10) / 1.38416, half width 1.96 / 1.38416 sqrt(0.016 + 0.9604 / 100)."""
    found = scores.share(8, 10)
    assert found["value"] == 0.8
    assert found["interval_95"] == pytest.approx([0.4901, 0.9433], abs=2e-4)
    assert math.isnan(scores.share(0, 0)["value"])


def test_intervals_of_f1_and_of_means_are_those_of_a_bootstrap_over_samples(some):
    """Against scipy's, which draws the samples themselves."""
    label, guess = some.label.numpy(), some.prediction.numpy()

    def interval(score):
        found = bootstrap(
            (label, guess), score, paired=True, vectorized=False, n_resamples=1000, method="percentile", rng=1
        )
        return pytest.approx(list(found.confidence_interval), abs=0.012)

    def macro_f1(true, predicted):
        return sklearn_metrics.f1_score(true, predicted, average="macro")

    def macro_precision(true, predicted):
        return sklearn_metrics.precision_score(true, predicted, average="macro", zero_division=math.nan)

    means = scores.means_of_classes(some)
    expected = {
        "macro_precision": macro_precision,
        "macro_f1": macro_f1,
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score,
    }
    assert means.keys() == expected.keys()
    for name, score in expected.items():
        assert means[name]["value"] == pytest.approx(score(label, guess))
        assert means[name]["interval_95"] == interval(score)
    of_b = scores.scores_of_classes(some)["b"]["f1"]["interval_95"]  # Wilson's, of a share that F1 depends on
    assert of_b == interval(lambda true, predicted: sklearn_metrics.f1_score(true == 1, predicted == 1))
    assert scores.means_of_classes(some) == means


def test_means_over_classes_are_of_those_that_can_be_told():
    """Of 3 classes one has no samples, another is never predicted: precision 2/3 of a, 0 of c; recall 2/3 of a, 0 of
    b; F1 2/3, 0, 0."""
    means = scores.means_of_classes(predictions_of([0, 0, 0, 1], [0, 0, 2, 0], names=[*"abc"]))
    values = {name: of["value"] for name, of in means.items()}
    assert values == {
        "macro_precision": pytest.approx(1 / 3),
        "macro_f1": pytest.approx(2 / 9),
        "balanced_accuracy": pytest.approx(1 / 3),
    }


def test_a_branchs_own_accuracy_is_of_the_samples_that_have_its_input(some):
    present = some.present.clone()
    present[:100, 1] = False
    own = {"image_branch": some.logits, "temporal_branch": some.logits.roll(1, 1)}
    predictions = dataclasses.replace(some, present=present, unimodal_logits=own)
    label, guess = some.label.numpy(), some.prediction.numpy()
    expected = sklearn_metrics.accuracy_score(label, guess)
    assert scores.own_accuracy(predictions, "image_branch")["value"] == pytest.approx(expected)
    expected = sklearn_metrics.accuracy_score(label[100:], (guess[100:] + 1) % 4)
    assert scores.own_accuracy(predictions, "temporal_branch")["value"] == pytest.approx(expected)


def test_where_nothing_is_wrong_no_interval_is_empty():
    perfect = predictions_of([0, 1, 2] * 20, [0, 1, 2] * 20)
    assert [of["interval_95"] for of in scores.means_of_classes(perfect).values()] == [[0.95, 1.0]] * 3
    hopeless = predictions_of([0, 1, 2] * 20, [1, 2, 0] * 20)
    assert [of["interval_95"] for of in scores.means_of_classes(hopeless).values()] == [[0.0, 0.05]] * 3
    low, high = scores.scores_of_classes(perfect)["a"]["f1"]["interval_95"]
    p = 20 / (20 + 1.96**2)  # Wilson's lower end of 20 of 20
    assert low == pytest.approx(2 * p / (1 + p), abs=1e-4) and high == 1


def test_of_many_classes_some_of_which_a_resample_may_lack_the_interval_is_around_the_value():
    generator = np.random.default_rng(0)
    label = generator.integers(0, 100, 2000)
    guess = np.where(generator.random(2000) < 0.9, label, generator.integers(0, 100, 2000))
    predictions = predictions_of(label.tolist(), guess.tolist(), names=[str(i) for i in range(200)])
    for of in scores.means_of_classes(predictions).values():
        low, high = of["interval_95"]
        assert 0.85 < low < of["value"] < high < 0.95


def test_confused_pairs_are_ordered_by_their_number():
    found = scores.confused_pairs(predictions_of([0, 0, 0, 1, 1, 2], [1, 1, 2, 0, 1, 2]))
    assert [(pair["true"], pair["predicted"], pair["samples"]) for pair in found] == [
        ("a", "b", 2), ("a", "c", 1), ("b", "a", 1),
    ]  # fmt: skip
    assert [pair["share"] for pair in found] == [2 / 3, 1 / 3, 0.5]


def test_the_worst_mistakes_are_the_wrong_ones_that_are_surest():
    predictions = predictions_of([0, 0, 1, 2], [0, 1, 2, 0], [9.0, 1.0, 3.0, 2.0])
    places = scores.worst_mistakes(predictions, most=2)
    assert places.tolist() == [2, 3]
    first, second = scores.describe_mistakes(predictions, places)
    assert (first["index"], first["label"], first["prediction"]) == (102, "b", "c")
    assert first["probability"] == pytest.approx(math.exp(3) / (math.exp(3) + 3))
    assert second["probability_of_label"] == pytest.approx(1 / (math.exp(2) + 3))


CELLS = [{"speaker": "x"}, {"speaker": "x"}, {"speaker": "x"}, {"speaker": "y"}, {}]


def test_accuracy_by_a_column_names_the_smallest_and_the_worst():
    found = scores.accuracy_by_column("speaker", CELLS, torch.tensor([1, 0, 0, 1, 1]).bool())
    assert {name: (of["samples"], of["accuracy"]) for name, of in found["groups"].items()} == {
        "x": (3, pytest.approx(1 / 3)), "y": (1, 1.0), "": (1, 1.0),
    }  # fmt: skip
    assert (found["smallest"], found["worst"]) == ("", "x")


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        ("speakr", CELLS, r"^--by: no column 'speakr'; did you mean 'speaker'\? known here: speaker$"),
        ("speaker", [{}] * 5, "the samples have no columns"),
        ("id", [{"id": str(i)} for i in range(51)], "has 51 different values, 50 are allowed"),
    ],
)
def test_columns_that_tell_no_groups_apart_are_refused(column, cells, message):
    with pytest.raises(ValueError, match=message):
        scores.check_column(column, cells)
