import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial
from sklearn.metrics import accuracy_score, f1_score, log_loss

from app.evaluation.compare import compare, describe_comparison, holm, in_words, mcnemar, paired_interval
from app.evaluation.predictions import Predictions


def predictions_of(right, **changes):
    """Of two classes, all samples being of the first."""
    right = torch.tensor(right, dtype=torch.bool)
    of = {
        "class_names": ["a", "b"],
        "index": torch.arange(len(right)),
        "label": torch.zeros(len(right), dtype=torch.int64),
        "present": torch.ones(len(right), 2, dtype=torch.bool),
        "logits": torch.stack([right.float(), 1 - right.float()], 1),
        "unimodal_logits": {},
    }
    return Predictions(**of | changes)


def compared(both, only_a, only_b, neither):
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    (found,) = compare({"A": predictions_of(a), "B": predictions_of(b)})["comparisons"]
    return found


def test_mcnemar_by_hand():
    """7 of 8 or more, or 1 of 8 or fewer: 2 (1 + 8) / 256; 5 of 5 or 0 of 5: 2 / 32."""
    assert mcnemar(7, 1) == mcnemar(1, 7) == pytest.approx(18 / 256)
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(3, 3) == mcnemar(0, 0) == 1


def test_mcnemar_is_the_share_of_all_ways_to_swap_the_models():
    """In each sample that one of the two has right, it could as well have been the other."""
    for one, other in itertools.product(range(6), repeat=2):
        differences = [abs(sum(signs)) for signs in itertools.product((-1, 1), repeat=one + other)]
        expected = np.mean([difference >= abs(one - other) for difference in differences])
        assert mcnemar(one, other) == pytest.approx(expected)


def test_the_published_example():
    """Cavo and others (2012): of 161 patients 6 had only the one response and 16 only the other. The figures are those
    of R's contingencytables, for Fagerland, Lydersen and Laake (2017), chapter 8."""
    assert mcnemar(6, 16) == pytest.approx(0.052479, abs=5e-7)
    assert paired_interval(6, 16, 161) == pytest.approx([-0.1240, -0.0054], abs=5e-5)


@pytest.mark.parametrize(
    ("one", "other", "samples"),
    [(6, 16, 161), (21, 7, 450), (1, 1, 450), (7, 1, 21), (0, 1, 44), (3, 3, 6), (0, 9, 10)],
)
def test_ends_of_the_interval_lie_196_standard_errors_off(one, other, samples):
    """The standard error of that difference which makes the counts likeliest, found by search."""
    for end in paired_interval(one, other, samples):
        if abs(end) == 1:
            continue

        def unlikely(q, end=end):  # q: share of samples that only the other has right
            shares = (q + end, q, 1 - 2 * q - end)
            counts = (one, other, samples - one - other)
            return -sum(n * math.log(share) for n, share in zip(counts, shares, strict=True) if n)

        bounds = (max(0.0, -end) + 1e-12, (1 - end) / 2 - 1e-12)
        q = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        error = math.sqrt((2 * q + end - end**2) / samples)
        assert abs((one - other) / samples - end) / error == pytest.approx(1.959964, rel=1e-4)


def test_ends_of_the_interval_where_the_models_never_differ_are_those_of_wilson():
    """0 of n: z^2 / (n + z^2)."""
    expected = 1.959964**2 / (450 + 1.959964**2)
    assert paired_interval(0, 0, 450) == pytest.approx([-expected, expected])
    assert paired_interval(4, 0, 4)[1] == 1 and paired_interval(0, 4, 4)[0] == -1


def test_the_interval_holds_the_difference_and_turns_with_the_models():
    for one, other, rest in itertools.product((0, 1, 2, 7, 40), repeat=3):
        if one + other + rest:
            samples = one + other + rest
            low, high = paired_interval(one, other, samples)
            assert -1 <= low <= (one - other) / samples <= high <= 1 and low < high
            assert paired_interval(other, one, samples) == pytest.approx([-high, -low], abs=1e-9)


@pytest.mark.parametrize(
    ("samples", "only_one", "only_other", "most"),
    [(30, 0.1, 0.1, 30), (30, 0.3, 0.1, 30), (150, 0.05, 0.02, 40), (450, 0.02, 0.005, 40), (450, 0.05, 0.02, 60)],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(samples, only_one, only_other, most):
    """The chance of all tables whose interval holds it, not a simulation."""
    holds = total = 0.0
    for one in range(most + 1):
        for other in range(min(most, samples - one) + 1):
            counts, shares = [one, other, samples - one - other], [only_one, only_other, 1 - only_one - only_other]
            chance = multinomial.pmf(counts, samples, shares)
            if chance > 1e-9:
                low, high = paired_interval(one, other, samples)
                holds, total = holds + chance * (low <= only_one - only_other <= high), total + chance
    assert total > 0.999999 and 0.94 < holds < 0.96


def test_where_the_test_shows_a_difference_the_interval_leaves_out_0():
    for one, other in itertools.product(range(40), repeat=2):
        low, high = paired_interval(one, other, 100)
        assert mcnemar(one, other) >= 0.05 or not low <= 0 <= high


def test_holm_by_hand_and_as_the_closed_test():
    """0.01 x 3, 0.02 x 2, and what follows is never less; each is the largest Bonferroni p of the sets it is in."""
    assert holm([0.9, 0.01, 0.02]) == pytest.approx([0.9, 0.03, 0.04])
    assert holm([0.03, 0.02]) == pytest.approx([0.04, 0.04]) and holm([0.3]) == [0.3]
    generator = np.random.default_rng(0)
    for size in (2, 3, 5):
        p = (generator.random(size) ** 3).tolist()
        sets = [of for n in range(1, size + 1) for of in itertools.combinations(range(size), n)]
        bonferroni = {of: min(1.0, len(of) * min(p[i] for i in of)) for of in sets}
        assert holm(p) == pytest.approx([max(bonferroni[of] for of in sets if i in of) for i in range(size)])


def test_what_is_found_of_two_models():
    found = compared(10, 1, 7, 2)
    assert found["right"] == {"both": 10, "only_reference": 1, "only_model": 7, "neither": 2}
    assert (found["model"], found["against"], found["difference"]) == ("B", "A", pytest.approx(0.3))
    assert found["p_value"] == found["p_value_corrected"] == pytest.approx(18 / 256) and found["verdict"] == "not shown"
    assert found["interval_95"] == paired_interval(7, 1, 20)


def test_in_words():
    assert compared(415, 7, 21, 7)["in_words"] == (
        "B is better than A by 3.1 points (0.9 to 5.7), p = 0.013: 21 rows only B has right, 7 only A"
    )
    assert compared(415, 21, 7, 7)["in_words"] == (
        "B is worse than A by 3.1 points (0.9 to 5.7), p = 0.013: 7 rows only B has right, 21 only A"
    )
    assert compared(439, 1, 1, 9)["in_words"] == (
        "B and A: no difference that these 450 rows can show: 0.0 points (-1.0 to 1.0), p = 1: "
        "1 row only B has right, 1 only A"
    )
    words = compared(59, 6, 16, 80)["in_words"]  # the published example
    assert words.startswith("B and A: no difference that these 161 rows can show: +6.2 points (0.5 to 12.4), p = 0.052")
    assert words.endswith(
        "6 only A (the interval, which leaves out 0, is of one comparison and no exact one; the test decides)"
    )
    assert "(0.0 to 0.0), p = 0.04996:" in in_words(
        {
            "model": "B",
            "against": "A",
            "right": {"only_model": 2, "only_reference": 1},
            "difference": 0.0001,
            "interval_95": [-0.0001, 0.0003],
            "p_value_corrected": 0.04996,
            "verdict": "better",
        },
        samples=10**4,
        tests=1,
    )
    assert "p < 0.0001:" in compared(100, 0, 40, 9)["in_words"]


def random_predictions(seed, label, *branches):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(label), 4, generator=generator) + 2 * torch.nn.functional.one_hot(label, 4)
    own = {branch: torch.randn(len(label), 4, generator=generator) for branch in branches}
    present = torch.rand(len(label), 2, generator=torch.Generator().manual_seed(9)) < 0.7
    return Predictions([*"abcd"], torch.arange(len(label)), label, present, logits, own)


def test_the_figures_of_each_model_are_those_of_scikit_learn():
    label = torch.arange(200) % 4
    tables = {
        "A": random_predictions(0, label, "image_branch", "temporal_branch"),
        "B": random_predictions(1, label, "temporal_branch"),
        "C": random_predictions(2, label, "image_branch"),
    }
    report = compare(tables)
    for name, table in tables.items():
        found, prediction = report["models"][name], table.logits.argmax(1)
        assert found["accuracy"] == pytest.approx(accuracy_score(label, prediction))
        assert found["macro_f1"] == pytest.approx(f1_score(label, prediction, average="macro"))
        assert found["nll"] == pytest.approx(log_loss(label, table.logits.double().softmax(1)), rel=1e-5)
        assert found["accuracy_interval_95"][0] < found["accuracy"] < found["accuracy_interval_95"][1]
        assert found["unimodal"].keys() == table.unimodal_logits.keys()
        for branch, of in found["unimodal"].items():
            has = table.present[:, ["image_branch", "temporal_branch"].index(branch)]
            own = table.unimodal_logits[branch].argmax(1)
            assert of["accuracy"] == pytest.approx(accuracy_score(label[has], own[has]))
    one, two = report["comparisons"]
    assert [(of["model"], of["against"]) for of in (one, two)] == [("B", "A"), ("C", "A")]
    assert [one["p_value_corrected"], two["p_value_corrected"]] == holm([one["p_value"], two["p_value"]])
    assert "(Holm, 2 tests)" in one["in_words"]

    origins = {"checkpoint": "a.pt", "epoch": 3}
    shown = describe_comparison(
        {**report, "split": "val", "models": {n: o | origins for n, o in report["models"].items()}}
    )
    title, _, heading, _, a, b, *_ = shown.splitlines()
    assert title == "3 checkpoints on val, 200 rows" and a.endswith("a.pt (epoch 3)")
    assert heading.split("  ")[-1] == "checkpoint" and f"{report['models']['B']['nll']:.4f}" in b
    assert b.split()[-4] == f"{report['models']['B']['unimodal']['temporal_branch']['accuracy']:.4f}"
    assert b.split()[-5] == "-"  # it has no image branch
    assert shown.splitlines()[-2:] == [one["in_words"], two["in_words"]]


def test_without_any_sample_nothing_can_be_compared():
    with pytest.raises(ValueError, match="no sample has a label"):
        compare({"A": predictions_of([]), "B": predictions_of([])})
