"""lr of each group = base x warm-up x schedule x reduction x balance. The only writer of `lr` once training starts.

What a validation decided is kept as one factor per group, never as an lr: so a warm-up cannot undo a
reduction, and a resumed run may change a base lr and keep its reductions.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from app.evaluation.metrics import check_monitor
from app.learning_rates.balance import BALANCE_RULES, KEY, BalanceRule
from app.learning_rates.events import LrEvent
from app.learning_rates.rules import RULES, Improvement, Reduction, Rule, stalled, validations
from app.learning_rates.spans import Span
from app.param_groups.groups import GroupConfig
from app.section import Section


class ScheduleConfig(Section):
    """A factor on the group's lr that changes over the whole run, by epochs and the fraction of one."""

    name: str = Field(description="the form of the schedule")


class ConstantSchedule(ScheduleConfig):
    name: Literal["constant"] = Field(description="1 throughout")


class CosineSchedule(ScheduleConfig):
    name: Literal["cosine"] = Field(description="from 1 to end_factor along half a cosine")
    end_factor: float = Field(0.0, ge=0, le=1, description="the factor at the last step")


class LinearSchedule(ScheduleConfig):
    name: Literal["linear"] = Field(description="from 1 to end_factor along a line")
    end_factor: float = Field(0.0, ge=0, le=1, description="the factor at the last step")


class StepSchedule(ScheduleConfig):
    name: Literal["step"] = Field(description="falls every few epochs")
    every_epochs: int = Field(ge=1, description="epochs from one fall to the next")
    factor: float = Field(gt=0, lt=1, description="new factor = old factor x this")


Schedule = Annotated[ConstantSchedule | CosineSchedule | LinearSchedule | StepSchedule, Field(discriminator="name")]


class StopConfig(Section):
    monitor: str = Field(description="a validation metric")
    patience: int = Field(ge=0, description="stops after patience + 1 validations in a row without improvement")


class LearningRatesConfig(Section):
    warmup_steps: int = Field(ge=0, description="optimizer steps from 0 to the full lr, linear; rules wait for its end")
    schedules: dict[str, Schedule] = Field(
        {}, description="by group: a factor on its lr over the whole run, by epochs and the fraction of one; default: 1"
    )
    reductions: list[Reduction] = Field(description="rules that multiply the lr of groups by a factor")
    stop: StopConfig | None = Field(None, description="early stop")
    stop_when_exhausted: bool = Field(
        False, description="stop when every group is at its min_lr, above 0, and stalled again"
    )


class LearningRates:
    """Sets every group's lr before a step, and changes it after validations as the config's rules say.

    Args:
        groups: the config's groups: base lr and freezing.
        param_groups: {group: the optimizer's entries}, each with its `lr_scale`; empty for a replay.
        monitors: the metrics that a validation will report.
        steps_per_epoch, epochs: the length of the run, for schedules.
        balance: a rule of app/learning_rates/balance.py, whose factor multiplies what the others give; None: 1.

    Raises ValueError if a rule or `stop` watches a metric that does not exist, or waits for a value that the metric
    cannot have, or if the balance rule lacks a metric or a branch's groups.
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
        balance: BalanceRule | None = None,
    ):
        self.config = config
        self.groups = groups
        self.param_groups = param_groups
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.reduction = dict.fromkeys(groups, 1.0)
        self.spans = {name: Span(name, config) for name, config in groups.items()}
        self.frozen: set[str] = set()  # groups that are frozen in the present epoch
        self.frozen_for_good: set[str] = set()  # those of them that have trained for the last time
        self.unfrozen_at: dict[str, int] = {}  # steps finished when the group began to train
        self.rules = [
            RULES[reduction.rule](i, name, reduction, groups[name].lr)
            for i, reduction in enumerate(config.reductions)
            for name in reduction.groups
        ]
        self.stop = Improvement(config.stop.monitor) if config.stop else None
        self.stop_count = 0
        self.balance = BALANCE_RULES[balance.rule](balance, groups, monitors) if balance else None
        self._check_monitors(monitors)

    def lr(self, group: str, step: int, epoch: float) -> float:
        """The group's lr for the step after `step` finished ones; in layered groups, that of the output side.

        epoch: epochs finished, with the fraction of the one that has begun. Schedules go by it and not by steps,
        so that a run resumed with another batch size stays where it was.
        """
        config = self.groups[group]
        last = self.epochs - 1 / self.steps_per_epoch  # where the last step stands
        schedule = _schedule(self.config.schedules.get(group), epoch, last)
        balance = self.balance.factor(group) if self.balance else 1.0
        return config.lr * self._warmup(group, step) * schedule * self.reduction[group] * balance

    def set(self, step: int, epoch: float) -> None:
        """Writes every group's lr for the step after `step` finished ones. epoch: as for `lr`."""
        for name, entries in self.param_groups.items():
            lr = self.lr(name, step, epoch)
            for entry in entries:
                entry["lr"] = lr * entry["lr_scale"]

    def after_validation(self, metrics: dict[str, float], *, epoch: int, step: int) -> list[LrEvent]:
        """Lets each rule look at its monitors, in the order of the config, and the balance after them.

        Returns one event for each changed lr. epoch: finished epochs. A group that was frozen or is warming up is not
        judged. What it says of freezing, start_epoch carries out.
        """
        events = []
        for name, span in self.spans.items():
            span.after_validation(metrics, epoch, trained=name not in self.frozen)
        for rule in self.rules:
            if epoch < rule.config.start_epoch or self._held(rule.group, step):
                rule.improved = False
                continue
            best, lr_before = rule.best, self.lr(rule.group, step, epoch)
            if self._apply(rule, metrics):
                events.append(
                    LrEvent(
                        group=rule.group,
                        lr_before=lr_before,
                        lr_after=self.lr(rule.group, step, epoch),
                        cause=rule.config.rule,
                        rule=rule.index,
                        monitor=rule.config.monitor,
                        value=metrics[rule.config.monitor],
                        best=best,
                        factor=rule.config.factor,
                        min_lr=rule.config.min_lr,
                    )
                )
        events += self._balance(metrics, epoch, step)
        if self.stop and not math.isnan(value := metrics[self.config.stop.monitor]):
            self.stop_count = 0 if self.stop.take(value) else self.stop_count + 1
        return events

    def _apply(self, rule: Rule, metrics: dict[str, float]) -> bool:
        """Returns whether the rule has changed its group's factor."""
        before = self.reduction[rule.group]
        wanted = rule.after_validation(metrics, before)
        after = max(wanted, rule.floor) if wanted < before else wanted
        if wanted < before <= after:
            rule.exhausted = True
            return False
        if after == before:
            return False
        self.reduction[rule.group] = after
        for other in self.rules:
            other.exhausted &= other.group != rule.group  # at an lr that the group has just left
        return True

    def _balance(self, metrics: dict[str, float], epoch: int, step: int) -> list[LrEvent]:
        """Nothing is compared while a group of either branch is frozen or warming up: what was decided stays."""
        if not self.balance or any(self._held(name, step) for name in self.balance.groups):
            return []
        before = {name: self.lr(name, step, epoch) for name in self.balance.groups}
        changed, utilisation = self.balance.after_validation(metrics)
        return [
            LrEvent(
                group=name,
                lr_before=before[name],
                lr_after=self.lr(name, step, epoch),
                cause=self.balance.config.rule,
                reason=reason,
                utilisation=utilisation,
            )
            for name, reason in changed.items()
        ]

    def not_a_number(self, metrics: dict[str, float]) -> list[str]:
        """The watched metrics that are NaN: they are neither better nor worse, and change nothing."""
        watched = dict.fromkeys(monitor for rule in self.rules for monitor in rule.monitors)
        for name, span in self.spans.items():
            watched |= dict.fromkeys(span.waiting_for(trained=name not in self.frozen))
        watched |= dict.fromkeys(self.balance.MONITORS if self.balance else ())
        return [monitor for monitor in watched if math.isnan(metrics[monitor])]

    def start_epoch(self, *, epoch: int, step: int) -> list[LrEvent]:
        """Call before each epoch, with the epochs and steps finished: sets `frozen` and `frozen_for_good`.

        Returns one event for each group that starts to train, or that is frozen from now on.
        """
        events = []
        self.frozen_for_good = {name for name, span in self.spans.items() if span.to.reached(epoch)}
        for name, span in self.spans.items():
            if span.trains(epoch):
                if name in self.frozen:
                    self.frozen.remove(name)
                    self.unfrozen_at[name] = step
                    full = self.lr(name, step + self.groups[name].unfreeze_warmup_steps, epoch)
                    change = {"lr_before": 0.0, "lr_after": full, "cause": "unfreeze"}
                    events.append(LrEvent(group=name, **change, **span.until.because()))
            elif name not in self.frozen:
                self.frozen.add(name)
                if epoch:  # not at the start of a run
                    change = {"lr_before": self.lr(name, step, epoch), "lr_after": 0.0, "cause": "freeze"}
                    # Else a resumed run has got another freeze_until.
                    not_yet = {"reason": "freeze_until is not reached"}
                    why = span.to.because() if name in self.frozen_for_good else not_yet
                    events.append(LrEvent(group=name, **change, **why))
        return events

    def should_stop(self) -> str | None:
        """Why training should end now, or None."""
        if len(self.frozen) == len(self.groups):
            return "every group is frozen (freeze_until, freeze_from), so nothing would train"
        if self.stop and self.stop_count > self.config.stop.patience:
            return f"{self.config.stop.monitor} {stalled(self.config.stop.monitor)} for {self.stop_count} validations"
        if self.config.stop_when_exhausted and all(map(self._is_exhausted, self.groups)):
            return self._exhausted_in_words()
        return None

    def _is_exhausted(self, group: str) -> bool:
        """Whether a rule of the group stalled at min_lr, and none that repeats could bring the lr further down.

        So is a group that is frozen for good.
        """
        if group in self.frozen_for_good:
            return True
        rules = [rule for rule in self.rules if rule.group == group]
        at_floors = all(self.reduction[group] <= rule.floor for rule in rules if rule.repeats)
        return at_floors and any(rule.exhausted for rule in rules)

    def _exhausted_in_words(self) -> str:
        for_good = any(config.freeze_from is not None for config in self.groups.values())
        return "every group is at its min_lr and stalled again" + (", or frozen for good" if for_good else "")

    def curves(self) -> dict[str, dict[str, float]]:
        """{statistic: {group, or group.i for its i-th rule: value}}: what the rules have counted so far."""
        reduced = {rule.group for rule in self.rules}
        curves = {"reduction": {name: factor for name, factor in self.reduction.items() if name in reduced}}
        for rule in self.rules:
            alone = sum(other.group == rule.group for other in self.rules) == 1
            label = rule.group if alone else f"{rule.group}.{rule.index}"
            for name, value in rule.curves().items():
                if value is not None:
                    curves.setdefault(name, {})[label] = value
        return curves | (self.balance.curves() if self.balance else {})

    def plans(self) -> list[dict[str, str]]:
        """{"group", "schedule", "reductions", and with such a rule "balance"} in words, one row a group."""
        rows = []
        for name in self.groups:
            schedule = self.config.schedules.get(name)
            rules = [rule.describe() for rule in self.rules if rule.group == name]
            row = {"group": name, "schedule": schedule.name if schedule else "constant"}
            row["reductions"] = "; ".join(rules) or "none"
            rows.append(row | ({"balance": self.balance.describe(name)} if self.balance else {}))
        return rows

    def stop_plan(self) -> str:
        """When training ends before its last epoch, in words; empty if never."""
        reasons = []
        if stop := self.config.stop:
            reasons.append(f"{stop.monitor} {stalled(stop.monitor)} for {validations(stop.patience + 1)}")
        if self.config.stop_when_exhausted:
            reasons.append(self._exhausted_in_words())
        return " or ".join(reasons)

    def state_dict(self) -> dict[str, Any]:
        stop = {"monitor": self.config.stop.monitor, "best": self.stop.best} if self.stop else {}
        return {
            "reduction": dict(self.reduction),
            "frozen": sorted(self.frozen),
            "unfrozen_at": dict(self.unfrozen_at),
            "conditions": {name: span.state_dict() for name, span in self.spans.items()},
            "rules": [rule.state_dict() for rule in self.rules],
            "stop": {**stop, "count": self.stop_count},
            "balance": self.balance.state_dict() if self.balance else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Takes over what still means the same: factors by group, counters by group, monitor, rule and settings.

        A group that the checkpoint does not know counts as frozen so far if it has a freeze_until: its parameters may
        have been frozen under another group's name, and a warm-up that was not needed does less harm than a full lr
        at once. So it unfreezes with event and warm-up, now if its freeze_until has passed.

        Returns what starts from the beginning because the config has changed, one line each.
        """
        new = [name for name in self.groups if name not in state["reduction"]]
        restarted = [f"the reduction of {name} (a new group)" for name in new]
        self.reduction |= {name: value for name, value in state["reduction"].items() if name in self.groups}
        self.frozen = {name for name in state["frozen"] if name in self.groups}
        self.frozen |= {name for name in new if self.groups[name].freeze_until != 0}
        self.unfrozen_at = {name: step for name, step in state["unfrozen_at"].items() if name in self.groups}
        for name, saved in state["conditions"].items():
            restarted += self.spans[name].load_state_dict(saved) if name in self.spans else []
        restarted += self._load_rules(state["rules"])
        if self.stop:
            saved, monitor = state["stop"], self.config.stop.monitor
            if saved.get("monitor") == monitor:
                self.stop.best, self.stop_count = saved["best"], saved["count"]
            elif "monitor" in saved:
                restarted.append(f"best and count of stop (monitor: {saved['monitor']} -> {monitor})")
        if self.balance:
            saved = state["balance"]
            none = f"{KEY} (the checkpoint has no {self.balance.config.rule})"
            restarted += self.balance.load_state_dict(saved) if saved else [none]
        return restarted

    def _load_rules(self, saved: list[dict[str, Any]]) -> list[str]:
        """Of the rules of a group that are of one kind and watch one monitor, each continues a saved one of the same
        settings; of the others the n-th continues the n-th.

        Returns what starts from the beginning.
        """
        restarted, waiting = [], list(saved)
        for rule in self.rules:
            taken = [other.settings for other in self.rules if other.group == rule.group]
            alike = [state for state in waiting if rule.is_same_kind(state)]
            found = [state for state in alike if state["settings"] == rule.settings]
            if found := found or [state for state in alike if state["settings"] not in taken]:
                waiting.remove(found[0])
                restarted += rule.load_state_dict(found[0])
            else:
                none = f"the checkpoint has no {rule.config.rule} on {rule.config.monitor} left for it"
                restarted.append(f"reductions[{rule.index}] for {rule.group} ({none})")
        return restarted

    def _warmup(self, group: str, step: int) -> float:
        config = self.groups[group]
        factor = min(1.0, (step + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        if config.unfreeze_warmup_steps and group in self.unfrozen_at:
            factor *= min(1.0, (step - self.unfrozen_at[group] + 1) / config.unfreeze_warmup_steps)
        return factor

    def _held(self, group: str, step: int) -> bool:
        """Whether a validation says nothing of the group's lr: the group was frozen, or is warming up."""
        return group in self.frozen or self._warmup(group, step - 1) < 1

    def _check_monitors(self, known: list[str]) -> None:
        watched = [(f"reductions[{rule.index}]", monitor) for rule in self.rules for monitor in rule.monitors]
        if self.stop:
            watched.append(("stop", self.stop.monitor))
        for key, monitor in watched:
            check_monitor(f"learning_rates.{key}.monitor", monitor, known)
        for span in self.spans.values():
            span.check(known)
        for rule in self.rules:
            if never := rule.never_met():
                raise ValueError(f"learning_rates.reductions[{rule.index}].{never}")


def _schedule(config: ScheduleConfig | None, epoch: float, last: float) -> float:
    """The schedule's factor at `epoch`: 1 at the first step, `end_factor` at epoch `last` (cosine, linear)."""
    if config is None or config.name == "constant":
        return 1.0
    if config.name == "step":
        return config.factor ** (int(epoch) // config.every_epochs)
    progress = min(1.0, epoch / last) if last > 0 else 0.0
    remaining = (1 + math.cos(math.pi * progress)) / 2 if config.name == "cosine" else 1 - progress
    return config.end_factor + (1 - config.end_factor) * remaining
