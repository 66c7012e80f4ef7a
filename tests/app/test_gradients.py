from dataclasses import replace

import pytest
import torch

from app.gradients import Gradients, group_norm
from app.param_groups import build_optimizer
from tests.conftest import GROUP_NAMES


def fill(model, factor=1.0):
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = factor * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))


def gradients_of(group):
    return [p.grad.clone() for p in group.parameters.values()]


@pytest.fixture
def set_up(small_model, optimizer_config):
    def build(own=None, clip_norm=None, name="AdamW"):
        groups = {n: replace(g, clip_norm=(own or {}).get(n)) for n, g in optimizer_config.groups.items()}
        optimizer, built = build_optimizer(small_model, replace(optimizer_config, groups=groups, name=name))
        return optimizer, built, Gradients(optimizer, built, clip_norm)

    return build


def test_a_groups_own_clip_norm_equals_torchs_on_that_group_and_touches_no_other(small_model, set_up):
    _, groups, gradients = set_up(own={"image_branch": 0.5, "fusion_head": 1e6})
    fill(small_model)
    untouched = [gradients_of(group) for group in groups[1:]]
    twins = [torch.nn.Parameter(p.detach().clone()) for p in groups[0].parameters.values()]
    for twin, gradient in zip(twins, gradients_of(groups[0]), strict=True):
        twin.grad = gradient
    torch.nn.utils.clip_grad_norm_(twins, 0.5)
    gradients.prepare(0)
    for twin, gradient in zip(twins, gradients_of(groups[0]), strict=True):
        torch.testing.assert_close(gradient, twin.grad)
    for group, before in zip(groups[1:], untouched, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(gradients_of(group), before, strict=True))
    assert gradients.clipped_norms[0].item() == pytest.approx(0.5, rel=1e-4)
    assert gradients.take_clipped_share().tolist() == [1, 0, 0, 0]


def test_the_global_clip_norm_equals_torchs_over_the_groups_without_one(small_model, set_up):
    _, groups, gradients = set_up(own={"unimodal_heads": 1e6}, clip_norm=0.7)
    fill(small_model)
    heads = gradients_of(groups[3])
    twins = [torch.nn.Parameter(p.detach().clone()) for group in groups[:3] for p in group.parameters.values()]
    for twin, p in zip(twins, [p for group in groups[:3] for p in group.parameters.values()], strict=True):
        twin.grad = p.grad.clone()
    torch.nn.utils.clip_grad_norm_(twins, 0.7)
    gradients.prepare(0)
    found = [gradient for group in groups[:3] for gradient in gradients_of(group)]
    for twin, gradient in zip(twins, found, strict=True):
        torch.testing.assert_close(gradient, twin.grad)
    assert all(torch.equal(a, b) for a, b in zip(gradients_of(groups[3]), heads, strict=True))


def test_the_share_of_clipped_steps(small_model, set_up):
    _, _, gradients = set_up(own={"image_branch": 1.0})
    for step, factor in enumerate([10.0, 1e-4, 1e-4, 10.0]):
        fill(small_model, factor)
        gradients.prepare(step)
    assert gradients.take_clipped_share().tolist() == [0.5, 0, 0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("own", [None, {"fusion_head": 0.1}])
@pytest.mark.parametrize("name", ["AdamW", "NAdam"])  # fused, and not
def test_a_gradient_that_is_not_finite_changes_no_weight_and_no_moment_and_names_its_group(
    small_model, set_up, bad, own, name
):
    optimizer, groups, gradients = set_up(own=own, clip_norm=1.0, name=name)
    fill(small_model)
    gradients.prepare(0)
    optimizer.step()
    weights = {n: p.detach().clone() for n, p in small_model.named_parameters()}
    moments = [{k: torch.as_tensor(v).clone() for k, v in optimizer.state[p].items()} for p in small_model.parameters()]

    def train_on():
        for step in (1, 2, 3):  # bad at the second step; the good gradients behind it do not help
            fill(small_model)
            if step == 1:
                small_model.temporal_branch.lstm.bias_ih_l0.grad[2] = bad
            gradients.prepare(step)
            optimizer.step()
        gradients.check()

    with pytest.raises(FloatingPointError, match="the gradient of temporal_branch was not finite at step 2"):
        train_on()
    assert all(torch.equal(weights[n], p) for n, p in small_model.named_parameters())
    for parameter, before in zip(small_model.parameters(), moments, strict=True):
        assert all(torch.equal(torch.as_tensor(v), before[k]) for k, v in optimizer.state[parameter].items())
    assert [group.name for group in groups] == list(GROUP_NAMES)


def heavy_tailed(*shape, seed=0):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.sign() * values.abs() ** 4


@pytest.mark.parametrize(
    "tensors",
    [
        [heavy_tailed(9_400_000)],
        [torch.full((3_000_001,), 0.1)],
        [heavy_tailed(512, 512, 3, 3).to(memory_format=torch.channels_last), heavy_tailed(7, 5)],
        [heavy_tailed(1300, 1300).T, torch.tensor(3.0)],
    ],
    ids=["one large", "all equal", "channels_last", "transposed"],
)
def test_norms_of_large_tensors_equal_float64(tensors):
    expected = sum((tensor.double() ** 2).sum() for tensor in tensors).sqrt().item()
    assert group_norm(tensors, tensors[0]).item() == pytest.approx(expected, rel=1e-5)
