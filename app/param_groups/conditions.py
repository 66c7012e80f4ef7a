"""When a group starts or stops training: after a number of epochs, or when a validation meets a condition."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from app.evaluation.metrics import beyond_in_words
from app.section import Section


class FreezeCondition(Section):
    monitor: str = Field(description="a validation metric, as for a reduction")
    above: float | None = Field(None, description="met by a validation where the monitor is above this; or below")
    below: float | None = Field(None, description="met by a validation where the monitor is below this; or above")
    at_most: int = Field(ge=1, description="epochs of the run after which it counts as met, whatever the monitor says")

    @model_validator(mode="after")
    def _one_side(self) -> "FreezeCondition":
        if (self.above is None) == (self.below is None):
            raise ValueError("a condition needs exactly one of above and below")
        return self

    def in_words(self) -> str:
        return beyond_in_words(self.monitor, self.above, self.below)


def _tag_of(limit: Any) -> str:
    return "section" if isinstance(limit, dict | FreezeCondition) else "number"


_Condition = Annotated[FreezeCondition, Tag("section")]
Limit = Annotated[Annotated[int, Field(ge=0), Tag("number")] | _Condition, Discriminator(_tag_of)]
# Not before the first epoch.
LaterLimit = Annotated[Annotated[int, Field(ge=1), Tag("number")] | _Condition, Discriminator(_tag_of)]


def earliest(limit: Limit) -> int:
    """Epochs after which it is reached at the earliest; a condition needs a validation."""
    return 1 if isinstance(limit, FreezeCondition) else limit


def latest(limit: Limit) -> int:
    return limit.at_most if isinstance(limit, FreezeCondition) else limit


def epochs_in_words(epochs: int) -> str:
    return "1 epoch" if epochs == 1 else f"{epochs} epochs"


def limit_in_words(limit: Limit) -> str:
    """What follows "until" or "from"."""
    if isinstance(limit, FreezeCondition):
        return f"{limit.in_words()}, at most {epochs_in_words(limit.at_most)}"
    return epochs_in_words(limit)


def frozen_in_words(freeze_until: Limit, freeze_from: LaterLimit | None) -> str:
    """For the group table."""
    until = isinstance(freeze_until, FreezeCondition)
    parts = [f"{'until ' if until else ''}{limit_in_words(freeze_until)}"] if freeze_until else []
    if freeze_from is not None:
        parts.append(f"{'from' if isinstance(freeze_from, FreezeCondition) else 'after'} {limit_in_words(freeze_from)}")
    return "; ".join(parts) or "no"
