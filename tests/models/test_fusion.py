"""A second fusion method: one class and one line in FUSIONS. It reads the tokens of both branches with their masks."""

import json

import pytest
import torch
from torch import nn

import evaluate
import train
from models.fusion import FUSIONS, Fusion
from models.fusion_classifier import FusionClassifier, build_fusion_classifier
from models.temporal_branch import TemporalBranch
from tests.conftest import ROOT
from tests.waves import WAVES, add_waves


class AttentionPooling(Fusion):
    """A weighted mean of each branch's tokens, side by side."""

    reads_tokens = True

    def __init__(self, dims, num_classes, *, hidden_size, dropout=0.0):
        super().__init__(dims)
        self.scores = nn.ModuleDict({name: nn.Linear(branch.tokens, 1, bias=False) for name, branch in dims.items()})
        self.layers = nn.Linear(sum(branch.tokens for branch in dims.values()), num_classes)

    def forward(self, encoded, present, unimodal_logits):
        for branch, there in zip(encoded.values(), present.T, strict=True):
            assert torch.equal(branch.mask.any(1), there)
        means = []
        for name, branch in encoded.items():
            score = self.scores[name](branch.tokens).squeeze(2)  # (B, N)
            score = score.masked_fill(~branch.mask, torch.finfo(score.dtype).min)
            means.append((score.softmax(1)[:, :, None] * branch.tokens).sum(1))
        return self.layers(torch.cat(means, dim=1))


@pytest.fixture(params=[False, True], ids=["one direction", "bidirectional"])
def model(request, monkeypatch):
    """With squeezenet1_1, whose last map of a 64 x 64 image has nine places."""
    monkeypatch.setitem(FUSIONS, "attention_pooling", AttentionPooling)
    torch.manual_seed(0)
    model, _ = build_fusion_classifier(
        image_branch={"architecture": "squeezenet1_1", "weights": "none"},
        temporal_branch={"hidden_size": 6, "num_layers": 1, "bidirectional": request.param, "dropout": 0.0},
        fusion_head={"method": "attention_pooling", "hidden_size": 4, "dropout": 0.0},
        gates={},
        seed=0,
        image_size=64,
        num_features=5,
        num_classes=3,
    )
    return model.eval()


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    present = torch.tensor([[True, True], [False, True], [True, False], [True, True]])
    return [torch.randn(4, 3, 64, 64), torch.randn(4, 7, 5), torch.tensor([7, 2, 5, 4]), present]


def test_it_reads_the_tokens_of_both_branches(model, inputs):
    model(*inputs).logits.square().sum().backward()
    for name in ("image_branch", "temporal_branch", "fusion_head"):
        # `absent` stands in for embeddings, which this method does not read.
        gradients = [p.grad for n, p in getattr(model, name).named_parameters() if not n.startswith("absent.")]
        assert sum(g is not None and bool((g != 0).any()) for g in gradients) == len(gradients), name


@pytest.mark.parametrize("filling", [0.0, 1e6, float("nan")])
def test_padding_and_absent_samples_do_not_change_its_logits(model, inputs, filling):
    image, sequence, length, present = inputs
    logits = model(*inputs).logits
    assert torch.isfinite(logits).all()

    image, longer = image.clone(), torch.full((4, 20, 5), filling)
    for row, n in enumerate(length.tolist()):
        longer[row, :n] = sequence[row, :n]
    image[1], longer[2] = filling, filling  # what `present` says is not there
    changed = model(image, longer, length, present).logits
    torch.testing.assert_close(changed, logits, atol=1e-6, rtol=1e-5)

    # What is there counts, to the last frame.
    for row, last in ((0, 6), (3, 3)):
        other = sequence.clone()
        other[row, last] += 1
        differs = (model(inputs[0], other, length, present).logits != logits).any(1)
        assert differs.tolist() == [i == row for i in range(4)]
    other = inputs[0].clone()
    other[2, :, 32:, 32:] += 1
    assert (model(other, sequence, length, present).logits != logits).any(1).tolist() == [False, False, True, False]


def test_branches_make_tokens_only_for_a_method_that_reads_them(model, inputs, monkeypatch):
    asked = []
    forward = TemporalBranch.forward
    monkeypatch.setattr(
        TemporalBranch,
        "forward",
        lambda self, *args, with_tokens=False: (
            asked.append(with_tokens),
            forward(self, *args, with_tokens=with_tokens),
        )[1],
    )
    model(*inputs)
    plain = FusionClassifier(None, model.temporal_branch, Silent({"temporal_branch": model.temporal_branch.dims}), {})
    plain(*inputs)
    assert asked == [True, False]


class Silent(Fusion):
    def forward(self, encoded, present, unimodal_logits):
        assert all(branch.tokens is None and branch.mask is None for branch in encoded.values())
        return encoded["temporal_branch"].pooled


def test_it_is_trained_and_evaluated_by_its_name(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(FUSIONS, "attention_pooling", AttentionPooling)
    add_waves(monkeypatch)
    smoke = ["--config", str(ROOT / "configs" / "smoke.yaml"), f"run.folder={tmp_path}", "run.epochs=1"]
    small = [WAVES, "model.image_branch.weights=none", "run.device=cpu"]
    assert train.main([*smoke, *small, "model.fusion_head.method=attention_pooling"]) == 0
    best = tmp_path / "smoke" / "checkpoints" / "best.pt"
    assert torch.load(best, weights_only=True)["model"]["fusion_head.layers.weight"].shape == (3, 1280 + 128)
    printed = capsys.readouterr().out
    assert evaluate.main(["--checkpoint", str(best), "--device", "cpu"]) == 0
    report = json.loads((tmp_path / "smoke" / "evaluation" / "test" / "report.json").read_text())
    assert f"test accuracy {report['accuracy']:.4f}" in printed
