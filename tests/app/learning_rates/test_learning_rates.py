import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.learning_rates.learning_rates import LearningRates, LearningRatesConfig, StopConfig
from app.learning_rates.rules import PlateauConfig, ThresholdConfig
from app.param_groups.groups import GroupConfig
from app.param_groups.optimizer import build_optimizer
from tests.conftest import replace

LRS = {"image_branch": 0.1, "temporal_branch": 0.01, "fusion_head": 0.001, "unimodal_heads": 0.0001}
MONITORS = ["val/loss", "val/image_branch/loss", "val/accuracy", "val/macro_f1"]


def reduction(groups, monitor="val/loss", **changes):
    values = {"rule": "plateau", "factor": 0.1, "patience": 1, "threshold": 0.0, **changes}
    return PlateauConfig(groups=groups, monitor=monitor, **values)


def threshold(groups, monitor="val/loss", **changes):
    return ThresholdConfig(groups=groups, monitor=monitor, **{"rule": "threshold", "factor": 0.1, **changes})


def make(*reductions, groups=None, **changes):
    """Ten epochs of ten steps over four groups, without an optimizer."""
    groups = {name: GroupConfig(**{"lr": lr, **(groups or {}).get(name, {})}) for name, lr in LRS.items()}
    settings = LearningRatesConfig(**{"warmup_steps": 0, "reductions": [], **changes})
    settings = settings.model_copy(update={"reductions": list(reductions)})  # those of a test's own rules, too
    return LearningRates(groups, {}, settings, monitors=MONITORS, steps_per_epoch=10, epochs=10)


def lrs(rates, step=99):
    return [rates.lr(name, step, step / rates.steps_per_epoch) for name in LRS]


def feed(rates, values, monitor="val/loss", first_epoch=1):
    """One validation after each epoch; returns the events, with their epoch."""
    events = []
    for epoch, value in enumerate(values, start=first_epoch):
        rates.start_epoch(epoch=epoch - 1, step=10 * (epoch - 1))
        for event in rates.after_validation(dict.fromkeys(MONITORS, value), epoch=epoch, step=10 * epoch):
            events.append((epoch, event))
    return events


def test_the_optimizer_gets_each_groups_lr_and_layers_their_share(small_model, optimizer_config, learning_rates_of):
    groups = dict(optimizer_config.groups)
    groups["temporal_branch"] = replace(groups["temporal_branch"], layer_decay=0.5)
    optimizer, built = build_optimizer(small_model, replace(optimizer_config, groups=groups))
    rates = learning_rates_of(built, warmup_steps=4)
    rates.set(1, 0.1)
    expected = {"image_branch": [0.05], "temporal_branch": [0.0025, 0.005], "fusion_head": [5e-4]}
    for name, values in expected.items():
        found = sorted(entry["lr"] for entry in optimizer.param_groups if entry["name"] == name)
        assert found == pytest.approx(values)


def test_warmup_is_linear_and_ends_at_the_base():
    rates = make(warmup_steps=4)
    assert [lrs(rates, step)[0] for step in range(6)] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_a_group_is_reduced_after_patience_plus_one_bad_validations_and_others_keep_theirs_to_the_bit():
    rates = make(reduction(["temporal_branch"], patience=1))
    before = lrs(rates)
    # The first is the best; 1.0 again is no improvement; the second bad one reduces, and counting starts again.
    ((epoch, event),) = feed(rates, [1.0, 1.0, 1.5, 1.5])
    assert (epoch, event.group, event.lr_before, event.lr_after) == (3, "temporal_branch", 0.01, pytest.approx(0.001))
    assert (event.monitor, event.value, event.best, event.cause) == ("val/loss", 1.5, 1.0, "plateau")
    after = lrs(rates)
    assert after[1] == pytest.approx(0.001)
    assert [after[0], *after[2:]] == [before[0], *before[2:]]
    assert "temporal_branch 0.01 -> 0.001 (plateau): val/loss is 1.5000, best 1.0000" in event.describe()


def test_groups_watch_their_own_monitor():
    rates = make(
        reduction(["image_branch"], "val/image_branch/loss", patience=0), reduction(["fusion_head"], patience=0)
    )
    reduced = []
    for epoch, (loss, own) in enumerate([(1.0, 1.0), (0.5, 1.1), (0.6, 0.9)], start=1):
        metrics = {"val/loss": loss, "val/image_branch/loss": own, "val/accuracy": 0}
        reduced.append([event.group for event in rates.after_validation(metrics, epoch=epoch, step=10 * epoch)])
    assert reduced == [[], ["image_branch"], ["fusion_head"]]


def test_warmup_does_not_undo_a_reduction_and_holds_the_counters():
    rates = make(reduction(["image_branch"], patience=0), warmup_steps=30)
    # Validations after epochs 1 and 2 fall into the warm-up of 30 steps: they say nothing.
    events = feed(rates, [1.0, 9.0, 2.0, 1.5, 3.0])
    assert [(epoch, event.best) for epoch, event in events] == [(5, 1.5)]
    assert [lrs(rates, step)[0] for step in (2, 14, 29, 50)] == pytest.approx([0.001, 0.005, 0.01, 0.01])


def test_min_lr_is_the_floor_and_a_group_at_its_floor_makes_no_events():
    rates = make(reduction(["image_branch"], patience=0, min_lr=0.004))
    assert [event.lr_after for _, event in feed(rates, [1.0] * 5)] == pytest.approx([0.01, 0.004])
    assert lrs(rates)[0] == pytest.approx(0.004)


def test_cooldown_holds_the_count_after_a_reduction():
    rates = make(reduction(["image_branch"], patience=0, cooldown=2))
    assert [epoch for epoch, _ in feed(rates, [1.0] * 9)] == [2, 5, 8]


def test_start_epoch_is_the_first_validation_that_counts():
    rates = make(reduction(["image_branch"], patience=0, start_epoch=4))
    assert [(epoch, event.best) for epoch, event in feed(rates, [0.1, 0.2, 0.3, 1.0, 1.1])] == [(5, 1.0)]


def test_nan_is_neither_better_nor_worse_and_is_named():
    rates = make(reduction(["image_branch"], patience=1))
    assert feed(rates, [1.0, math.nan, math.nan, math.nan, 2.0]) == []
    assert len(feed(rates, [2.0])) == 1
    assert rates.not_a_number({"val/loss": math.nan}) == ["val/loss"]
    assert rates.not_a_number({"val/loss": 1.0}) == []


def test_a_tiny_lr_still_falls():
    """torch's scheduler keeps an lr whose change is below its eps of 1e-8."""
    rates = make(reduction(["unimodal_heads"], patience=0, factor=0.01))
    feed(rates, [1.0] * 4)
    assert lrs(rates)[3] == pytest.approx(1e-4 * 1e-6)


VALUES = st.lists(st.floats(-100, 100, allow_nan=False) | st.sampled_from([1.0, 1.001, 0.999]), min_size=1, max_size=60)


@settings(max_examples=3000, deadline=None)
@given(
    values=VALUES,
    monitor=st.sampled_from(["val/loss", "val/accuracy", "val/image_branch/loss", "val/macro_f1"]),
    factor=st.sampled_from([0.1, 0.3, 0.5, 0.9]),
    patience=st.integers(0, 4),
    threshold=st.sampled_from([0.0, 1e-4, 0.1]),
    threshold_mode=st.sampled_from(["rel", "abs"]),
    cooldown=st.integers(0, 3),
    min_lr=st.sampled_from([0.0, 1e-4, 0.02]),
)
def test_equals_torch_on_one_group_and_leaves_the_others_untouched(values, monitor, factor, min_lr, **settings):
    rates = make(reduction(["image_branch"], monitor, factor=factor, min_lr=min_lr, **settings))
    mode = "min" if monitor.endswith("loss") else "max"
    untouched = lrs(rates)[1:]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode=mode, factor=factor, min_lr=min_lr, eps=0, **settings
    )
    for epoch, value in enumerate(values, start=1):
        oracle.step(value)
        feed(rates, [value], first_epoch=epoch)
        assert lrs(rates)[0] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
    assert lrs(rates)[1:] == untouched


@pytest.mark.parametrize(
    ("rule", "values", "epochs"),
    [
        ({"above": 0.5, "start_epoch": 5}, [0.9, 0.9, 0.9, 0.9, 0.9, 0.9], [5]),  # once
        ({"above": 0.5, "start_epoch": 5}, [0.9, 0.9, 0.9, 0.9, 0.4, 0.6, 0.9], [6]),
        ({"above": 0.5, "start_epoch": 2, "repeat": True}, [0.9, 0.9, 0.4, 0.6, 0.5], [2, 4]),
        ({"below": 0.5, "repeat": True}, [0.9, 0.4, 0.5, 0.3], [2, 4]),
        ({"above": 0.5, "repeat": True, "cooldown": 1}, [0.9, 0.9, 0.9, 0.9], [1, 3]),
        ({"above": 0.5}, [math.nan, 0.4], []),
    ],
)
def test_threshold_rule(rule, values, epochs):
    rates = make(threshold(["image_branch", "fusion_head"], **rule))
    events = feed(rates, values)
    assert [epoch for epoch, event in events if event.group == "image_branch"] == epochs
    assert lrs(rates)[0] == pytest.approx(0.1 * 0.1 ** len(epochs))
    assert lrs(rates)[1] == LRS["temporal_branch"]


def test_schedules_by_hand():
    rates = make(
        schedules={
            "image_branch": {"name": "cosine", "end_factor": 0.1},
            "temporal_branch": {"name": "linear"},
            "fusion_head": {"name": "step", "every_epochs": 3, "factor": 0.5},
        }
    )
    assert lrs(rates, 0) == pytest.approx(list(LRS.values()))
    assert lrs(rates, 99) == pytest.approx([0.01, 0.0, 0.001 * 0.125, 0.0001])
    assert lrs(rates, 33)[0] == pytest.approx(0.1 * (0.1 + 0.9 * (1 + math.cos(math.pi / 3)) / 2))
    assert lrs(rates, 33)[1] == pytest.approx(0.01 * 2 / 3)
    assert [lrs(rates, step)[2] for step in (29, 30, 59, 60)] == pytest.approx([0.001, 0.0005, 0.0005, 0.00025])


def test_a_schedule_and_a_reduction_multiply_and_the_event_says_the_lr_as_it_is():
    rates = make(reduction(["image_branch"], patience=0), schedules={"image_branch": {"name": "linear"}})
    ((_, event),) = feed(rates, [1.0, 1.0])  # after 20 of 100 steps
    assert event.lr_before == pytest.approx(0.1 * (1 - 20 / 99)) and event.lr_after == pytest.approx(
        0.1 * event.lr_before
    )
    assert lrs(rates, 0)[0] == pytest.approx(0.01)
    assert lrs(rates, 33)[0] == pytest.approx(0.01 * 2 / 3)


def test_a_frozen_group_is_not_judged_and_warms_up_on_its_own():
    groups = {"image_branch": {"freeze_until": 3, "unfreeze_warmup_steps": 5}}
    rates = make(reduction(["image_branch", "fusion_head"], patience=0), groups=groups)
    events = feed(rates, [1.0, 2.0, 3.0, 4.0, 5.0])
    # fusion_head is judged from the first validation; image_branch from the fourth, its first as a trained group.
    judged = {name: [epoch for epoch, e in events if e.group == name] for name in ("fusion_head", "image_branch")}
    assert judged == {"fusion_head": [2, 3, 4, 5], "image_branch": [5]}
    fresh = make(groups=groups)
    events = [event for epoch in range(10) for event in fresh.start_epoch(epoch=epoch, step=10 * epoch)]
    assert [event.describe() for event in events] == ["lr of image_branch 0 -> 0.1: unfrozen"]
    assert [lrs(fresh, 30 + i)[0] for i in range(6)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    resumed = make(groups=groups)  # in the middle of the warm-up
    resumed.load_state_dict(fresh.state_dict())
    assert lrs(resumed, 31) == lrs(fresh, 31)


def test_early_stop():
    rates = make(stop=StopConfig(monitor="val/accuracy", patience=1))
    assert rates.stop_plan() == "val/accuracy has not risen for 2 validations"
    reasons = []
    for epoch, value in enumerate([0.5, 0.6, 0.6, math.nan, 0.5], start=1):
        feed(rates, [value], first_epoch=epoch)
        reasons.append(rates.should_stop())
    assert reasons == [None, None, None, None, "val/accuracy has not risen for 2 validations"]


def test_stop_when_every_group_is_exhausted():
    floor = {"image_branch": 0.05, "temporal_branch": 0.005, "fusion_head": 5e-4, "unimodal_heads": 5e-5}
    rates = make(*(reduction([n], patience=0, min_lr=lr) for n, lr in floor.items()), stop_when_exhausted=True)
    feed(rates, [1.0, 1.0])  # all at their floor now
    assert rates.should_stop() is None
    feed(rates, [1.0])  # and stalled again
    assert "every group" in rates.should_stop() == rates.stop_plan()


def test_a_group_of_several_rules_is_exhausted_when_none_of_them_can_bring_it_further_down():
    """Of the group, not of each rule: a threshold that has acted, or that never does, holds nothing up."""
    others = reduction([name for name in LRS if name != "image_branch"], patience=0, factor=1e-6, min_lr=9e-5)
    high = reduction(["image_branch"], patience=0, min_lr=0.05)
    low = reduction(["image_branch"], patience=1, min_lr=0.002)
    once, never = threshold(["image_branch"], above=0.9), threshold(["image_branch"], above=100.0)
    rates = make(others, high, low, once, never, stop_when_exhausted=True)
    path = []
    for epoch in range(1, 5):
        feed(rates, [1.0], first_epoch=epoch)
        path.append((lrs(rates)[0], rates.should_stop() is not None))
    # `once` acts after epoch 1, `low` after epoch 3. `high` stalls after epochs 2 and 3, at an lr that `low` then
    # leaves, and after epoch 4 at the lowest min_lr.
    expected = [(0.01, False), (0.01, False), (0.002, False), (0.002, True)]
    assert path == [(pytest.approx(lr), stops) for lr, stops in expected]


def test_a_group_is_not_exhausted_while_another_of_its_rules_could_bring_it_down():
    rules = [
        reduction([*LRS], patience=0, factor=1e-9, min_lr=1e-6),
        reduction(["image_branch"], patience=9, min_lr=1e-9),
    ]
    rates = make(*rules, stop_when_exhausted=True)
    feed(rates, [1.0] * 4)
    assert all(rule.exhausted for rule in rates.rules[:4]) and rates.should_stop() is None


def test_a_group_is_exhausted_where_the_last_of_its_rules_that_act_once_meets_its_min_lr():
    once = [threshold([*LRS], above=0.5, min_lr=1e-6), threshold([*LRS], above=0.5, min_lr=2e-4)]
    rates = make(*once, stop_when_exhausted=True, groups=dict.fromkeys(LRS, {"lr": 0.001}))
    feed(rates, [0.1])
    assert rates.should_stop() is None
    feed(rates, [1.0], first_epoch=2)
    assert lrs(rates) == pytest.approx([1e-4] * 4) and "every group" in rates.should_stop()


def test_curves_show_the_inner_state():
    rates = make(reduction(["image_branch"], patience=3, cooldown=4), reduction(["fusion_head"]))
    feed(rates, [1.0, 2.0, 2.0])
    curves = rates.curves()
    assert curves["plateau_best"] == {"image_branch": 1.0, "fusion_head": 1.0}
    assert curves["plateau_bad_validations"] == {"image_branch": 2, "fusion_head": 0}  # fusion_head was just reduced
    assert curves["plateau_cooldown"] == {"image_branch": 0, "fusion_head": 0}
    assert curves["reduction"]["fusion_head"] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["cosine", "linear", "step"])
@pytest.mark.parametrize("steps", [[10, 10], [10, 40], [10, 3], [40, 1]])
def test_a_schedule_stays_where_it_was_when_the_number_of_steps_in_an_epoch_changes(name, steps):
    """A run resumed after epoch 5 of 10 with another batch size: the same lr there, and the same end."""
    options = {"every_epochs": 2, "factor": 0.5} if name == "step" else {"end_factor": 0.2}
    before, after = make(schedules={"image_branch": {"name": name, **options}}), None
    after = make(schedules={"image_branch": {"name": name, **options}})
    before.steps_per_epoch, after.steps_per_epoch = steps
    finished = 5 * steps[0]
    after.load_state_dict(before.state_dict())
    progress = 5 / (10 - 1 / steps[1])
    remaining = {"cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress}
    expected = 0.1 * (0.25 if name == "step" else 0.2 + 0.8 * remaining[name])
    assert after.lr("image_branch", finished, 5.0) == pytest.approx(expected)
    last = finished + 5 * steps[1] - 1
    assert after.lr("image_branch", last, 10 - 1 / steps[1]) == pytest.approx(0.1 * (0.0625 if name == "step" else 0.2))
    if steps[0] == steps[1]:
        assert after.lr("image_branch", finished, 5.0) == before.lr("image_branch", finished, 5.0)


def test_the_direction_belongs_to_the_monitor():
    rules = [reduction(["image_branch"], monitor, patience=1) for monitor in MONITORS]
    rising = [[epoch for epoch, _ in feed(make(rule), [0.1, 0.2, 0.3, 0.4])] for rule in rules]
    falling = [[epoch for epoch, _ in feed(make(rule), [0.4, 0.3, 0.2, 0.1])] for rule in rules]
    assert rising == [[3], [3], [], []]
    assert falling == [[], [], [3], [3]]
    plans = [make(rule).plans()[0]["reductions"] for rule in rules]
    assert plans[0] == "x0.1 when val/loss has not fallen for 2 validations, down to 0"
    assert plans[2] == "x0.1 when val/accuracy has not risen for 2 validations, down to 0"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, []),
        ({"factor": 0.5}, []),
        ({"patience": 5}, []),
        ({"min_lr": 1e-5}, ["exhausted of reductions[0] for image_branch (min_lr: 0.001 -> 1e-05)"]),
        ({"threshold": 0.5}, ["best of reductions[0]", "bad_validations of reductions[0]"]),
        ({"threshold_mode": "abs"}, ["best of reductions[0]", "bad_validations of reductions[0]"]),
        ({"start_epoch": 9}, ["best of", "bad_validations of"]),
        ({"monitor": "val/accuracy"}, ["reductions[0] for image_branch (the checkpoint has no plateau on val/accur"]),
        ({"groups": ["fusion_head"]}, ["reductions[0] for fusion_head (the checkpoint has no plateau on val/loss"]),
    ],
)
def test_what_was_counted_under_another_setting_starts_from_the_beginning_and_is_named(change, named):
    values = {"patience": 1, "min_lr": 0.001, "factor": 1e-9}
    before = make(reduction(["image_branch"], **values))
    feed(before, [1.0, 2.0, 2.0, 2.0, 2.0, 2.0])  # at min_lr after the third, and stalled there after the fifth
    (old,) = before.rules
    assert (old.best, old.bad_validations, old.exhausted) == (1.0, 1, True)

    rule = {"groups": ["image_branch"], **values, **change}
    after = make(reduction(**rule))
    lines = after.load_state_dict(before.state_dict())
    assert len(lines) == len(named) and all(a.startswith(b) for a, b in zip(lines, named, strict=True)), lines
    (new,) = after.rules
    fresh = make(reduction(**rule)).rules[0]
    for name in ("best", "bad_validations", "exhausted"):
        is_named = any(line.startswith((f"{name} of", "reductions[0]")) for line in lines)
        assert getattr(new, name) == getattr(fresh if is_named else old, name), name
    assert after.reduction["image_branch"] == before.reduction["image_branch"]  # what was decided stays


def test_cooldown_and_a_threshold_that_has_fired_start_from_the_beginning_under_other_settings():
    before = make(threshold(["image_branch"], above=0.5, cooldown=4))
    feed(before, [1.0])
    same = make(threshold(["image_branch"], above=0.5, cooldown=4))
    assert same.load_state_dict(before.state_dict()) == [] and feed(same, [1.0] * 9, first_epoch=2) == []
    other = make(threshold(["image_branch"], above=0.7, cooldown=0))
    assert other.load_state_dict(before.state_dict()) == [
        "cooldown of reductions[0] for image_branch (cooldown: 4 -> 0)",
        "fired of reductions[0] for image_branch (above: 0.5 -> 0.7)",
    ]
    assert [epoch for epoch, _ in feed(other, [1.0], first_epoch=2)] == [2]


def test_exhausted_starts_from_the_beginning_under_another_base_lr():
    before = make(reduction(["image_branch"], patience=0, factor=1e-9, min_lr=0.001))
    feed(before, [1.0, 1.0, 1.0])
    after = make(reduction(["image_branch"], patience=0, min_lr=0.001), groups={"image_branch": {}})
    after.rules[0].settings["lr"] = 0.5
    assert after.load_state_dict(before.state_dict()) == [
        "exhausted of reductions[0] for image_branch (lr: 0.1 -> 0.5)"
    ]


def counted(*states, rules):
    """The bad validations of each rule, and the lines, where the saved rules have counted 1, 2, ..."""
    before, after = make(*states), make(*rules)
    for number, rule in enumerate(before.rules, start=1):
        rule.best, rule.bad_validations = 1.0, number
    lines = after.load_state_dict(before.state_dict())
    return [rule.bad_validations for rule in after.rules], lines


def test_the_nth_rule_of_a_group_kind_and_monitor_continues_the_nth_saved_one():
    changes = ({}, {"patience": 9}, {"monitor": "val/accuracy"})
    one, other, accuracy = (reduction(["image_branch", "fusion_head"], **change) for change in changes)
    assert counted(one, other, accuracy, rules=[one, other, accuracy]) == ([1, 2, 3, 4, 5, 6], [])
    assert counted(one, other, accuracy, rules=[accuracy, one, other]) == ([5, 6, 1, 2, 3, 4], [])
    assert counted(one, other, accuracy, rules=[other, accuracy]) == ([3, 4, 5, 6], [])  # by its settings
    third = reduction(["image_branch", "fusion_head"], patience=8)
    assert counted(one, accuracy, rules=[third, accuracy]) == ([1, 2, 3, 4], [])


def test_a_rule_without_a_partner_starts_from_the_beginning_and_is_named():
    one = reduction(["image_branch"])
    left = "for image_branch (the checkpoint has no {} left for it)"
    assert counted(one, rules=[one, one]) == ([1, 0], [f"reductions[1] {left.format('plateau on val/loss')}"])
    elsewhere = [reduction(["fusion_head"]), reduction(["image_branch"], "val/accuracy")]
    assert counted(one, rules=elsewhere) == (
        [0, 0],
        [
            "reductions[0] for fusion_head (the checkpoint has no plateau on val/loss left for it)",
            f"reductions[1] {left.format('plateau on val/accuracy')}",
        ],
    )


@pytest.mark.parametrize("min_lr", [0.009, 0.011, 0.02])
def test_a_min_lr_that_a_resume_raises_above_the_lr_leaves_it_where_it_is(min_lr):
    before, after = (make(reduction(["image_branch"], patience=0, min_lr=floor)) for floor in (0.0, min_lr))
    feed(before, [1.0, 1.0])
    after.load_state_dict(before.state_dict())
    feed(after, [1.0] * 3, first_epoch=3)
    assert lrs(after)[0] == pytest.approx(min(0.01, max(min_lr, 0.001))) and after.rules[0].exhausted


def test_the_stop_rule_starts_from_the_beginning_under_another_monitor():
    before = make(stop=StopConfig(monitor="val/loss", patience=3))
    feed(before, [0.1, 0.2, 0.3])
    after = make(stop=StopConfig(monitor="val/accuracy", patience=1))
    assert after.load_state_dict(before.state_dict()) == ["best and count of stop (monitor: val/loss -> val/accuracy)"]
    assert (after.stop.best, after.stop_count) == (None, 0)
    patient = make(stop=StopConfig(monitor="val/loss", patience=1))
    assert patient.load_state_dict(before.state_dict()) == []
    assert (patient.stop.best, patient.stop_count) == (0.1, 2) and patient.should_stop()


def test_a_freeze_until_that_was_moved_acts_from_now_with_event_and_warmup():
    frozen = {"image_branch": {"freeze_until": 8, "unfreeze_warmup_steps": 5}}
    before = make(groups=frozen)
    for epoch in range(5):
        assert before.start_epoch(epoch=epoch, step=10 * epoch) == []
    after = make(groups={"image_branch": {"freeze_until": 2, "unfreeze_warmup_steps": 5}})
    after.load_state_dict(before.state_dict())
    (event,) = after.start_epoch(epoch=5, step=50)
    assert (event.group, event.cause, event.lr_after) == ("image_branch", "unfreeze", pytest.approx(0.1))
    assert [lrs(after, 50 + i)[0] for i in range(6)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    assert after.start_epoch(epoch=6, step=60) == []
    # A group that trained from the start was never frozen, whatever freeze_until says of the past.
    never = make(groups={"image_branch": {"freeze_until": 2}})
    never.load_state_dict(make().state_dict())
    assert never.start_epoch(epoch=5, step=50) == []
    # Frozen again by the new config, and unfrozen once more.
    again = make(groups={"image_branch": {"freeze_until": 7, "unfreeze_warmup_steps": 5}})
    again.load_state_dict(after.state_dict())
    events = [(epoch, event.cause) for epoch in (6, 7, 8) for event in again.start_epoch(epoch=epoch, step=10 * epoch)]
    assert events == [(6, "freeze"), (7, "unfreeze")]
    assert lrs(again, 70)[0] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (threshold(["image_branch"], "val/accuracy", above=1.0), "val/accuracy is never above 1"),
        (threshold(["image_branch"], "val/loss", below=0.0), "val/loss is never below 0"),
        (threshold(["image_branch"], "val/macro_f1", below=-1.0), "val/macro_f1 is never below 0"),
    ],
)
def test_a_threshold_that_its_monitor_cannot_pass_is_refused(rule, message):
    with pytest.raises(ValueError, match=rf"learning_rates.reductions\[0\]\.(above|below): found .*{message}"):
        make(rule)


def test_state_continues_where_it_was_and_settings_come_from_the_config():
    rules = [
        reduction(["image_branch", "fusion_head"], patience=1, cooldown=1),
        threshold(["image_branch"], above=1.25),
    ]
    settings = {"stop": StopConfig(monitor="val/loss", patience=9)}
    values = [1.0, 1.1, 1.2, 1.3, 1.0, 0.9, 1.4, 1.5, 1.6]
    straight, first, resumed = (make(*rules, **settings) for _ in range(3))
    feed(straight, values)
    feed(first, values[:4])
    resumed.load_state_dict(first.state_dict())
    feed(resumed, values[4:], first_epoch=5)
    assert lrs(resumed) == lrs(straight)
    assert resumed.state_dict() == straight.state_dict()

    changed = make(*rules, groups={}, **settings)
    changed.groups["image_branch"] = GroupConfig(lr=0.5)  # a base lr that was edited between stop and resume
    changed.load_state_dict(straight.state_dict())
    assert lrs(changed)[0] == pytest.approx(0.5 * straight.reduction["image_branch"])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rules": [reduction(["image_branch"], "val/los")]}, r"reductions\[0\]"),
        ({"stop": StopConfig(monitor="val/los", patience=1)}, "stop"),
    ],
)
def test_an_unknown_monitor_is_named_with_the_known_ones(changes, key):
    with pytest.raises(
        ValueError, match=rf"{key}.monitor: 'val/los' is not a validation metric; did you mean 'val/loss'"
    ):
        make(*changes.pop("rules", []), **changes)


@pytest.mark.parametrize(
    ("freeze_until", "events"), [(0, []), (1, [2]), (2, [2]), (4, [4])], ids=["never", "before", "now", "later"]
)
def test_a_frozen_group_that_was_renamed_unfreezes_with_event_and_warmup(freeze_until, events):
    """The checkpoint knows image_branch as another name: of this one it cannot say whether it was frozen."""
    before = make(groups={"image_branch": {"freeze_until": 3}})
    for epoch in range(2):
        before.start_epoch(epoch=epoch, step=10 * epoch)
    state = before.state_dict()
    state["reduction"]["img"] = state["reduction"].pop("image_branch")
    state["frozen"] = ["img"]
    warmup = {"unfreeze_warmup_steps": 20} if freeze_until else {}
    after = make(groups={"image_branch": {"freeze_until": freeze_until, **warmup}})
    assert after.load_state_dict(state) == ["the reduction of image_branch (a new group)"]
    found = {epoch: after.start_epoch(epoch=epoch, step=10 * epoch) for epoch in range(2, 10)}
    assert [epoch for epoch, unfrozen in found.items() if unfrozen] == events
    for epoch in events:
        assert [event.describe() for event in found[epoch]] == ["lr of image_branch 0 -> 0.1: unfrozen"]
        assert [lrs(after, 10 * epoch + i)[0] for i in (0, 9, 19, 20)] == pytest.approx([0.005, 0.05, 0.1, 0.1])
