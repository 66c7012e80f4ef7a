"""lr of each group = base x warm-up x reduction. The only writer of `lr` once the optimizer is built.

What a validation decided is kept as one factor per group, never as an lr: so a warm-up cannot undo a
reduction, and a resumed run may change a base lr and keep its reductions.
"""

import math
from dataclasses import dataclass

from app.config import LearningRatesConfig, ReductionConfig
from app.param_groups import Group


@dataclass
class Plateau:
    """Counts validations without improvement, by the rules of torch's ReduceLROnPlateau (threshold_mode "rel").

    Other than there, a value that is not a number is neither better nor worse, and no hidden `eps` keeps
    small learning rates from falling.
    """

    config: ReductionConfig
    best: float | None = None
    bad_validations: int = 0

    def stalled(self, value: float) -> bool:
        """Takes a validation's value; true if it is one too many (patience + 1) without improvement."""
        if math.isnan(value):
            return False
        if self._better(value):
            self.best = value
            self.bad_validations = 0
            return False
        self.bad_validations += 1
        if self.bad_validations <= self.config.patience:
            return False
        self.bad_validations = 0
        return True

    def _better(self, value: float) -> bool:
        if self.best is None:
            return True
        if self.config.mode == "min":
            return value < self.best * (1 - self.config.threshold)
        return value > self.best * (1 + self.config.threshold)


class LearningRates:
    """Sets every group's lr before a step, and lowers it after validations as the config's reductions say.

    Args:
        groups: as built by app/param_groups.py; their lr at this moment is the base.
        monitors: the metrics that a validation will report.

    Raises ValueError if a reduction watches a metric that does not exist.
    """

    def __init__(self, groups: list[Group], config: LearningRatesConfig, monitors: list[str]):
        for i, reduction in enumerate(config.reductions):
            if reduction.monitor not in monitors:
                raise ValueError(
                    f"learning_rates.reductions[{i}].monitor: '{reduction.monitor}' is not a validation metric; "
                    f"known: {', '.join(monitors)}"
                )
        self.groups = {group.name: group.param_group for group in groups}
        self.base = {group.name: group.param_group["lr"] for group in groups}
        self.reduction = {group.name: 1.0 for group in groups}
        self.warmup_steps = config.warmup_steps
        # One counter for each group that a reduction names: groups never share a state.
        self.plateaus = [(name, Plateau(reduction)) for reduction in config.reductions for name in reduction.groups]

    def set(self, step: int) -> None:
        """Writes the lr for the step after `step` finished ones."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        for name, param_group in self.groups.items():
            param_group["lr"] = self.base[name] * warmup * self.reduction[name]

    def current(self) -> dict[str, float]:
        """Each group's lr as the optimizer has it now."""
        return {name: param_group["lr"] for name, param_group in self.groups.items()}

    def after_validation(self, metrics: dict[str, float]) -> list[dict]:
        """Lets each reduction look at its monitor; returns one event for each lr that falls."""
        events = []
        for name, plateau in self.plateaus:
            rule = plateau.config
            value, best = metrics[rule.monitor], plateau.best
            if not plateau.stalled(value):
                continue
            before = self.base[name] * self.reduction[name]
            lowered = max(self.reduction[name] * rule.factor, rule.min_lr / self.base[name])
            if lowered >= self.reduction[name]:
                continue  # at its floor
            self.reduction[name] = lowered
            event = {"group": name, "from": before, "to": self.base[name] * lowered, "cause": rule.rule}
            event |= {"monitor": rule.monitor, "value": value, "best": best}
            events.append(event | {"factor": rule.factor, "patience": rule.patience, "min_lr": rule.min_lr})
        return events

    def state_dict(self) -> dict:
        return {
            "reduction": dict(self.reduction),
            "plateaus": [
                {
                    "group": name,
                    "monitor": plateau.config.monitor,
                    "best": plateau.best,
                    "bad_validations": plateau.bad_validations,
                }
                for name, plateau in self.plateaus
            ],
        }

    def load_state_dict(self, state: dict) -> None:
        """Takes over what fits by name: factors by group, counters by group and monitor."""
        for name, reduction in state["reduction"].items():
            if name in self.reduction:
                self.reduction[name] = reduction
        saved = {(entry["group"], entry["monitor"]): entry for entry in state["plateaus"]}
        for name, plateau in self.plateaus:
            entry = saved.get((name, plateau.config.monitor))
            if entry:
                plateau.best, plateau.bad_validations = entry["best"], entry["bad_validations"]


def describe_event(event: dict) -> str:
    return (
        f"lr of {event['group']} {event['from']:.2e} -> {event['to']:.2e}: {event['monitor']} was "
        f"{event['value']:.4f}, best {event['best']:.4f}, after {event['patience'] + 1} validations without improvement"
    )
