"""Whether a fused model uses both of its inputs: what it loses where one of them is another sample's."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from app.evaluation.predictions import INPUTS
from app.evaluation.scores import bootstrap_interval
from app.randomness import stream
from app.training.objective import BRANCHES
from app.training.precision import autocast

SHUFFLES = 5
LITTLE = 0.05  # a loss of accuracy that must be out of the question for an input to be called ignored


@torch.no_grad()
def answers(
    model: nn.Module,
    batches: Iterable[dict[str, torch.Tensor]],
    *,
    device: torch.device,
    precision: str,
    shuffles: int = SHUFFLES,
) -> dict[str, np.ndarray]:
    """Which of N samples are predicted right, under each condition; each branch runs once for a sample.

    "full": (N,) bool, the fused model; "own/<branch>": (N,), its own head; "only/<branch>": (N,), the fused model with
    the other input absent; "shuffled/<branch>": (shuffles, N), with that input of another sample of the same batch.

    Args:
        batches: in random order, so that a batch is like the whole; samples without a label, or without both inputs,
            are left out.
    """
    model.eval()
    found: dict[str, list[torch.Tensor]] = {}
    for number, batch in enumerate(batches):
        batch = _with_both(batch)
        size = len(batch["label"])
        if size < 2:  # there is no other sample
            continue
        with autocast(device, precision):
            right = _answers_of_batch(model, batch, [_others(size, number, i) for i in range(shuffles)])
        for name, values in right.items():
            found.setdefault(name, []).append(values)
    return {name: torch.cat(values, dim=-1).cpu().numpy() for name, values in found.items()}


def describe_use(right: dict[str, np.ndarray], stand_ins: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The figures, and the verdict in words, of what `answers` gives; empty where no sample has both inputs.

    stand_ins: by branch, what the model reads in place of an absent input; 0 where it was never trained.
    """
    if not right:
        return {}
    shuffled = {branch: right[f"shuffled/{branch}"] for branch in BRANCHES}
    trained = {branch: branch not in stand_ins or bool(stand_ins[branch].any()) for branch in BRANCHES}
    return {
        "samples": len(right["full"]),
        "accuracy": float(right["full"].mean()),
        "shuffles": len(shuffled[BRANCHES[0]]),
        "inputs": {
            INPUTS[branch]: {
                "own_head": float(right[f"own/{branch}"].mean()),
                "other_absent": float(right[f"only/{branch}"].mean()),
                "other_absent_was_trained": trained[other],
                "shuffled": float(shuffled[branch].mean()),
                **_verdict(right["full"], shuffled[branch]),
            }
            for branch, other in zip(BRANCHES, reversed(BRANCHES), strict=True)
        },
    }


def _verdict(full: np.ndarray, shuffled: np.ndarray) -> dict[str, Any]:
    costs = full - shuffled.mean(0)  # of each sample, from -1 to 1
    low, high = _interval_of_mean(costs)
    cost, points = float(costs.mean()), f"({100 * low:.1f} to {100 * high:.1f})"
    if low > 0:
        verdict, words = "used", f"shuffling costs {100 * cost:.1f} points {points}"
    elif high < LITTLE:
        verdict, words = "ignored", f"shuffling changes nothing beyond its interval: {100 * cost:.1f} points {points}"
    else:
        verdict, words = "unclear", f"{len(full)} samples are too few to tell: {100 * cost:.1f} points {points}"
    return {"shuffling_costs": cost, "interval_95": [low, high], "verdict": verdict, "in_words": f"{verdict}: {words}"}


def _interval_of_mean(values: np.ndarray) -> tuple[float, float]:
    """Where no value differs from 0, a share of up to 3 / N may in truth (Hanley and Lippman-Hand, 1983)."""
    if not values.any():
        return 0.0, min(1.0, 3 / len(values))
    low, high = bootstrap_interval(np.mean, values)
    return float(low), float(high)


def _others(size: int, *purpose: int) -> torch.Tensor:
    """(size,) int64: for each sample another one, drawn at random; each is drawn once."""
    order = torch.randperm(size, generator=stream("modality use", *purpose))
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return others


def _with_both(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The samples of a batch that have a label and both inputs; `windows` (B,), on the CPU, is always there."""
    kept = batch["present"].all(1) & (batch["label"] >= 0).cpu()
    windows = batch["windows"].cpu() if "windows" in batch else torch.ones(len(kept), dtype=torch.int64)
    part = {name: batch[name][kept.to(batch[name].device)] for name in ("image", "label", "present")}
    of_windows = torch.repeat_interleave(kept, windows).to(batch["sequence"].device)
    return part | {name: batch[name][of_windows] for name in ("sequence", "length")} | {"windows": windows[kept]}


def _answers_of_batch(
    model: nn.Module, batch: dict[str, torch.Tensor], shuffles: list[torch.Tensor]
) -> dict[str, torch.Tensor]:
    label, size = batch["label"], len(batch["label"])
    image, sequence = BRANCHES
    everyone = torch.arange(size)
    inputs = batch | {"present": torch.ones(len(batch["sequence"]), 2, dtype=torch.bool)}
    encoded = {branch: model.encode(branch, inputs) for branch in BRANCHES}

    def right(logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(1) == label

    def fused(images: torch.Tensor | None, sequences: torch.Tensor | None) -> torch.Tensor:
        """Whether the model is right that gets the image of one sample, the sequence of one; None: of none."""
        windows, sample_of = _windows_of(batch["windows"], everyone if sequences is None else sequences)
        parts = {
            image: None if images is None else _take(encoded[image], images[sample_of]),
            sequence: None if sequences is None else _take(encoded[sequence], windows),
        }
        return right(_mean_by_sample(model.fuse(parts, len(windows)).float(), sample_of, size))

    windows, sample_of = _windows_of(batch["windows"], everyone)
    heads = {branch: model.unimodal_heads[branch](encoded[branch].pooled).float() for branch in BRANCHES}
    heads[sequence] = _mean_by_sample(heads[sequence], sample_of, size)
    return {
        "full": fused(everyone, everyone),
        **{f"own/{branch}": right(logits) for branch, logits in heads.items()},
        f"only/{image}": fused(everyone, None),
        f"only/{sequence}": fused(None, everyone),
        f"shuffled/{image}": torch.stack([fused(others, everyone) for others in shuffles]),
        f"shuffled/{sequence}": torch.stack([fused(everyone, others) for others in shuffles]),
    }


def _windows_of(counts: torch.Tensor, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The places of the windows of some samples, those of one after those of another, and for each of these windows the
    place of its sample in `samples`. counts: (B,), how many windows each of the batch has."""
    taken, first = counts[samples], (counts.cumsum(0) - counts)[samples]
    sample_of = torch.repeat_interleave(torch.arange(len(samples)), taken)
    within = torch.arange(len(sample_of)) - (taken.cumsum(0) - taken)[sample_of]
    return first[sample_of] + within, sample_of


def _take(encoded: tuple, rows: torch.Tensor) -> tuple:
    """Those rows of an Encoded."""
    rows = rows.to(encoded.pooled.device)
    return encoded._make(None if part is None else part[rows] for part in encoded)


def _mean_by_sample(values: torch.Tensor, sample_of: torch.Tensor, size: int) -> torch.Tensor:
    """values: (W, D), sample_of: (W,) -> (size, D)"""
    sample_of = sample_of.to(values.device)
    sums = values.new_zeros(size, values.shape[1]).index_add(0, sample_of, values)
    return sums / sample_of.bincount(minlength=size)[:, None]
