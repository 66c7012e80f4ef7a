"""Oracles: torch's cross_entropy, and scikit-learn's compute_class_weight."""

import numpy
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy

from app.commands.build import build_objective
from app.training.objective import IGNORED, LossConfig, Objective, balanced_weights
from data.spec import DataSpec

SPEC = DataSpec(("a", "b", "c"), 5, {}, class_counts=(6, 3, 1), absent=(0, 0), rows={})
CPU = torch.device("cpu")


def test_balanced_weights_are_those_of_scikit_learn():
    labels = numpy.repeat([0, 1, 2], SPEC.class_counts)
    expected = compute_class_weight("balanced", classes=numpy.arange(3), y=labels)
    built = build_objective(LossConfig(class_weights="balanced", label_smoothing=0.2), SPEC, CPU)
    assert built.class_weights.tolist() == pytest.approx(expected.tolist(), rel=1e-7)
    assert built.class_weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert built.label_smoothing == 0.2


def test_a_class_without_training_rows_cannot_be_balanced():
    with pytest.raises(ValueError, match="^loss.class_weights: found balanced, but no training row is of class 'b';"):
        balanced_weights({"a": 3, "b": 0, "c": 0})


def test_the_default_is_plain_cross_entropy_to_the_bit():
    objective = build_objective(LossConfig(), SPEC, CPU)
    assert objective == Objective(None, 0.0)
    logits, label = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
    assert torch.equal(objective(logits, label), cross_entropy(logits, label))
    loss, weight = objective.of_samples(logits, label)
    assert torch.equal(loss, cross_entropy(logits, label, reduction="none")) and weight.tolist() == [1.0] * 64


def test_samples_without_a_label_have_no_part_in_it():
    objective = Objective(torch.tensor([0.5, 1.0, 4.0]), 0.1)
    logits, label = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, IGNORED, 1, 2])
    loss, weight = objective.of_samples(logits, label)
    assert weight.tolist() == [4.0, 0.5, 1.0, 4.0]
    mean = (loss * weight).sum() / weight.sum()
    rest = label != IGNORED
    expected = cross_entropy(logits[rest], label[rest], objective.class_weights, label_smoothing=0.1)
    assert mean.item() == pytest.approx(expected.item()) == pytest.approx(objective(logits, label).item())
    assert [len(part) for part in objective.of_samples(logits[2:3], label[2:3])] == [0, 0]
