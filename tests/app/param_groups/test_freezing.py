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


def train_epoch(model, batch, optimizer, freezing, epoch, steps=3):
    model.train()
    freezing.apply(epoch)
    for _ in range(steps):
        train_step(model, batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def test_frozen_means_that_not_one_bit_moves_and_the_rest_trains(small_model, small_batch, set_up):
    optimizer, _, freezing = set_up(freeze_until=2)
    # The hard case: gradients and moments from before, which weight decay and momentum would go on with.
    train_step(small_model, small_batch)
    optimizer.step()
    before, head = state_of(small_model.image_branch), state_of(small_model.fusion_head)
    for epoch in (0, 1):
        train_epoch(small_model, small_batch, optimizer, freezing, epoch)
    assert changed(before, small_model.image_branch) == set()
    # No sample lacked an input: what stands in for it has nothing to learn from.
    assert changed(head, small_model.fusion_head) == {name for name in head if not name.startswith("absent.")}
    train_epoch(small_model, small_batch, optimizer, freezing, 2)
    assert changed(before, small_model.image_branch) == set(before)


def test_frozen_parameters_have_no_gradient_and_no_backward_cost(small_model, small_batch, set_up):
    _, _, freezing = set_up(freeze_until=1)
    small_model.train()
    freezing.apply(0)
    b = small_batch
    output = small_model(b["image"], b["sequence"], b["length"], b["present"])
    assert not output.embeddings["image_branch"].requires_grad  # no graph was built for it
    output.logits.sum().backward()
    assert all(p.grad is None for p in small_model.image_branch.parameters())


def test_freeze_batchnorm_keeps_the_statistics_while_the_weights_train(small_model, small_batch, set_up):
    optimizer, _, freezing = set_up(freeze_batchnorm=True)
    before = state_of(small_model.image_branch)
    train_epoch(small_model, small_batch, optimizer, freezing, 0)
    assert changed(before, small_model.image_branch) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_without_either_the_statistics_move(small_model, small_batch, set_up):
    optimizer, _, freezing = set_up()
    before = state_of(small_model.image_branch)
    train_epoch(small_model, small_batch, optimizer, freezing, 0)
    assert "1.running_mean" in changed(before, small_model.image_branch)


def test_a_norm_without_parameters_belongs_to_the_modules_around_it(small_model, optimizer_config):
    small_model.image_branch.insert(2, torch.nn.BatchNorm2d(4, affine=False))
    _, groups = build_optimizer(small_model, optimizer_config)
    norms = Freezing(small_model, groups).norms
    assert len(norms["image_branch"]) == 2 and not norms["fusion_head"]


def test_the_epoch_alone_decides(small_model, set_up):
    """So a resumed run needs no state of it."""
    _, groups, freezing = set_up(freeze_until=2)
    for epoch, trains in ((1, False), (3, True), (0, False)):
        freezing.apply(epoch)
        assert all(p.requires_grad is trains for p in groups[0].parameters.values())
