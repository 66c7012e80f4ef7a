"""`restore_best`: the weights that a group had when its monitor was best, put back when its lr falls."""

from typing import Any

import torch

from app.freezing import Freezing
from app.learning_rates import LearningRates, Rule
from app.param_groups import Group


class BestWeights:
    """Keeps a copy per reduction and group that asks for it: parameters, and the buffers of the group's norms."""

    def __init__(self, groups: list[Group], freezing: Freezing, learning_rates: LearningRates):
        self.rules = [rule for rule in learning_rates.rules if rule.config.restore_best]
        self.live: dict[str, dict[str, torch.Tensor]] = {}
        for group in groups:
            self.live[group.name] = {name: parameter.data for name, parameter in group.parameters.items()}
            for norm_name, norm in freezing.norms[group.name].items():
                self.live[group.name] |= {f"{norm_name}.{name}": buffer for name, buffer in norm.named_buffers()}
        self.kept: dict[str, dict[str, torch.Tensor]] = {}

    def keep(self, events: list[dict[str, Any]]) -> None:
        """Behind a validation: copies the groups whose monitor has just improved, and marks the events to restore."""
        for rule in self.rules:
            if rule.improved:
                self.kept[_key(rule)] = {name: tensor.clone() for name, tensor in self.live[rule.group].items()}
            for event in events:
                event["restored"] |= _caused(rule, event) and _key(rule) in self.kept

    @torch.no_grad()
    def restore(self, events: list[dict[str, Any]]) -> None:
        """Puts back the groups of the marked events, and touches no other."""
        for rule in self.rules:
            if any(event["restored"] and _caused(rule, event) for event in events):
                for name, best in self.kept[_key(rule)].items():
                    self.live[rule.group][name].copy_(best)

    def state_dict(self) -> dict[str, dict[str, torch.Tensor]]:
        return self.kept

    def load_state_dict(self, state: dict[str, dict[str, torch.Tensor]]) -> None:
        """Takes over what fits; a copy of other tensors (of a changed config) is dropped."""
        for rule in self.rules:
            kept, live = state.get(_key(rule), {}), self.live[rule.group]
            if {n: t.shape for n, t in kept.items()} == {n: t.shape for n, t in live.items()}:
                self.kept[_key(rule)] = {name: tensor.to(live[name].device) for name, tensor in kept.items()}


def _key(rule: Rule) -> str:
    return f"{rule.group} {rule.config.monitor} {rule.config.rule}"


def _caused(rule: Rule, event: dict[str, Any]) -> bool:
    return _key(rule) == f"{event['group']} {event['monitor']} {event['cause']}"
