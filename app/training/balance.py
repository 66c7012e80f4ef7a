"""What keeps a branch that learns fast from starving the other: the section `balance` of the config."""

import torch
from pydantic import Field, model_validator
from torch import nn

from app.learning_rates.balance import BalanceRule
from app.param_groups.conditions import earliest
from app.param_groups.groups import Group
from app.randomness import Draws
from app.section import Section

BELOW_FUSION = 0.25  # in validation accuracy


class GatesConfig(Section):
    """(1, 0) is joint training, (1, 1) multi-loss, (0, 1) decoupled (DGL, arXiv 2507.10213)."""

    fusion: float = Field(1.0, ge=0, description="share of the fusion's gradient that reaches the branch")
    own: float = Field(
        0.0, ge=0, description="share of its own head's gradient that reaches the branch; 0: the head only watches"
    )


class GradientsConfig(Section):
    image_branch: GatesConfig = Field(GatesConfig(), description="what trains the image branch")
    temporal_branch: GatesConfig = Field(GatesConfig(), description="what trains the temporal branch")


class ModalityDropoutConfig(Section):
    image_branch: float = Field(0.0, ge=0, lt=1, description="share of training samples that lose their image")
    temporal_branch: float = Field(
        0.0, ge=0, lt=1, description="share of training samples that lose their sequence; no sample loses both"
    )

    @model_validator(mode="after")
    def _never_both(self) -> "ModalityDropoutConfig":
        total = self.image_branch + self.temporal_branch
        if total > 1:
            raise ValueError(
                f"the two shares add up to {total:g}, and no sample loses both; lower one, at most 1 in all"
            )
        return self


class BalanceConfig(Section):
    gradients: GradientsConfig = Field(
        GradientsConfig(), description="by branch: how much of the fusion's and of its own head's gradient reaches it"
    )
    modality_dropout: ModalityDropoutConfig = Field(
        ModalityDropoutConfig(),
        description="by branch: how often its input is taken from a training sample; of no use where the model has one",
    )
    learning_rates: BalanceRule | None = Field(
        None, discriminator="rule", description="a factor on the lr of a branch that dominates; null: none"
    )


class ModalityDropout:
    """Takes the image or the sequence from some training samples, never both: chosen by (seed, epoch, sample).

    A sample that has one of them only keeps it.

    Args:
        num_samples: of the training split.
    """

    def __init__(self, config: ModalityDropoutConfig, *, seed: int, num_samples: int):
        self.shares = (config.image_branch, config.temporal_branch)
        self.draws = Draws("modality dropout", seed, num_samples=num_samples, width=1)

    def __call__(self, epoch: int, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not any(self.shares):
            return batch
        uniform = self.draws(epoch, batch["index"])  # (B, 1): one number, so that both are never dropped
        image, sequence = self.shares
        dropped = torch.cat([uniform < image, uniform >= 1 - sequence], dim=1)
        present = batch["present"]
        return batch | {"present": present & ~(dropped & present.all(1, keepdim=True))}


def far_below_fusion(val: dict[str, float], model: nn.Module) -> list[str]:
    """The branches that the fusion trains beside another one, whose own heads do not train them in full, and whose own
    validation accuracy is more than BELOW_FUSION below the fused one. They may be starved, or their input may say
    little: app/commands/branch_alone.py tells.

    val: metrics of a validation. model: with `gates`, `unimodal_heads` and `fusion_head`; a frozen branch is left out.
    """
    if len(model.unimodal_heads) < 2 or not model.fusion_head.has_parameters:
        return []
    return [
        branch
        for branch in model.unimodal_heads
        if model.gates[branch].fusion > 0
        and model.gates[branch].own < 1
        and val["accuracy"] - val[f"{branch}/accuracy"] > BELOW_FUSION
        and all(parameter.requires_grad for parameter in getattr(model, branch).parameters())
    ]


def check_gates(gradients: GradientsConfig, branches: list[str], groups: list[Group], *, epochs: int) -> None:
    """Raises ValueError for a branch of the model that a group trains in so many epochs, and no gradient reaches."""
    for branch in branches:
        gates = getattr(gradients, branch)
        trained = [
            group.name
            for group in groups
            if earliest(group.config.freeze_until) < epochs
            and any(name.startswith(f"{branch}.") for name in group.parameters)
        ]
        if gates.fusion == gates.own == 0 and trained:
            raise ValueError(
                f"balance.gradients.{branch}: fusion and own are both 0, so no gradient reaches this branch, though "
                f"it is to train (group {', '.join(trained)}); raise one of them, or freeze it for the whole run"
            )
