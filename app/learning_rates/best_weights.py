"""`restore_best`: the weights that a group had when its monitor was best, put back when the rule changes its lr."""

from dataclasses import replace
from typing import Any

import torch

from app.learning_rates.events import LrEvent
from app.learning_rates.learning_rates import LearningRates
from app.param_groups.freezing import Freezing
from app.param_groups.groups import Group


class BestWeights:
    """Keeps a copy per reduction and group that asks for it: parameters, and the buffers of the group's norms."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        groups: list[Group],
        freezing: Freezing,
        learning_rates: LearningRates,
    ):
        self.optimizer = optimizer
        self.rules = {rule.key: rule for rule in learning_rates.rules if rule.config.restore_best}
        self.parameters = {group.name: list(group.parameters.values()) for group in groups}
        self.live: dict[str, dict[str, torch.Tensor]] = {}
        for group in groups:
            self.live[group.name] = {name: parameter.data for name, parameter in group.parameters.items()}
            for norm_name, norm in freezing.norms[group.name].items():
                self.live[group.name] |= {f"{norm_name}.{name}": buffer for name, buffer in norm.named_buffers()}
        self.kept: dict[str, dict[str, torch.Tensor]] = {}  # by the rule's key
        self.pending: list[str] = []  # keys of the rules whose copies come back

    def keep(self, events: list[LrEvent]) -> list[LrEvent]:
        """After a validation: copies the groups whose monitor has just improved, and marks the events to restore.

        Where several rules act on a group after the same validation, the first in the config restores it.
        """
        for key, rule in self.rules.items():
            if rule.improved:
                self.kept[key] = {name: tensor.clone() for name, tensor in self.live[rule.group].items()}
        self.pending, marked = [], []
        for event in events:
            key = f"{event.rule} {event.group}"
            restores = key in self.kept and event.group not in [self.rules[other].group for other in self.pending]
            self.pending += [key] if restores else []
            marked.append(replace(event, restored=restores))
        return marked

    @torch.no_grad()
    def restore(self) -> bool:
        """Puts back the groups of the events that `keep` has marked, and no other. Returns whether there was one.

        The group's moments start afresh: they belong to the weights that have just been left.
        """
        restores = bool(self.pending)
        for key in self.pending:
            group = self.rules[key].group
            for name, best in self.kept[key].items():
                self.live[group][name].copy_(best)
            for parameter in self.parameters[group]:
                self.optimizer.state.pop(parameter, None)
        self.pending = []
        return restores

    def state_dict(self) -> dict[str, Any]:
        """`pending` is not empty in best.pt where a group's weights come back right after it is saved."""
        return {"kept": self.kept, "pending": list(self.pending)}

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Call after the model, the moments and the learning rates are loaded: what was pending is done now.

        A copy goes on where its rule's best does. Returns a line for each rule that has a best value but no weights
        of it, and for each group whose weights were to come back and cannot.
        """
        self.kept, self.pending, lines = {}, [], []
        for key, rule in self.rules.items():
            if rule.best_from is None:
                continue
            kept, live = state["kept"].get(rule.best_from, {}), self.live[rule.group]
            if {n: t.shape for n, t in kept.items()} != {n: t.shape for n, t in live.items()}:
                lines.append(
                    f"the best weights of reductions[{rule.index}] for {rule.group} (none of this group are saved, "
                    f"so none come back until {rule.config.monitor} improves)"
                )
                continue
            self.kept[key] = {name: tensor.to(live[name].device) for name, tensor in kept.items()}
            self.pending += [key] if rule.best_from in state["pending"] else []
        continued = {self.rules[key].best_from for key in self.pending}
        for key in state["pending"]:
            if key not in continued:
                lines.append(f"the weights that were to come back by reductions[{key.replace(' ', '] for ')}")
        self.restore()
        return lines
