"""Several models on the same labelled samples: which is better, or can these samples not tell?"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from sklearn.metrics import f1_score

from app.evaluation.certainty import describe_certainty
from app.evaluation.predictions import Predictions
from app.evaluation.scores import own_accuracy, share
from app.messages import format_table

LEVEL = 0.05  # below which a p value shows a difference


def compare(models: Mapping[str, Predictions]) -> dict[str, Any]:
    """The figures of each model, and of each but the first against the first.

    Each against the first, and not each pair, as every further test makes all of them weaker, and the first is what
    the others are to beat. p values are corrected for their number (Holm); an interval is of its comparison alone.

    Args:
        models: by name, two or more, of the same samples in the same order, all labelled.

    Raises ValueError where there are no samples.
    """
    (first, reference), *others = models.items()
    if not len(reference):
        raise ValueError("no sample has a label, so there is nothing to compare; give labelled samples")
    found = [{"model": name, "against": first, **compare_two(reference, other)} for name, other in others]
    for of, p in zip(found, holm([of["p_value"] for of in found]), strict=True):
        of["p_value_corrected"] = p
        shown = p < LEVEL
        of["verdict"] = ("better" if of["difference"] > 0 else "worse") if shown else "not shown"
        of["in_words"] = in_words(of, samples=len(reference), tests=len(found))
    return {
        "samples": len(reference),
        "models": {name: scores_of_model(of) for name, of in models.items()},
        "comparisons": found,
    }


def scores_of_model(predictions: Predictions) -> dict[str, Any]:
    accuracy = share(int(predictions.correct.sum()), len(predictions))
    own = {branch: own_accuracy(predictions, branch) for branch in predictions.unimodal_logits}
    return {
        "accuracy": accuracy["value"],
        "accuracy_interval_95": accuracy["interval_95"],
        "nll": describe_certainty(predictions)["nll"],
        "macro_f1": float(f1_score(predictions.label.numpy(), predictions.prediction.numpy(), average="macro")),
        "unimodal": {b: {"accuracy": of["value"], "accuracy_interval_95": of["interval_95"]} for b, of in own.items()},
    }


def compare_two(reference: Predictions, other: Predictions) -> dict[str, Any]:
    """Counts of samples by which of the two has them right; the accuracy of `other` less that of `reference`, with its
    95 % interval for paired shares; and the p value of McNemar's test, exact and two-sided."""
    a, b = reference.correct, other.correct
    counts = {"both": a & b, "only_reference": a & ~b, "only_model": ~a & b, "neither": ~a & ~b}
    right = {name: int(of.sum()) for name, of in counts.items()}
    only_model, only_reference = right["only_model"], right["only_reference"]
    return {
        "right": right,
        "difference": (only_model - only_reference) / len(a),
        "interval_95": paired_interval(only_model, only_reference, len(a)),
        "p_value": mcnemar(only_model, only_reference),
    }


def mcnemar(only_one: int, only_other: int) -> float:
    """Exact and two-sided: of samples that one of two models has right, each has as many but for chance."""
    discordant = only_one + only_other
    return float(binomtest(only_one, discordant, 0.5).pvalue) if discordant else 1.0


def paired_interval(only_one: int, only_other: int, samples: int, level: float = 0.95) -> list[float]:
    """Of the difference of two paired shares: Tango's score interval (Statistics in Medicine 17, 1998, 891).

    It has each difference d that lies within z standard errors, those under d, of what was found. It leaves out 0
    wherever mcnemar is below 1 - level.
    """
    n, found, z = samples, (only_one - only_other) / samples, norm.ppf((1 + level) / 2)

    def beyond(d: float) -> float:
        """Negative inside the interval."""
        b, c = (2 * n - only_one + only_other) * d - only_one - only_other, -only_other * d * (1 - d)
        q = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)  # likeliest share of only_other, if d is true
        return (only_one - only_other - n * d) ** 2 - z * z * n * max(2 * q + d * (1 - d), 0.0)

    def end(limit: float) -> float:
        if found == limit:
            return limit
        inside = found + 1e-9 * (limit - found)  # at `found` itself the variance may be 0
        return float(brentq(beyond, inside, limit, xtol=1e-12))

    return [end(-1.0), end(1.0)]


def holm(p_values: Sequence[float]) -> list[float]:
    """So that the chance of one false difference or more among the tests stays what it is for one (Holm, 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def in_words(found: dict[str, Any], *, samples: int, tests: int) -> str:
    """found: one of the `comparisons`."""
    model, against, right = found["model"], found["against"], found["right"]
    p, (low, high) = found["p_value_corrected"], found["interval_95"]
    counts = (
        f"{right['only_model']} {_rows(right['only_model'])} only {model} has right, "
        f"{right['only_reference']} only {against}"
    )
    chance = f"p {_p_in_words(p)}" + (f" (Holm, {tests} tests)" if tests > 1 else "")
    if found["verdict"] == "not shown":
        sign = "+" if found["difference"] > 0 else ""
        words = f"{sign}{_points(found['difference'])} points ({_points(low)} to {_points(high)}), {chance}: {counts}"
        words = f"{model} and {against}: no difference that these {samples} {_rows(samples)} can show: {words}"
        alone = "the interval, which leaves out 0, is of one comparison and no exact one; the test decides"
        return words if low <= 0 <= high else f"{words} ({alone})"
    low, high = (low, high) if found["difference"] > 0 else (-high, -low)
    words = f"{_points(abs(found['difference']))} points ({_points(low)} to {_points(high)}), {chance}: {counts}"
    return f"{model} is {found['verdict']} than {against} by {words}"


def describe_comparison(report: dict[str, Any]) -> str:
    """The short form. report: of `compare`, with the `split`, and of each model its `checkpoint` and `epoch`."""
    models = report["models"]
    branches = list(dict.fromkeys(branch for of in models.values() for branch in of["unimodal"]))
    rows = [("", "accuracy", "95 % interval", "nll", "macro F1", *(f"{b} alone" for b in branches), "checkpoint")]
    for name, of in models.items():
        low, high = of["accuracy_interval_95"]
        own = (f"{of['unimodal'][b]['accuracy']:.4f}" if b in of["unimodal"] else "-" for b in branches)
        scores = (f"{of['accuracy']:.4f}", f"{low:.4f} to {high:.4f}", f"{of['nll']:.4f}", f"{of['macro_f1']:.4f}")
        rows.append((name, *scores, *own, f"{of['checkpoint']} (epoch {of['epoch']})"))
    title = f"{len(models)} checkpoints on {report['split']}, {report['samples']} {_rows(report['samples'])}"
    table = format_table(rows, left=(0, len(rows[0]) - 1))
    return "\n\n".join([title, table, "\n".join(of["in_words"] for of in report["comparisons"])])


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"


def _points(value: float) -> str:
    """A share in percent; 0 has no sign."""
    return f"{round(100 * value, 1) + 0.0:.1f}"


def _p_in_words(p: float) -> str:
    """In as many digits as keep it on its side of LEVEL."""
    if p < 0.0001:
        return "< 0.0001"
    texts = (f"{p:.{figures}g}" for figures in range(2, 18))
    return "= " + next(text for text in texts if (float(text) < LEVEL) == (p < LEVEL))
