"""Two further rules, made here: what it takes to add one is a class and a line in RULES."""

import math

import pytest

from app.commands.root_config import parse_config
from app.learning_rates import rules
from app.learning_rates.learning_rates import LearningRatesConfig
from app.learning_rates.replay import replay
from app.learning_rates.rules import RULES, ReductionConfig, Rule
from tests.app.learning_rates.test_learning_rates import LRS, feed, lrs, make, reduction, threshold


class AtCountsConfig(ReductionConfig):
    at: tuple[int, ...]


class AtCounts(Rule):
    """Lowers the lr at given validations, by a count of its own."""

    COUNTED_UNDER = Rule.COUNTED_UNDER | {"counted": ("start_epoch",)}

    def __init__(self, *args):
        super().__init__(*args)
        self.counted = 0

    def new_factor(self, metrics, factor):
        self.counted += 1
        return factor * self.config.factor if self.counted in self.config.at else factor

    def condition(self):
        return "validation " + ", ".join(map(str, self.config.at)) + " is counted"

    def curves(self):
        return {"validations_counted": self.counted}


class RaiseConfig(ReductionConfig):
    other: str = "val/image_branch/loss"


class Raise(Rule):
    """Raises the lr again, at most to the base, while one monitor is above the other."""

    @property
    def monitors(self):
        return (self.config.monitor, self.config.other)

    @property
    def repeats(self):
        return False

    def new_factor(self, metrics, factor):
        below = metrics[self.config.monitor] <= metrics[self.config.other]
        return factor if below else min(1.0, factor / self.config.factor)

    def describe(self):
        return f"/{self.config.factor:g} when {self.config.monitor} > {self.config.other}, up to the base lr"


@pytest.fixture(autouse=True)
def added(monkeypatch):
    monkeypatch.setitem(rules.RULES, "at_counts", AtCounts)
    monkeypatch.setitem(rules.RULES, "raise", Raise)


def at_counts(groups, *at, **changes):
    values = {"monitor": "val/loss", "factor": 0.1, **changes}
    return AtCountsConfig(groups=groups, rule="at_counts", at=at, **values)


def raising(groups, **changes):
    return RaiseConfig(groups=groups, rule="raise", **{"monitor": "val/loss", "factor": 0.1, **changes})


def validate(rates, *pairs, first_epoch=1):
    """(val/loss, val/image_branch/loss) after each epoch; the events as (epoch, rule, group, lrs)."""
    return [
        (epoch, event.rule, event.cause, event.lr_before, event.lr_after)
        for epoch, (loss, own) in enumerate(pairs, start=first_epoch)
        for event in rates.after_validation(
            {"val/loss": loss, "val/image_branch/loss": own}, epoch=epoch, step=10 * epoch
        )
    ]


def approximately(*events):
    return [(*event[:3], *map(pytest.approx, event[3:])) for event in events]


def test_an_added_rule_acts_is_described_and_shown():
    rates = make(at_counts(["image_branch", "fusion_head"], 2, 4, start_epoch=2), raising(["image_branch"]))
    plans = {plan["group"]: plan["reductions"] for plan in rates.plans()}
    assert plans["fusion_head"] == "x0.1 when validation 2, 4 is counted from epoch 2, down to 0"
    assert plans["image_branch"].endswith("; /0.1 when val/loss > val/image_branch/loss, up to the base lr")
    events = feed(rates, [1.0, 1.0, 1.0, 1.0, 1.0])
    assert [(epoch, e.group, e.cause, e.rule) for epoch, e in events] == [
        (3, "image_branch", "at_counts", 0),
        (3, "fusion_head", "at_counts", 0),
        (5, "image_branch", "at_counts", 0),
        (5, "fusion_head", "at_counts", 0),
    ]
    assert lrs(rates) == pytest.approx([0.001, LRS["temporal_branch"], 0.00001, LRS["unimodal_heads"]])
    assert "lr of fusion_head 0.001 -> 0.0001 (at_counts): val/loss is 1.0000, best 1.0000" in events[1][1].describe()
    assert rates.curves()["validations_counted"] == {"image_branch.0": 4, "fusion_head": 4}


def test_a_rule_may_raise_the_lr_and_read_several_monitors():
    rates = make(at_counts(["image_branch"], 1, 2, 3), raising(["image_branch"]))
    # Lowered by the first rule three times; raised by the second whenever val/loss is the higher one.
    assert validate(rates, (1.0, 2.0), (1.0, 2.0), (2.0, 1.0), (2.0, 1.0), (2.0, 1.0), (2.0, 1.0)) == approximately(
        (1, 0, "at_counts", 0.1, 0.01),
        (2, 0, "at_counts", 0.01, 0.001),
        (3, 0, "at_counts", 0.001, 0.0001),
        (3, 1, "raise", 0.0001, 0.001),
        (4, 1, "raise", 0.001, 0.01),
        (5, 1, "raise", 0.01, 0.1),
    )
    assert lrs(rates)[0] == 0.1  # at the base: no sixth event
    assert rates.not_a_number({"val/loss": 1.0, "val/image_branch/loss": math.nan}) == ["val/image_branch/loss"]


def test_rules_act_in_the_order_of_the_config_and_see_what_the_former_did():
    lower, higher = at_counts(["image_branch"], 1), raising(["image_branch"])
    first_lower, first_higher = make(lower, higher), make(higher, lower)
    assert validate(first_lower, (2.0, 1.0)) == approximately(
        (1, 0, "at_counts", 0.1, 0.01), (1, 1, "raise", 0.01, 0.1)
    )
    assert validate(first_higher, (2.0, 1.0)) == approximately((1, 1, "at_counts", 0.1, 0.01))


def test_what_is_common_holds_for_an_added_rule():
    """min_lr, cooldown, NaN in any of its monitors, frozen groups."""
    rates = make(at_counts(["image_branch"], 1, 2, 3, min_lr=0.004))
    assert [(epoch, event.lr_after) for epoch, event in feed(rates, [1.0] * 3)] == [
        (1, pytest.approx(0.01)),
        (2, pytest.approx(0.004)),
    ]
    assert rates.rules[0].exhausted
    resting = make(at_counts(["image_branch"], 1, 2, cooldown=3))
    assert [epoch for epoch, _ in feed(resting, [1.0] * 9)] == [1, 5]
    blind = make(at_counts(["image_branch"], 1), raising(["image_branch"]))
    assert [event[:2] for event in validate(blind, (2.0, math.nan), (2.0, 1.0))] == [(1, 0), (2, 1)]
    frozen = make(at_counts(["image_branch"], 1), groups={"image_branch": {"freeze_until": 3}})
    assert [epoch for epoch, _ in feed(frozen, [1.0] * 5)] == [4]


def test_a_group_that_is_raised_is_not_exhausted_any_more():
    rates = make(reduction(["image_branch"], patience=0, min_lr=0.05), raising(["image_branch"]))
    validate(rates, (1.0, 1.0), (1.0, 1.0), (1.0, 1.0))
    assert rates.rules[0].exhausted and rates.reduction["image_branch"] == 0.5
    (event,) = validate(rates, (1.0, 0.9), first_epoch=4)  # stalled at the floor once more, then raised
    assert event[2] == "raise" and not rates.rules[0].exhausted


@pytest.mark.parametrize("stop_after", range(6))
def test_an_added_rule_goes_on_after_a_resume(stop_after):
    settings = (at_counts(["image_branch"], 2, 5, cooldown=1), raising(["image_branch"]), threshold(list(LRS), above=3))
    values = [(1.0, 2.0), (1.0, 2.0), (1.5, 2.0), (2.0, 1.0), (4.0, 5.0), (5.0, 4.0)]
    straight, first, resumed = (make(*settings) for _ in range(3))
    expected = validate(straight, *values)
    events = validate(first, *values[:stop_after])
    assert resumed.load_state_dict(first.state_dict()) == []
    assert resumed.state_dict() == first.state_dict()
    assert events + validate(resumed, *values[stop_after:], first_epoch=stop_after + 1) == expected
    assert resumed.state_dict() == straight.state_dict()


def test_state_of_an_added_rule_starts_from_the_beginning_under_other_settings_and_is_named():
    before = make(at_counts(["image_branch"], 9))
    feed(before, [1.0] * 3)
    kept, afresh = make(at_counts(["image_branch"], 4)), make(at_counts(["image_branch"], 4, start_epoch=2))
    assert kept.load_state_dict(before.state_dict()) == []
    assert [epoch for epoch, _ in feed(kept, [1.0], first_epoch=4)] == [4]
    assert afresh.load_state_dict(before.state_dict()) == [
        "best of reductions[0] for image_branch (start_epoch: 1 -> 2)",
        "counted of reductions[0] for image_branch (start_epoch: 1 -> 2)",
    ]
    assert feed(afresh, [1.0], first_epoch=4) == []


def test_any_monitor_of_a_rule_must_be_a_metric():
    with pytest.raises(
        ValueError, match=r"reductions\[0\].monitor: 'val/los' is not a validation metric; did you mean 'val/loss'"
    ):
        make(raising(["image_branch"], other="val/los"))


def test_replay_follows_an_added_rule(config):
    settings = LearningRatesConfig(warmup_steps=0, reductions=[])
    settings = settings.model_copy(update={"reductions": [at_counts(["image_branch"], 2)]})
    records = [{"kind": "val", "epoch": e, "step": 66 * e, "loss": 1.0} for e in (1, 2, 3)]
    text = replay(config.optimizer.groups, settings, records, epochs=config.run.epochs)
    assert "lr of image_branch 0.0005 -> 5e-05 (at_counts): val/loss is 1.0000, best 1.0000" in text


def test_an_unknown_rule_is_a_config_error_that_lists_the_known_ones(tree, monkeypatch):
    for added in ("at_counts", "raise"):
        monkeypatch.delitem(rules.RULES, added)
    tree["learning_rates"]["reductions"][0]["rule"] = "platau"
    with pytest.raises(ValueError, match=r"learning_rates.reductions\[0\].rule: found 'platau'") as error:
        parse_config(tree)
    assert all(name in str(error.value) for name in RULES)
