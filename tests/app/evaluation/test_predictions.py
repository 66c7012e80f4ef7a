import copy

import pytest
import torch

from app.evaluation.predictions import predict, with_cells

NAMES = [*"abc"]
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
    reference = predict(small_model, [small_batch], NAMES, **CPU).logits
    batches = split_into(small_batch, sizes, padding)
    logits = predict(small_model, batches, NAMES, **CPU).logits
    torch.testing.assert_close(logits, reference, atol=1e-6, rtol=1e-5)


def test_batch_order_does_not_change_a_samples_logits(small_model, small_batch):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = {name: value[order] for name, value in small_batch.items()}
    a, b = (predict(small_model, [batch], NAMES, **CPU) for batch in (small_batch, shuffled))
    torch.testing.assert_close(a.logits[order], b.logits, atol=1e-6, rtol=1e-5)


def test_predicting_leaves_the_model_as_it_is(small_model, small_batch):
    before = copy.deepcopy(small_model.state_dict())
    first = predict(small_model, [small_batch], NAMES, **CPU)
    assert len(first) == 6 and torch.equal(first.index, small_batch["index"])
    assert predict(small_model, [small_batch], NAMES, **CPU).rows() == first.rows()
    assert all(torch.equal(before[name], value) for name, value in small_model.state_dict().items())


def test_a_table_that_no_row_can_be_read_of_has_no_predictions_but_their_columns(small_model, small_batch):
    nothing = predict(small_model, [], NAMES, **CPU)
    assert len(nothing) == len(nothing.labelled()) == 0 and nothing.rows() == []
    assert [*nothing.columns()] == [*predict(small_model, [small_batch], NAMES, **CPU).rows()[0]]
    assert [*nothing.columns()][-4:] == ["temporal_branch", "p(a)", "p(b)", "p(c)"]


def test_windows_of_a_sample_give_the_mean_of_what_each_gives_alone(small_model, small_batch):
    counts = torch.tensor([1, 3, 2])
    batch = {name: value[:3] for name, value in small_batch.items()} | {"windows": counts}
    batch |= {name: small_batch[name] for name in ("sequence", "length")}  # (6, T, F): all windows in turn
    found = predict(small_model, [batch], NAMES, **CPU)
    starts = [0, 1, 4]
    for row, (start, count) in enumerate(zip(starts, counts.tolist(), strict=True)):
        alone = []
        for window in range(start, start + count):
            part = {name: value[row : row + 1] for name, value in batch.items() if name != "windows"}
            part |= {name: small_batch[name][window : window + 1] for name in ("sequence", "length")}
            alone.append(predict(small_model, [part], NAMES, **CPU))
        torch.testing.assert_close(found.logits[row], torch.cat([one.logits for one in alone]).mean(0))
        for branch, logits in found.unimodal_logits.items():
            mean = torch.cat([one.unimodal_logits[branch] for one in alone]).mean(0)
            torch.testing.assert_close(logits[row], mean)


def test_no_column_of_the_input_is_lost_under_a_name_that_is_taken():
    rows = [{"index": 0, "label": "a", "error": ""}, {"index": "", "label": "", "error": "e"}]
    cells = [{"row": "2", "label": "b", "input label": "c", "error": "d"}] * 2
    kept = {"row": "2", "input input label": "b", "input label": "c", "input error": "d"}
    assert with_cells(rows, cells) == [row | kept for row in rows]
