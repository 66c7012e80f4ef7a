"""What keeps a strong branch from outrunning the other: a factor on the lr of its groups, by what validations show.

A new rule is one class here, and one line in BALANCE_RULES.
"""

import math
from functools import reduce
from operator import or_
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from app.param_groups.groups import GroupConfig, patterns_of
from app.section import Section
from app.training.objective import BRANCHES

KEY = "balance.learning_rates"


class MilesConfig(Section):
    rule: Literal["miles"] = Field(description="the branch that the fusion makes more use of is slowed")
    threshold: float = Field(
        0.2, gt=0, description="a branch is slowed where its utilisation exceeds the other's by more than this"
    )
    release: float = Field(
        0.15,
        ge=0,
        validate_default=True,
        description="it is released where its utilisation exceeds the other's by less than this; below the threshold",
    )
    factor: float = Field(0.5, gt=0, lt=1, description="on the lr of the groups of a slowed branch; else 1")

    @field_validator("release")
    @classmethod
    def _is_below_the_threshold(cls, release: float, info: ValidationInfo) -> float:
        threshold = info.data.get("threshold", math.inf)
        if release >= threshold:
            raise ValueError(f"found {release:g}, must be below threshold ({threshold:g}); lower release")
        return release


class Miles:
    """The learning-rate half of MILES (arXiv 2510.17394), with a hysteresis so that it does not flicker.

    The utilisation of a branch is the share of the fusion's accuracy that it adds to the other branch's own accuracy:
    (fusion - other) / fusion. The branch with the larger one dominates; the two are compared, not their history, so
    the only state is which branch is slowed.

    Args:
        groups: the config's groups; which of them belong to a branch is decided from their patterns alone.
        monitors: the metrics that a validation will report.

    Raises ValueError where these do not hold what it compares, or where a branch has no group of its own.
    """

    Config = MilesConfig
    MONITORS = ("val/accuracy", *(f"val/{branch}/accuracy" for branch in BRANCHES))

    def __init__(self, config: MilesConfig, groups: dict[str, GroupConfig], monitors: list[str]):
        self.config = config
        self.branches = groups_of_branches(groups)
        if missing := [monitor for monitor in self.MONITORS if monitor not in monitors]:
            raise ValueError(
                f"{KEY}: {config.rule} compares the accuracies of both branches, and there is no "
                f"{' and no '.join(missing)}; give the model both branches, or set {KEY}=null"
            )
        for branch, names in self.branches.items():
            if not names:
                raise ValueError(
                    f"{KEY}: {config.rule} changes the lr of a branch by its groups, but {branch} has none of its own; "
                    f"give it a group all of whose `params` begin with '{branch}.' (found {', '.join(groups)}), or set "
                    f"{KEY}=null"
                )
        self.slowed: str | None = None  # the branch

    @property
    def groups(self) -> list[str]:
        """Those whose lr it may change, and which must all train for a validation to count."""
        return [name for names in self.branches.values() for name in names]

    def factor(self, group: str) -> float:
        slow = self.slowed is not None and group in self.branches[self.slowed]
        return self.config.factor if slow else 1.0

    def after_validation(self, metrics: dict[str, float]) -> tuple[dict[str, str], dict[str, float]]:
        """Call for each validation that counts.

        Returns {group whose factor has changed: why, in words}, and the utilisation of each branch; nothing where it
        is not known.
        """
        fusion, *alone = (metrics[monitor] for monitor in self.MONITORS)
        if fusion == 0 or any(map(math.isnan, (fusion, *alone))):
            return {}, {}
        first, second = BRANCHES
        used = {first: (fusion - alone[1]) / fusion, second: (fusion - alone[0]) / fusion}
        dominant, other = (first, second) if used[first] > used[second] else (second, first)
        before, lead = self.slowed, used[dominant] - used[other]
        if before is not None and (before != dominant or lead < self.config.release):
            self.slowed = None
        if self.slowed is None and lead > self.config.threshold and max(used.values()) >= 0:
            self.slowed = dominant
        changed = {}
        if self.slowed != before:
            for branch in filter(None, (before, self.slowed)):
                changed |= dict.fromkeys(self.branches[branch], self._reason(branch, used))
        return changed, used

    def _reason(self, branch: str, used: dict[str, float]) -> str:
        (other,) = (name for name in used if name != branch)
        what, limit = "is released", f"release {self.config.release:g}"
        if branch == self.slowed:
            what, limit = "is slowed", f"threshold {self.config.threshold:g}"
        lead = used[branch] - used[other]
        beyond = f"{abs(lead):.4f} {'above' if lead >= 0 else 'below'} that of {other}"
        return f"{branch} {what}: its utilisation is {used[branch]:.4f}, {beyond} ({limit})"

    def curves(self) -> dict[str, dict[str, float]]:
        return {"balance": {name: self.factor(name) for name in self.groups}}

    def describe(self, group: str) -> str:
        """What it may do to the group, in words."""
        branch = next((branch for branch, names in self.branches.items() if group in names), None)
        if branch is None:
            return "none"
        config = self.config
        return (
            f"x{config.factor:g} from where the utilisation of {branch} leads by > {config.threshold:g} "
            f"to where it leads by < {config.release:g}"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"settings": self.config.model_dump(), "slowed": self.slowed}

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Takes over what was decided under the settings of today; returns the rest, in words."""
        saved, now = state["settings"], self.config.model_dump()
        decides = ("rule", "threshold", "release")
        changed = [f"{key}: {saved.get(key)} -> {now[key]}" for key in decides if saved.get(key) != now[key]]
        if not changed:
            self.slowed = state["slowed"]
        return [f"slowed of {KEY} ({', '.join(changed)})"] if changed and state["slowed"] else []


BALANCE_RULES: dict[str, type[Miles]] = {"miles": Miles}
# What may stand at balance.learning_rates, told apart by `rule`.
BalanceRule = reduce(or_, (rule.Config for rule in BALANCE_RULES.values()))


def groups_of_branches(groups: dict[str, GroupConfig]) -> dict[str, list[str]]:
    """{branch: the groups that hold parameters of it and of nothing else, by their patterns}"""
    patterns = {name: patterns_of(name, group) for name, group in groups.items()}
    return {
        branch: [n for n, globs in patterns.items() if globs and all(g.startswith(f"{branch}.") for g in globs)]
        for branch in BRANCHES
    }
