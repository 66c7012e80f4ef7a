"""`restore_best`: the weights that a group had when its monitor was best, put back when the rule changes its lr."""

from dataclasses import replace

import torch

from app.learning_rates.events import LrEvent
from app.learning_rates.learning_rates import LearningRates
from app.param_groups.freezing import Freezing
from app.param_groups.groups import Group


class BestWeights:
    """Keeps a copy per reduction and group that asks for it: parameters, and the buffers of the group's norms."""

    def __init__(self, groups: list[Group], freezing: Freezing, learning_rates: LearningRates):
        self.rules = {rule.key: rule for rule in learning_rates.rules if rule.config.restore_best}
        self.parameters = {group.name: list(group.parameters.values()) for group in groups}
        self.live: dict[str, dict[str, torch.Tensor]] = {}
        for group in groups:
            self.live[group.name] = {name: parameter.data for name, parameter in group.parameters.items()}
            for norm_name, norm in freezing.norms[group.name].items():
                self.live[group.name] |= {f"{norm_name}.{name}": buffer for name, buffer in norm.named_buffers()}
        self.kept: dict[str, dict[str, torch.Tensor]] = {}

    def keep(self, events: list[LrEvent]) -> list[LrEvent]:
        """After a validation: copies the groups whose monitor has just improved, and marks the events to restore.

        Where several rules act on a group after the same validation, the first in the config restores it.
        """
        for key, rule in self.rules.items():
            if rule.improved:
                self.kept[key] = {name: tensor.clone() for name, tensor in self.live[rule.group].items()}
        restored: set[str] = set()
        marked = []
        for event in events:
            restores = event.group not in restored and _rule_of(event) in self.kept
            if restores:
                restored.add(event.group)
            marked.append(replace(event, restored=restores))
        return marked

    @torch.no_grad()
    def restore(self, events: list[LrEvent], optimizer: torch.optim.Optimizer) -> bool:
        """Puts back the groups of the marked events, and touches no other. Returns whether there was one.

        The group's moments start afresh: they belong to the weights that have just been left.
        """
        marked = [event for event in events if event.restored]
        for event in marked:
            for name, best in self.kept[_rule_of(event)].items():
                self.live[event.group][name].copy_(best)
            for parameter in self.parameters[event.group]:
                optimizer.state.pop(parameter, None)
        return bool(marked)

    def state_dict(self) -> dict[str, dict[str, torch.Tensor]]:
        return self.kept

    def load_state_dict(self, state: dict[str, dict[str, torch.Tensor]]) -> list[str]:
        """Call after LearningRates.load_state_dict: a copy goes on where its rule's best does.

        Returns a line for each rule that has a best value but no weights of it.
        """
        self.kept, without = {}, []
        for key, rule in self.rules.items():
            if rule.best_from is None:
                continue
            kept, live = state.get(rule.best_from, {}), self.live[rule.group]
            if {n: t.shape for n, t in kept.items()} == {n: t.shape for n, t in live.items()}:
                self.kept[key] = {name: tensor.to(live[name].device) for name, tensor in kept.items()}
            else:
                without.append(
                    f"the best weights of reductions[{rule.index}] for {rule.group} (none of this group are saved, "
                    f"so none come back until {rule.config.monitor} improves)"
                )
        return without


def _rule_of(event: LrEvent) -> str:
    """The key of the rule that made an event."""
    return f"{event.rule} {event.group}"
