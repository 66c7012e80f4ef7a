"""What each group is doing: norms of its gradient, its parameters and its last update.

Read around one optimizer step without touching it. Everything stays on the device until `after_step`, which
reads all groups back at once; steps that log nothing call nothing here.
"""

import torch

from app.param_groups import Group

STATISTICS = ("grad_norm", "param_norm", "update_norm", "update_ratio", "grad_share")


class GroupStatistics:
    """Call `before_step` between backward() and step(), `after_step` right behind step()."""

    def __init__(self, groups: list[Group]):
        self.groups = {group.name: list(group.parameters.values()) for group in groups}

    @torch.no_grad()
    def before_step(self) -> None:
        self._before = {name: [p.detach().clone() for p in ps] for name, ps in self.groups.items()}
        self._grad_norms = [_norm([p.grad for p in ps if p.grad is not None], ps[0]) for ps in self.groups.values()]

    @torch.no_grad()
    def after_step(self) -> dict[str, dict[str, float]]:
        """{group: {statistic: value}}, with the statistics as DESIGN's table and the README define them."""
        param_norms = [_norm(before, before[0]) for before in self._before.values()]
        update_norms = [
            _norm(torch._foreach_sub([p.detach() for p in ps], self._before[name]), ps[0])
            for name, ps in self.groups.items()
        ]
        readings = torch.stack([torch.stack(row) for row in (self._grad_norms, param_norms, update_norms)])
        grad, param, update = readings.tolist()  # the one read-back
        del self._before
        total = sum(norm**2 for norm in grad)
        return {
            name: {
                "grad_norm": grad[i],
                "param_norm": param[i],
                "update_norm": update[i],
                "update_ratio": update[i] / param[i] if param[i] else 0.0,
                "grad_share": grad[i] ** 2 / total if total else 0.0,
            }
            for i, name in enumerate(self.groups)
        }


def _norm(tensors: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """The L2 norm over all tensors together, a device scalar; 0 for none."""
    if not tensors:
        return torch.zeros((), device=like.device)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
