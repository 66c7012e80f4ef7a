"""What each group is doing: norms of its gradient, its parameters, its moments and its last update.

Read around one optimizer step without touching it. Everything stays on the device until `after_step`, which
reads all groups back together; steps that log nothing call nothing here.
"""

import torch
from pydantic import Field

from app.param_groups.groups import Group, hyperparameters
from app.section import Section
from app.training.gradients import Gradients, group_norm

STATISTICS = (
    "grad_norm",
    "clipped_grad_norm",
    "clipped_share",
    "grad_share",
    "zero_grad_share",
    "param_norm",
    "update_norm",
    "update_ratio",
)
# Where the optimizer keeps such a state: Adam's kin, SGD with momentum, RMSprop.
MOMENTS = ("momentum_norm", "second_moment_rms")
_MOMENTUM_KEYS = ("exp_avg", "momentum_buffer")
_SECOND_MOMENT_KEYS = ("exp_avg_sq", "square_avg")


class StatisticsConfig(Section):
    every: int = Field(ge=1, description="optimizer steps between two readings of norms, ratios and training loss")
    starving_update_ratio: float = Field(
        1e-6, ge=0, description="warns of a group that moves by less of its norm a step ..."
    )
    starving_readings: int = Field(
        20, ge=1, description="... so many readings in a row, or gets no gradient for as long"
    )


class GroupStatistics:
    """Call `before_step` after Gradients.clip_and_flag, `after_step` right after step()."""

    def __init__(self, optimizer: torch.optim.Optimizer, groups: list[Group], gradients: Gradients):
        self.optimizer = optimizer
        self.groups = groups
        self.gradients = gradients
        self.parameters = {group.name: list(group.parameters.values()) for group in groups}
        self._copies = {name: _FlatCopy(parameters) for name, parameters in self.parameters.items()}

    @torch.no_grad()
    def before_step(self) -> None:
        for name, copy in self._copies.items():
            torch._foreach_copy_(copy.views, self.parameters[name])

    @torch.no_grad()
    def after_step(self) -> dict[str, dict[str, float]]:
        """{group: {hyper-parameter or statistic: value}}, as docs/tags.md defines them.

        Raises FloatingPointError if a gradient was not finite (see Gradients).
        """
        self.gradients.raise_if_not_finite()
        like = self.gradients.norms
        columns = {
            "grad_norm": self.gradients.norms,
            "clipped_grad_norm": self.gradients.clipped_norms,
            "clipped_share": self.gradients.take_clipped_share(),
        }
        rows: dict[str, list[torch.Tensor]] = {}
        for name, parameters in self.parameters.items():
            copy = self._copies[name]
            grads = [p.grad for p in parameters if p.grad is not None]
            values = {"zero_grad_share": _zero_share(grads, like), "param_norm": copy.norm()}
            torch._foreach_sub_(copy.views, parameters)
            values["update_norm"] = copy.norm()
            values |= self._moments(parameters, like)
            for key, value in values.items():
                rows.setdefault(key, []).append(value)
        columns |= {key: torch.stack(values) for key, values in rows.items()}
        table = torch.stack(list(columns.values())).tolist()  # one read-back for all groups
        return self._named(dict(zip(columns, table, strict=True)))

    def _moments(self, parameters: list[torch.Tensor], like: torch.Tensor) -> dict[str, torch.Tensor]:
        """For every group the same keys: an optimizer either keeps such a state or does not."""
        states = [self.optimizer.state[p] for p in parameters if p in self.optimizer.state]
        moments = {}
        for key, names in zip(MOMENTS, (_MOMENTUM_KEYS, _SECOND_MOMENT_KEYS), strict=True):
            kept = [state[n] for state in states for n in names if isinstance(state.get(n), torch.Tensor)]
            if key == "momentum_norm":
                moments[key] = group_norm(kept, like)
            else:  # the entries are squares already
                total = torch.stack([k.sum() for k in kept]).sum() if kept else like.new_zeros(())
                moments[key] = (total / max(1, sum(k.numel() for k in kept))).sqrt()
        return moments

    def _named(self, columns: dict[str, list[float]]) -> dict[str, dict[str, float]]:
        total = sum(norm**2 for norm in columns["grad_norm"])
        readings = hyperparameters(self.groups)
        for i, name in enumerate(self.parameters):
            values = {key: column[i] for key, column in columns.items()}
            values["update_ratio"] = values["update_norm"] / values["param_norm"] if values["param_norm"] else 0.0
            values["grad_share"] = values["grad_norm"] ** 2 / total if total else 0.0
            readings[name] |= values
        return readings


class _FlatCopy:
    """One buffer for the values of all tensors, in their own memory layout, kept from reading to reading."""

    _ROW = 2**12  # values that a norm adds up at once: the CPU kernel does it naively, in float32

    def __init__(self, tensors: list[torch.Tensor]):
        values = sum(tensor.numel() for tensor in tensors)
        self.flat = torch.zeros(-(-values // self._ROW) * self._ROW, device=tensors[0].device)
        self.views, start = [], 0
        for tensor in tensors:
            part = self.flat[start : start + tensor.numel()]
            dense = tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)
            self.views.append(part.as_strided(tensor.shape, tensor.stride()) if dense else part.view(tensor.shape))
            start += tensor.numel()

    def norm(self) -> torch.Tensor:
        rows = torch.linalg.vector_norm(self.flat.view(-1, self._ROW), dim=1)
        return torch.linalg.vector_norm(rows)


def _zero_share(tensors: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    if not tensors:
        return like.new_zeros(())
    nonzero = torch.stack([torch.count_nonzero(tensor) for tensor in tensors]).sum()
    values = sum(tensor.numel() for tensor in tensors)
    return (values - nonzero) / values


def ratio_between(readings: dict[str, dict[str, float]], first: str, second: str) -> float | None:
    """How much faster `first` moves than `second`: the ratio of their update ratios."""
    if first not in readings or second not in readings or not readings[second]["update_ratio"]:
        return None
    return readings[first]["update_ratio"] / readings[second]["update_ratio"]


class Starvation:
    """Warns once per group that hardly moves, or gets no gradient at all, for many readings in a row."""

    def __init__(self, config: StatisticsConfig):
        self.floor = config.starving_update_ratio
        self.patience = config.starving_readings
        self.readings: dict[str, int] = {}
        self.warned: set[str] = set()

    def look(self, readings: dict[str, dict[str, float]]) -> list[str]:
        """Takes a reading of all groups (with their effective_lr); returns the warnings to print now."""
        warnings = []
        for name, values in readings.items():
            frozen = values["effective_lr"] == 0
            starves = not frozen and (values["grad_norm"] == 0 or values["update_ratio"] < self.floor)
            self.readings[name] = self.readings.get(name, 0) + 1 if starves else 0
            if self.readings[name] < self.patience or name in self.warned:
                continue
            self.warned.add(name)
            why = (
                "gets no gradient: does the loss reach it?"
                if values["grad_norm"] == 0
                else f"moves by less than {self.floor:g} of its norm a step: raise its lr, or freeze it"
            )
            warnings.append(f"group {name} {why} ({self.patience} readings in a row)")
        return warnings
