"""After a resume each rule continues its own state, or starts afresh and says why: never another rule's."""

from itertools import permutations

import pytest

from tests.app.learning_rates.test_learning_rates import make, reduction, threshold

GROUP = "fusion_head"
QUICK = {"patience": 2}
SLOW = {"patience": 9}
STATE = {2: 1, 9: 6, 5: 4}  # by patience: the bad validations that it has counted


def plateaus(*changes, lr=0.001):
    return make(*(reduction([GROUP], **change) for change in changes), groups={GROUP: {"lr": lr}})


def saved(*changes):
    rates = plateaus(*changes)
    for rule in rates.rules:
        rule.best, rule.bad_validations = 1.0, STATE[rule.config.patience]
    return rates.state_dict()


def counted(rates):
    return [rule.bad_validations for rule in rates.rules]


@pytest.mark.parametrize("lr", [0.001, 0.0005])
@pytest.mark.parametrize(
    ("now", "expected"),
    [([QUICK, SLOW], [1, 6]), ([SLOW, QUICK], [6, 1]), ([SLOW], [6]), ([QUICK], [1])],
)
def test_two_rules_keep_their_own_counts_under_another_base_lr(now, expected, lr):
    after = plateaus(*now, lr=lr)
    assert after.load_state_dict(saved(QUICK, SLOW)) == []
    assert counted(after) == expected


@pytest.mark.parametrize("lr", [0.001, 0.0005])
@pytest.mark.parametrize("order", [*permutations([2, 9, 5])])
def test_three_rules_keep_their_own_counts_in_any_order(order, lr):
    after = plateaus(*({"patience": patience} for patience in order), lr=lr)
    assert after.load_state_dict(saved(QUICK, SLOW, {"patience": 5})) == []
    assert counted(after) == [STATE[patience] for patience in order]


@pytest.mark.parametrize("order", [*permutations([0, 1, 2])])
def test_a_changed_rule_gets_what_the_unchanged_ones_leave(order):
    now = [{"patience": 2}, {"patience": 9}, {"patience": 6}]  # the last had patience 5
    after = plateaus(*(now[i] for i in order), lr=0.0005)
    assert after.load_state_dict(saved(QUICK, SLOW, {"patience": 5})) == []
    assert counted(after) == [[1, 6, 4][i] for i in order]


def test_a_rule_that_could_continue_either_of_two_starts_afresh_and_is_named():
    after = plateaus({"patience": 8})
    assert after.load_state_dict(saved(QUICK, SLOW)) == [
        "reductions[0] for fusion_head (reductions[0] and reductions[1] of the checkpoint are equally near to it, "
        "so none is continued)"
    ]
    assert (counted(after), after.rules[0].best) == ([0], None)


def test_two_rules_that_could_continue_one_start_afresh_and_are_named():
    after = plateaus({"patience": 8}, {"patience": 3}, {"patience": 2})
    assert after.load_state_dict(saved(QUICK, SLOW)) == [
        f"reductions[{i}] for fusion_head (reductions[1] of the checkpoint is equally near to reductions[0] and "
        "reductions[1], so none continues it)"
        for i in (0, 1)
    ]
    assert counted(after) == [0, 0, 1]


@pytest.mark.parametrize("order", [1, -1])
def test_the_nearest_rule_continues_and_the_other_one_is_named(order):
    near, far = {"patience": 8}, {"patience": 8, "cooldown": 3, "factor": 0.5}
    after = plateaus(*[near, far][::order])
    (line,) = after.load_state_dict(saved(SLOW))
    place = 1 if order == 1 else 0
    assert line == (
        f"reductions[{place}] for fusion_head (each plateau on val/loss that the checkpoint has for it is nearer to "
        "another rule)"
    )
    assert counted(after) == [6, 0][::order]


def test_of_two_saved_rules_the_one_with_fewer_changes_is_continued():
    before = saved(QUICK | {"factor": 0.5, "cooldown": 3}, SLOW)
    after = plateaus({"patience": 8})
    assert after.load_state_dict(before) == []
    assert counted(after) == [6]


def test_equal_rules_keep_their_order_and_are_not_guessed_when_one_is_gone():
    before = plateaus(QUICK, QUICK)
    before.rules[0].bad_validations, before.rules[1].bad_validations = 1, 2
    same, one = plateaus(QUICK, QUICK), plateaus(QUICK)
    assert same.load_state_dict(before.state_dict()) == [] and counted(same) == [1, 2]
    (line,) = one.load_state_dict(before.state_dict())
    assert "equally near" in line and counted(one) == [0]


def test_only_exhausted_starts_afresh_under_another_base_lr():
    before = plateaus(QUICK, SLOW)
    for rule in before.rules:
        rule.exhausted, rule.bad_validations = rule.config.patience == 9, STATE[rule.config.patience]
    after = plateaus(SLOW, QUICK, lr=0.0005)
    assert after.load_state_dict(before.state_dict()) == [
        "exhausted of reductions[0] for fusion_head (lr: 0.001 -> 0.0005)"
    ]
    assert counted(after) == [6, 1] and not any(rule.exhausted for rule in after.rules)


def test_a_rule_of_another_kind_monitor_or_group_is_never_continued():
    after = make(
        threshold([GROUP], above=0.5), reduction([GROUP], "val/accuracy", patience=9), reduction(["image_branch"])
    )
    lines = after.load_state_dict(saved(SLOW))
    assert [line.partition(" (")[2][:21] for line in lines] == ["the checkpoint has no"] * 3
