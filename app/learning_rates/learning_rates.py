"""lr of each group = base x warm-up x schedule x reduction. The only writer of `lr` once the optimizer is built.

What a validation decided is kept as one factor per group, never as an lr: so a warm-up cannot undo a
reduction, and a resumed run may change a base lr and keep its reductions.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from app.config_schema import GroupConfig, LearningRatesConfig, ReductionConfig, ScheduleConfig
from app.evaluation.metrics import direction
from app.learning_rates.events import LrEvent


@dataclass
class Improvement:
    """The best value of a monitor so far, by the rules of torch's ReduceLROnPlateau."""

    mode: str
    threshold: float = 0.0
    threshold_mode: str = "abs"
    best: float | None = None

    def take(self, value: float) -> bool:
        """True, and the new best, if `value` improves on it by more than the threshold."""
        if self.best is not None and not self._better(value):
            return False
        self.best = value
        return True

    def _better(self, value: float) -> bool:
        sign = 1 if self.mode == "min" else -1
        if self.threshold_mode == "rel":
            return sign * value < sign * self.best * (1 - sign * self.threshold)
        return sign * value < sign * self.best - self.threshold


class Rule:
    """One reduction of the config, for one group: groups never share a state.

    Unlike in torch's scheduler a value that is not a number is neither better nor worse, and no hidden `eps`
    keeps small learning rates from falling.
    """

    # State -> the settings it was counted under. Where one of them changed, that state starts afresh on resume.
    _COUNTED_UNDER = {
        "best": ("threshold", "threshold_mode", "start_epoch"),
        "bad_validations": ("threshold", "threshold_mode", "start_epoch"),
        "cooldown": ("cooldown",),
        "fired": ("above", "below", "repeat", "start_epoch"),
        "exhausted": ("min_lr", "lr"),
    }

    def __init__(self, index: int, group: str, config: ReductionConfig, lr: float):
        """index: its place in `learning_rates.reductions`; lr: the group's base lr."""
        self.index = index
        self.group = group
        self.config = config
        self.settings = {key: value for key, value in asdict(config).items() if key != "groups"} | {"lr": lr}
        self.improvement = Improvement(direction(config.monitor), config.threshold, config.threshold_mode)
        self.bad_validations = 0
        self.cooldown = 0
        self.fired = False
        self.exhausted = False  # at min_lr, and stalled again
        self.improved = False  # by the last validation: what restore_best keeps
        self.best_from: str | None = None  # the key of the saved rule whose best this one continues

    @property
    def key(self) -> str:
        """Unique within a run: two rules may watch the same monitor for the same group."""
        return f"{self.index} {self.group}"

    @property
    def best(self) -> float | None:
        return self.improvement.best

    @best.setter
    def best(self, value: float | None) -> None:
        self.improvement.best = value

    @property
    def repeats(self) -> bool:
        """Whether it can reduce again and again, and so bring its group to min_lr."""
        return self.config.rule == "plateau" or self.config.repeat

    def due(self, value: float) -> bool:
        """Takes a validation's value; true if the lr is to fall now."""
        self.improved = False
        if math.isnan(value):
            return False
        self.improved = self.improvement.take(value)
        due = self._plateau_due() if self.config.rule == "plateau" else self._threshold_due(value)
        if due:
            self.cooldown = self.config.cooldown
            self.bad_validations = 0
        return due

    def _plateau_due(self) -> bool:
        self.bad_validations = 0 if self.improved else self.bad_validations + 1
        if self.cooldown > 0:
            self.cooldown -= 1
            self.bad_validations = 0
        return self.bad_validations > self.config.patience

    def _threshold_due(self, value: float) -> bool:
        if self.cooldown > 0:
            self.cooldown -= 1
            return False
        beyond = value > self.config.above if self.config.above is not None else value < self.config.below
        due = beyond and (self.config.repeat or not self.fired)
        self.fired |= due
        return due

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in self._COUNTED_UNDER}
        return {"key": self.key, "group": self.group, "settings": dict(self.settings), **state}

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Takes over what was counted under the settings of today; returns the rest, in words."""
        afresh = []
        for name, settings in self._COUNTED_UNDER.items():
            changed = [
                f"{key}: {state['settings'].get(key)} -> {self.settings[key]}"
                for key in settings
                if state["settings"].get(key) != self.settings[key]
            ]
            if not changed:
                setattr(self, name, state[name])
            elif state[name] != getattr(self, name):
                afresh.append(f"{name} of reductions[{self.index}] for {self.group} ({', '.join(changed)})")
        self.best_from = state["key"] if self.best is not None else None
        return afresh


class LearningRates:
    """Sets every group's lr before a step, and lowers it after validations as the config's reductions say.

    Args:
        groups: the config's groups: base lr and freezing.
        param_groups: {group: the optimizer's entries}, each with its `lr_scale`; empty for a replay.
        monitors: the metrics that a validation will report.
        steps_per_epoch, epochs: the length of the run, for schedules.

    Raises ValueError if a reduction or the stop rule watches a metric that does not exist, or waits for a value
    that the metric cannot have.
    """

    def __init__(
        self,
        groups: dict[str, GroupConfig],
        param_groups: dict[str, list[dict[str, Any]]],
        config: LearningRatesConfig,
        *,
        monitors: list[str],
        steps_per_epoch: int,
        epochs: int,
    ):
        _check_monitors(config, monitors)
        self.config = config
        self.groups = groups
        self.param_groups = param_groups
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.reduction = dict.fromkeys(groups, 1.0)
        self.frozen: set[str] = set()  # groups that are frozen in the present epoch
        self.unfrozen_at: dict[str, int] = {}  # steps finished when the group began to train
        self.rules = [
            Rule(i, name, reduction, groups[name].lr)
            for i, reduction in enumerate(config.reductions)
            for name in reduction.groups
        ]
        self.stop = Improvement(direction(config.stop.monitor)) if config.stop else None
        self.stop_count = 0

    def lr(self, group: str, step: int, epoch: float) -> float:
        """The group's lr for the step after `step` finished ones; in layered groups, that of the output side.

        epoch: epochs finished, with the fraction of the one that has begun. Schedules go by it and not by steps,
        so that a run resumed with another batch size stays where it was.
        """
        config = self.groups[group]
        last = self.epochs - 1 / self.steps_per_epoch  # where the last step stands
        schedule = _schedule(self.config.schedules.get(group), epoch, last)
        return config.lr * self._warmup(group, step) * schedule * self.reduction[group]

    def set(self, step: int, epoch: float) -> None:
        """Writes every group's lr for the step after `step` finished ones. epoch: as for `lr`."""
        for name, entries in self.param_groups.items():
            lr = self.lr(name, step, epoch)
            for entry in entries:
                entry["lr"] = lr * entry["lr_scale"]

    def after_validation(self, metrics: dict[str, float], *, epoch: int, step: int) -> list[LrEvent]:
        """Lets each reduction look at its monitor; returns one event for each lr that falls.

        epoch: finished epochs. A group that is still frozen or warming up is not judged.
        """
        events = []
        for rule in self.rules:
            config, group = rule.config, rule.group
            if epoch < config.start_epoch or self._held(group, epoch, step):
                rule.improved = False
                continue
            value, best = metrics[config.monitor], rule.best
            due = rule.due(value)
            if rule.improved:
                rule.exhausted = False
            if not due:
                continue
            before = self.reduction[group]
            lowered = max(before * config.factor, config.min_lr / self.groups[group].lr)
            if lowered >= before:
                rule.exhausted = True
                continue
            lr_before = self.lr(group, step, epoch)
            self.reduction[group] = lowered
            for other in self.rules:
                other.exhausted &= other.group != group  # at an lr that the group has just left
            events.append(
                LrEvent(
                    group=group,
                    lr_before=lr_before,
                    lr_after=self.lr(group, step, epoch),
                    cause=config.rule,
                    rule=rule.index,
                    monitor=config.monitor,
                    value=value,
                    best=best,
                    factor=config.factor,
                    min_lr=config.min_lr,
                )
            )
        if self.stop and not math.isnan(value := metrics[self.config.stop.monitor]):
            self.stop_count = 0 if self.stop.take(value) else self.stop_count + 1
        return events

    def not_a_number(self, metrics: dict[str, float]) -> list[str]:
        """The watched metrics that are NaN: they are neither better nor worse, and reduce nothing."""
        watched = dict.fromkeys(rule.config.monitor for rule in self.rules)
        return [monitor for monitor in watched if math.isnan(metrics[monitor])]

    def start_epoch(self, *, epoch: int, step: int) -> list[LrEvent]:
        """Call before each epoch, with the epochs and steps finished: one event for each group that starts to train."""
        events = []
        for name, config in self.groups.items():
            if epoch < config.freeze_until:
                self.frozen.add(name)
            elif name in self.frozen:
                self.frozen.remove(name)
                self.unfrozen_at[name] = step
                full = self.lr(name, step + config.unfreeze_warmup_steps, epoch)
                events.append(LrEvent(group=name, lr_before=0.0, lr_after=full, cause="unfreeze"))
        return events

    def should_stop(self) -> str | None:
        """Why training should end now, or None."""
        if self.stop and self.stop_count > self.config.stop.patience:
            return f"{self.config.stop.monitor} {_stalled(self.config.stop.monitor)} for {self.stop_count} validations"
        if self.config.stop_when_exhausted and all(map(self._is_exhausted, self.groups)):
            return "every group is at its min_lr and stalled again"
        return None

    def _is_exhausted(self, group: str) -> bool:
        """Whether a rule of the group stalled at min_lr, and none that repeats could bring the lr further down."""
        rules = [rule for rule in self.rules if rule.group == group]
        floors = [rule.config.min_lr / self.groups[group].lr for rule in rules if rule.repeats]
        return any(rule.exhausted for rule in rules) and self.reduction[group] <= min(floors)

    def curves(self) -> dict[str, dict[str, float]]:
        """{statistic: {group, or group.i for its i-th rule: value}}: what the rules have counted so far."""
        curves = {"reduction": dict(self.reduction)}
        for rule in self.rules:
            if rule.config.rule != "plateau":
                continue
            alone = sum(other.group == rule.group for other in self.rules) == 1
            label = rule.group if alone else f"{rule.group}.{rule.index}"
            for name, value in {
                "plateau_best": rule.best,
                "plateau_bad_validations": rule.bad_validations,
                "plateau_cooldown": rule.cooldown,
            }.items():
                if value is not None:
                    curves.setdefault(name, {})[label] = value
        return curves

    def plans(self) -> list[tuple[str, str, str]]:
        """(group, schedule, reductions) in words, one row a group."""
        rows = []
        for name in self.groups:
            schedule = self.config.schedules.get(name)
            rules = [_describe_rule(rule.config) for rule in self.rules if rule.group == name]
            rows.append((name, schedule.name if schedule else "constant", "; ".join(rules) or "none"))
        return rows

    def stop_plan(self) -> str:
        """When training ends before its last epoch, in words; empty if never."""
        reasons = []
        if stop := self.config.stop:
            reasons.append(f"{stop.monitor} {_stalled(stop.monitor)} for {_validations(stop.patience + 1)}")
        if self.config.stop_when_exhausted:
            reasons.append("every group is at its min_lr and stalled again")
        return " or ".join(reasons)

    def state_dict(self) -> dict[str, Any]:
        stop = {"monitor": self.config.stop.monitor, "best": self.stop.best} if self.stop else {}
        return {
            "reduction": dict(self.reduction),
            "frozen": sorted(self.frozen),
            "unfrozen_at": dict(self.unfrozen_at),
            "rules": [rule.state_dict() for rule in self.rules],
            "stop": {**stop, "count": self.stop_count},
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Takes over what still means the same: factors by group, counters by group, monitor, rule and settings.

        Returns what starts afresh because the config has changed, one line each.
        """
        afresh = [f"the reduction of {name} (a new group)" for name in self.reduction if name not in state["reduction"]]
        self.reduction |= {name: value for name, value in state["reduction"].items() if name in self.groups}
        self.frozen = {name for name in state["frozen"] if name in self.groups}
        self.unfrozen_at = {name: step for name, step in state["unfrozen_at"].items() if name in self.groups}
        afresh += self._load_rules(list(state["rules"]))
        if self.stop:
            saved, monitor = state["stop"], self.config.stop.monitor
            if saved.get("monitor") == monitor:
                self.stop.best, self.stop_count = saved["best"], saved["count"]
            elif "monitor" in saved:
                afresh.append(f"best and count of stop (monitor: {saved['monitor']} -> {monitor})")
        return afresh

    def _load_rules(self, saved: list[dict[str, Any]]) -> list[str]:
        """First the unchanged rules, wherever they stand now; then those of the same group, monitor and kind."""
        afresh, left = [], []
        for rule in self.rules:
            match = next((s for s in saved if (s["group"], s["settings"]) == (rule.group, rule.settings)), None)
            if match is None:
                left.append(rule)
                continue
            saved.remove(match)
            rule.load_state_dict(match)
        for rule in left:
            kind = (rule.group, rule.config.monitor, rule.config.rule)
            match = next(
                (s for s in saved if (s["group"], s["settings"]["monitor"], s["settings"]["rule"]) == kind), None
            )
            if match is None:
                afresh.append(
                    f"reductions[{rule.index}] for {rule.group} (the checkpoint has no {rule.config.rule} "
                    f"on {rule.config.monitor} for it)"
                )
                continue
            saved.remove(match)
            afresh += rule.load_state_dict(match)
        return afresh

    def _warmup(self, group: str, step: int) -> float:
        config = self.groups[group]
        factor = min(1.0, (step + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        if config.unfreeze_warmup_steps and group in self.unfrozen_at:
            factor *= min(1.0, (step - self.unfrozen_at[group] + 1) / config.unfreeze_warmup_steps)
        return factor

    def _held(self, group: str, epoch: int, step: int) -> bool:
        """Whether a validation says nothing of the group's lr: the group was frozen, or is warming up."""
        return epoch <= self.groups[group].freeze_until or self._warmup(group, step - 1) < 1


def _check_monitors(config: LearningRatesConfig, monitors: list[str]) -> None:
    watched = {f"reductions[{i}]": reduction.monitor for i, reduction in enumerate(config.reductions)}
    if config.stop:
        watched["stop"] = config.stop.monitor
    for key, monitor in watched.items():
        if monitor not in monitors:
            raise ValueError(
                f"learning_rates.{key}.monitor: '{monitor}' is not a validation metric; known: {', '.join(monitors)}"
            )
    for i, reduction in enumerate(config.reductions):
        maximum = 1.0 if direction(reduction.monitor) == "max" else math.inf
        key = f"learning_rates.reductions[{i}]"
        if reduction.above is not None and reduction.above >= maximum:
            raise ValueError(f"{key}.above: found {reduction.above:g}, but {reduction.monitor} is never above 1")
        if reduction.below is not None and reduction.below <= 0:
            raise ValueError(f"{key}.below: found {reduction.below:g}, but {reduction.monitor} is never below 0")


def _schedule(config: ScheduleConfig | None, epoch: float, last: float) -> float:
    """The schedule's factor at `epoch`: 1 at the first step, `end_factor` at epoch `last` (cosine, linear)."""
    if config is None or config.name == "constant":
        return 1.0
    if config.name == "step":
        return config.factor ** (int(epoch) // config.every_epochs)
    progress = min(1.0, epoch / last) if last > 0 else 0.0
    remaining = (1 + math.cos(math.pi * progress)) / 2 if config.name == "cosine" else 1 - progress
    return config.end_factor + (1 - config.end_factor) * remaining


def _stalled(monitor: str) -> str:
    return "has not fallen" if direction(monitor) == "min" else "has not risen"


def _validations(number: int) -> str:
    return "1 validation" if number == 1 else f"{number} validations"


def _describe_rule(config: ReductionConfig) -> str:
    if config.rule == "plateau":
        when = f"{config.monitor} {_stalled(config.monitor)} for {_validations(config.patience + 1)}"
    else:
        limit = f"> {config.above:g}" if config.above is not None else f"< {config.below:g}"
        when = f"{config.monitor} {limit}" + (" (each time)" if config.repeat else "")
    since = f" from epoch {config.start_epoch}" if config.start_epoch > 1 else ""
    best = "lowest" if direction(config.monitor) == "min" else "highest"
    restored = f", with the weights of the {best} {config.monitor}" if config.restore_best else ""
    return f"x{config.factor:g} when {when}{since}, down to {config.min_lr:g}{restored}"
