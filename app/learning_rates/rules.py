"""The rules by which validations change a group's lr. A new rule is one class here, and one line in RULES."""

import math
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from app.evaluation.metrics import best_of, beyond_in_words, direction, is_beyond, never_beyond
from app.section import Section


class ReductionConfig(Section):
    """What every rule has."""

    groups: list[str] = Field(description="names of groups; each keeps a count of its own")
    monitor: str = Field(
        description="a validation metric: val/loss, val/accuracy, val/macro_f1, val/balanced_accuracy, "
        "val/recall/<class>, val/image_branch/loss, ...; a loss is to fall, the others to rise"
    )
    rule: str = Field(description="when the lr falls")
    factor: float = Field(gt=0, lt=1, description="new lr = old lr x factor, not below min_lr")
    min_lr: float = Field(0.0, ge=0, description="lowest lr that this rule leads to; below the lr of its groups")
    cooldown: int = Field(0, ge=0, description="validations after a reduction that are not counted")
    start_epoch: int = Field(1, ge=1, description="epoch of the first validation that counts")
    threshold: float = Field(1e-4, ge=0, description="a change of the monitor that is no larger is no improvement")
    threshold_mode: Literal["rel", "abs"] = Field(
        "rel", description="rel: the threshold is a share of the best value; abs: it is in the monitor's own unit"
    )
    restore_best: bool = Field(
        False,
        description="puts the group's best weights back when this rule lowers its lr; their moments start afresh",
    )


@dataclass
class Improvement:
    """The best value of a monitor so far, by the rules of torch's ReduceLROnPlateau."""

    monitor: str
    threshold: float = 0.0
    threshold_mode: str = "abs"
    best: float | None = None

    def take(self, value: float) -> bool:
        """True, and the new best, if `value` improves on it by more than the threshold. NaN never does."""
        if math.isnan(value) or (self.best is not None and not self._better(value)):
            return False
        self.best = value
        return True

    def _better(self, value: float) -> bool:
        sign = 1 if direction(self.monitor) == "min" else -1
        if self.threshold_mode == "rel":
            return sign * value < sign * self.best * (1 - sign * self.threshold)
        return sign * value < sign * self.best - self.threshold


class Rule:
    """One entry of `learning_rates.reductions`, for one group: groups never share a state.

    Common to all rules: the best value of `monitor`, NaN (neither better nor worse), the cooldown, and what a
    checkpoint holds. A subclass says when it acts (`new_factor`), in words too (`condition`, or all of `describe`).
    State of its own are attributes that it sets in `__init__` and names in `COUNTED_UNDER`: plain values, so that a
    checkpoint can hold them.
    """

    Config: type[ReductionConfig]  # its section of the config

    # State -> the settings it was counted under. Where one changed, a resume starts that state from the beginning.
    COUNTED_UNDER: dict[str, tuple[str, ...]] = {
        "best": ("threshold", "threshold_mode", "start_epoch"),
        "cooldown": ("cooldown",),
        "exhausted": ("min_lr", "lr"),
    }

    def __init__(self, index: int, group: str, config: ReductionConfig, lr: float):
        """index: its place in `learning_rates.reductions`; config: that entry; lr: the group's base lr."""
        self.index = index
        self.group = group
        self.config = config
        self.settings = config.model_dump(exclude={"groups"}) | {"lr": lr}
        self.floor = config.min_lr / lr  # no rule lowers its group's factor further
        self.improvement = Improvement(config.monitor, config.threshold, config.threshold_mode)
        self.cooldown = 0  # validations that it still lets pass
        self.exhausted = False  # wanted to lower an lr that is at min_lr
        self.improved = False  # by the last validation: what restore_best keeps
        self.best_from: str | None = None  # the key of the saved rule whose best this one continues

    @property
    def monitors(self) -> tuple[str, ...]:
        """The metrics that it reads; `best`, restore_best and events speak of `config.monitor`."""
        return (self.config.monitor,)

    @property
    def repeats(self) -> bool:
        """Whether it can act again and again, and so bring its group to min_lr."""
        return True

    def new_factor(self, metrics: dict[str, float], factor: float) -> float:
        """The factor on the group's lr that the rule wants, lower or higher; the present one to change nothing.

        Called once for each validation that counts, with `best` and `improved` up to date. It need not keep to
        `floor`, the factor of min_lr: LearningRates does.
        """
        raise NotImplementedError

    def condition(self) -> str:
        """When it acts, in words that follow "when"."""
        raise NotImplementedError

    def curves(self) -> dict[str, float | None]:
        """{name of a chart: what it has counted so far}"""
        return {}

    def never_met(self) -> str | None:
        """The setting that no value of its metric can meet, as "key: why"; None without one."""
        return None

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

    def after_validation(self, metrics: dict[str, float], factor: float) -> float:
        """Counts a validation, and returns the factor that the rule wants: `factor` to change nothing."""
        self.improved = False
        if any(math.isnan(metrics[monitor]) for monitor in self.monitors):
            return factor
        self.improved = self.improvement.take(metrics[self.config.monitor])
        if self.improved:
            self.exhausted = False
        if self.cooldown > 0:
            self.cooldown -= 1
            return factor
        wanted = self.new_factor(metrics, factor)
        if wanted != factor:
            self.cooldown = self.config.cooldown
        return wanted

    def describe(self) -> str:
        config = self.config
        since = f" from epoch {config.start_epoch}" if config.start_epoch > 1 else ""
        restored = f", with the weights of the {best_of(config.monitor)}" if config.restore_best else ""
        return f"x{config.factor:g} when {self.condition()}{since}, down to {config.min_lr:g}{restored}"

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in self.COUNTED_UNDER}
        return {"key": self.key, "group": self.group, "settings": dict(self.settings), **state}

    def is_same_kind(self, state: dict[str, Any]) -> bool:
        """Whether a saved rule is this one but for settings that may change on resume."""
        settings = state["settings"]
        same = (self.group, self.config.monitor, self.config.rule)
        return (state["group"], settings["monitor"], settings["rule"]) == same

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Takes over what was counted under the settings of today; returns the rest, in words.

        state: one for which `is_same_kind` holds.
        """
        restarted = []
        for name, settings in self.COUNTED_UNDER.items():
            changed = [
                f"{key}: {state['settings'].get(key)} -> {self.settings[key]}"
                for key in settings
                if state["settings"].get(key) != self.settings[key]
            ]
            if not changed:
                setattr(self, name, state[name])
            elif state[name] != getattr(self, name):
                restarted.append(f"{name} of reductions[{self.index}] for {self.group} ({', '.join(changed)})")
        self.best_from = state["key"] if self.best is not None else None
        return restarted


class PlateauConfig(ReductionConfig):
    rule: Literal["plateau"] = Field(description="reduces where validations do not improve")
    patience: int = Field(ge=0, description="reduces after patience + 1 validations in a row without improvement")


class Plateau(Rule):
    """Acts when its monitor has not improved for `patience` + 1 validations: torch's ReduceLROnPlateau.

    Unlike in torch's scheduler no hidden `eps` keeps small learning rates from falling.
    """

    Config = PlateauConfig
    COUNTED_UNDER = Rule.COUNTED_UNDER | {"bad_validations": ("threshold", "threshold_mode", "start_epoch")}

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.bad_validations = 0

    def new_factor(self, metrics: dict[str, float], factor: float) -> float:
        self.bad_validations = 0 if self.improved else self.bad_validations + 1
        if self.bad_validations <= self.config.patience:
            return factor
        self.bad_validations = 0
        return factor * self.config.factor

    def condition(self) -> str:
        return f"{self.config.monitor} {stalled(self.config.monitor)} for {validations(self.config.patience + 1)}"

    def curves(self) -> dict[str, float | None]:
        return {
            "plateau_best": self.best,
            "plateau_bad_validations": self.bad_validations,
            "plateau_cooldown": self.cooldown,
        }


class ThresholdConfig(ReductionConfig):
    rule: Literal["threshold"] = Field(description="reduces where the monitor is beyond a value")
    above: float | None = Field(None, description="reduces where the monitor is above this; either this or below")
    below: float | None = Field(None, description="reduces where the monitor is below this; either this or above")
    repeat: bool = Field(False, description="at every validation beyond the value, not at the first one only")

    @model_validator(mode="after")
    def _one_side(self) -> "ThresholdConfig":
        if (self.above is None) == (self.below is None):
            raise ValueError("the rule threshold needs exactly one of above and below")
        return self


class Threshold(Rule):
    """Acts when its monitor is above or below a value: the first time, or with `repeat` each time."""

    Config = ThresholdConfig
    COUNTED_UNDER = Rule.COUNTED_UNDER | {"fired": ("above", "below", "repeat", "start_epoch")}

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.fired = False

    @property
    def repeats(self) -> bool:
        return self.config.repeat

    def new_factor(self, metrics: dict[str, float], factor: float) -> float:
        beyond = is_beyond(metrics[self.config.monitor], self.config.above, self.config.below)
        if not beyond or (self.fired and not self.config.repeat):
            return factor
        self.fired = True
        return factor * self.config.factor

    def condition(self) -> str:
        limit = beyond_in_words(self.config.monitor, self.config.above, self.config.below)
        return limit + (" (each time)" if self.config.repeat else "")

    def never_met(self) -> str | None:
        return never_beyond(self.config.monitor, self.config.above, self.config.below)


RULES: dict[str, type[Rule]] = {"plateau": Plateau, "threshold": Threshold}
# What may stand in `learning_rates.reductions`, told apart by `rule`.
Reduction = Annotated[reduce(or_, (rule.Config for rule in RULES.values())), Field(discriminator="rule")]


def stalled(monitor: str) -> str:
    return "has not fallen" if direction(monitor) == "min" else "has not risen"


def validations(number: int) -> str:
    return "1 validation" if number == 1 else f"{number} validations"
