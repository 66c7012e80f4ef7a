import pytest
import torch

from app.param_groups.freezing import Freezing
from app.param_groups.optimizer import build_optimizer
from tests.app.training.test_group_stats import train_step


def state_of(module):
    """Parameters and buffers, bit for bit."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before, module):
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


@pytest.fixture
def set_up(small_model, with_groups):
    def build(**changes):
        optimizer, built = build_optimizer(small_model, with_groups({"image_branch": changes}))
        return optimizer, built, Freezing(small_model, built)

    return build


def train_epoch(model, batch, optimizer, freezing, frozen=(), steps=3):
    model.train()
    freezing.apply(frozen)
    for _ in range(steps):
        train_step(model, batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def test_frozen_means_that_not_one_bit_moves_and_the_rest_trains(small_model, small_batch, set_up):
    optimizer, _, freezing = set_up()
    # The hard case: gradients and moments from before, which weight decay and momentum would go on with.
    train_step(small_model, small_batch)
    optimizer.step()
    before, head = state_of(small_model.image_branch), state_of(small_model.fusion_head)
    for _ in range(2):
        train_epoch(small_model, small_batch, optimizer, freezing, {"image_branch"})
    assert changed(before, small_model.image_branch) == set()
    # No sample lacked an input: what stands in for it has nothing to learn from.
    assert changed(head, small_model.fusion_head) == {name for name in head if not name.startswith("absent.")}
    train_epoch(small_model, small_batch, optimizer, freezing)
    assert changed(before, small_model.image_branch) == set(before)


def test_frozen_parameters_have_no_gradient_and_no_backward_cost(small_model, small_batch, set_up):
    _, _, freezing = set_up()
    small_model.train()
    freezing.apply({"image_branch"})
    b = small_batch
    output = small_model(b["image"], b["sequence"], b["length"], b["present"])
    assert not output.embeddings["image_branch"].requires_grad  # no graph was built for it
    output.logits.sum().backward()
    assert all(p.grad is None for p in small_model.image_branch.parameters())


def test_freeze_batchnorm_keeps_the_statistics_while_the_weights_train(small_model, small_batch, set_up):
    optimizer, _, freezing = set_up(freeze_batchnorm=True)
    before = state_of(small_model.image_branch)
    train_epoch(small_model, small_batch, optimizer, freezing)
    assert changed(before, small_model.image_branch) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_without_either_the_statistics_move(small_model, small_batch, set_up):
    optimizer, _, freezing = set_up()
    before = state_of(small_model.image_branch)
    train_epoch(small_model, small_batch, optimizer, freezing)
    assert "1.running_mean" in changed(before, small_model.image_branch)


def test_a_norm_without_parameters_belongs_to_the_modules_around_it(small_model, optimizer_config):
    small_model.image_branch.insert(2, torch.nn.BatchNorm2d(4, affine=False))
    _, groups = build_optimizer(small_model, optimizer_config)
    norms = Freezing(small_model, groups).norms
    assert len(norms["image_branch"]) == 2 and not norms["fusion_head"]


def test_a_group_that_is_frozen_after_it_trained_stands_still_to_the_bit_norm_statistics_included(
    small_model, small_batch, set_up
):
    optimizer, _, freezing = set_up()
    train_epoch(small_model, small_batch, optimizer, freezing)
    before, head = state_of(small_model.image_branch), state_of(small_model.fusion_head)
    for _ in range(2):
        train_epoch(small_model, small_batch, optimizer, freezing, ["image_branch"])
    assert changed(before, small_model.image_branch) == set()
    assert changed(head, small_model.fusion_head)


def test_what_is_frozen_is_said_each_time_anew(small_model, set_up):
    _, groups, freezing = set_up()
    for names, trains in (({"image_branch"}, False), (set(), True), ({"image_branch", "fusion_head"}, False)):
        freezing.apply(names)
        assert all(p.requires_grad is trains for p in groups[0].parameters.values())
