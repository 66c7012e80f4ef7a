"""The warning that a branch falls behind: a copy of it is trained apart for an epoch, and compared with it.

A branch whose input says little gains nothing apart. One gains that learns little because the other branch has
explained already what it could learn from.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from app.randomness import seed_device
from app.training.balance import BalanceConfig
from app.training.objective import Objective, unimodal_loss
from app.training.precision import autocast

# In validation accuracy. A branch is looked at while its own head is that far below the fusion ...
BELOW_FUSION = 0.25
# ... and falls behind if the copy ends that far above it.
GAIN = 0.05


class FallingBehind:
    """Looks in the epochs 2, 4, 8, 16, ..., and warns of each branch once. Nothing of the run changes by it.

    Call `start_epoch` before each epoch, itself after each training step, and `after_validation`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: BalanceConfig,
        objective: Objective,
        *,
        seed: int,
        device: torch.device,
        precision: str,
    ):
        self.model = model
        self.optimizer = optimizer
        self.watch = config.watch
        self.gradients = config.gradients
        self.objective = objective
        self.seed = seed
        self.device = device
        self.precision = precision
        self.suspects: list[str] = []  # branches, by the last validation
        self.warned: list[str] = []
        self.copies: dict[str, _Copy] = {}  # by branch, in the present epoch

    def start_epoch(self, epoch: int) -> None:
        """epoch: finished epochs. Call it when this epoch's groups are frozen."""
        number, self.copies = epoch + 1, {}
        if self.watch and number > 1 and number & (number - 1) == 0:
            self.copies = {
                branch: _Copy(self.model, branch, self.optimizer)
                for branch in self.suspects
                if self._trained_by_fusion(branch)
                and all(parameter.requires_grad for parameter in _own_parameters(self.model, branch).values())
            }

    def __call__(self, batch: dict[str, torch.Tensor], step: int) -> None:
        """Trains the copies on the batch that the model has just been trained on, with the same dropout.

        step: finished steps before it.
        """

        def seed(part: str) -> None:
            seed_device(self.device, "dropout", part, self.seed, step)

        for branch, apart in self.copies.items():
            with autocast(self.device, self.precision):
                logits = apart.model.own_logits(branch, batch, before_part=seed)
                loss = unimodal_loss(logits, batch, branch, self.objective)
            if loss.requires_grad:  # not where no sample has its input
                apart.step(loss)

    def after_validation(
        self, val: dict[str, float], validate: Callable[[nn.Module], dict[str, float]], samples: dict[str, int]
    ) -> list[str]:
        """The warnings to print now.

        Args:
            val: the metrics of this validation.
            validate: takes a model, gives its metrics on the same samples.
            samples: of the validation that have a branch's input, by branch.
        """
        lines = []
        for branch, apart in self.copies.items():
            own, alone = val[f"{branch}/accuracy"], validate(apart.model)[f"{branch}/accuracy"]
            # Two deviations of the difference of two accuracies, at most.
            chance = 2 * math.sqrt(0.5 / samples[branch]) if samples[branch] else math.inf
            if self._is_suspect(branch, val) and alone - own > max(GAIN, chance):
                lines.append(self._warning(branch, own, alone))
                self.warned.append(branch)
        self.copies = {}
        self.suspects = [branch for branch in self.model.unimodal_heads if self._is_suspect(branch, val)]
        return lines

    def _is_suspect(self, branch: str, val: dict[str, float]) -> bool:
        """One that the fusion trains beside another branch, and that is far below it."""
        if branch in self.warned or len(self.model.unimodal_heads) == 1:
            return False
        return self._trained_by_fusion(branch) and val["accuracy"] - val[f"{branch}/accuracy"] > BELOW_FUSION

    def _trained_by_fusion(self, branch: str) -> bool:
        return self.model.fusion_head.has_parameters and getattr(self.gradients, branch).fusion > 0

    def _warning(self, branch: str, own: float, alone: float) -> str:
        gates, key = getattr(self.gradients, branch), f"balance.gradients.{branch}"
        remedy = f"set {key}.own=1" if gates.own < 1 else f"set {key}.fusion=0"
        return (
            f"{branch} falls behind: on its own it has a validation accuracy of {own:.2f}; a copy that learnt from its "
            f"own head's loss alone in this epoch has {alone:.2f}. The fusion's loss leaves it too little to learn "
            f"from; {remedy} (configs/examples/balanced.yaml)"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"suspects": list(self.suspects), "warned": list(self.warned)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        branches = list(self.model.unimodal_heads)
        self.suspects, self.warned = ([b for b in state[name] if b in branches] for name in ("suspects", "warned"))


class _Copy:
    """A model that shares all parts with `model` but one branch and its own head, which are copies, and learn by a copy
    of their part of `optimizer`: moments included, with the hyper-parameters that it has at each step, unclipped."""

    def __init__(self, model: nn.Module, branch: str, optimizer: torch.optim.Optimizer):
        shared = [part for name, part in model.named_children() if name not in (branch, "unimodal_heads")]
        shared += [head for name, head in model.unimodal_heads.items() if name != branch]
        self.model = copy.deepcopy(model, memo={id(part): part for part in shared})
        self.model.gates = {**model.gates, branch: model.gates[branch]._replace(own=1.0)}
        copied = _own_parameters(self.model, branch)
        copy_of = {parameter: copied[name] for name, parameter in _own_parameters(model, branch).items()}
        own = [(entry, [p for p in entry["params"] if p in copy_of]) for entry in optimizer.param_groups]
        self.entries = [entry for entry, parameters in own if parameters]
        groups = [{**entry, "params": [copy_of[p] for p in parameters]} for entry, parameters in own if parameters]
        self.optimizer = type(optimizer)(groups, lr=groups[0]["lr"])
        for parameter, its_copy in copy_of.items():
            if parameter in optimizer.state:
                self.optimizer.state[its_copy] = copy.deepcopy(optimizer.state[parameter])

    def step(self, loss: torch.Tensor) -> None:
        for group, entry in zip(self.optimizer.param_groups, self.entries, strict=True):
            group.update({name: value for name, value in entry.items() if name != "params"})
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def _own_parameters(model: nn.Module, branch: str) -> dict[str, nn.Parameter]:
    """Of a branch and its own head, by name in the model."""
    own = (f"{branch}.", f"unimodal_heads.{branch}.")
    return {name: parameter for name, parameter in model.named_parameters() if name.startswith(own)}
