"""Samples without an image or a sequence: what stands in for them, and what they leave as it is."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from models.encoded import Dims
from models.fusion import Concat, Fusion
from models.fusion_classifier import FusionClassifier, Gates
from models.image_branch import build_network, measure_dims, remove_classification_layer
from models.temporal_branch import TemporalBranch
from tests.models.test_fusion import AttentionPooling

BRANCHES = ("image_branch", "temporal_branch")


class Linear(Fusion):
    """So simple that its gradient can be written down."""

    def __init__(self, dims, num_classes):
        super().__init__(dims)
        self.layer = nn.Linear(sum(branch.pooled for branch in dims.values()), num_classes)

    def forward(self, encoded, present, unimodal_logits):
        return self.layer(torch.cat([branch.pooled for branch in encoded.values()], dim=1))


HALF = dict.fromkeys(("image_branch", "temporal_branch"), Gates(1.0, 0.5))


class Watching(AttentionPooling):
    """Reads tokens, and keeps what it was given."""

    def forward(self, encoded, present, unimodal_logits):
        self.encoded, self.present = encoded, present
        return super().forward(encoded, present, unimodal_logits)


@pytest.fixture(params=[False, True], ids=["one direction", "bidirectional"])
def build(request):
    """A model with a given fusion method: shufflenet (BatchNorm throughout, 2 x 2 places of a 64 x 64 image), LSTM."""

    def make(method, **settings):
        torch.manual_seed(0)
        network = remove_classification_layer(build_network("shufflenet_v2_x0_5"))
        temporal = TemporalBranch(5, hidden_size=6, bidirectional=request.param, dropout=0.1)
        dims = {"image_branch": measure_dims(network, 64, ""), "temporal_branch": temporal.dims}
        heads = {name: nn.Linear(branch.pooled, 3) for name, branch in dims.items()}
        model = FusionClassifier(network, temporal, method(dims, 3, **settings), heads, gates=HALF)
        for vector in model.fusion_head.absent.values():
            nn.init.normal_(vector)  # as if trained
        return model

    return make


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    length = torch.tensor([7, 2, 5, 4])
    present = torch.tensor([[True, True], [False, True], [True, False], [True, True]])
    return [torch.randn(4, 3, 64, 64), torch.randn(4, 7, 5), length, present]


def spoil(image, sequence, length, present):
    """NaN wherever nothing is to be read, and lengths that no LSTM takes."""
    image, sequence, length = image.clone(), sequence.clone(), length.clone()
    image[~present[:, 0]] = sequence[~present[:, 1]] = float("nan")
    length[~present[:, 1]] = 0
    return image, sequence, length, present


@pytest.mark.parametrize("filled", ["as it was", "spoiled"])
def test_a_branch_runs_as_if_absent_samples_were_not_in_the_batch(build, inputs, filled):
    """Embeddings, opinions and the statistics of norms, to the bit."""
    model = build(Concat, hidden_size=7).train()
    alone, whole = copy.deepcopy(model), inputs if filled == "as it was" else spoil(*inputs)
    for column, branch in enumerate(BRANCHES):
        rows = inputs[3][:, column]
        torch.manual_seed(2)  # dropout
        output = model(*whole)
        torch.manual_seed(2)
        present = alone(*(tensor[rows] for tensor in (*inputs[:3], torch.ones(4, 2, dtype=torch.bool))))
        assert torch.equal(output.embeddings[branch][rows], present.embeddings[branch])
        torch.testing.assert_close(output.unimodal_logits[branch][rows], present.unimodal_logits[branch])
        assert (output.unimodal_logits[branch][~rows] == 0).all()
        for name, buffer in getattr(model, branch).named_buffers():
            assert torch.equal(buffer, getattr(alone, branch).get_buffer(name)), name
        alone.load_state_dict(model.state_dict())


def test_gradients_of_what_is_there_do_not_see_what_is_not(build, inputs):
    model = build(Concat, hidden_size=7).train()
    spoiled = copy.deepcopy(model)
    for each, batch in ((model, inputs), (spoiled, spoil(*inputs))):
        torch.manual_seed(2)
        output = each(*batch)
        sum(logits.square().sum() for logits in (output.logits, *output.unimodal_logits.values())).backward()
    for (name, a), b in zip(model.named_parameters(), spoiled.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad) and torch.isfinite(a.grad).all(), name


def test_where_all_is_there_nothing_stands_in(build, inputs, monkeypatch):
    model = build(Concat, hidden_size=7).eval()
    monkeypatch.setattr(model.fusion_head, "fill_in", None)
    read = []
    for branch in (model.image_branch, model.temporal_branch):
        branch.register_forward_pre_hook(lambda _, tensors: read.extend(tensors))
    output = model(*inputs[:3], torch.ones(4, 2, dtype=torch.bool))
    assert all(mine is given for mine, given in zip(read, inputs[:3], strict=True))
    output.logits.sum().backward()
    assert all(vector.grad is None for vector in model.fusion_head.absent.values())


def test_the_absent_vector_is_what_the_head_reads_by_hand(build, inputs):
    model = build(Linear).eval()
    logits, embeddings, _ = model(*inputs)
    absent, layer = model.fusion_head.absent, model.fusion_head.layer
    rows = [
        [embeddings["image_branch"][0], embeddings["temporal_branch"][0]],
        [absent["image_branch"], embeddings["temporal_branch"][1]],
        [embeddings["image_branch"][2], absent["temporal_branch"]],
        [embeddings["image_branch"][3], embeddings["temporal_branch"][3]],
    ]
    torch.testing.assert_close(logits, layer(torch.stack([torch.cat(row) for row in rows])))
    assert torch.equal(embeddings["image_branch"][1], absent["image_branch"])


def test_the_absent_vectors_gradient_is_summed_over_the_samples_that_it_stands_in_for(build, inputs):
    model = build(Linear).eval()
    present = torch.tensor([[False, True], [True, True], [True, False], [False, True]])
    weight = torch.randn(4, 3)
    (model(*inputs[:3], present).logits * weight).sum().backward()
    widths = [len(model.fusion_head.absent[branch]) for branch in BRANCHES]
    parts = dict(zip(BRANCHES, model.fusion_head.layer.weight.detach().split(widths, dim=1), strict=True))
    for column, branch in enumerate(BRANCHES):
        expected = torch.einsum("bc,cd->d", weight[~present[:, column]], parts[branch])
        torch.testing.assert_close(model.fusion_head.absent[branch].grad, expected)


@pytest.mark.parametrize(("method", "settings"), [(Concat, {"hidden_size": 7}), (Watching, {"hidden_size": 7})])
def test_a_samples_logits_are_the_same_whatever_the_others_lack(build, inputs, method, settings):
    """All 81 ways in which four samples have one or both: each against the same sample in a batch of one."""
    model = build(method, **settings).eval()
    kinds = torch.tensor([[True, True], [False, True], [True, False]])
    with torch.no_grad():
        alone = torch.stack(
            [
                torch.cat([model(*(t[i : i + 1] for t in inputs[:3]), kind[None]).logits for i in range(4)])
                for kind in kinds
            ]
        )  # (kinds, samples, classes)
        for chosen in itertools.product(range(3), repeat=4):
            present = kinds[list(chosen)]
            logits = model(*spoil(*inputs[:3], present)).logits
            torch.testing.assert_close(logits, alone[list(chosen), range(4)], atol=1e-5, rtol=1e-5)


def test_tokens_of_an_absent_sample_are_zeros_outside_the_mask(build, inputs):
    model = build(Watching, hidden_size=7).eval()
    model(*inputs)
    head = model.fusion_head
    image, sequence = (head.encoded[branch] for branch in BRANCHES)
    assert torch.equal(head.present, inputs[3])
    assert image.mask.tolist() == [[there] * 4 for there in (True, False, True, True)]
    assert sequence.mask.sum(1).tolist() == [7, 2, 0, 4]
    for encoded in (image, sequence):
        assert (encoded.tokens[~encoded.mask] == 0).all() and (encoded.tokens[encoded.mask] != 0).any(1).all()

    present = torch.tensor([[False, True]] * 4)
    model(*inputs[:3], present)
    image, sequence = (head.encoded[branch] for branch in BRANCHES)
    assert image.tokens.shape == (4, 1, 1024) and not image.tokens.any() and not image.mask.any()
    assert sequence.tokens.shape[:2] == (4, 7) and sequence.mask.sum(1).tolist() == [7, 2, 5, 4]


@pytest.mark.parametrize("method", [Concat, Watching])
@pytest.mark.parametrize("missing", BRANCHES)
def test_a_branch_whose_input_the_whole_batch_lacks_is_not_run(build, inputs, missing, method, monkeypatch):
    model = build(method, hidden_size=7).train()
    column = BRANCHES.index(missing)
    present = torch.ones(4, 2, dtype=torch.bool)
    present[:, column] = False
    monkeypatch.setattr(getattr(model, missing), "forward", None)
    output = model(*spoil(*inputs[:3], present))
    assert output.embeddings[missing].equal(model.fusion_head.absent[missing].expand(4, -1))
    assert output.unimodal_logits[missing].shape == (4, 3) and not output.unimodal_logits[missing].any()
    sum(logits.square().sum() for logits in (output.logits, *output.unimodal_logits.values())).backward()
    untouched = [getattr(model, missing), model.unimodal_heads[missing]]
    assert all(parameter.grad is None for module in untouched for parameter in module.parameters())


def test_one_branch_without_any_of_its_inputs():
    dims = {"temporal_branch": Dims(6, 6)}
    model = FusionClassifier(None, TemporalBranch(5, hidden_size=6), Concat(dims, 3, hidden_size=4), {})
    batch = [torch.empty(2, 3, 8, 8), torch.full((2, 4, 5), float("nan")), torch.ones(2, dtype=torch.int64)]
    logits = model(*batch, torch.zeros(2, 2, dtype=torch.bool)).logits
    torch.testing.assert_close(logits, model.fusion_head.layers(torch.zeros(2, 6)))


def test_bf16(build, inputs):
    model = build(Watching, hidden_size=7).train()
    for present in (inputs[3], torch.tensor([[False, True]] * 4), torch.tensor([[True, False]] * 4)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(*spoil(*inputs[:3], present))
        cross_entropy(output.logits.float(), torch.tensor([0, 1, 2, 0])).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
