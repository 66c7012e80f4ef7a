import math

import pytest
import torch

from app.config import LearningRatesConfig, ReductionConfig
from app.learning_rates import LearningRates, describe_event
from app.param_groups import build_optimizer


def reduction(groups, monitor="val/loss", **changes):
    values = {"rule": "plateau", "factor": 0.1, "patience": 1, "min_lr": 0.0, **changes}
    return ReductionConfig(groups=groups, monitor=monitor, **values)


@pytest.fixture
def make(small_model, optimizer_config):
    _, groups = build_optimizer(small_model, optimizer_config)  # lr 0.1, 0.01, 0.001, 0.0001

    def make_learning_rates(*reductions, warmup_steps=0):
        for group, values in zip(groups, optimizer_config.groups.values(), strict=True):
            group.param_group["lr"] = values.lr
        config = LearningRatesConfig(warmup_steps=warmup_steps, reductions=list(reductions))
        return LearningRates(groups, config, ["val/loss", "val/image_branch/loss", "val/accuracy"])

    return make_learning_rates


def lrs(rates, step=1000):
    rates.set(step)
    return list(rates.current().values())


def test_warmup_is_linear_and_ends_at_the_base(make):
    rates = make(warmup_steps=4)
    assert [lrs(rates, step)[0] for step in range(6)] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_a_group_is_reduced_after_patience_plus_one_bad_validations_and_others_keep_theirs_to_the_bit(make):
    rates = make(reduction(["temporal_branch"], patience=1))
    before = lrs(rates)
    assert rates.after_validation({"val/loss": 1.0}) == []  # the first is the best
    assert rates.after_validation({"val/loss": 1.0}) == []  # bad, 1
    (event,) = rates.after_validation({"val/loss": 1.5})  # bad, 2: reduced
    assert event["group"] == "temporal_branch"
    assert (event["from"], event["to"]) == (0.01, pytest.approx(0.001))
    assert (event["monitor"], event["value"], event["best"]) == ("val/loss", 1.5, 1.0)
    after = lrs(rates)
    assert after[1] == pytest.approx(0.001)
    assert [after[0], *after[2:]] == [before[0], *before[2:]]
    assert rates.after_validation({"val/loss": 1.5}) == []  # the count starts again
    assert "temporal_branch 1.00e-02 -> 1.00e-03" in describe_event(event)


def test_groups_watch_their_own_monitor(make):
    rates = make(
        reduction(["image_branch"], "val/image_branch/loss", patience=0), reduction(["fusion_head"], patience=0)
    )
    rates.after_validation({"val/loss": 1.0, "val/image_branch/loss": 1.0})
    events = rates.after_validation({"val/loss": 0.5, "val/image_branch/loss": 1.1})
    assert [event["group"] for event in events] == ["image_branch"]
    events = rates.after_validation({"val/loss": 0.6, "val/image_branch/loss": 0.9})
    assert [event["group"] for event in events] == ["fusion_head"]


def test_warmup_does_not_undo_a_reduction(make):
    rates = make(reduction(["image_branch"], patience=0), warmup_steps=10)
    rates.after_validation({"val/loss": 1.0})
    rates.after_validation({"val/loss": 2.0})
    assert [lrs(rates, step)[0] for step in (0, 4, 9, 50)] == pytest.approx([0.001, 0.005, 0.01, 0.01])


def test_min_lr_is_the_floor_and_a_group_at_its_floor_makes_no_events(make):
    rates = make(reduction(["image_branch"], patience=0, min_lr=0.004))
    events = [rates.after_validation({"val/loss": 1.0}) for _ in range(5)]
    assert [event["to"] for event in sum(events, [])] == pytest.approx([0.01, 0.004])
    assert lrs(rates)[0] == pytest.approx(0.004)


def test_nan_is_neither_better_nor_worse(make):
    rates = make(reduction(["image_branch"], patience=1))
    for value in (1.0, math.nan, math.nan, math.nan, 2.0):
        assert rates.after_validation({"val/loss": value}) == []
    assert len(rates.after_validation({"val/loss": 2.0})) == 1


def test_a_tiny_lr_still_falls(make):
    """torch's scheduler keeps an lr whose change is below its eps of 1e-8."""
    rates = make(reduction(["unimodal_heads"], patience=0, factor=0.01))
    for _ in range(4):
        rates.after_validation({"val/loss": 1.0})
    assert lrs(rates)[3] == pytest.approx(1e-4 * 1e-6)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold", [0.0, 0.05])
def test_equals_torch_on_one_group(make, mode, threshold):
    rates = make(reduction(["image_branch"], "val/accuracy", mode=mode, patience=2, factor=0.5, threshold=threshold))
    parameter = torch.nn.Parameter(torch.zeros(1))
    oracle_optimizer = torch.optim.SGD([parameter], lr=0.1)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(
        oracle_optimizer, mode=mode, patience=2, factor=0.5, threshold=threshold, eps=0
    )
    values = torch.rand(300, generator=torch.Generator().manual_seed(3)).cumsum(0).sub(75).abs().add(0.1).tolist()
    reductions = 0
    for value in values:
        reductions += len(rates.after_validation({"val/accuracy": value}))
        oracle.step(value)
        assert lrs(rates)[0] == pytest.approx(oracle_optimizer.param_groups[0]["lr"], rel=1e-12)
    assert reductions > 3


def test_state_continues_where_it_was_and_settings_come_from_the_config(make):
    rule = reduction(["image_branch", "fusion_head"], patience=1)
    values = [1.0, 1.1, 1.2, 1.3, 1.0, 0.9, 1.4, 1.5, 1.6]
    straight = make(rule)
    for value in values:
        straight.after_validation({"val/loss": value})
    first = make(rule)
    for value in values[:4]:
        first.after_validation({"val/loss": value})
    resumed = make(rule)
    resumed.load_state_dict(first.state_dict())
    for value in values[4:]:
        resumed.after_validation({"val/loss": value})
    assert lrs(resumed) == lrs(straight)
    assert resumed.state_dict() == straight.state_dict()

    changed = make(rule)
    changed.base["image_branch"] = 0.5  # a base lr that was edited between stop and resume
    changed.load_state_dict(straight.state_dict())
    assert lrs(changed)[0] == pytest.approx(0.5 * straight.reduction["image_branch"])


def test_an_unknown_monitor_is_named_with_the_known_ones(make):
    with pytest.raises(
        ValueError, match=r"reductions\[0\].monitor: 'val/los' is not a validation metric; known: val/loss"
    ):
        make(reduction(["image_branch"], "val/los"))
