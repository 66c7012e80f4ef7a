import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import brier_score_loss, log_loss
from torch.nn.functional import cross_entropy

from app.evaluation.certainty import TEMPERATURES, describe_certainty, fit_temperature
from app.evaluation.predictions import Predictions


def predictions_of(logits, label):
    size, classes = logits.shape
    present = torch.ones(size, 2, dtype=torch.bool)
    return Predictions([str(i) for i in range(classes)], torch.arange(size), label, present, logits.float(), {})


@pytest.fixture
def honest():
    """2,000 samples whose labels are drawn from the very probabilities that are predicted."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2000, 4, generator=generator)
    return predictions_of(logits, torch.multinomial(logits.softmax(1), 1, generator=generator).flatten())


def test_brier_and_nll_are_scikit_learns(honest):
    found, probabilities = describe_certainty(honest), honest.logits.double().softmax(1).numpy()
    assert found["nll"] == pytest.approx(log_loss(honest.label.numpy(), probabilities, labels=range(4)), rel=1e-6)
    expected = brier_score_loss(honest.label.numpy(), probabilities, labels=range(4), scale_by_half=False)
    assert found["brier"] == pytest.approx(expected, rel=1e-6)


def test_calibration_error_and_bins_by_hand():
    """Two at 0.9, one of them right; two at 0.6, both right: (2 x 0.4 + 2 x 0.4) / 4."""
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    found = describe_certainty(predictions_of(p.log(), torch.tensor([0, 1, 1, 1])))
    assert found["ece"] == pytest.approx(0.4, abs=1e-6)
    assert [(of["samples"], of["accuracy"]) for of in found["bins"]] == [(2, 1.0), (2, 0.5)]
    assert [of["probability"] for of in found["bins"]] == pytest.approx([0.6, 0.9])
    assert all(of["above"] < of["probability"] <= of["to"] for of in found["bins"])
    assert found["brier"] == pytest.approx((0.02 + 1.62 + 2 * 0.32) / 4)


def test_certain_samples_are_in_the_last_bin():
    """500 samples have a probability of 1 in float32, and 450 of them are right; as many have 0.9647, which is in the
    same bin, and all are right."""
    place = torch.arange(1000)
    label, certain = place % 3, place % 2 == 1
    guess = torch.where(place % 20 != 1, label, (label + 1) % 3)
    logits = torch.zeros(1000, 3)
    logits[place, guess] = torch.where(certain, 40.0, 4.0)
    found, p = describe_certainty(predictions_of(logits, label)), math.exp(4) / (math.exp(4) + 2)
    (last,) = found["bins"]
    assert (last["samples"], last["accuracy"], last["to"]) == (1000, 0.95, 1.0)
    assert found["ece"] == pytest.approx((1 + p) / 2 - 0.95, abs=1e-6)


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.25])
def test_the_temperature_undoes_what_the_logits_were_multiplied_by(honest, factor):
    distorted = predictions_of(factor * honest.logits, honest.label)
    temperature = fit_temperature(distorted)
    assert temperature.value == pytest.approx(factor * fit_temperature(honest).value, rel=1e-4)
    assert temperature.value == pytest.approx(factor, rel=0.06) and not temperature.at_limit
    before, after = describe_certainty(distorted), describe_certainty(distorted, temperature.value)
    assert after["nll"] <= before["nll"] and after["ece"] < 0.04
    assert factor == 1 or after["ece"] < before["ece"] / 2


def test_the_temperature_is_where_the_loss_is_lowest(honest):
    """By scipy's search for the minimum, which sees the loss alone."""
    logits, label = honest.logits.double() * 3, honest.label
    found = minimize_scalar(
        lambda t: cross_entropy(logits / t, label).item(), bounds=(0.5, 9), method="bounded", options={"xatol": 1e-9}
    )
    assert fit_temperature(predictions_of(logits, label)).value == pytest.approx(found.x, rel=1e-5)


@pytest.mark.parametrize("gap", [0.5, 1.0, 2.0, 10.0, 30.0, 1000.0])
def test_where_all_are_right_or_all_wrong_there_is_no_best_temperature(gap):
    """Also where the loss of certain ones is 0, or too large to change, to the last digit over much of the range."""
    logits = gap * torch.eye(3)
    right = fit_temperature(predictions_of(logits, torch.arange(3)))
    wrong = fit_temperature(predictions_of(logits, torch.tensor([1, 2, 0])))
    assert right == (TEMPERATURES[0], 3, True)
    assert wrong == (TEMPERATURES[1], 3, True)


def test_a_single_mistake_among_certain_ones_is_enough_for_a_temperature():
    label = torch.arange(500) % 10
    logits = 100 * torch.eye(10)[label]
    logits[0] = logits[1]
    temperature = fit_temperature(predictions_of(logits, label))
    assert not temperature.at_limit and 5 < temperature.value < 20


def test_a_class_that_late_fusion_rules_out_makes_no_number_nan():
    logits = torch.tensor([[0.0, -math.inf], [0.0, -math.inf]])
    found = describe_certainty(predictions_of(logits, torch.tensor([0, 1])))
    assert found["brier"] == pytest.approx(1.0) and found["nll"] > 1e5 and not math.isnan(found["ece"])
