"""How far the probabilities of labelled predictions can be trusted, and the temperature that mends them."""

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from torch.nn.functional import cross_entropy, one_hot

from app.evaluation.predictions import Predictions

BINS = 15
TEMPERATURES = (0.05, 20.0)  # between which the best is looked for


class Temperature(NamedTuple):
    value: float  # logits are divided by it
    samples: int  # that it was fitted on
    at_limit: bool  # the best lies at or beyond an end of TEMPERATURES


def fit_temperature(predictions: Predictions) -> Temperature:
    """That of the lowest negative log-likelihood (Guo and others, 2017). All samples are labelled.

    The likelihood is convex in 1 / T, so the best T is where its slope changes sign. Where it does not between the ends
    of TEMPERATURES (all samples are right, or the predictions are no better than chance) the value is one of these.
    """
    logits, label = _usable(predictions)
    of_label = logits[torch.arange(len(label)), label]

    def slope(log_temperature: float) -> float:
        """Of the loss along 1 / T: what the model expects of its logits, less what the true classes have."""
        probabilities = (logits / np.exp(log_temperature)).softmax(1)
        return ((probabilities * logits).sum(1) - of_label).mean().item()

    low, high = np.log(TEMPERATURES)
    if slope(low) <= 0:  # 0 where all are right and certain to the last digit
        return Temperature(TEMPERATURES[0], len(label), True)
    if slope(high) >= 0:
        return Temperature(TEMPERATURES[1], len(label), True)
    return Temperature(float(np.exp(brentq(slope, low, high))), len(label), False)


def describe_certainty(predictions: Predictions, temperature: float = 1.0) -> dict[str, Any]:
    """Of labelled samples, with logits divided by `temperature`:

    "ece": the mean difference between the probability of the prediction and the share that is right, over 15 bins of
    that probability, weighted by their samples (L1); "brier": the mean squared distance of the probabilities from the
    truth, summed over the classes, 0 to 2 (Brier, 1950); "nll": the mean of -log p of the true class, without the loss'
    class weights and label smoothing; "bins": of the reliability diagram.
    """
    logits, label = _usable(predictions)
    probabilities = (logits / temperature).softmax(1)
    truth, bins = one_hot(label, probabilities.shape[1]), _bins(probabilities, label)
    return {
        "ece": sum(of["samples"] * abs(of["accuracy"] - of["probability"]) for of in bins) / len(label),
        "brier": (probabilities - truth).square().sum(1).mean().item(),
        "nll": cross_entropy(logits / temperature, label).item(),
        "bins": bins,
    }


def _bins(probabilities: torch.Tensor, label: torch.Tensor) -> list[dict[str, float]]:
    """Those that have samples, by the probability of the prediction, each (above, to]."""
    probability, prediction = probabilities.max(1)
    right = prediction == label
    place = (probability * BINS).ceil().long().clamp(1, BINS) - 1
    return [
        {
            "above": i / BINS,
            "to": (i + 1) / BINS,
            "samples": int(inside.sum()),
            "probability": probability[inside].mean().item(),
            "accuracy": right[inside].double().mean().item(),
        }
        for i in range(BINS)
        if (inside := place == i).any()
    ]


def _usable(predictions: Predictions) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, C) float64 and (N,). A log-probability of -inf (late fusion) becomes a very low one."""
    return predictions.logits.double().clamp(min=-1e6), predictions.label
