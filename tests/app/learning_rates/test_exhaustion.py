"""stop_when_exhausted refuses what can never come true, and nothing else: to the epoch."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.learning_rates.exhaustion import never_exhausted
from tests.app.learning_rates.test_learning_rates import MONITORS, make, reduction, threshold

STEPS = 10  # in an epoch
NAME = "fusion_head"


def refusals(rates, epochs, steps_per_epoch=STEPS):
    only = {NAME: rates.groups[NAME]}
    return [*never_exhausted(only, rates.config, epochs=epochs, steps_per_epoch=steps_per_epoch)]


def first_act(rates):
    """The epoch after whose validation the first rule acts, where nothing ever improves."""
    for epoch in range(1, 500):
        rates.start_epoch(epoch=epoch - 1, step=STEPS * (epoch - 1))
        if rates.after_validation(dict.fromkeys(MONITORS, 1.0), epoch=epoch, step=STEPS * epoch):
            return epoch
    raise AssertionError("it never acts")


CASES = [
    # rule, group, warmup_steps, the epoch of its first act
    ({"patience": 0}, {}, 0, 2),
    ({"patience": 18}, {}, 0, 20),
    ({"patience": 50}, {}, 0, 52),
    ({"patience": 1, "start_epoch": 20}, {}, 0, 22),
    ({"patience": 1, "start_epoch": 18}, {}, 0, 20),
    ({"patience": 0, "cooldown": 7}, {}, 0, 2),
    ({"patience": 0}, {"freeze_until": 19}, 0, 21),
    ({"patience": 0}, {"freeze_until": 18}, 0, 20),
    ({"patience": 2}, {}, 50, 8),
    ({"patience": 2}, {}, 51, 9),
    ({"patience": 2}, {"freeze_until": 3, "unfreeze_warmup_steps": 20}, 10, 8),
    ({"patience": 2}, {"freeze_until": 3, "unfreeze_warmup_steps": 21}, 0, 9),
    ({"above": 0.5}, {}, 0, 1),
    ({"above": 0.5, "start_epoch": 20}, {}, 0, 20),
    ({"above": 0.5}, {"freeze_until": 19}, 0, 20),
    ({"patience": 1}, {"freeze_until": {"monitor": "val/loss", "above": 0.5, "at_most": 9}}, 0, 4),  # met at once
    ({"patience": 1}, {"freeze_until": {"monitor": "val/loss", "above": 0.5, "at_most": 1}}, 25, 5),
    ({"above": 0.5}, {}, 200, 20),
    ({"above": 0.5}, {}, 201, 21),
]


def rates_of(rule, group, warmup_steps):
    kind = threshold if "above" in rule else reduction
    extra = {"repeat": True} if "above" in rule else {}
    return make(
        kind([NAME], min_lr=1e-9, **rule, **extra),
        groups={NAME: group},
        warmup_steps=warmup_steps,
        stop_when_exhausted=True,
    )


@pytest.mark.parametrize(("rule", "group", "warmup_steps", "epoch"), CASES)
def test_a_rule_that_acts_at_the_last_validation_is_accepted_and_one_epoch_less_refused(
    rule, group, warmup_steps, epoch
):
    rates = rates_of(rule, group, warmup_steps)
    assert refusals(rates, epoch) == [] and refusals(rates, epoch + 1) == []
    assert first_act(rates) == epoch
    if epoch > 1:
        (line,) = refusals(rates, epoch - 1)
        assert "group 'fusion_head' has reductions[0], which never acts: " in line
        assert f"run.epochs is {epoch - 1}" in line or "start_epoch 20 is after the last epoch (run.epochs 19)" in line


@settings(deadline=None, max_examples=150)
@given(
    st.one_of(
        st.fixed_dictionaries({"patience": st.integers(0, 9), "start_epoch": st.integers(1, 9)}),
        st.fixed_dictionaries({"above": st.just(0.5), "start_epoch": st.integers(1, 9)}),
    ),
    st.integers(0, 6).flatmap(
        lambda frozen: st.fixed_dictionaries(
            {"freeze_until": st.just(frozen), "unfreeze_warmup_steps": st.integers(0, 45 if frozen else 0)}
        )
    ),
    st.integers(0, 95),
)
def test_the_boundary_is_where_the_rule_really_acts(rule, group, warmup_steps):
    rates = rates_of(rule, group, warmup_steps)
    epoch = first_act(rates)
    assert refusals(rates, epoch) == []
    assert epoch == 1 or refusals(rates, epoch - 1)


@pytest.mark.parametrize(
    ("rule", "group", "warmup_steps", "said"),
    [
        (
            {"patience": 50},
            {},
            0,
            "it needs 52 validations (patience 50: a first one, then 51 without improvement), so it could act after "
            "epoch 52 at the earliest, but run.epochs is 20; lower patience, or raise run.epochs to 52",
        ),
        (
            {"patience": 1, "start_epoch": 20},
            {},
            0,
            "its validations count from epoch 20 on (start_epoch 20) and it needs 3 validations (patience 1: a first "
            "one, then 2 without improvement), so it could act after epoch 22 at the earliest, but run.epochs is 20; "
            "lower start_epoch or patience, or raise run.epochs to 22",
        ),
        (
            {"above": 0.5},
            {},
            999_999,
            "its validations count from epoch 100000 on (warmup_steps 999999 at 10 steps an epoch), so it could act "
            "after epoch 100000 at the earliest, but run.epochs is 20; lower warmup_steps, or raise run.epochs to "
            "100000",
        ),
        (
            {"above": 0.5},
            {"freeze_until": 1, "unfreeze_warmup_steps": 99_999},
            0,
            "its validations count from epoch 10001 on (unfreeze_warmup_steps 99999 after freeze_until 1, at 10 steps "
            "an epoch), so it could act after epoch 10001 at the earliest, but run.epochs is 20; lower "
            "unfreeze_warmup_steps, or raise run.epochs to 10001",
        ),
        (
            {"patience": 0},
            {"freeze_until": 19},
            0,
            "its validations count from epoch 20 on (freeze_until 19) and it needs 2 validations (patience 0: a first "
            "one, then 1 without improvement), so it could act after epoch 21 at the earliest, but run.epochs is 20; "
            "lower freeze_until or patience, or raise run.epochs to 21",
        ),
    ],
)
def test_the_line_names_what_is_missing_and_what_to_change(rule, group, warmup_steps, said):
    (line,) = refusals(rates_of(rule, group, warmup_steps), 20)
    assert line == (
        "learning_rates.stop_when_exhausted: cannot be used, for group 'fusion_head' has reductions[0], which never "
        f"acts: {said}"
    )


def test_without_the_steps_of_an_epoch_freezing_and_warmups_are_left_out():
    """A resumed run may have them behind it: at another batch size, or with a group that has long been trained."""
    group = {"freeze_until": 19, "unfreeze_warmup_steps": 99_999}
    assert refusals(rates_of({"patience": 1}, group, 999_999), 20, steps_per_epoch=None) == []
    assert refusals(rates_of({"patience": 18}, group, 0), 20, steps_per_epoch=None) == []
    assert refusals(rates_of({"patience": 19}, group, 0), 20, steps_per_epoch=None)


def test_all_rules_are_told_at_once():
    rates = make(
        reduction([NAME], patience=50, min_lr=1e-9),
        reduction([NAME], patience=1, min_lr=1e-9),
        threshold([NAME], above=0.5, start_epoch=30),
        stop_when_exhausted=True,
    )
    lines = refusals(rates, 20)
    assert [line.split(" has ")[1].split(",")[0] for line in lines] == ["reductions[0]", "reductions[2]"]


def test_a_group_that_may_be_frozen_for_good_needs_no_rule_that_acts():
    condition = {"monitor": "val/loss", "above": 0.5, "at_most": 30}
    for freeze_from, refused in ((5, False), (condition, False), (20, True), (None, True)):
        rates = make(groups={NAME: {"freeze_from": freeze_from}}, stop_when_exhausted=True)
        assert bool(refusals(rates, 20)) == refused
