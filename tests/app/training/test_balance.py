import pytest
import torch
from pydantic import ValidationError

from app.param_groups.optimizer import build_optimizer
from app.training.balance import (
    GatesConfig,
    GradientsConfig,
    ModalityDropout,
    ModalityDropoutConfig,
    check_gates,
    far_below_fusion,
)
from models.fusion_classifier import Gates


def dropped(indices, present=None, *, epoch=0, seed=0, image=0.3, sequence=0.2, samples=5000):
    config = ModalityDropoutConfig(image_branch=image, temporal_branch=sequence)
    present = torch.ones(len(indices), 2, dtype=torch.bool) if present is None else present
    batch = {"index": indices, "present": present.clone()}
    return ModalityDropout(config, seed=seed, num_samples=samples)(epoch, batch)["present"]


def test_each_modality_is_dropped_as_often_as_asked_and_never_both():
    present = dropped(torch.arange(5000))
    assert present.any(1).all()
    shares = 1 - present.double().mean(0)  # deviation of each: sqrt(p (1 - p) / 5000) < 0.0065
    torch.testing.assert_close(shares, torch.tensor([0.3, 0.2]).double(), atol=0.02, rtol=0)


def test_shares_that_add_up_to_one_leave_each_sample_exactly_one():
    assert (dropped(torch.arange(5000), image=0.5, sequence=0.5).sum(1) == 1).all()


def test_it_depends_on_seed_epoch_and_sample_alone():
    whole = dropped(torch.arange(5000))
    order = torch.randperm(5000)
    assert torch.equal(dropped(order), whole[order])
    assert torch.equal(dropped(torch.tensor([4321])), whole[[4321]])
    assert not torch.equal(dropped(torch.arange(5000), epoch=1), whole)
    assert not torch.equal(dropped(torch.arange(5000), seed=1), whole)


def test_a_sample_that_has_one_input_only_keeps_it():
    present = torch.tensor([[True, False], [False, True], [False, False]]).repeat(500, 1)
    assert torch.equal(dropped(torch.arange(1500), present, image=0.5, sequence=0.5), present)


def test_it_gives_the_batch_itself_where_nothing_is_dropped():
    batch = {"index": torch.arange(3), "present": torch.ones(3, 2, dtype=torch.bool)}
    assert ModalityDropout(ModalityDropoutConfig(), seed=0, num_samples=3)(0, batch) is batch


def test_shares_above_one_in_all_are_an_error():
    with pytest.raises(ValidationError, match="add up to 1.1"):
        ModalityDropoutConfig(image_branch=0.6, temporal_branch=0.5)


def test_a_branch_that_trains_and_that_no_gradient_reaches_is_an_error(small_model, with_groups):
    gradients = GradientsConfig(temporal_branch=GatesConfig(fusion=0.0, own=0.0))
    branches = ["image_branch", "temporal_branch"]
    _, groups = build_optimizer(small_model, with_groups({"temporal_branch": {"freeze_until": 3}}))
    with pytest.raises(ValueError, match=r"^balance\.gradients\.temporal_branch: .*\(group temporal_branch\)"):
        check_gates(gradients, branches, groups, epochs=4)
    check_gates(gradients, branches, groups, epochs=3)  # frozen for the whole run
    check_gates(gradients, ["image_branch"], groups, epochs=4)


FAR_BELOW = {"accuracy": 0.9, "image_branch/accuracy": 0.8, "temporal_branch/accuracy": 0.64}


@pytest.mark.parametrize(
    ("changes", "gates", "expected"),
    [
        ({}, Gates(1.0, 0.0), ["temporal_branch"]),
        ({}, Gates(0.5, 0.5), ["temporal_branch"]),
        ({}, Gates(1.0, 1.0), []),  # its own head trains it in full
        ({}, Gates(0.0, 0.5), []),  # the fusion does not train it
        ({"temporal_branch/accuracy": 0.66}, Gates(1.0, 0.0), []),
        ({"image_branch/accuracy": 0.3}, Gates(1.0, 0.0), ["image_branch", "temporal_branch"]),
        ({"temporal_branch/accuracy": float("nan")}, Gates(1.0, 0.0), []),
    ],
)
def test_a_branch_far_below_the_fusion_is_pointed_out(small_model, changes, gates, expected):
    small_model.gates = dict.fromkeys(small_model.gates, gates)
    assert far_below_fusion(FAR_BELOW | changes, small_model) == expected


def test_a_frozen_branch_is_not_pointed_out(small_model):
    small_model.temporal_branch.requires_grad_(False)
    assert far_below_fusion(FAR_BELOW, small_model) == []
