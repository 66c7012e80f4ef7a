import copy

import pytest
import torch

from app.evaluation.metrics import ClassificationMetrics
from app.evaluation.predictions import predict, validate

CPU = {"device": torch.device("cpu"), "precision": "fp32"}


@torch.no_grad()
def split_into(batch, sizes, extra_padding=0):
    """The same samples as batches of `sizes`, each cut to its own longest sequence plus padding."""
    batches, start = [], 0
    for size in sizes:
        part = {name: value[start : start + size] for name, value in batch.items()}
        longest = int(part["length"].max())
        padding = torch.full((size, extra_padding, batch["sequence"].shape[2]), float("nan"))
        part["sequence"] = torch.cat([part["sequence"][:, :longest], padding], dim=1)
        batches.append(part)
        start += size
    return batches


@pytest.mark.parametrize(("sizes", "padding"), [([6], 13), ([1] * 6, 0), ([2, 4], 3)])
def test_padding_and_batch_size_do_not_change_a_samples_logits(small_model, small_batch, sizes, padding):
    reference = torch.cat([output.logits for _, output in predict(small_model, [small_batch], **CPU)])
    batches = split_into(small_batch, sizes, padding)
    logits = torch.cat([output.logits for _, output in predict(small_model, batches, **CPU)])
    torch.testing.assert_close(logits, reference, atol=1e-6, rtol=1e-5)


def test_batch_order_does_not_change_a_samples_logits(small_model, small_batch):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = {name: value[order] for name, value in small_batch.items()}
    (_, a), (_, b) = (next(predict(small_model, [batch], **CPU)) for batch in (small_batch, shuffled))
    torch.testing.assert_close(a.logits[order], b.logits, atol=1e-6, rtol=1e-5)


def test_validation_leaves_the_model_as_it_is(small_model, small_batch):
    before = copy.deepcopy(small_model.state_dict())
    metrics = ClassificationMetrics(3, ["image_branch", "temporal_branch"])
    first = validate(small_model, [small_batch], metrics, **CPU)
    assert validate(small_model, [small_batch], metrics, **CPU) == first  # counters start afresh
    assert all(torch.equal(before[name], value) for name, value in small_model.state_dict().items())


def test_predict_yields_outside_autocast(small_model, small_batch, monkeypatch):
    monkeypatch.setitem(CPU, "precision", "bf16")
    for _, output in predict(small_model, [small_batch] * 2, **CPU):
        assert not torch.is_autocast_enabled("cpu")
        assert output.logits.dtype == torch.bfloat16  # the model itself ran inside
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
