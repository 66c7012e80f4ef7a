"""Where and in which number format a model runs."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

_CLEARLY_SLOWER = 2  # in bf16_slowdown
_SECONDS = 0.5  # after which bf16_slowdown starts no further trial


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def slow_precision(
    model: nn.Module, first_batch: Callable[[], dict | None], *, device: torch.device, precision: str, training: bool
) -> str | None:
    """Says by how much bf16 is slower than fp32, where it is clearly so: on a CPU without instructions for it.

    first_batch, training: see bf16_slowdown; without a batch nothing is measured.
    """
    if device.type != "cpu" or precision != "bf16" or (batch := first_batch()) is None:
        return None
    slowdown = bf16_slowdown(model, batch, training=training)
    if slowdown < _CLEARLY_SLOWER:
        return None
    return f"bf16 takes {slowdown:.1f} times as long as fp32 on this CPU, in a short probe of this model"


def bf16_slowdown(model: nn.Module, batch: dict[str, torch.Tensor], *, training: bool) -> float:
    """Time of the model's forward pass in bf16 over that in fp32, on the CPU: the median of up to 5 trials.

    The model runs in eval mode, so it draws no random number and no norm's statistics move.

    Args:
        batch: "image", "sequence", "length", "present" as the model reads them.
        training: with the backward pass.
    """
    inputs = [batch[name] for name in ("image", "sequence", "length", "present")]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def seconds(precision: str) -> float:
        start = time.perf_counter()
        with torch.set_grad_enabled(training), autocast(torch.device("cpu"), precision):
            output = model(*inputs)
            total = sum(logits.float().sum() for logits in (output.logits, *output.unimodal_logits.values()))
        if training:
            torch.autograd.grad(total, parameters, allow_unused=True)
        return time.perf_counter() - start

    was_training = model.training
    model.eval()
    started = time.perf_counter()
    seconds("fp32"), seconds("bf16")  # the first call of a layer prepares its kernel
    ratios: list[float] = []
    while len(ratios) < 5 and (not ratios or time.perf_counter() - started < _SECONDS):
        fp32 = seconds("fp32")
        ratios.append(seconds("bf16") / fp32)
    model.train(was_training)
    return median(ratios)


def choose_device(name: str) -> torch.device:
    """Raises ValueError if the machine has no such device; auto takes cuda, then mps, then cpu."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [device for device, there in available.items() if there]
    if name != "auto" and name not in usable:
        raise ValueError(f"device '{name}' is not available on this machine; use auto or one of {', '.join(usable)}")
    return torch.device(usable[0] if name == "auto" else name)
