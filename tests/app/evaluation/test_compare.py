import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binom

from app.evaluation.compare import compare, holm, in_words, paired_interval
from app.evaluation.predictions import Predictions


def predictions_of(right):
    """Of two classes, all samples being of the first."""
    right = torch.tensor(right, dtype=torch.bool)
    logits = torch.stack([right.float(), 1 - right.float()], 1)
    size = len(right)
    present = torch.ones(size, 2, dtype=torch.bool)
    return Predictions(["a", "b"], torch.arange(size), torch.zeros(size, dtype=torch.int64), present, logits, {})


def compared(both, only_first, only_second, neither):
    first = [1] * both + [1] * only_first + [0] * only_second + [0] * neither
    second = [1] * both + [0] * only_first + [1] * only_second + [0] * neither
    found = compare(predictions_of(first), predictions_of(second))
    return found | {"p_value_holm": found["p_value"]}


def test_by_hand():
    """1 against 7 of 8 discordant samples: 2 (1 + 8) / 256."""
    found = compared(10, 1, 7, 2)
    assert {name: found[name] for name in ("both", "only_first", "only_second", "neither")} == {
        "both": 10, "only_first": 1, "only_second": 7, "neither": 2,
    }  # fmt: skip
    assert found["p_value"] == pytest.approx(18 / 256) and found["difference"] == pytest.approx(0.3)


def test_the_interval_is_the_published_one():
    """Newcombe (1998), Statistics in Medicine 17, 2635-2650: 36, 12, 2, 0, method 10."""
    assert paired_interval(36, 12, 2, 0) == pytest.approx([0.0569, 0.3404], abs=1e-4)


def test_the_interval_turns_with_the_models_and_is_never_empty():
    for a, b, c, d in itertools.product((0, 1, 4), repeat=4):
        if a + b + c + d:
            low, high = paired_interval(a, b, c, d)
            difference = (b - c) / (a + b + c + d)
            assert low <= difference <= high and -1 - 1e-9 <= low and high <= 1 + 1e-9
            assert paired_interval(a, c, b, d) == pytest.approx([-high, -low])


@pytest.mark.parametrize("shares", [(0.9, 0.05, 0.02, 0.03), (0.6, 0.1, 0.1, 0.2)])
def test_the_interval_holds_the_truth_as_often_as_it_says(shares):
    draws = np.random.default_rng(0).multinomial(300, shares, size=2000)
    truth = shares[1] - shares[2]
    holds = [low <= truth <= high for low, high in (paired_interval(*draw.tolist()) for draw in draws)]
    assert 0.93 < np.mean(holds) < 0.985


def test_mcnemars_test_is_exact():
    for first, second in itertools.product(range(7), repeat=2):
        n = first + second
        chances = binom.pmf(range(n + 1), n, 0.5)
        expected = chances[chances <= chances[second] * (1 + 1e-9)].sum()
        assert compared(3, first, second, 1)["p_value"] == pytest.approx(min(1.0, expected))


def test_in_words():
    assert in_words(compared(400, 7, 30, 13), 450).startswith("better: +5.1 points (+")
    assert in_words(compared(400, 30, 7, 13), 450).startswith("worse: -5.1 points (-")
    words = in_words(compared(400, 7, 9, 34), 450)
    assert words.startswith("no difference that these 450 samples can show: +0.4 points (-")
    assert words.endswith("only it is right 9 times, only the first 7 times")
    assert compared(5, 0, 0, 5)["p_value"] == 1


def test_holm_by_hand():
    """0.01 x 3, 0.02 x 2, 0.9; 0.04 is no smaller than what comes before it."""
    assert holm([0.9, 0.01, 0.02]) == pytest.approx([0.9, 0.03, 0.04])
    assert holm([0.03, 0.02]) == pytest.approx([0.04, 0.04]) and holm([0.3]) == [0.3]
