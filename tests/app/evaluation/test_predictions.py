import copy

import pytest
import torch

from app.evaluation.metrics import ClassificationMetrics
from app.evaluation.predictions import predict, validate, with_cells
from app.training.objective import Objective

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
    metrics = ClassificationMetrics([*"abc"], ["image_branch", "temporal_branch"], Objective())
    first, predictions = validate(small_model, [small_batch], metrics, **CPU)
    assert len(predictions) == 6 and predictions.correct.float().mean() == pytest.approx(first["accuracy"])
    assert validate(small_model, [small_batch], metrics, **CPU)[0] == first  # counters start afresh
    assert all(torch.equal(before[name], value) for name, value in small_model.state_dict().items())


def test_predict_yields_outside_autocast(small_model, small_batch, monkeypatch):
    monkeypatch.setitem(CPU, "precision", "bf16")
    for _, output in predict(small_model, [small_batch] * 2, **CPU):
        assert not torch.is_autocast_enabled("cpu")
        assert output.logits.dtype == torch.bfloat16  # the model itself ran inside
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_windows_of_a_sample_give_the_mean_of_what_each_gives_alone(small_model, small_batch):
    counts = torch.tensor([1, 3, 2])
    batch = {name: value[:3] for name, value in small_batch.items()} | {"windows": counts}
    batch |= {name: small_batch[name] for name in ("sequence", "length")}  # (6, T, F): all windows in turn
    (_, output) = next(predict(small_model, [batch], **CPU))
    starts = [0, 1, 4]
    for row, (start, count) in enumerate(zip(starts, counts.tolist(), strict=True)):
        alone = []
        for window in range(start, start + count):
            part = {name: value[row : row + 1] for name, value in batch.items() if name != "windows"}
            part |= {name: small_batch[name][window : window + 1] for name in ("sequence", "length")}
            alone.append(next(predict(small_model, [part], **CPU))[1])
        torch.testing.assert_close(output.logits[row], torch.cat([one.logits for one in alone]).mean(0))
        for branch, logits in output.unimodal_logits.items():
            mean = torch.cat([one.unimodal_logits[branch] for one in alone]).mean(0)
            torch.testing.assert_close(logits[row], mean)


def test_no_column_of_the_input_is_lost_under_a_name_that_is_taken():
    rows = [{"index": 0, "label": "a", "error": ""}, {"index": "", "label": "", "error": "e"}]
    cells = [{"row": "2", "label": "b", "input label": "c", "error": "d"}] * 2
    kept = {"row": "2", "input input label": "b", "input label": "c", "input error": "d"}
    assert with_cells(rows, cells) == [row | kept for row in rows]
