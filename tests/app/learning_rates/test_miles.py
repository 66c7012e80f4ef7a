"""MILES by hand: (accuracy of the fusion, of image_branch, of temporal_branch) after each epoch."""

import math

import pytest

from app.learning_rates.balance import BALANCE_RULES, MilesConfig, groups_of_branches
from app.learning_rates.learning_rates import LearningRates, LearningRatesConfig
from app.learning_rates.replay import replay
from app.param_groups.groups import GroupConfig
from tests.app.learning_rates.test_learning_rates import reduction

LRS = {"image_branch": 0.1, "temporal_branch": 0.01, "fusion_head": 0.001}
MONITORS = ["val/loss", "val/accuracy", "val/image_branch/accuracy", "val/temporal_branch/accuracy"]


def make(*, groups=None, balance=None, reductions=(), **changes):
    """Ten epochs of ten steps over three groups, without an optimizer."""
    groups = {name: GroupConfig(**{"lr": lr, **(groups or {}).get(name, {})}) for name, lr in LRS.items()}
    config = LearningRatesConfig(**{"warmup_steps": 0, "reductions": [], **changes})
    config = config.model_copy(update={"reductions": list(reductions)})
    balance = MilesConfig(rule="miles", **(balance or {}))
    return LearningRates(groups, {}, config, monitors=MONITORS, steps_per_epoch=10, epochs=10, balance=balance)


def validation(fusion, image, temporal, loss=1.0):
    return dict(zip(MONITORS, (loss, fusion, image, temporal), strict=True))


def feed(rates, *series, first_epoch=1):
    """One validation after each epoch. Returns the factors of image_branch and temporal_branch after each."""
    path = []
    for epoch, values in enumerate(series, start=first_epoch):
        rates.start_epoch(epoch=epoch - 1, step=10 * (epoch - 1))
        rates.after_validation(validation(*values), epoch=epoch, step=10 * epoch)
        path.append(factors(rates))
    return path


def factors(rates):
    now = {name: rates.lr(name, 99, 9.9) / (lr * rates.reduction[name]) for name, lr in LRS.items()}
    assert now["fusion_head"] == pytest.approx(1)
    return now["image_branch"], now["temporal_branch"]


BOTH, IMAGE, TEMPORAL = (1.0, 1.0), (0.5, 1.0), (1.0, 0.5)  # which branch is slowed

# With a fusion of 0.8 the lead of a branch is its own accuracy minus the other's, / 0.8: 0.16 is 0.2, 0.12 is 0.15.
LEAD = (0.8, 0.7, 0.5)  # utilisations 0.375 and 0.125: image_branch leads by 0.25
SLIGHT = (0.8, 0.7, 0.56)  # 0.3 and 0.125: by 0.175
EVEN = (0.8, 0.7, 0.6)  # 0.25 and 0.125: by 0.125
TURNED = (0.8, 0.5, 0.7)  # temporal_branch by 0.25
SLIGHTLY_TURNED = (0.8, 0.56, 0.7)
NEGATIVE = (0.5, 0.9, 0.6)  # -0.2 and -0.8: both, image_branch by 0.6
HALF_NEGATIVE = (0.5, 0.7, 0.5)  # 0 and -0.4


@pytest.mark.parametrize(
    ("series", "path"),
    [
        ([EVEN, SLIGHT, LEAD], [BOTH, BOTH, IMAGE]),  # start: above the threshold only
        ([LEAD, SLIGHT, SLIGHT, EVEN, SLIGHT], [IMAGE, IMAGE, IMAGE, BOTH, BOTH]),  # hold, release, no new start
        ([TURNED, SLIGHTLY_TURNED, EVEN], [TEMPORAL, TEMPORAL, BOTH]),
        ([LEAD, TURNED, LEAD], [IMAGE, TEMPORAL, IMAGE]),  # switch, in one validation
        ([LEAD, SLIGHTLY_TURNED], [IMAGE, BOTH]),  # it leads no more; the other does, by less than the threshold
        ([NEGATIVE, HALF_NEGATIVE], [BOTH, IMAGE]),
        ([LEAD, NEGATIVE], [IMAGE, IMAGE]),  # still far ahead
        ([TURNED, NEGATIVE], [TEMPORAL, BOTH]),  # far behind, and the other is not slowed
        ([LEAD, (0.0, 0.0, 0.0), (0.0, 0.3, 0.9), EVEN], [IMAGE, IMAGE, IMAGE, BOTH]),
        ([LEAD, (math.nan, 0.6, 0.6), (0.8, math.nan, 0.6), (0.8, 0.6, math.nan)], [IMAGE] * 4),
        ([(0.8, 0.9, math.nan), (0.0, 0.9, 0.1)], [BOTH, BOTH]),
        ([(0.5, 0.5, 0.375), (0.5, 0.5, 0.25)], [BOTH, IMAGE]),  # by 0.25, just at the threshold, and by 0.5
        ([(0.5, 0.5, 0.25), (0.5, 0.5, 0.4375), (0.5, 0.5, 0.46875)], [IMAGE, IMAGE, BOTH]),  # by 0.125: at release
    ],
)
def test_series_by_hand(series, path):
    exact = {"threshold": 0.25, "release": 0.125} if series[0][0] == 0.5 and NEGATIVE not in series else {}
    assert feed(make(balance=exact), *series) == [pytest.approx(factors) for factors in path]


def test_each_change_is_an_event_with_its_reason_and_the_optimizer_gets_the_lr():
    rates = make(balance={"factor": 0.25})
    entry = {"lr": 0.0, "lr_scale": 0.5}
    rates.param_groups["image_branch"] = [entry]
    (slowed,) = rates.after_validation(validation(*LEAD), epoch=1, step=10)
    rates.set(10, 1.0)
    assert entry["lr"] == pytest.approx(0.1 * 0.25 * 0.5)
    assert slowed.describe() == (
        "lr of image_branch 0.1 -> 0.025 (miles): image_branch is slowed: its utilisation is 0.3750, 0.2500 above that "
        "of temporal_branch (threshold 0.2)"
    )
    record = slowed.as_record()
    assert list(record) == ["group", "from", "to", "cause", "reason", "utilisation"]
    assert record["utilisation"] == pytest.approx({"image_branch": 0.375, "temporal_branch": 0.125})
    released, other = rates.after_validation(validation(*TURNED), epoch=2, step=20)
    assert released.describe() == (
        "lr of image_branch 0.025 -> 0.1 (miles): image_branch is released: its utilisation is 0.1250, 0.2500 below "
        "that of temporal_branch (release 0.15)"
    )
    assert (other.group, other.lr_before, other.lr_after) == ("temporal_branch", 0.01, pytest.approx(0.0025))
    assert rates.after_validation(validation(*TURNED), epoch=3, step=30) == []


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"warmup_steps": 25}, 3),
        ({"groups": {"temporal_branch": {"freeze_until": 2}}}, 3),
        ({"groups": {"temporal_branch": {"freeze_until": 1, "unfreeze_warmup_steps": 15}}}, 3),
        ({"groups": {"fusion_head": {"freeze_until": 5}}}, 1),  # of no branch
    ],
)
def test_nothing_is_compared_while_a_branch_is_frozen_or_warms_up(changes, first):
    rates, path = make(**changes), []
    for epoch in range(1, 6):
        path += feed(rates, LEAD, first_epoch=epoch)
    assert path == [pytest.approx(IMAGE if epoch >= first else BOTH) for epoch in range(1, 6)]


def test_what_is_slowed_stays_so_while_a_validation_does_not_count():
    """image_branch is frozen again by a config that was changed between stop and resume."""
    before, after = make(), make(groups={"image_branch": {"freeze_until": 3}})
    feed(before, LEAD)
    after.load_state_dict(before.state_dict())
    assert feed(after, EVEN, EVEN, EVEN, first_epoch=2) == [pytest.approx(f) for f in (IMAGE, IMAGE, BOTH)]


def test_reductions_and_their_min_lr_count_without_the_balance():
    """It neither brings a group to its min_lr nor keeps it from there, and no event of one has the other's factor."""
    rule = reduction(["image_branch"], patience=0, factor=0.5, min_lr=0.04)
    rates, alone = make(reductions=[rule], stop_when_exhausted=True), make(reductions=[rule])
    alone.balance = None
    events = []
    for epoch in range(1, 5):
        for one in (rates, alone):
            events.append(one.after_validation(validation(*LEAD), epoch=epoch, step=10 * epoch))
        assert rates.reduction == alone.reduction
        assert rates.rules[0].state_dict() == alone.rules[0].state_dict()
    # Slowed after epoch 1; reduced to 0.05 and 0.04 after epochs 2 and 3, of which training uses the half.
    lrs = [[(e.cause, e.lr_before, e.lr_after) for e in found] for found in events[::2]]
    assert lrs == [
        [("miles", 0.1, pytest.approx(0.05))],
        [("plateau", pytest.approx(0.05), pytest.approx(0.025))],
        [("plateau", pytest.approx(0.025), pytest.approx(0.02))],
        [],
    ]
    assert rates.rules[0].exhausted


def test_a_reduction_comes_first_where_both_act_after_the_same_validation():
    rates = make(reductions=[reduction(["image_branch"], patience=0)])
    feed(rates, EVEN)
    events = rates.after_validation(validation(*LEAD), epoch=2, step=20)
    lrs = [(event.cause, event.lr_before, event.lr_after) for event in events]
    assert lrs == [
        ("plateau", 0.1, pytest.approx(0.01)),
        ("miles", pytest.approx(0.01), pytest.approx(0.005)),
    ]


def test_a_group_of_several_patterns_belongs_to_the_branch_that_all_of_them_lie_in():
    params = {
        "image_branch": None,
        "stem": ["image_branch.0.*", "image_branch.1.weight"],
        "mixed": ["image_branch.2.*", "fusion_head.*"],
        "heads": ["unimodal_heads.image_branch.*"],
        "wide": ["image_branch*"],
        "rest": ["temporal_branch.*"],
        "empty": [],
    }
    groups = {name: GroupConfig(lr=1.0, params=patterns) for name, patterns in params.items()}
    assert groups_of_branches(groups) == {"image_branch": ["image_branch", "stem"], "temporal_branch": ["rest"]}


def test_all_groups_of_a_branch_are_slowed_and_shown():
    groups = {
        "stem": GroupConfig(lr=1.0, params=["image_branch.0.*"]),
        "blocks": GroupConfig(lr=2.0, params=["image_branch.1.*"]),
        "temporal_branch": GroupConfig(lr=3.0),
        "fusion_head": GroupConfig(lr=4.0),
    }
    config = LearningRatesConfig(warmup_steps=0, reductions=[])
    balance = MilesConfig(rule="miles")
    rates = LearningRates(groups, {}, config, monitors=MONITORS, steps_per_epoch=10, epochs=10, balance=balance)
    events = rates.after_validation(validation(*LEAD), epoch=1, step=10)
    assert [(event.group, event.lr_after) for event in events] == [("stem", 0.5), ("blocks", 1.0)]
    assert rates.curves()["balance"] == {"stem": 0.5, "blocks": 0.5, "temporal_branch": 1.0}
    plans = {row["group"]: row["balance"] for row in rates.plans()}
    said = "x0.5 from where the utilisation of image_branch leads by > 0.2 to where it leads by < 0.15"
    assert plans["stem"] == plans["blocks"] == said
    assert "temporal_branch" in plans["temporal_branch"] and plans["fusion_head"] == "none"


def test_without_a_balance_nothing_speaks_of_it():
    rates = make()
    rates.balance = None
    assert "balance" not in rates.curves() and "balance" not in rates.plans()[0]
    assert rates.after_validation(validation(*LEAD), epoch=1, step=10) == []


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_series_that_was_broken_goes_on_as_the_unbroken_one(stop):
    series = [LEAD, SLIGHT, TURNED, SLIGHTLY_TURNED, EVEN, LEAD]
    straight, first, resumed = make(), make(), make()
    path = feed(straight, *series)
    feed(first, *series[:stop])
    assert resumed.load_state_dict(first.state_dict()) == []
    assert factors(resumed) == path[stop - 1]
    assert feed(resumed, *series[stop:], first_epoch=stop + 1) == path[stop:]
    assert resumed.state_dict() == straight.state_dict()


@pytest.mark.parametrize(
    ("series", "changes", "lines", "after"),
    [
        ([LEAD], {"factor": 0.2}, [], (0.2, 1.0)),  # a setting, as a base lr is
        ([LEAD], {"threshold": 0.3}, ["slowed of balance.learning_rates (threshold: 0.2 -> 0.3)"], BOTH),
        ([LEAD], {"release": 0.1}, ["slowed of balance.learning_rates (release: 0.15 -> 0.1)"], BOTH),
        ([EVEN], {"threshold": 0.3, "release": 0.1}, [], BOTH),
    ],
)
def test_what_was_decided_under_another_setting_starts_from_the_beginning_and_is_named(series, changes, lines, after):
    before, resumed = make(), make(balance=changes)
    feed(before, *series)
    assert resumed.load_state_dict(before.state_dict()) == lines
    assert factors(resumed) == pytest.approx(after)


def test_a_checkpoint_without_a_balance_rule_is_taken_and_one_is_no_hindrance_without():
    before, after = make(), make()
    feed(before, LEAD)
    state = before.state_dict()
    after.balance = None
    assert after.load_state_dict(state) == [] and factors(after) == BOTH
    added = "balance.learning_rates (the checkpoint has no miles)"
    assert make().load_state_dict(after.state_dict()) == [added]


def test_replay_takes_the_path_of_training():
    series = [EVEN, LEAD, SLIGHT, TURNED, (0.8, math.nan, 0.7), EVEN]
    records = [
        {"kind": "val", "epoch": e, "step": 10 * e} | {n.removeprefix("val/"): v for n, v in validation(*v3).items()}
        for e, v3 in enumerate(series, start=1)
    ]
    rates = make()
    text = replay(rates.groups, rates.config, records, epochs=10, balance=rates.balance.config)
    expected = [[0.1 * image, 0.01 * temporal] for image, temporal in feed(rates, *series)]
    rows = [line.split() for line in text.splitlines() if line.split()[0].isdigit()]
    assert [[float(lr) for lr in row[1:3]] for row in rows] == [pytest.approx(lrs) for lrs in expected]
    assert text.count("(miles): temporal_branch is slowed") == 1


def test_what_it_compares_is_watched_for_nan():
    assert make().not_a_number(validation(1.0, math.nan, 1.0)) == ["val/image_branch/accuracy"]


@pytest.mark.parametrize(
    ("names", "monitors", "message"),
    [
        (
            ["image_branch", "fusion_head"],
            MONITORS,
            "balance.learning_rates: miles changes the lr of a branch by its groups, but temporal_branch has none of "
            "its own; give it a group all of whose `params` begin with 'temporal_branch.' (found image_branch, "
            "fusion_head), or set balance.learning_rates=null",
        ),
        (
            ["image_branch", "fusion_head"],
            MONITORS[:3],
            "balance.learning_rates: miles compares the accuracies of both branches, and there is no "
            "val/temporal_branch/accuracy; give the model both branches, or set balance.learning_rates=null",
        ),
    ],
)
def test_a_branch_without_a_group_and_a_model_of_one_branch_are_refused(names, monitors, message):
    groups = {name: GroupConfig(lr=1.0) for name in names}
    config, balance = LearningRatesConfig(warmup_steps=0, reductions=[]), MilesConfig(rule="miles")
    with pytest.raises(ValueError) as error:
        LearningRates(groups, {}, config, monitors=monitors, steps_per_epoch=1, epochs=1, balance=balance)
    assert str(error.value) == message


@pytest.mark.parametrize("values", [{"release": 0.2}, {"threshold": 0.1}, {"threshold": 0.1, "release": 0.1}])
def test_release_lies_below_the_threshold(values):
    with pytest.raises(ValueError, match=r"found 0\.\d+, must be below threshold \(0\.\d\); lower release"):
        MilesConfig(rule="miles", **values)


def test_a_further_rule_is_one_class_and_one_line(monkeypatch):
    class Never(BALANCE_RULES["miles"]):
        def after_validation(self, metrics):
            return {}, {}

    monkeypatch.setitem(BALANCE_RULES, "miles", Never)
    assert feed(make(), LEAD) == [BOTH]
