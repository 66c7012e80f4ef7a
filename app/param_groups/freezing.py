"""Groups that do not train now: `freeze_until`, `freeze_from`; and BatchNorm that never does: `freeze_batchnorm`.

`requires_grad` alone does not freeze: with an old gradient the optimizer still moves the weights, BatchNorm still
counts, and model.train() undoes .eval(). So all three are set anew each time an epoch starts. Who is frozen is decided
by LearningRates.
"""

from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from app.param_groups.groups import Group


class Freezing:
    """Call `apply` after each model.train()."""

    def __init__(self, model: nn.Module, groups: list[Group]):
        self.groups = groups
        self.norms: dict[str, dict[str, nn.Module]] = {group.name: {} for group in groups}  # by name in the model
        for name, module in model.named_modules():
            if isinstance(module, _NormBase):
                owner = group_around(name, groups)
                if owner:
                    self.norms[owner][name] = module

    def apply(self, names: Collection[str]) -> None:
        """names: of the groups that are frozen. They get no gradient and so cost nothing in the backward pass."""
        for group in self.groups:
            frozen = group.name in names
            for parameter in group.parameters.values():
                parameter.requires_grad_(not frozen)
                if frozen:
                    parameter.grad = None
            for norm in self.norms[group.name].values():
                if frozen or group.config.freeze_batchnorm:
                    norm.eval()


def group_around(name: str, groups: list[Group]) -> str | None:
    """The group whose parameters lie nearest to a module or buffer: its own ones, or those of the modules around it."""
    prefix = name
    while True:
        owners = [g.name for g in groups if any(name.startswith(f"{prefix}.") for name in g.parameters)]
        if owners:
            return owners[0]
        if "." not in prefix:
            return None
        prefix = prefix.rpartition(".")[0]
