"""Gradients between backward() and step(): norms by group, clipping, the watch for inf, NaN and sudden jumps."""

import warnings
from collections.abc import Callable
from typing import Any

import torch

from app.param_groups.groups import Group

_CHUNK = 2**14
_JUMP = 1000  # times the largest norm so far


class Gradients:
    """Call `clip_and_flag` before each step, and `raise_if_not_finite` at logging steps and at the end of an epoch.

    A gradient that is not finite stops every step from then on: no weight and no moment changes until
    `raise_if_not_finite` raises. Fused optimizers on CPU and CUDA skip the step on the device itself (torch's
    `found_inf`), so nothing is read back before; for all others `clip_and_flag` has to read back one flag a step. A
    norm above 1,000 times the largest that its group has had is a warning: such a step is taken, and may be the start
    of a divergence, or of a kernel that computes garbage.

    Args:
        clip_norm: for the groups without a clip_norm of their own, over all of them together.
        warn: takes the text of a warning.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        groups: list[Group],
        clip_norm: float | None = None,
        warn: Callable[[str], None] = warnings.warn,
    ):
        self.optimizer = optimizer
        self.warn = warn
        self.parameters = {group.name: list(group.parameters.values()) for group in groups}
        device = next(iter(self.parameters.values()))[0].device
        own = [group.config.clip_norm for group in groups]
        self.clips = clip_norm is not None or any(own)
        infinity = float("inf")
        self._own_limit = torch.tensor([limit or infinity for limit in own], device=device)
        self._in_global = torch.tensor([not limit for limit in own], device=device)
        self._global_limit = clip_norm
        self._skips_on_device = bool(optimizer.defaults.get("fused")) and device.type in ("cpu", "cuda")
        # Steps since the last check, -1 for none: the first that was not finite, and the first that jumped.
        self._found = torch.full((2, len(groups)), -1, device=device)
        self._first_bad_step, self._first_jump = self._found
        self._largest = torch.zeros(len(groups), device=device)  # 0 before the first gradient
        self._jump = torch.zeros(2, len(groups), device=device)  # norm at the first jump, and the largest before it
        self._clipped_steps = torch.zeros(len(groups), device=device)
        self._steps = 0

    @torch.no_grad()
    def clip_and_flag(self, step: int) -> None:
        """step: optimizer steps finished before this one. Clips, and stops the step if a gradient was not finite."""
        gradients = [[p.grad for p in ps if p.grad is not None] for ps in self.parameters.values()]
        self.norms = torch.stack([group_norm(grads, self._clipped_steps) for grads in gradients])  # (groups,)
        finite = torch.isfinite(self.norms)
        self._first_bad_step.masked_fill_(~finite & (self._first_bad_step < 0), step + 1)
        self._watch_for_jumps(step, finite)
        bad = (self._first_bad_step >= 0).any()
        if self._skips_on_device:
            self.optimizer.found_inf = bad.float()
        elif bad:
            self.raise_if_not_finite()
        self._steps += 1
        self.clipped_norms = self.norms
        if self.clips:
            limits = (self._own_limit / (self.norms + 1e-6)).clamp(max=1)
            if self._global_limit is not None:
                total = torch.linalg.vector_norm(self.norms * self._in_global)
                together = (self._global_limit / (total + 1e-6)).clamp(max=1)
                limits = torch.where(self._in_global, together, limits)
            for grads, limit in zip(gradients, limits, strict=True):
                if grads:
                    torch._foreach_mul_(grads, limit)
            self.clipped_norms = self.norms * limits
            self._clipped_steps += limits < 1

    def _watch_for_jumps(self, step: int, finite: torch.Tensor) -> None:
        jump = finite & (self.norms > _JUMP * self._largest) & (self._largest > 0) & (self._first_jump < 0)
        self._first_jump.masked_fill_(jump, step + 1)
        self._jump = torch.where(jump, torch.stack([self.norms, self._largest]), self._jump)
        self._largest = torch.where(finite, torch.maximum(self._largest, self.norms), self._largest)

    def raise_if_not_finite(self) -> None:
        """Reads back; warns of jumps. Raises FloatingPointError with group and step if a gradient was not finite."""
        bad_steps, jump_steps = self._found.tolist()
        if max(jump_steps) >= 0:
            for name, step, norm, before in zip(self.parameters, jump_steps, *self._jump.tolist(), strict=True):
                if step >= 0:
                    self.warn(
                        f"the gradient norm of {name} rose to {norm:.2g} at step {step}, {norm / before:,.0f} times "
                        "the largest before. Lower that group's lr, set clip_norm, or, where run.precision is bf16, "
                        "try fp32"
                    )
            self._first_jump.fill_(-1)
        bad = {name: step for name, step in zip(self.parameters, bad_steps, strict=True) if step >= 0}
        if bad:
            first = min(bad.values())
            names = ", ".join(name for name, step in bad.items() if step == first)
            raise FloatingPointError(
                f"the gradient of {names} was not finite at step {first}; no weight has changed since. "
                "Lower that group's lr, or set clip_norm"
            )

    def state_dict(self) -> dict[str, Any]:
        """What is counted from step to step, by group; call `raise_if_not_finite` first."""
        return {
            "largest_norms": dict(zip(self.parameters, self._largest.tolist(), strict=True)),
            "clipped_steps": dict(zip(self.parameters, self._clipped_steps.tolist(), strict=True)),
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the groups that have kept their name; the others start afresh."""
        self._largest = self._by_group(state["largest_norms"])
        self._clipped_steps = self._by_group(state["clipped_steps"])
        self._steps = state["steps"]

    def _by_group(self, saved: dict[str, float]) -> torch.Tensor:
        return torch.tensor([saved.get(name, 0.0) for name in self.parameters], device=self._largest.device)

    def take_clipped_share(self) -> torch.Tensor:
        """(groups,) share of the steps that were clipped, since the last call; a device tensor."""
        share = self._clipped_steps / max(self._steps, 1)
        self._clipped_steps = torch.zeros_like(self._clipped_steps)
        self._steps = 0
        return share


def group_norm(tensors: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """The L2 norm over all tensors together, a scalar on the device of `like`; 0 for none.

    Right to 1e-5 in float32: the CPU kernel adds up naively, so it gets no more than _CHUNK values at once.
    """
    if not tensors:
        return torch.zeros((), device=like.device)
    chunks = [chunk for tensor in tensors for chunk in _chunks(tensor)]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(chunks)))


def _chunks(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The values of `tensor`, in the order of memory where that needs no copy: for a norm, order does not matter."""
    if tensor.numel() <= _CHUNK:
        return (tensor,)
    if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.detach().reshape(-1).split(_CHUNK)
