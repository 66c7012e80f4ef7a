"""Where and in which number format a model runs."""

import time
from statistics import median

import torch
from torch.nn.functional import conv2d, linear

_CLEARLY_SLOWER = 2  # in bf16_slowdown


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def slow_precision(device: torch.device, precision: str) -> str | None:
    """Says by how much bf16 is slower than fp32, where it is clearly so: on a CPU without instructions for it."""
    if device.type != "cpu" or precision != "bf16":
        return None
    slowdown = bf16_slowdown()
    if slowdown < _CLEARLY_SLOWER:
        return None
    return f"bf16 takes {slowdown:.1f} times as long as fp32 on this CPU, in a short probe of a few layers"


def bf16_slowdown() -> float:
    """Time of a few layers, forward and backward, on the CPU in bf16 over that in fp32: the median of up to 5 trials.

    Takes about 0.5 s at most on a CPU that has nothing else to do, and draws no random number.
    """
    image = torch.full((8, 32, 16, 16), 0.5).to(memory_format=torch.channels_last).requires_grad_()
    full = torch.full((32, 32, 3, 3), 0.01).requires_grad_()
    depthwise = torch.full((32, 1, 3, 3), 0.01).requires_grad_()
    rows = torch.full((128, 256), 0.5)
    matrix = torch.full((512, 256), 0.01).requires_grad_()

    def seconds(precision: str) -> float:
        start = time.perf_counter()
        with autocast(torch.device("cpu"), precision):
            convolved = conv2d(conv2d(image, full, padding=1), depthwise, padding=1, groups=32)
            total = convolved.float().sum() + linear(rows, matrix).float().sum()
        torch.autograd.grad(total, [image, full, depthwise, matrix])
        return time.perf_counter() - start

    started = time.perf_counter()
    seconds("fp32"), seconds("bf16")  # the first call of a layer prepares its kernel
    ratios: list[float] = []
    while len(ratios) < 5 and (not ratios or time.perf_counter() - started < 0.3):
        fp32 = seconds("fp32")
        ratios.append(seconds("bf16") / fp32)
    return median(ratios)


def choose_device(name: str) -> torch.device:
    """Raises ValueError if the machine has no such device; auto takes cuda, then mps, then cpu."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [device for device, there in available.items() if there]
    if name != "auto" and name not in usable:
        raise ValueError(f"device '{name}' is not available on this machine; use auto or one of {', '.join(usable)}")
    return torch.device(usable[0] if name == "auto" else name)
