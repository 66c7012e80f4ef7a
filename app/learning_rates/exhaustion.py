"""Whether `stop_when_exhausted` can be used: each group's rules must act, bring it to a min_lr, and stall there."""

from collections.abc import Iterator

from app.learning_rates.learning_rates import LearningRatesConfig
from app.learning_rates.rules import RULES, Rule
from app.param_groups.conditions import FreezeCondition, earliest
from app.param_groups.groups import GroupConfig


def never_exhausted(
    groups: dict[str, GroupConfig], config: LearningRatesConfig, *, epochs: int, steps_per_epoch: int | None = None
) -> Iterator[str]:
    """What is in the way, a line for each reason: any rule that never acts, and what a group lacks.

    No rule that could act in a run of that length is named.

    steps_per_epoch: of a run that starts afresh. Without it, freezing and warm-ups are left out: a resumed run may
    have finished them, whatever the config says of them now.
    """
    reasons: dict[str, list[str]] = {}
    for name, group in groups.items():
        if group.freeze_from is not None and earliest(group.freeze_from) < epochs:
            continue  # frozen for good before the run ends, or perhaps: it needs no rule for that
        rules = [
            RULES[reduction.rule](i, name, reduction, group.lr)
            for i, reduction in enumerate(config.reductions)
            if name in reduction.groups
        ]
        for reason in _never_stalls(rules):
            reasons.setdefault(reason, []).append(f"'{name}'")
        for rule in rules:
            starts = _starts(rule, group, config.warmup_steps, steps_per_epoch)
            if reason := _never_acts(rule, starts, epochs):
                reasons.setdefault(reason, []).append(f"'{name}'")
    for reason, names in reasons.items():
        which = f"group {names[0]}" if len(names) == 1 else f"each of the groups {', '.join(names)}"
        yield f"learning_rates.stop_when_exhausted: cannot be used, for {which} has {reason}"


def _never_stalls(rules: list[Rule]) -> Iterator[str]:
    if not rules:
        yield "no reduction; add one, or set stop_when_exhausted: false"
    repeating = [rule for rule in rules if rule.repeats]
    if rules and not repeating:
        yield "only thresholds that act once; give one of them repeat: true"
    for rule in repeating:
        if rule.config.min_lr == 0:
            yield f"reductions[{rule.index}] with min_lr 0; give it a min_lr above 0"


def _starts(rule: Rule, group: GroupConfig, warmup_steps: int, steps_per_epoch: int | None) -> dict[str, int]:
    """{setting: the epoch of the first validation that it lets count}"""
    starts = {f"start_epoch {rule.config.start_epoch}": rule.config.start_epoch}
    if steps_per_epoch is None:
        return starts
    frozen, warmup = earliest(group.freeze_until), group.unfreeze_warmup_steps
    each = f"at {steps_per_epoch} steps an epoch"
    at_least = f"{frozen} at least" if isinstance(group.freeze_until, FreezeCondition) else f"{frozen}"
    return starts | {
        f"freeze_until {at_least}": frozen + 1,
        f"warmup_steps {warmup_steps} {each}": -(-warmup_steps // steps_per_epoch),
        f"unfreeze_warmup_steps {warmup} after freeze_until {at_least}, {each}": frozen + -(-warmup // steps_per_epoch),
    }


def _never_acts(rule: Rule, starts: dict[str, int], epochs: int) -> str | None:
    latest = max(starts, key=starts.get)
    first, (needed, setting) = starts[latest], rule.first_act()
    last = first + needed - 1  # the validation after which it acts if none before it is any better
    if last <= epochs:
        return None
    start, named = rule.config.start_epoch, f"reductions[{rule.index}], which never acts"
    if start > epochs:
        return f"{named}: its start_epoch {start} is after the last epoch (run.epochs {epochs}); lower it"
    why, lower = [], []
    if first > 1:
        why.append(f"its validations count from epoch {first} on ({latest})")
        lower.append(latest.split()[0])
    if setting:
        why.append(f"it needs {needed} validations ({setting})")
        lower.append(setting.split()[0])
    return (
        f"{named}: {' and '.join(why)}, so it could act after epoch {last} at the earliest, but run.epochs is "
        f"{epochs}; lower {' or '.join(lower)}, or raise run.epochs to {last}"
    )
