"""What the rules of a config would have done in a finished run, from the validations that it recorded."""

from typing import Any

from app.evaluation.metrics import is_metric
from app.learning_rates.balance import BalanceRule
from app.learning_rates.learning_rates import LearningRates, LearningRatesConfig
from app.param_groups.groups import GroupConfig


def replay(
    groups: dict[str, GroupConfig],
    config: LearningRatesConfig,
    validations: list[dict[str, Any]],
    *,
    epochs: int,
    balance: BalanceRule | None = None,
) -> str:
    """The lr path that the config's rules would have taken on recorded validations, as a table with the events.

    Args:
        validations: records of metrics.jsonl: "epoch", "step" and metrics.
        epochs: of the whole run.
        balance: the balance rule of the config.

    Raises ValueError where the rules watch a metric that was not recorded.
    """
    metrics = [{f"val/{name}": value for name, value in record.items()} for record in validations]
    monitors = [f"val/{name}" for name in validations[0] if is_metric(name)]
    first = validations[0]
    rates = LearningRates(
        groups,
        {},
        config,
        monitors=monitors,
        steps_per_epoch=max(1, first["step"] // first["epoch"]),
        epochs=epochs,
        balance=balance,
    )
    lines = ["epoch  " + "  ".join(f"{name:>16s}" for name in rates.groups) + "   (lr after that epoch's validation)"]
    rates.start_epoch(epoch=0, step=0)
    for record, values in zip(validations, metrics, strict=True):
        epoch, step = record["epoch"], record["step"]
        events = rates.after_validation(values, epoch=epoch, step=step)
        events += rates.start_epoch(epoch=epoch, step=step) if epoch < epochs else []
        lrs = [0.0 if name in rates.frozen else rates.lr(name, step, epoch) for name in rates.groups]
        lines.append(f"{epoch:5d}  " + "  ".join(f"{lr:16.4g}" for lr in lrs))
        lines += [f"       {event.describe()}" for event in events]
        if reason := rates.should_stop():
            lines.append(f"       training would stop here: {reason}")
            break
    return "\n".join(lines)
