"""The metrics of a validation by name: which there are, and whether a higher or a lower value is better."""

from app.messages import nearest

# What is better of a metric: a lower value or a higher one. In the spelling of torch's ReduceLROnPlateau.
DIRECTIONS = {"loss": "min", "accuracy": "max", "macro_f1": "max", "balanced_accuracy": "max"}
RECALL = "recall/"  # before the name of a class, which may be any text


def is_metric(name: str) -> bool:
    """Whether `name` has the form of a metric: "loss", "image_branch/accuracy", "recall/<class>", ..."""
    return name.startswith(RECALL) or name.rpartition("/")[2] in DIRECTIONS


def direction(monitor: str) -> str:
    """Of `val/loss`, `val/image_branch/accuracy`, `val/recall/<class>`, ...: "min" or "max"."""
    name = monitor.removeprefix("val/")
    return "max" if name.startswith(RECALL) else DIRECTIONS[name.rpartition("/")[2]]


def best_of(monitor: str) -> str:
    """In words: "lowest val/loss", "highest val/accuracy"."""
    return f"{'lowest' if direction(monitor) == 'min' else 'highest'} {monitor}"


def is_beyond(value: float, above: float | None, below: float | None) -> bool:
    """Above the one or below the other, whichever is given; NaN is neither."""
    return value > above if above is not None else value < below


def beyond_in_words(monitor: str, above: float | None, below: float | None) -> str:
    return f"{monitor} > {above:g}" if above is not None else f"{monitor} < {below:g}"


def never_beyond(monitor: str, above: float | None, below: float | None) -> str | None:
    """The setting that no value of the metric can meet, as "key: why"; None without one."""
    if above is not None and direction(monitor) == "max" and above >= 1:
        return f"above: found {above:g}, but {monitor} is never above 1"
    if below is not None and below <= 0:
        return f"below: found {below:g}, but {monitor} is never below 0"
    return None


def check_monitor(key: str, monitor: str, known: list[str]) -> None:
    """Raises ValueError, which begins with the `key` of the config, if a validation does not report `monitor`."""
    if monitor not in known:
        others = [name for name in known if not name.startswith(f"val/{RECALL}")]
        shown = others if len(others) == len(known) else [*others, f"val/{RECALL}<class>"]
        raise ValueError(f"{key}: '{monitor}' is not a validation metric; {nearest(monitor, known, shown)}")


def metric_names(class_names: list[str], branches: list[str]) -> list[str]:
    """What scores.metrics_of gives: the monitors that a config may name, without "val/"."""
    own = [f"{branch}/{metric}" for branch in branches for metric in ("loss", "accuracy")]
    return [*DIRECTIONS, *own, *(f"{RECALL}{name}" for name in class_names)]
