"""Oracles: torch's cross_entropy, and scikit-learn's compute_class_weight."""

import math
from types import SimpleNamespace

import numpy
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy, one_hot

from app.commands.build import build_objective
from app.training.objective import IGNORED, LossConfig, Objective, balanced_weights, losses
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


def test_samples_without_a_label_have_no_part_in_it():
    objective = Objective(torch.tensor([0.5, 1.0, 4.0]), 0.1)
    logits, label = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, IGNORED, 1, 2])
    rest = label != IGNORED
    expected = cross_entropy(logits[rest], label[rest], objective.class_weights, label_smoothing=0.1)
    assert objective(logits, label).item() == pytest.approx(expected.item())
    assert objective(logits[2:3], label[2:3]).isnan()


# Log-probabilities of two samples among three classes: whole numbers of ln 2.
LOGITS = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]).log()
LABEL, PARTNER_LABEL, SHARE = torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([0.75, 0.5])


def test_mixed_samples_by_hand():
    """Losses of the labels 0 and 2 of the first sample: 1 and 2 ln 2; of 1 and 0 of the second: 3 and 3 ln 2."""
    first, second = 0.75 * 1 + 0.25 * 2, 3.0
    mean = Objective().of_mixed(LOGITS, LABEL, PARTNER_LABEL, SHARE)
    assert mean.item() == pytest.approx((first + second) / 2 * math.log(2))
    # Weights of the four labels: 0.75 x 2, 0.25 x 4; 0.5 x 1, 0.5 x 2.
    weighted = Objective(torch.tensor([2.0, 1.0, 4.0])).of_mixed(LOGITS, LABEL, PARTNER_LABEL, SHARE)
    assert weighted.item() == pytest.approx((1.5 * 1 + 1.0 * 2 + 0.5 * 3 + 1.0 * 3) / 4.0 * math.log(2))


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 4.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_a_share_of_1_or_0_it_is_the_mean_of_torch(weights, smoothing):
    objective = Objective(weights, smoothing)
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    label, partner = torch.tensor([2, 0, IGNORED, 1, 2, 0]), torch.tensor([1, 1, IGNORED, 2, 0, 0])
    for share, expected in ((1.0, label), (0.0, partner)):
        found = objective.of_mixed(logits, label, partner, torch.full((6,), share))
        oracle = cross_entropy(logits, expected, weights, ignore_index=IGNORED, label_smoothing=smoothing)
        assert found.item() == pytest.approx(oracle.item(), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_class_weights_it_is_the_cross_entropy_of_mixed_targets(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits, share = torch.randn(6, 3, generator=generator), torch.rand(6, generator=generator)
    label, partner = torch.arange(6) % 3, torch.arange(6) % 2
    target = share[:, None] * one_hot(label, 3) + (1 - share)[:, None] * one_hot(partner, 3)
    found = Objective(None, smoothing).of_mixed(logits, label, partner, share)
    assert found.item() == pytest.approx(cross_entropy(logits, target, label_smoothing=smoothing).item(), rel=1e-6)


def test_losses_of_a_mixed_batch_are_of_the_samples_that_have_the_input():
    """The second sample has no image: the image branch's own head learns from the first alone."""
    own = {"image_branch": LOGITS, "temporal_branch": LOGITS.flip(0)}
    output = SimpleNamespace(logits=LOGITS, unimodal_logits=own)
    present = torch.tensor([[True, True], [False, True]])
    batch = {"label": LABEL, "partner_label": PARTNER_LABEL, "share": SHARE, "present": present}
    found = {name: value.item() / math.log(2) for name, value in losses(output, batch, Objective()).items()}
    # The flipped rows: labels 0 and 2 are 3 and 2 - log2(3), labels 1 and 0 are 2 and 1.
    flipped = (0.75 * 3 + 0.25 * (2 - math.log2(3)) + 0.5 * 2 + 0.5 * 1) / 2
    assert found == pytest.approx({"loss": 2.125, "image_branch/loss": 1.25, "temporal_branch/loss": flipped})
    batch["present"] = torch.tensor([[False, True], [False, True]])
    assert losses(output, batch, Objective())["image_branch/loss"] == 0
    unmixed = losses(output, {"label": LABEL, "present": present}, Objective())
    assert torch.equal(unmixed["loss"], cross_entropy(LOGITS, LABEL))
    assert torch.equal(unmixed["image_branch/loss"], cross_entropy(LOGITS[:1], LABEL[:1]))
