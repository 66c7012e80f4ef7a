"""When each group trains: from freeze_until on, to freeze_from."""

from typing import Any

from app.evaluation.metrics import check_monitor, is_beyond, never_beyond
from app.param_groups.conditions import FreezeCondition, LaterLimit, Limit, epochs_in_words
from app.param_groups.groups import GroupConfig

# What a condition was judged by. at_most is a setting that acts from now on, like a number of epochs.
JUDGED_BY = ("monitor", "above", "below")


class _End:
    """freeze_until or freeze_from of a group: reached after some epochs, or once a validation has met the condition."""

    def __init__(self, key: str, limit: Limit | LaterLimit | None):
        self.key = key
        self.limit = limit
        self.condition = limit if isinstance(limit, FreezeCondition) else None
        self.met_by: float | None = None  # the value of the monitor in the first validation that met the condition

    def reached(self, epoch: int) -> bool:
        """epoch: finished epochs."""
        if self.condition:
            return self.met_by is not None or epoch >= self.condition.at_most
        return self.limit is not None and epoch >= self.limit

    def judges(self, epoch: int) -> bool:
        """Whether the validation after that many epochs counts for it."""
        return self.condition is not None and self.met_by is None and epoch <= self.condition.at_most

    def judge(self, metrics: dict[str, float]) -> None:
        value = metrics[self.condition.monitor]
        if is_beyond(value, self.condition.above, self.condition.below):
            self.met_by = value

    def because(self) -> dict[str, Any]:
        """What the event says of a condition: reason, monitor, value. Of a number of epochs there is nothing to say."""
        if self.condition is None:
            return {}
        words, monitor = self.condition.in_words(), self.condition.monitor
        if self.met_by is None:
            return {"reason": f"after {epochs_in_words(self.condition.at_most)} without {words}"}
        return {"reason": f"{words}, at {self.met_by:.4f}", "monitor": monitor, "value": self.met_by}

    def state_dict(self) -> dict[str, Any]:
        if self.met_by is None:
            return {}
        return {name: getattr(self.condition, name) for name in JUDGED_BY} | {"met_by": self.met_by}

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Returns in words what another condition had met."""
        self.met_by = None
        if not state or self.condition is None:
            return []
        now = {name: getattr(self.condition, name) for name in JUDGED_BY}
        if changed := [f"{name}: {state[name]} -> {now[name]}" for name in JUDGED_BY if state[name] != now[name]]:
            return [f"{self.key} ({', '.join(changed)})"]
        self.met_by = state["met_by"]
        return []


class Span:
    """The epochs in which a group trains. Once it is frozen by freeze_from, it stays so."""

    def __init__(self, group: str, config: GroupConfig):
        self.until = _End(f"optimizer.groups.{group}.freeze_until", config.freeze_until)
        self.to = _End(f"optimizer.groups.{group}.freeze_from", config.freeze_from)
        self.ends = (self.until, self.to)

    def trains(self, epoch: int) -> bool:
        """In the epoch that follows that many finished ones."""
        return self.until.reached(epoch) and not self.to.reached(epoch)

    def after_validation(self, metrics: dict[str, float], epoch: int, trained: bool) -> None:
        """trained: in the epoch that has just ended. Only then it can have trained enough."""
        for end in self.ends:
            if end.judges(epoch) and trained is (end is self.to):
                end.judge(metrics)

    def waiting_for(self, trained: bool) -> list[str]:
        """The monitors of the conditions that the last validation was judged by, and has not met. trained: see
        after_validation."""
        end = self.to if trained else self.until
        return [end.condition.monitor] if end.condition and end.met_by is None else []

    def check(self, known: list[str]) -> None:
        """Raises ValueError where a condition watches what no validation reports, or a value that it never has."""
        for end in self.ends:
            if condition := end.condition:
                check_monitor(f"{end.key}.monitor", condition.monitor, known)
                if never := never_beyond(condition.monitor, condition.above, condition.below):
                    raise ValueError(f"{end.key}.{never}; give a value that it can pass, or a number of epochs")

    def state_dict(self) -> dict[str, Any]:
        return {"freeze_until": self.until.state_dict(), "freeze_from": self.to.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        return [*self.until.load_state_dict(state["freeze_until"]), *self.to.load_state_dict(state["freeze_from"])]
