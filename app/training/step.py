"""One training step, and what is counted from step to step. The only caller of optimizer.step()."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from app.learning_rates.learning_rates import LearningRates
from app.param_groups.freezing import Freezing
from app.randomness import seed_device
from app.training.gradients import Gradients
from app.training.group_stats import GroupStatistics
from app.training.objective import Objective, losses, total
from app.training.precision import autocast


@dataclass(frozen=True)
class Reading:
    """What a logging step reads back from the device."""

    loss: float  # of the fusion, mean over the steps since the last reading in this epoch
    accuracy: float  # likewise
    groups: dict[str, dict[str, float]]  # {group: {hyper-parameter or statistic: value}}

    def shown(self) -> dict[str, str]:
        """For the progress bar."""
        lrs = {name: f"{values['lr']:.1e}" for name, values in self.groups.items()}
        return {"loss": f"{self.loss:.3f}", "acc": f"{self.accuracy:.3f}", **lrs}


class TrainStep:
    """Call `start_epoch`, then itself with every batch, then `end_epoch`.

    Args:
        steps_per_epoch: batches of an epoch.
        read_every: steps between two readings. Other steps do not wait for the device (but see Gradients, and a
            bidirectional LSTM wants its lengths on the CPU).
    """

    def __init__(
        self,
        model: nn.Module,
        gradients: Gradients,
        statistics: GroupStatistics,
        freezing: Freezing,
        learning_rates: LearningRates,
        objective: Objective,
        *,
        steps_per_epoch: int,
        read_every: int,
        seed: int,
        device: torch.device,
        precision: str,
    ):
        self.model = model
        self.optimizer = gradients.optimizer
        self.gradients = gradients
        self.statistics = statistics
        self.freezing = freezing
        self.learning_rates = learning_rates
        self.objective = objective
        self.steps_per_epoch = steps_per_epoch
        self.read_every = read_every
        self.seed = seed
        self.device = device
        self.precision = precision
        self.epoch = self.batches = 0  # finished, and finished in the epoch that has begun
        self.epoch_loss = torch.zeros((), device=device)  # sum over the epoch's steps
        self._forget_sums()

    def start_epoch(self, epoch: int) -> None:
        """Call after LearningRates.start_epoch. epoch: finished epochs."""
        self.epoch, self.batches = epoch, 0
        self.epoch_loss = torch.zeros_like(self.epoch_loss)
        self._forget_sums()
        self.model.train()
        self.freezing.apply(self.learning_rates.frozen)
        self.gradients.take_clipped_share()  # a share is of steps of one epoch

    def __call__(self, batch: dict[str, torch.Tensor], step: int) -> Reading | None:
        """Trains on one batch, which is on the device. step: finished steps. Returns a reading on logging steps.

        Raises FloatingPointError where a gradient was not finite; no weight has changed since.
        """
        self.learning_rates.set(step, self.epoch + self.batches / self.steps_per_epoch)
        with autocast(self.device, self.precision):
            output = self._run(batch, step)
            values = losses(output, batch, self.objective)
        self.optimizer.zero_grad(set_to_none=True)
        objective = total(values)
        if objective.requires_grad:  # not where no part that trains has an input in this batch
            objective.backward()
        self.gradients.clip_and_flag(step)

        reads = (step + 1) % self.read_every == 0
        if reads:
            self.statistics.before_step()
        self.optimizer.step()
        self.batches += 1
        loss = values["loss"].detach()
        self.epoch_loss = self.epoch_loss + loss
        self.loss_sum = self.loss_sum + loss
        self.accuracy_sum = self.accuracy_sum + (output.logits.argmax(1) == batch["label"]).float().mean()
        self.summed += 1
        return self._read() if reads else None

    def _run(self, batch: dict[str, torch.Tensor], step: int):
        """The model's output. Dropout of a part draws from (part, seed, step): the same whether the run was interrupted
        or not, and whatever other parts the model has."""

        def seed(part: str) -> None:
            seed_device(self.device, "dropout", part, self.seed, step)

        inputs = (batch[name] for name in ("image", "sequence", "length", "present"))
        return self.model(*inputs, before_part=seed)

    def end_epoch(self) -> float:
        """The epoch's mean training loss. Raises FloatingPointError where a gradient was not finite."""
        self.gradients.raise_if_not_finite()
        return self.epoch_loss.item() / self.batches

    def state_dict(self) -> dict[str, Any]:
        """What is summed and counted from step to step, as numbers."""
        return {
            "batches": self.batches,
            "summed": self.summed,
            **{name: getattr(self, name).item() for name in self._SUMS},
            "gradients": self.gradients.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches, self.summed = state["batches"], state["summed"]
        for name in self._SUMS:
            setattr(self, name, torch.tensor(state[name], device=self.device))
        self.gradients.load_state_dict(state["gradients"])

    _SUMS = ("epoch_loss", "loss_sum", "accuracy_sum")  # on the device

    def _read(self) -> Reading:
        groups = self.statistics.after_step()
        loss, accuracy = torch.stack([self.loss_sum, self.accuracy_sum]).tolist()
        reading = Reading(loss / self.summed, accuracy / self.summed, groups)
        self._forget_sums()
        return reading

    def _forget_sums(self) -> None:
        self.loss_sum = self.accuracy_sum = torch.zeros((), device=self.device)
        self.summed = 0
