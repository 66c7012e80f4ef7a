import pytest
import torch

from app.param_groups.optimizer import build_optimizer
from app.training.gradients import Gradients, group_norm
from tests.conftest import GROUP_NAMES


def fill(model, factor=1.0):
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = factor * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))


def gradients_of(group):
    return [p.grad.clone() for p in group.parameters.values()]


@pytest.fixture
def set_up(small_model, with_groups):
    def build(own=None, clip_norm=None, name="AdamW"):
        own_limits = {group: {"clip_norm": limit} for group, limit in (own or {}).items()}
        optimizer, built = build_optimizer(small_model, with_groups(own_limits, name=name))
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
    gradients.clip_and_flag(0)
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
    gradients.clip_and_flag(0)
    found = [gradient for group in groups[:3] for gradient in gradients_of(group)]
    for twin, gradient in zip(twins, found, strict=True):
        torch.testing.assert_close(gradient, twin.grad)
    assert all(torch.equal(a, b) for a, b in zip(gradients_of(groups[3]), heads, strict=True))


def test_the_share_of_clipped_steps(small_model, set_up):
    _, _, gradients = set_up(own={"image_branch": 1.0})
    for step, factor in enumerate([10.0, 1e-4, 1e-4, 10.0]):
        fill(small_model, factor)
        gradients.clip_and_flag(step)
    assert gradients.take_clipped_share().tolist() == [0.5, 0, 0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("own", [None, {"fusion_head": 0.1}])
@pytest.mark.parametrize("name", ["AdamW", "NAdam"])  # fused, and not
def test_a_gradient_that_is_not_finite_changes_no_weight_and_no_moment_and_names_its_group(
    small_model, set_up, bad, own, name
):
    optimizer, groups, gradients = set_up(own=own, clip_norm=1.0, name=name)
    fill(small_model)
    gradients.clip_and_flag(0)
    optimizer.step()
    weights = {n: p.detach().clone() for n, p in small_model.named_parameters()}
    moments = [{k: torch.as_tensor(v).clone() for k, v in optimizer.state[p].items()} for p in small_model.parameters()]

    def train_on():
        for step in (1, 2, 3):  # bad at the second step; the good gradients after it do not help
            fill(small_model)
            if step == 1:
                small_model.temporal_branch.lstm.bias_ih_l0.grad[2] = bad
            gradients.clip_and_flag(step)
            optimizer.step()
        gradients.raise_if_not_finite()

    with pytest.raises(FloatingPointError, match="the gradient of temporal_branch was not finite at step 2"):
        train_on()
    assert all(torch.equal(weights[n], p) for n, p in small_model.named_parameters())
    for parameter, before in zip(small_model.parameters(), moments, strict=True):
        assert all(torch.equal(torch.as_tensor(v), before[k]) for k, v in optimizer.state[parameter].items())
    assert [group.name for group in groups] == list(GROUP_NAMES)


@pytest.fixture
def watch(small_model, set_up):
    """Takes gradients of given size, from step to step; returns what `check` warns of."""
    _, _, gradients = set_up(clip_norm=1.0)  # the norm before clipping is watched
    warnings = []
    gradients.warn = warnings.append

    def take(*factors, group="temporal_branch", start=0, read=True):
        """factors: of the group's gradient; those of the other groups stay as they are."""
        for step, factor in enumerate(factors, start):
            fill(small_model)
            for parameter in getattr(small_model, group).parameters():
                parameter.grad = None if factor is None else parameter.grad * factor
            gradients.clip_and_flag(step)
        if read:
            gradients.raise_if_not_finite()
        printed, warnings[:] = list(warnings), []
        return printed

    take.gradients = gradients
    return take


def test_a_norm_above_1000_times_its_running_maximum_is_a_warning_with_group_and_step(watch):
    assert watch(1, 2, 1999, 1, 1_998_000) == []  # each time below 1,000 times the largest so far
    norm = watch.gradients.norms[1].item()
    (warning,) = watch(1, 1_998_000 * 1001, 1, start=5)
    assert f"the gradient norm of temporal_branch rose to {norm * 1001:.2g} at step 7, 1,001 times" in warning


def test_the_first_of_several_jumps_is_named_and_the_watch_goes_on(watch):
    (warning,) = watch(1, 1, 2e3, 1, 1e7, 1)
    assert "at step 3, 2,000 times" in warning
    assert watch(2e3, 1e7, 1e10, start=6) == []  # what has been seen is no jump any more
    (warning,) = watch(1e13 * 1.1, start=9)
    assert "at step 10" in warning


def test_each_group_has_a_maximum_of_its_own(watch):
    assert watch(1, 1e5, 1, group="image_branch", read=False) == []
    first, second = watch(2e3, 1, group="fusion_head", start=3)
    assert "image_branch" in first and "at step 2" in first
    assert "fusion_head" in second and "at step 4" in second


@pytest.mark.parametrize("nothing", [0, None], ids=["zero", "frozen"])
def test_the_first_gradients_of_a_group_are_no_jump_and_those_after_are_watched(watch, nothing):
    assert watch(nothing, nothing, 1e5, 1) == []
    assert watch(nothing, 1e5, start=4) == []
    assert len(watch(2e8, start=6)) == 1


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_norm_that_is_not_finite_is_an_error_and_a_jump_before_it_is_told_first(watch, bad):
    warnings = []
    watch.gradients.warn = warnings.append
    with pytest.raises(FloatingPointError, match="temporal_branch was not finite at step 4"):
        watch(1, 1, 1e4, bad)
    assert len(warnings) == 1 and "at step 3" in warnings[0]
    assert watch.gradients.state_dict()["largest_norms"]["temporal_branch"] < float("inf")


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_norm_that_is_not_finite_is_not_called_a_jump_as_well(watch, bad):
    warnings = []
    watch.gradients.warn = warnings.append
    with pytest.raises(FloatingPointError):
        watch(1, 1, bad)
    assert warnings == []


def test_a_resumed_watch_warns_as_one_that_was_not_stopped(small_model, set_up, watch):
    watch(1, 30)
    state = watch.gradients.state_dict()
    _, _, resumed = set_up()
    resumed.load_state_dict({**state, "largest_norms": {**state["largest_norms"], "a group of another config": 1.0}})
    assert resumed.state_dict() == state
    (unbroken,) = watch(1, 31_000, start=2)
    printed = []
    resumed.warn = printed.append
    for step, factor in ((2, 1), (3, 31_000)):
        fill(small_model)
        for parameter in small_model.temporal_branch.parameters():
            parameter.grad *= factor
        resumed.clip_and_flag(step)
    resumed.raise_if_not_finite()
    assert printed == [unbroken] and "at step 4" in unbroken


def test_a_group_that_the_checkpoint_does_not_know_starts_afresh(watch):
    watch.gradients.load_state_dict({"largest_norms": {"temporal_branch": 1e-6}, "clipped_steps": {}, "steps": 0})
    (warning,) = watch(1, 1)
    assert "temporal_branch" in warning


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
