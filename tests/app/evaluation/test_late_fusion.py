import math

import pytest
import torch

from app.evaluation.late_fusion import join, join_predictions
from app.evaluation.predictions import Predictions
from app.evaluation.scores import metrics_of
from app.training.objective import BRANCHES, Objective

NAN = float("nan")
PRESENT = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=torch.bool)


def test_by_hand():
    image, sequence, prior = [0.6, 0.3, 0.1], [0.25, 0.5, 0.25], [0.5, 0.3, 0.2]
    # 0.6 x 0.25 / 0.5, 0.3 x 0.5 / 0.3, 0.1 x 0.25 / 0.2 = 0.3, 0.5, 0.125, whose sum is 0.925
    expected = [[0.3 / 0.925, 0.5 / 0.925, 0.125 / 0.925], image, sequence, prior]
    logits = torch.tensor([image, sequence]).log()[:, None].expand(2, 4, 3) + torch.tensor([2.0, -7.0])[:, None, None]
    log_p = join(logits, PRESENT, torch.tensor(prior))
    torch.testing.assert_close(log_p.exp(), torch.tensor(expected))
    assert log_p.dtype == torch.float32


def test_is_bayes_rule_where_the_modalities_of_a_class_are_independent():
    """A world of 3 classes, 5 images and 4 sequences, whose joint probabilities are known."""
    generator = torch.Generator().manual_seed(0)
    prior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    image, sequence = (torch.rand(3, n, generator=generator, dtype=torch.float64).pow(3) for n in (5, 4))  # p(x | c)
    image, sequence = (of_class / of_class.sum(1, keepdim=True) for of_class in (image, sequence))
    joint = prior[:, None, None] * image[:, :, None] * sequence[:, None, :]  # (3, 5, 4)
    posterior = (joint / joint.sum(0)).flatten(1).T  # (20, 3)
    of_image, of_sequence = ((p := prior[:, None] * of_class) / p.sum(0) for of_class in (image, sequence))
    alone = [of_image[:, :, None].expand_as(joint), of_sequence[:, None, :].expand_as(joint)]
    logits = torch.stack([p.flatten(1).T for p in alone]).log()
    log_p = join(logits, torch.ones(20, 2, dtype=torch.bool), prior)
    torch.testing.assert_close(log_p.double().exp(), posterior, atol=1e-6, rtol=1e-5)


def test_against_float64():
    generator = torch.Generator().manual_seed(1)
    prior = torch.rand(10, generator=generator, dtype=torch.float64) + 0.01
    prior /= prior.sum()
    logits = 20 * torch.randn(2, 200, 10, generator=generator)
    present = torch.rand(200, 2, generator=generator) < 0.6
    expected = torch.empty(200, 10, dtype=torch.float64)
    for row in range(200):
        p = prior.clone()
        for modality in range(2):
            if present[row, modality]:
                p = p * logits[modality, row].double().softmax(0) / prior
        expected[row] = (p / p.sum()).log()
    assert {tuple(row) for row in present.tolist()} == {tuple(row) for row in PRESENT.tolist()}
    logits[~present.T] = NAN  # what stands there is of no model
    torch.testing.assert_close(join(logits, present, prior).double(), expected, atol=2e-5, rtol=1e-6)


def test_a_class_without_training_rows_is_never_predicted_and_makes_no_number_nan():
    prior = torch.tensor([0.75, 0.25, 0.0])
    logits = torch.tensor([[0.6, 0.2, 0.2], [0.2, 0.6, 0.2]]).log()[:, None].expand(2, 4, 3)
    log_p = join(logits, PRESENT, prior)
    # 0.6 x 0.2 / 0.75, 0.2 x 0.6 / 0.25 = 0.16, 0.48; alone 0.6 : 0.2 and 0.2 : 0.6
    expected = [[0.25, 0.75, 0.0], [0.75, 0.25, 0.0], [0.25, 0.75, 0.0], [0.75, 0.25, 0.0]]
    torch.testing.assert_close(log_p.exp(), torch.tensor(expected))
    assert (log_p[:, 2] == -math.inf).all() and not log_p.isnan().any()
    found = Predictions([*"abc"], torch.arange(4), torch.tensor([1, 0, 1, 0]), PRESENT, log_p, {})
    values = metrics_of(found, Objective())
    assert values["accuracy"] == 1 and values["loss"] == pytest.approx(-math.log(0.75))


def test_two_tables_of_predictions_become_one():
    image, sequence = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(2))
    prior, label = torch.tensor([0.5, 0.3, 0.2]), torch.arange(4) % 3

    def of_model(column, logits):
        present, own = PRESENT.clone(), {BRANCHES[column]: torch.full((4, 3), NAN)}
        present[:, 1 - column] = False
        return Predictions([*"abc"], torch.arange(4), label, present, logits, own)

    found = join_predictions(of_model(0, image), of_model(1, sequence), prior)
    expected = join(torch.stack([image, sequence]), PRESENT, prior)
    assert torch.equal(found.logits, expected) and torch.equal(found.present, PRESENT)
    assert torch.equal(found.label, label) and [*found.unimodal_logits] == [*BRANCHES]
    assert torch.equal(found.unimodal_logits["image_branch"], image)
    assert torch.equal(found.unimodal_logits["temporal_branch"], sequence)
    rows = found.rows()
    assert [row["present"] for row in rows] == ["image and sequence", "image only", "sequence only", "nothing"]
    assert [row["p(a)"] for row in rows] == [f"{p:.6f}" for p in expected.exp()[:, 0].tolist()]
    assert [bool(row["temporal_branch"]) for row in rows] == [True, False, True, False]
