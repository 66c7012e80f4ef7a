"""lr of each group = base x warm-up x schedule x reduction. The only writer of `lr` once the optimizer is built.

What a validation decided is kept as one factor per group, never as an lr: so a warm-up cannot undo a
reduction, and a resumed run may change a base lr and keep its reductions.
"""

import math
from dataclasses import dataclass
from typing import Any

from app.config_schema import Config, GroupConfig, LearningRatesConfig, ReductionConfig, ScheduleConfig


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

    _COUNTERS = ("bad_validations", "cooldown", "fired", "exhausted")

    def __init__(self, index: int, group: str, config: ReductionConfig):
        self.index = index
        self.group = group
        self.config = config
        self.improvement = Improvement(config.mode, config.threshold, config.threshold_mode)
        self.bad_validations = 0
        self.cooldown = 0
        self.fired = False
        self.exhausted = False  # at min_lr, and stalled again
        self.improved = False  # by the last validation: what restore_best keeps

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
            self.fired = True
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
        return beyond and (self.config.repeat or not self.fired)

    def state_dict(self) -> dict[str, Any]:
        names = {"group": self.group, "monitor": self.config.monitor, "rule": self.config.rule}
        counters = {key: getattr(self, key) for key in self._COUNTERS}
        return {**names, "best": self.improvement.best, **counters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.improvement.best = state["best"]
        for key in self._COUNTERS:
            setattr(self, key, state[key])


class LearningRates:
    """Sets every group's lr before a step, and lowers it after validations as the config's reductions say.

    Args:
        groups: the config's groups: base lr and freezing.
        param_groups: {group: the optimizer's entries}, each with its `lr_scale`; empty for a replay.
        monitors: the metrics that a validation will report.
        steps_per_epoch, epochs: the length of the run, for schedules.

    Raises ValueError if a reduction or the stop rule watches a metric that does not exist.
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
        watched = {f"reductions[{i}]": reduction.monitor for i, reduction in enumerate(config.reductions)}
        if config.stop:
            watched["stop"] = config.stop.monitor
        for key, monitor in watched.items():
            if monitor not in monitors:
                raise ValueError(
                    f"learning_rates.{key}.monitor: '{monitor}' is not a validation metric; "
                    f"known: {', '.join(monitors)}"
                )
        self.config = config
        self.groups = groups
        self.param_groups = param_groups
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.reduction = dict.fromkeys(groups, 1.0)
        self.unfrozen_at: dict[str, int] = {}  # steps finished when the group began to train
        self.rules = [
            Rule(i, name, reduction) for i, reduction in enumerate(config.reductions) for name in reduction.groups
        ]
        self.stop = Improvement(config.stop.mode) if config.stop else None
        self.stop_count = 0

    def lr(self, group: str, step: int) -> float:
        """The group's lr for the step after `step` finished ones; in layered groups, that of the output side."""
        config = self.groups[group]
        schedule = _schedule(self.config.schedules.get(group), step, self.steps_per_epoch, self.epochs)
        return config.lr * self._warmup(group, step) * schedule * self.reduction[group]

    def set(self, step: int) -> None:
        """Writes every group's lr for the step after `step` finished ones."""
        for name, entries in self.param_groups.items():
            lr = self.lr(name, step)
            for entry in entries:
                entry["lr"] = lr * entry["lr_scale"]

    def after_validation(self, metrics: dict[str, float], *, epoch: int, step: int) -> list[dict[str, Any]]:
        """Lets each reduction look at its monitor; returns one event for each lr that falls.

        epoch: finished epochs. A group that is still frozen or warming up is not judged.
        """
        events = []
        for rule in self.rules:
            config, group = rule.config, rule.group
            if epoch < config.start_epoch or self._held(group, epoch, step):
                rule.improved = False
                continue
            value, best = metrics[config.monitor], rule.improvement.best
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
            event = {"group": group, "from": self.lr(group, step), "cause": config.rule}
            self.reduction[group] = lowered
            event |= {"to": self.lr(group, step), "monitor": config.monitor, "value": value, "best": best}
            events.append(event | {"factor": config.factor, "min_lr": config.min_lr, "restored": False})
        if self.stop and not math.isnan(value := metrics[self.config.stop.monitor]):
            self.stop_count = 0 if self.stop.take(value) else self.stop_count + 1
        return events

    def not_a_number(self, metrics: dict[str, float]) -> list[str]:
        """The watched metrics that are NaN: they are neither better nor worse, and reduce nothing."""
        watched = dict.fromkeys(rule.config.monitor for rule in self.rules)
        return [monitor for monitor in watched if math.isnan(metrics[monitor])]

    def unfreeze(self, *, epoch: int, step: int) -> list[dict[str, Any]]:
        """Call before each epoch, with the epochs and steps finished: one event for each group that starts to train."""
        events = []
        for name, config in self.groups.items():
            if 0 < epoch == config.freeze_until:
                self.unfrozen_at[name] = step
                full = self.lr(name, step + config.unfreeze_warmup_steps)
                events.append({"group": name, "from": 0.0, "to": full, "cause": "unfreeze"})
        return events

    def should_stop(self) -> str | None:
        """Why training should end now, or None."""
        if self.stop and self.stop_count > self.config.stop.patience:
            return f"{self.config.stop.monitor} did not improve for {self.stop_count} validations"
        if self.config.stop_when_exhausted and all(rule.exhausted for rule in self.rules):
            return "every group is at its min_lr and stalled again"
        return None

    def curves(self) -> dict[str, dict[str, float]]:
        """{statistic: {group, or group.i for its i-th rule: value}}: what the rules have counted so far."""
        curves = {"reduction": dict(self.reduction)}
        for rule in self.rules:
            if rule.config.rule != "plateau":
                continue
            alone = sum(other.group == rule.group for other in self.rules) == 1
            label = rule.group if alone else f"{rule.group}.{rule.index}"
            for name, value in {
                "plateau_best": rule.improvement.best,
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

    def state_dict(self) -> dict[str, Any]:
        return {
            "reduction": dict(self.reduction),
            "unfrozen_at": dict(self.unfrozen_at),
            "rules": [rule.state_dict() for rule in self.rules],
            "stop": {"best": self.stop.best if self.stop else None, "count": self.stop_count},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what fits by name: factors by group, counters by group, monitor and rule."""
        for name, reduction in state["reduction"].items():
            if name in self.reduction:
                self.reduction[name] = reduction
        self.unfrozen_at = dict(state["unfrozen_at"])
        saved = list(state["rules"])
        for rule in self.rules:
            own = rule.state_dict()
            match = next((s for s in saved if all(s[k] == own[k] for k in ("group", "monitor", "rule"))), None)
            if match:
                saved.remove(match)
                rule.load_state_dict(match)
        if self.stop:
            self.stop.best, self.stop_count = state["stop"]["best"], state["stop"]["count"]

    def _warmup(self, group: str, step: int) -> float:
        config = self.groups[group]
        factor = min(1.0, (step + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        if config.unfreeze_warmup_steps and group in self.unfrozen_at:
            factor *= min(1.0, (step - self.unfrozen_at[group] + 1) / config.unfreeze_warmup_steps)
        return factor

    def _held(self, group: str, epoch: int, step: int) -> bool:
        """Whether a validation says nothing of the group's lr: the group was frozen, or is warming up."""
        return epoch <= self.groups[group].freeze_until or self._warmup(group, step - 1) < 1


def _schedule(config: ScheduleConfig | None, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The schedule's factor: 1 at the first step, `end_factor` at the last (cosine, linear)."""
    if config is None or config.name == "constant":
        return 1.0
    if config.name == "step":
        return config.factor ** (step // steps_per_epoch // config.every_epochs)
    progress = min(1.0, step / max(1, steps_per_epoch * epochs - 1))
    remaining = (1 + math.cos(math.pi * progress)) / 2 if config.name == "cosine" else 1 - progress
    return config.end_factor + (1 - config.end_factor) * remaining


def _describe_rule(config: ReductionConfig) -> str:
    if config.rule == "plateau":
        when = f"{config.monitor} stalls {config.patience + 1}x"
    else:
        limit = f"> {config.above:g}" if config.above is not None else f"< {config.below:g}"
        when = f"{config.monitor} {limit}" + (" (each time)" if config.repeat else "")
    since = f" from epoch {config.start_epoch}" if config.start_epoch > 1 else ""
    return f"x{config.factor:g} when {when}{since}, down to {config.min_lr:g}"


def describe_event(event: dict[str, Any]) -> str:
    change = f"lr of {event['group']} {event['from']:.3g} -> {event['to']:.3g}"
    if event["cause"] == "unfreeze":
        return f"{change}: unfrozen"
    restored = "; its best weights are back" if event["restored"] else ""
    best = f", best {event['best']:.4f}" if event["best"] is not None else ""
    return f"{change} ({event['cause']}): {event['monitor']} is {event['value']:.4f}{best}{restored}"


def replay(config: Config, validations: list[dict[str, Any]]) -> str:
    """The lr path that the config's rules would have taken on recorded validations, as a table with the events.

    validations: records of metrics.jsonl: "epoch", "step" and metrics. Raises ValueError where the rules watch
    a metric that was not recorded.
    """
    metrics = [{f"val/{name}": value for name, value in record.items()} for record in validations]
    monitors = [m for m in metrics[0] if m not in ("val/epoch", "val/step", "val/kind")]
    first = validations[0]
    rates = LearningRates(
        config.optimizer.groups,
        {},
        config.learning_rates,
        monitors=monitors,
        steps_per_epoch=max(1, first["step"] // first["epoch"]),
        epochs=config.run.epochs,
    )
    lines = ["epoch  " + "  ".join(f"{name:>16s}" for name in rates.groups) + "   (lr after that epoch's validation)"]
    for record, values in zip(validations, metrics, strict=True):
        epoch, step = record["epoch"], record["step"]
        events = rates.after_validation(values, epoch=epoch, step=step)
        events += rates.unfreeze(epoch=epoch, step=step)
        lrs = [0.0 if epoch < group.freeze_until else rates.lr(name, step) for name, group in rates.groups.items()]
        lines.append(f"{epoch:5d}  " + "  ".join(f"{lr:16.4g}" for lr in lrs))
        lines += [f"       {describe_event(event)}" for event in events]
        if reason := rates.should_stop():
            lines.append(f"       training would stop here: {reason}")
            break
    return "\n".join(lines)
