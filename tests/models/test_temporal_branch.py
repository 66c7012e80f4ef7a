"""Oracle: the same weights run over each sequence alone, and packed."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from models import temporal_branch
from models.temporal_branch import TemporalBranch, autocast_runs_lstm

KINDS = [(1, False), (3, False), (1, True), (2, True)]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]} layers, bidirectional {kind[1]}")
def branch(request):
    torch.manual_seed(0)
    num_layers, bidirectional = request.param
    return TemporalBranch(5, hidden_size=8, num_layers=num_layers, bidirectional=bidirectional, dropout=0.5).eval()


@pytest.fixture
def batch():
    length = torch.tensor([3, 11, 1, 7, 11])
    return torch.randn(5, 11, 5, generator=torch.Generator().manual_seed(2)), length


def test_equal_to_each_sequence_alone(branch, batch):
    sequence, length = batch
    together = branch(sequence, length).pooled
    assert together.shape == (5, branch.dims.pooled)
    for row, n in enumerate(length.tolist()):
        alone = branch(sequence[row : row + 1, :n], length[row : row + 1]).pooled[0]
        torch.testing.assert_close(together[row], alone, atol=1e-6, rtol=1e-5)


def test_equal_to_the_packed_lstm(branch, batch):
    sequence, length = batch
    packed = pack_padded_sequence(sequence, length, batch_first=True, enforce_sorted=False)
    _, (h_n, _) = branch.lstm(packed)
    expected = torch.cat([h_n[-2], h_n[-1]], dim=1) if branch.lstm.bidirectional else h_n[-1]
    torch.testing.assert_close(branch(sequence, length).pooled, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("filling", [0.0, 1e6, float("nan")])
def test_padding_changes_neither_output_nor_gradient(branch, batch, filling):
    sequence, length = batch
    longer = torch.full((5, 20, 5), filling)
    for row, n in enumerate(length.tolist()):
        longer[row, :n] = sequence[row, :n]
    outputs, gradients = [], []
    for x in (sequence, longer):
        branch.zero_grad()
        outputs.append(branch(x, length).pooled)
        outputs[-1].square().sum().backward()
        gradients.append([p.grad.clone() for p in branch.parameters()])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-6, rtol=1e-5)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_tokens_are_each_sequences_own_frames(branch, batch):
    sequence, length = batch
    plain, encoded = branch(sequence, length), branch(sequence, length, with_tokens=True)
    assert plain.tokens is None and plain.mask is None
    assert torch.equal(plain.pooled, encoded.pooled)
    assert encoded.tokens.shape == (5, 11, branch.dims.tokens)
    assert encoded.mask.sum(1).tolist() == length.tolist()
    for row, n in enumerate(length.tolist()):
        assert encoded.mask[row, :n].all()
        alone, _ = branch.lstm(sequence[row : row + 1, :n])
        torch.testing.assert_close(encoded.tokens[row, :n], alone[0], atol=1e-6, rtol=1e-5)


def test_tokens_draw_no_random_number(branch, batch):
    branch.train()
    outputs = []
    for with_tokens in (False, True):
        torch.manual_seed(3)
        outputs.append((branch(*batch, with_tokens=with_tokens).pooled, torch.rand(3)))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize("runs", [True, False])
def test_under_autocast_the_lstm_runs_in_fp32_where_there_is_none_in_bf16(branch, batch, monkeypatch, runs):
    if runs and not autocast_runs_lstm("cpu", torch.bfloat16):
        pytest.skip("this CPU has no LSTM in bf16")
    monkeypatch.setattr(temporal_branch, "autocast_runs_lstm", lambda *args: runs)
    expected = branch(*batch, with_tokens=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = branch(*batch, with_tokens=True)
    if not runs:
        assert torch.equal(found.pooled, expected.pooled) and torch.equal(found.tokens, expected.tokens)
    else:
        assert not torch.equal(found.pooled, expected.pooled)
    found.pooled.float().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in branch.parameters())


def test_asking_for_an_lstm_in_bf16_draws_no_random_number():
    state = torch.get_rng_state()
    with torch.inference_mode():
        assert autocast_runs_lstm.__wrapped__("cpu", torch.bfloat16) in (True, False)
    assert torch.equal(state, torch.get_rng_state())
