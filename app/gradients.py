"""Gradients between backward() and step(): their norms by group, clipping, and the watch for inf and NaN."""

import torch

from app.param_groups import Group

_CHUNK = 2**14


class Gradients:
    """Call `prepare` before each step, and `check` at logging steps and at the end of an epoch.

    A gradient that is not finite stops every step from then on: no weight and no moment changes until `check`
    raises. Fused optimizers on CPU and CUDA skip the step on the device itself (torch's `found_inf`), so nothing
    is read back before `check`; for all others `prepare` has to read back one flag a step.

    Args:
        clip_norm: for the groups without a clip_norm of their own, over all of them together.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, groups: list[Group], clip_norm: float | None = None):
        self.optimizer = optimizer
        self.parameters = {group.name: list(group.parameters.values()) for group in groups}
        device = next(iter(self.parameters.values()))[0].device
        own = [group.config.clip_norm for group in groups]
        self.clips = clip_norm is not None or any(own)
        infinity = float("inf")
        self._own_limit = torch.tensor([limit or infinity for limit in own], device=device)
        self._in_global = torch.tensor([not limit for limit in own], device=device)
        self._global_limit = clip_norm
        self._skips_on_device = bool(optimizer.defaults.get("fused")) and device.type in ("cpu", "cuda")
        self._first_bad_step = torch.full((len(groups),), -1, device=device)
        self._clipped_steps = torch.zeros(len(groups), device=device)
        self._steps = 0

    @torch.no_grad()
    def prepare(self, step: int) -> None:
        """step: optimizer steps finished before this one. Clips, and holds the step back if it must."""
        gradients = [[p.grad for p in ps if p.grad is not None] for ps in self.parameters.values()]
        self.norms = torch.stack([group_norm(grads, self._clipped_steps) for grads in gradients])  # (groups,)
        new = ~torch.isfinite(self.norms) & (self._first_bad_step < 0)
        self._first_bad_step.masked_fill_(new, step + 1)
        bad = (self._first_bad_step >= 0).any()
        if self._skips_on_device:
            self.optimizer.found_inf = bad.float()
        elif bad:
            self.check()
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

    def check(self) -> None:
        """Reads back. Raises FloatingPointError with group and step if a gradient was not finite."""
        steps = dict(zip(self.parameters, self._first_bad_step.tolist(), strict=True))
        bad = {name: step for name, step in steps.items() if step >= 0}
        if bad:
            first = min(bad.values())
            names = ", ".join(name for name, step in bad.items() if step == first)
            raise FloatingPointError(
                f"the gradient of {names} was not finite at step {first}; no weight has changed since. "
                "Lower that group's lr, or set clip_norm"
            )

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
