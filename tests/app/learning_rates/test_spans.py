"""Freezing by epochs and by what validations show: who trains in which epoch, with which events."""

import math

import pytest

from app.learning_rates.learning_rates import LearningRates, LearningRatesConfig
from app.learning_rates.replay import replay
from app.param_groups.groups import GroupConfig
from tests.app.learning_rates.test_learning_rates import reduction, threshold

MONITORS = ["val/loss", "val/accuracy", "val/temporal_branch/accuracy"]
GOOD = {"monitor": "val/accuracy", "above": 0.8, "at_most": 5}
LOW = {"monitor": "val/loss", "below": 0.5, "at_most": 4}


def make(image=None, temporal=None, *reductions, head=None, **changes):
    """Eight epochs of ten steps over three groups, without an optimizer."""
    groups = {
        "image_branch": GroupConfig(lr=0.1, **(image or {})),
        "temporal_branch": GroupConfig(lr=0.01, **(temporal or {})),
        "fusion_head": GroupConfig(lr=0.001, **(head or {})),
    }
    config = LearningRatesConfig(warmup_steps=0, reductions=list(reductions), **changes)
    return LearningRates(groups, {}, config, monitors=MONITORS, steps_per_epoch=10, epochs=8)


def run(rates, accuracies, *, loss=1.0, first_epoch=1):
    """Returns the frozen groups and the events of each epoch that begins: of the first, and after each validation."""
    frozen, events = [], []
    for epoch, accuracy in enumerate([*accuracies, None], start=first_epoch - 1):
        events.append([(event.group, event.cause) for event in rates.start_epoch(epoch=epoch, step=10 * epoch)])
        frozen.append(sorted(rates.frozen))
        if accuracy is not None:
            rates.after_validation(metrics_of(accuracy, loss), epoch=epoch + 1, step=10 * epoch + 10)
    return frozen, events


def metrics_of(accuracy, loss=1.0):
    return {"val/loss": loss, "val/accuracy": accuracy, "val/temporal_branch/accuracy": accuracy}


IMAGE, NOBODY = ["image_branch"], []
UNFREEZE, FREEZE = [("image_branch", "unfreeze")], [("image_branch", "freeze")]
SPAN = {2: UNFREEZE, 3: FREEZE}


@pytest.mark.parametrize(
    ("group", "accuracies", "frozen", "at"),
    [
        ({"freeze_until": 2}, [0.9] * 3, [IMAGE, IMAGE, NOBODY, NOBODY], {2: UNFREEZE}),
        ({"freeze_until": GOOD}, [0.7, 0.8, 0.81, 0.1], [IMAGE] * 3 + [NOBODY] * 2, {3: UNFREEZE}),  # latched
        ({"freeze_until": GOOD}, [0.7, math.nan] * 3, [IMAGE] * 5 + [NOBODY] * 2, {5: UNFREEZE}),  # at_most
        ({"freeze_from": 2}, [0.9] * 3, [NOBODY, NOBODY, IMAGE, IMAGE], {2: FREEZE}),
        ({"freeze_from": GOOD}, [0.7, 0.81, 0.1, 0.1], [NOBODY] * 2 + [IMAGE] * 3, {2: FREEZE}),
        ({"freeze_from": GOOD}, [0.7, math.nan] * 3, [NOBODY] * 5 + [IMAGE] * 2, {5: FREEZE}),
        ({"freeze_from": LOW}, [0.9] * 5, [NOBODY] * 4 + [IMAGE] * 2, {4: FREEZE}),
        # What was good enough while it was frozen says nothing of its training.
        ({"freeze_until": 2, "freeze_from": GOOD}, [0.9, 0.7, 0.9], [IMAGE, IMAGE, NOBODY, IMAGE], SPAN),
        ({"freeze_until": 2, "freeze_from": GOOD}, [0.9, 0.9, 0.7], [IMAGE, IMAGE, NOBODY, NOBODY], {2: UNFREEZE}),
        ({"freeze_until": GOOD, "freeze_from": 3}, [0.7, 0.9, 0.9], [IMAGE, IMAGE, NOBODY, IMAGE], SPAN),
        ({"freeze_until": GOOD, "freeze_from": 3}, [0.7] * 6, [IMAGE] * 7, {}),  # it never trained: nothing changes
    ],
)
def test_who_is_frozen_in_which_epoch(group, accuracies, frozen, at):
    found, events = run(make(group), accuracies)
    assert found == frozen
    assert {epoch: names for epoch, names in enumerate(events) if names} == at


def test_each_event_says_why():
    rates = make({"freeze_until": GOOD}, {"freeze_from": LOW}, schedules={"temporal_branch": {"name": "linear"}})
    run(rates, [0.7])
    rates.after_validation(metrics_of(0.8125, 0.25), epoch=2, step=20)
    unfrozen, frozen = rates.start_epoch(epoch=2, step=20)
    assert unfrozen.describe() == "lr of image_branch 0 -> 0.1: unfrozen: val/accuracy > 0.8, at 0.8125"
    assert unfrozen.as_record() == {
        "group": "image_branch",
        "from": 0.0,
        "to": 0.1,
        "cause": "unfreeze",
        "reason": "val/accuracy > 0.8, at 0.8125",
        "monitor": "val/accuracy",
        "value": 0.8125,
    }
    assert frozen.describe() == "lr of temporal_branch 0.00747 -> 0: frozen: val/loss < 0.5, at 0.2500"
    assert (frozen.lr_after, frozen.lr_before) == (0.0, rates.lr("temporal_branch", 20, 2))

    late = make({"freeze_until": {**GOOD, "at_most": 1}}, {"freeze_from": 1})
    run(late, [])
    late.after_validation(metrics_of(0.1), epoch=1, step=10)
    said = [event.describe() for event in late.start_epoch(epoch=1, step=10)]
    assert said == [
        "lr of image_branch 0 -> 0.1: unfrozen: after 1 epoch without val/accuracy > 0.8",
        "lr of temporal_branch 0.01 -> 0: frozen",
    ]


def test_the_first_validation_that_meets_a_condition_is_the_one_that_is_kept():
    rates = make({"freeze_until": GOOD, "freeze_from": 2})
    run(rates, [0.81, 0.7, 0.95, 0.95])
    assert rates.state_dict()["conditions"]["image_branch"]["freeze_until"]["met_by"] == 0.81


def test_unfrozen_by_a_condition_it_warms_up():
    rates = make({"freeze_until": GOOD, "unfreeze_warmup_steps": 5})
    run(rates, [0.7, 0.9])
    lrs = [rates.lr("image_branch", 20 + i, 2) for i in range(6)]
    assert lrs == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])


@pytest.mark.parametrize(
    ("group", "counted"),
    [({"freeze_until": GOOD}, 3), ({"freeze_from": GOOD}, 2), ({"freeze_until": 1, "freeze_from": 4}, 3), ({}, 5)],
)
def test_no_validation_of_a_frozen_group_counts(group, counted):
    """Patience 99: each counted validation is the best, or bad. The condition is met by the second of five."""
    rates = make(group, None, reduction(["image_branch"], patience=99))
    run(rates, [0.7, 0.9, 0.9, 0.9, 0.9])
    rule = rates.rules[0]
    assert rule.bad_validations + (rule.best is not None) == counted


def test_what_was_met_stays_met_over_a_resume_whose_condition_is_the_same():
    accuracies = [0.7, 0.9, 0.1, 0.1, 0.1, 0.1]
    settings = {"freeze_until": GOOD, "unfreeze_warmup_steps": 15}, {"freeze_from": GOOD}
    straight = make(*settings)
    frozen, events = run(straight, accuracies)
    for stop in range(1, 6):
        first, resumed = make(*settings), make(*settings)
        before = run(first, accuracies[:stop])
        # As in training, the checkpoint is saved after the validation, before the next epoch starts.
        first = make(*settings)
        for epoch, accuracy in enumerate(accuracies[:stop], start=1):
            first.start_epoch(epoch=epoch - 1, step=10 * epoch - 10)
            first.after_validation(metrics_of(accuracy), epoch=epoch, step=10 * epoch)
        assert resumed.load_state_dict(first.state_dict()) == []
        after = run(resumed, accuracies[stop:], first_epoch=stop + 1)
        assert (before[0][:stop] + after[0], before[1][:stop] + after[1]) == (frozen, events)
        assert resumed.state_dict() == straight.state_dict()


@pytest.mark.parametrize(
    ("key", "change", "lines"),
    [
        ("freeze_until", {"at_most": 3}, []),  # acts from now on, as a number of epochs does
        ("freeze_until", {"above": 0.85}, ["optimizer.groups.image_branch.freeze_until (above: 0.8 -> 0.85)"]),
        (
            "freeze_from",
            {"monitor": "val/temporal_branch/accuracy"},
            ["optimizer.groups.image_branch.freeze_from (monitor: val/accuracy -> val/temporal_branch/accuracy)"],
        ),
    ],
)
def test_under_another_condition_it_is_judged_from_the_beginning(key, change, lines):
    before, after = make({key: GOOD}), make({key: {**GOOD, **change}})
    frozen = run(before, [0.9, 0.1])[0][-1]
    assert after.load_state_dict(before.state_dict()) == lines
    other = {str(IMAGE): NOBODY, str(NOBODY): IMAGE}[str(frozen)]
    now = run(after, [0.1, 0.9], first_epoch=3)[0]
    assert now == ([other, other, frozen] if lines else [frozen] * 3)


def test_a_number_in_place_of_a_condition_that_was_met_acts_at_once_and_so_does_none():
    before = make({"freeze_from": GOOD, "freeze_until": 1, "unfreeze_warmup_steps": 10})
    run(before, [0.7, 0.9])
    after = make()
    assert after.load_state_dict(before.state_dict()) == []
    (event,) = after.start_epoch(epoch=2, step=20)
    assert (event.group, event.cause, event.lr_after) == ("image_branch", "unfreeze", 0.1)
    longer = make({"freeze_from": 4, "freeze_until": 1, "unfreeze_warmup_steps": 10})
    longer.load_state_dict(before.state_dict())
    assert run(longer, [0.1, 0.1], first_epoch=3)[1] == [UNFREEZE, [], FREEZE]


def test_a_checkpoint_that_was_made_with_a_number_of_epochs_has_met_no_condition():
    before, after = make({"freeze_until": 3}), make({"freeze_until": GOOD})
    run(before, [0.9])
    assert after.load_state_dict(before.state_dict()) == []
    assert run(after, [0.7, 0.9], first_epoch=2)[0] == [IMAGE, IMAGE, NOBODY]


@pytest.mark.parametrize("group", [{"freeze_until": GOOD}, {"freeze_until": 1, "freeze_from": GOOD}])
def test_replay_takes_the_path_of_training(group):
    rates, accuracies = make(group), [0.7, 0.7, 0.9, 0.1]
    records = [
        {"kind": "val", "epoch": e, "step": 10 * e, "loss": 1.0, "accuracy": a, "temporal_branch/accuracy": a}
        for e, a in enumerate(accuracies, start=1)
    ]
    text = replay(rates.groups, rates.config, records, epochs=8)
    rows = [line.split() for line in text.splitlines() if line.split()[0].isdigit()]
    assert [row[1] == "0" for row in rows] == [bool(names) for names in run(rates, accuracies)[0][1:]]
    assert text.count("val/accuracy > 0.8, at 0.9000") == 1


def test_training_stops_where_every_group_has_come_to_be_frozen():
    rates = make({"freeze_from": GOOD}, {"freeze_from": 2}, head={"freeze_from": LOW})
    reasons = []
    for epoch, accuracy in enumerate([0.7, 0.9, 0.9, 0.9]):
        rates.start_epoch(epoch=epoch, step=10 * epoch)
        reasons.append(rates.should_stop())
        rates.after_validation(metrics_of(accuracy), epoch=epoch + 1, step=10 * epoch + 10)
    rates.start_epoch(epoch=4, step=40)
    assert reasons == [None] * 4
    assert rates.should_stop() == "every group is frozen (freeze_until, freeze_from), so nothing would train"


def test_a_group_that_is_frozen_for_good_holds_up_no_stop_and_one_that_waits_does():
    rule = reduction(["temporal_branch", "fusion_head"], patience=0, factor=1e-9, min_lr=1e-4)
    for group, stops in (({"freeze_from": GOOD}, True), ({"freeze_until": 7}, False)):
        rates = make(group, None, rule, stop_when_exhausted=True)
        run(rates, [0.9, 0.9, 0.9])
        assert bool(rates.should_stop()) == stops
    assert make({"freeze_from": 3}, stop_when_exhausted=True).stop_plan().endswith("stalled again, or frozen for good")


@pytest.mark.parametrize("key", ["freeze_until", "freeze_from"])
@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"monitor": "val/acuracy", "above": 0.5}, "monitor: 'val/acuracy' is not a validation metric; did you mean"),
        ({"monitor": "val/accuracy", "above": 1.0}, "above: found 1, but val/accuracy is never above 1; give a value"),
        ({"monitor": "val/loss", "below": 0.0}, "below: found 0, but val/loss is never below 0; give a value"),
    ],
)
def test_a_condition_that_no_validation_can_meet_is_refused(key, condition, message):
    with pytest.raises(ValueError, match=rf"^optimizer\.groups\.image_branch\.{key}\.{message}"):
        make({key: {**condition, "at_most": 3}})


def test_nan_in_what_a_condition_waits_for_is_told_until_it_is_met():
    rates = make({"freeze_until": GOOD})
    rates.start_epoch(epoch=0, step=0)
    assert rates.not_a_number(metrics_of(math.nan)) == ["val/accuracy"]
    run(rates, [0.9])
    assert rates.not_a_number(metrics_of(math.nan)) == []
    lapsed = make({"freeze_until": GOOD})
    run(lapsed, [math.nan] * GOOD["at_most"])
    assert lapsed.not_a_number(metrics_of(math.nan)) == []


def test_a_threshold_and_a_condition_are_beyond_alike():
    """The same value, the same validation."""
    rates = make({"freeze_from": GOOD}, None, threshold(["temporal_branch"], "val/accuracy", above=0.8))
    for epoch, accuracy in enumerate([0.8, math.nan, 0.800001], start=1):
        rates.start_epoch(epoch=epoch - 1, step=10 * epoch)
        events = rates.after_validation(metrics_of(accuracy), epoch=epoch, step=10 * epoch)
        assert bool(events) == bool(rates.spans["image_branch"].to.reached(epoch)) == (epoch == 3)
