"""What is recorded of a change of a group's lr, and how it is put in words."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LrEvent:
    """One group's lr changed: it was frozen or unfrozen, or a rule or the balance acted after a validation.

    The lrs are those of the group's output side, with all their factors. `rule`, `best` and what follows belong to a
    rule of `learning_rates.reductions` alone.
    """

    group: str
    lr_before: float
    lr_after: float
    cause: str  # "unfreeze", "freeze", or the rule's name
    reason: str | None = None  # in words
    utilisation: dict[str, float] | None = None  # of each branch, where the balance is the cause
    rule: int | None = None  # its index in `learning_rates.reductions`
    monitor: str | None = None
    value: float | None = None  # of the monitor, in this validation
    best: float | None = None  # the best value before it
    factor: float | None = None
    min_lr: float | None = None
    restored: bool = False  # whether the weights of the best validation come back

    def as_record(self) -> dict[str, Any]:
        """The line in lr_events.jsonl, without step and epoch."""
        if self.rule is None:
            record = {"group": self.group, "from": self.lr_before, "to": self.lr_after, "cause": self.cause}
            optional = {"reason": self.reason, "monitor": self.monitor, "value": self.value}
            optional["utilisation"] = self.utilisation
            return record | {key: value for key, value in optional.items() if value is not None}
        return {
            "group": self.group,
            "from": self.lr_before,
            "cause": self.cause,
            "rule": self.rule,
            "to": self.lr_after,
            "monitor": self.monitor,
            "value": self.value,
            "best": self.best,
            "factor": self.factor,
            "min_lr": self.min_lr,
            "restored": self.restored,
        }

    def describe(self) -> str:
        change = f"lr of {self.group} {self.lr_before:.3g} -> {self.lr_after:.3g}"
        if self.rule is None:
            done = {"unfreeze": "unfrozen", "freeze": "frozen"}.get(self.cause)
            what = f": {done}" if done else f" ({self.cause})"
            return f"{change}{what}: {self.reason}" if self.reason else f"{change}{what}"
        best = f", best {self.best:.4f}" if self.best is not None else ""
        restored = "; its best weights are back, its moments start afresh" if self.restored else ""
        return f"{change} ({self.cause}): {self.monitor} is {self.value:.4f}{best}{restored}"
