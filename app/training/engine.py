"""One epoch of training, and a pass over a split. The only caller of optimizer.step()."""

import sys
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import nn
from torch.nn.functional import conv2d, cross_entropy, linear
from torch.utils.data import DataLoader
from tqdm import tqdm

from app.evaluation.metrics import IGNORED, ClassificationMetrics, unimodal_label
from app.learning_rates.learning_rates import LearningRates
from app.param_groups.freezing import Freezing
from app.randomness import seed_everything
from app.training.gradients import Gradients
from app.training.group_stats import GroupStatistics

_CLEARLY_SLOWER = 2  # in bf16_slowdown


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    learning_rates: LearningRates,
    freezing: Freezing,
    gradients: Gradients,
    statistics: GroupStatistics,
    *,
    epoch: int,
    step: int,
    seed: int,
    device: torch.device,
    precision: str,
    log_every: int,
    log: Callable[[int, dict[str, float], dict[str, dict[str, float]]], None],
) -> tuple[int, float]:
    """Trains on every batch of `loader` once.

    Args:
        epoch: counted from 0.
        step: optimizer steps finished before this epoch.
        log: called every `log_every` steps with the step, {"loss", "accuracy"} since the last call in this epoch,
            and the groups' statistics. Other steps do not wait for the device (but see Gradients, and a
            bidirectional LSTM wants its lengths on the CPU).

    Returns the steps finished, and the epoch's mean training loss.

    Raises FloatingPointError, with no weight spoilt, where a gradient is not finite.
    """
    model.train()
    freezing.apply(epoch)
    gradients.take_clipped_share()  # what an interrupted run could not remember, an unbroken one shall not count
    loader.sampler.epoch = epoch
    loss_sum = correct = epoch_loss = torch.zeros((), device=device)
    seen = 0
    # In a log file a line every 10 seconds is plenty.
    pace = 0.1 if sys.stderr.isatty() else 10
    progress = tqdm(loader, desc=f"epoch {epoch + 1}", unit="step", leave=False, dynamic_ncols=True, mininterval=pace)
    for number, batch in enumerate(progress):
        batch = to_device(batch, device)
        learning_rates.set(step, epoch + number / len(loader))
        seed_everything("step", seed, step)  # dropout: the same whether the run was interrupted or not
        with autocast(device, precision):
            output = model(batch["image"], batch["sequence"], batch["length"], batch["present"])
            loss = cross_entropy(output.logits, batch["label"])
            # The unimodal heads' own loss. The model decides whether it reaches the branches.
            own_losses = [
                cross_entropy(logits, unimodal_label(batch, branch), ignore_index=IGNORED)
                for branch, logits in output.unimodal_logits.items()
            ]
        optimizer.zero_grad(set_to_none=True)
        sum(own_losses, loss).backward()
        gradients.prepare(step)

        logging = (step + 1) % log_every == 0
        if logging:
            statistics.before_step()
        optimizer.step()
        step += 1
        loss_sum = loss_sum + loss.detach()
        epoch_loss = epoch_loss + loss.detach()
        correct = correct + (output.logits.argmax(1) == batch["label"]).float().mean()
        seen += 1
        if logging:
            readings = statistics.after_step()
            train = {"loss": loss_sum.item() / seen, "accuracy": correct.item() / seen}
            lrs = {name: f"{values['lr']:.1e}" for name, values in readings.items()}
            progress.set_postfix(loss=f"{train['loss']:.3f}", acc=f"{train['accuracy']:.3f}", refresh=False, **lrs)
            log(step, train, readings)
            loss_sum = correct = torch.zeros((), device=device)
            seen = 0
    gradients.check()
    return step, epoch_loss.item() / len(loader)


@torch.no_grad()
def predict(
    model: nn.Module, loader: DataLoader, *, device: torch.device, precision: str
) -> Iterator[tuple[dict[str, torch.Tensor], tuple]]:
    """Yields each batch of `loader` with what the model, in eval mode, says of it."""
    model.eval()
    for batch in loader:
        batch = to_device(batch, device)
        with autocast(device, precision):
            output = model(batch["image"], batch["sequence"], batch["length"], batch["present"])
        yield batch, output  # outside autocast, which would cast the caller's operations too


def validate(
    model: nn.Module,
    loader: DataLoader,
    metrics: ClassificationMetrics,
    *,
    device: torch.device,
    precision: str,
) -> dict[str, float]:
    """The metrics of the whole split."""
    metrics.to(device)
    for metric in metrics.metrics.values():
        metric.reset()
    for batch, output in predict(model, loader, device=device, precision=precision):
        metrics.update(output, batch)
    return metrics.compute()


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


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
