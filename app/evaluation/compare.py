"""Two models on the same labelled samples: is one better, or can these samples not tell?"""

import math
from typing import Any

from scipy.stats import binomtest

from app.evaluation.predictions import Predictions
from app.evaluation.scores import share


def compare(first: Predictions, second: Predictions) -> dict[str, Any]:
    """The second against the first, paired by sample.

    "only_first", "only_second": samples that only that one has right; "p_value": McNemar's test, exact and two-sided;
    "difference": accuracy of the second less that of the first, and its 95 % interval for paired shares (Newcombe's
    method 10, 1998).

    Args:
        first, second: of the same samples, in the same order.
    """
    a, b = first.correct, second.correct
    counts = {"both": a & b, "only_first": a & ~b, "only_second": ~a & b, "neither": ~a & ~b}
    found: dict[str, Any] = {name: int(of.sum()) for name, of in counts.items()}
    discordant = found["only_first"] + found["only_second"]
    p = binomtest(found["only_second"], discordant, 0.5).pvalue if discordant else 1.0
    found["p_value"] = float(p)
    found["difference"] = (found["only_second"] - found["only_first"]) / len(a)
    found["interval_95"] = paired_interval(found["both"], found["only_second"], found["only_first"], found["neither"])
    return found


def paired_interval(both: int, only_second: int, only_first: int, neither: int) -> list[float]:
    """Of the share of the second less that of the first: Newcombe (1998), method 10."""
    total = both + only_second + only_first + neither
    second, first = both + only_second, both + only_first
    (low_2, high_2), (low_1, high_1) = (share(count, total)["interval_95"] for count in (second, first))
    p_2, p_1 = second / total, first / total
    margins = second * (total - second) * first * (total - first)
    product = both * neither - only_second * only_first
    if product > 0:  # corrected for continuity
        product = max(product - total / 2, 0.0)
    correlation = product / math.sqrt(margins) if margins else 0.0
    down = (p_2 - low_2) ** 2 - 2 * correlation * (p_2 - low_2) * (high_1 - p_1) + (high_1 - p_1) ** 2
    up = (high_2 - p_2) ** 2 - 2 * correlation * (high_2 - p_2) * (p_1 - low_1) + (p_1 - low_1) ** 2
    difference = p_2 - p_1
    return [difference - math.sqrt(max(down, 0.0)), difference + math.sqrt(max(up, 0.0))]


def in_words(found: dict[str, Any], samples: int) -> str:
    """found: of `compare`, with "p_value_holm", which decides at 0.05."""
    low, high = (100 * end for end in found["interval_95"])
    points = f"{100 * found['difference']:+.1f} points ({low:+.1f} to {high:+.1f})"
    counts = f"only it is right {found['only_second']} times, only the first {found['only_first']} times"
    if found["p_value_holm"] < 0.05:
        verdict = "better" if found["difference"] > 0 else "worse"
        return f"{verdict}: {points}, p = {found['p_value_holm']:.2g}; {counts}"
    return f"no difference that these {samples} samples can show: {points}, p = {found['p_value_holm']:.2g}; {counts}"


def holm(p_values: list[float]) -> list[float]:
    """The p values of several tests, so that the chance of any false "better" stays what it is for one (Holm, 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
