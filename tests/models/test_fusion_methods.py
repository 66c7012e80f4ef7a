"""Each fusion method against its formula, written another way; and what holds for all of them."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, relu

import evaluate
import train
from app.evaluation.predictions import Predictions
from app.evaluation.report import untrained_absences
from app.param_groups.groups import GroupConfig
from app.param_groups.layers import biases_and_norms, layers_in_order
from app.param_groups.optimizer import OptimizerConfig, build_optimizer
from models.encoded import Dims, Encoded
from models.fusion import FUSIONS, FusionHeadConfig
from models.fusion_classifier import FusionClassifier, Gates, build_fusion_classifier
from models.image_branch import measure_dims
from models.temporal_branch import TemporalBranch
from tests.conftest import ROOT
from tests.waves import WAVES, add_waves

DIMS = {"image_branch": Dims(5, 3), "temporal_branch": Dims(4, 2)}
WITH_PARAMETERS = [name for name, method in FUSIONS.items() if method.has_parameters]
# Which of image and sequence each of four samples has: all, some, and none of one or both.
PRESENT = {
    "all": [[True, True]] * 4,
    "by sample": [[True, True], [False, True], [True, False], [False, False]],
    "no image": [[False, True]] * 4,
    "no sequence": [[True, False]] * 4,
    "nothing": [[False, False]] * 4,
}


def head_of(method, dims=DIMS, classes=3, **settings):
    """In float64, with stand-ins that are not 0."""
    torch.manual_seed(0)
    head = FUSIONS[method](dims, classes, **{"hidden_size": 6, **settings}).double().eval()
    for vector in head.absent.values():
        nn.init.normal_(vector)
    return head


@pytest.fixture
def encoded():
    """Of three samples, whose tokens are real up to a sample's own count."""
    generator = torch.Generator().manual_seed(1)

    def make(dims, tokens, counts):
        mask = torch.arange(tokens) < torch.tensor(counts)[:, None]
        values = torch.randn(3, tokens, dims.tokens, generator=generator, dtype=torch.float64)
        pooled = torch.randn(3, dims.pooled, generator=generator, dtype=torch.float64)
        return Encoded(pooled, values * mask[:, :, None], mask)

    return {
        "image_branch": make(DIMS["image_branch"], 4, [4, 4, 0]),
        "temporal_branch": make(DIMS["temporal_branch"], 6, [6, 2, 0]),
    }


ALL = torch.ones(3, 2, dtype=torch.bool)


def affine(layer, x):
    """Of one sample, x (D,), by einsum; `layer` is what nn.Linear has."""
    return torch.einsum("od,d->o", layer.weight, x) + layer.bias


def each_sample(encoded):
    for i in range(3):
        yield encoded["image_branch"].pooled[i], encoded["temporal_branch"].pooled[i]


def test_concat(encoded):
    head = head_of("concat")
    first, last = head.layers[0], head.layers[3]
    expected = [affine(last, relu(affine(first, torch.cat([x, y])))) for x, y in each_sample(encoded)]
    torch.testing.assert_close(head(encoded, ALL, {}), torch.stack(expected))


def test_sum(encoded):
    head = head_of("sum")
    u, v, first, last = head.projections.image_branch, head.projections.temporal_branch, head.layers[0], head.layers[3]
    expected = [
        affine(last, relu(affine(first, relu(affine(u, x)) + relu(affine(v, y))))) for x, y in each_sample(encoded)
    ]
    torch.testing.assert_close(head(encoded, ALL, {}), torch.stack(expected))


def test_gated_has_the_papers_gate_of_two(encoded):
    head = head_of("gated")
    expected = []
    for x, y in each_sample(encoded):
        z = torch.sigmoid(affine(head.unit.gates, torch.cat([x, y])))
        h = z * torch.tanh(affine(head.unit.image_branch, x)) + (1 - z) * torch.tanh(
            affine(head.unit.temporal_branch, y)
        )
        expected.append(affine(head.layers[1], h))
    torch.testing.assert_close(head(encoded, ALL, {}), torch.stack(expected))


def test_attention_by_hand(encoded):
    """Sample by sample over its real tokens and a zero; the third has none, so it gets what the zero's value gives."""
    head = head_of("attention", hidden_size=4)
    layer, width = head.attention, 4
    assert layer.num_heads == 4
    weights = zip(layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True)
    (wq, bq), (wk, bk), (wv, bv) = weights
    expected = []
    for i in range(3):
        tokens = [
            affine(getattr(head.projections, f"{name}_tokens"), token)
            for name, branch in encoded.items()
            for token, real in zip(branch.tokens[i], branch.mask[i], strict=True)
            if real
        ]
        joined = []
        for name, branch in encoded.items():
            query = affine(getattr(head.projections, f"{name}_query"), branch.pooled[i])
            q = wq @ query + bq
            found = []
            for h in range(width):  # a head has one value here, so its scores are products of numbers
                keys = [*((wk @ token + bk)[h] for token in tokens), torch.zeros((), dtype=torch.float64)]
                values = [*((wv @ token + bv)[h] for token in tokens), torch.zeros((), dtype=torch.float64)]
                scores = torch.stack([(q[h] * key).exp() for key in keys])
                found.append((scores / scores.sum() * torch.stack(values)).sum())
            joined.append(query + affine(layer.out_proj, torch.stack(found)))
        expected.append(affine(head.layers[3], relu(affine(head.layers[0], torch.cat(joined)))))
    torch.testing.assert_close(head(encoded, ALL, {}), torch.stack(expected))


@pytest.mark.parametrize(("hidden_size", "heads"), [(128, 4), (6, 2), (5, 1), (1, 1)])
def test_attention_has_heads_for_any_hidden_size(hidden_size, heads):
    assert FUSIONS["attention"](DIMS, 3, hidden_size=hidden_size).attention.num_heads == heads


def test_late_by_hand(encoded):
    """Two classes: probabilities 3/4 and 1/5 of the first, alone or as the root of their product."""
    head = head_of("late", classes=2)
    image = torch.tensor([[0.75, 0.25]] * 4).log() + 7
    temporal = torch.tensor([[0.2, 0.8]] * 4).log() - 7  # a constant on all logits is no opinion
    present = torch.tensor(PRESENT["by sample"])
    logits = head(encoded, present, {"image_branch": image, "temporal_branch": temporal})
    both = [math.sqrt(0.75 * 0.2), math.sqrt(0.25 * 0.8)]
    expected = torch.tensor([both, [0.2, 0.8], [0.75, 0.25], [1.0, 1.0]]).log()
    torch.testing.assert_close(logits, expected)


def test_late_never_reads_the_opinion_of_a_branch_without_its_input(encoded):
    head, present = head_of("late"), torch.tensor(PRESENT["by sample"])
    opinions = {name: torch.randn(4, 3) for name in DIMS}
    spoiled = {
        name: logits.masked_fill(~present[:, i, None], float("nan"))
        for i, (name, logits) in enumerate(opinions.items())
    }
    assert torch.equal(head(encoded, present, opinions), head(encoded, present, spoiled))


# What holds for every method: a whole model, in which a branch may be missing.


@pytest.fixture(params=FUSIONS)
def method(request):
    return request.param


class Places(nn.Module):
    """A CNN that gives 2 x 2 places of a 4 x 4 image."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 10, 3, stride=2, padding=1), nn.BatchNorm2d(10), nn.ReLU())

    def forward(self, image):
        return self.features(image).mean((2, 3))


def model_of(method, branches=("image_branch", "temporal_branch"), **settings):
    """Of that CNN, and an LSTM in two directions."""
    torch.manual_seed(0)
    network = temporal = None
    dims = {}
    if "image_branch" in branches:
        network = Places()
        dims["image_branch"] = measure_dims(network, 4, "")
    if "temporal_branch" in branches:
        temporal = TemporalBranch(5, hidden_size=6, bidirectional=True)
        dims["temporal_branch"] = temporal.dims
    heads = {name: nn.Linear(branch.pooled, 3) for name, branch in dims.items()}
    head = FUSIONS[method](dims, 3, **{"hidden_size": 8, "dropout": 0.1, **settings})
    for vector in head.absent.values():
        nn.init.normal_(vector)
    return FusionClassifier(network, temporal, head, heads, gates=dict.fromkeys(dims, Gates(1.0, 1.0)))


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return [torch.randn(4, 3, 4, 4), torch.randn(4, 7, 5), torch.tensor([7, 2, 5, 4])]


@pytest.mark.parametrize("kind", ["all", "no image", "no sequence"])
def test_what_is_encoded_and_then_fused_is_what_the_model_says(method, kind, inputs):
    model, present = model_of(method).eval(), torch.tensor(PRESENT[kind])
    by_name = dict(zip(("image", "sequence", "length"), inputs, strict=True)) | {"present": torch.ones(4, 2).bool()}
    encoded = {
        branch: model.encode(branch, by_name) if present[0, column] else None
        for column, branch in enumerate(("image_branch", "temporal_branch"))
    }
    assert torch.equal(model.fuse(encoded, 4), model(*inputs, present).logits)


def total_loss(output):
    label = torch.tensor([0, 1, 2, 0])
    return sum(cross_entropy(logits.float(), label) for logits in (output.logits, *output.unimodal_logits.values()))


BRANCHES = [("image_branch",), ("temporal_branch",), ("image_branch", "temporal_branch")]


@pytest.mark.parametrize("branches", BRANCHES, ids=["image", "sequence", "both"])
@pytest.mark.parametrize("present", PRESENT.values(), ids=PRESENT)
def test_logits_and_gradients_are_finite_whatever_is_present(method, branches, present, inputs):
    model = model_of(method, branches).train()
    present = torch.tensor(present)
    output = model(*inputs, present)
    assert output.logits.shape == (4, 3)
    for name in branches:
        column = ("image_branch", "temporal_branch").index(name)
        absent = output.embeddings[name][~present[:, column]]
        stand_in = model.fusion_head.absent[name] if model.fusion_head.has_parameters else torch.zeros(absent.shape[1])
        assert torch.equal(absent, stand_in.expand_as(absent))
    loss = total_loss(output)
    if loss.requires_grad:  # not where late has nothing to read
        loss.backward()
    assert torch.isfinite(output.logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("branches", BRANCHES, ids=["image", "sequence", "both"])
def test_every_parameter_of_a_method_learns(method, branches, inputs):
    """Over a batch with all patterns; a gate or query that nothing reads would be a silent weight."""
    model = model_of(method, branches, dropout=0.0).train()
    total_loss(model(*inputs, torch.tensor(PRESENT["by sample"]))).backward()
    for name, parameter in model.fusion_head.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert FUSIONS[method].has_parameters == any(True for _ in model.fusion_head.parameters())


def test_a_sample_is_the_same_alone_and_beside_any_other(method, inputs):
    model = model_of(method).eval()
    for name, present in PRESENT.items():
        present = torch.tensor(present)
        whole = model(*inputs, present).logits
        alone = torch.cat([model(*(t[i : i + 1] for t in inputs), present[i : i + 1]).logits for i in range(4)])
        torch.testing.assert_close(whole, alone, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("filling", [0.0, 1e6, float("nan")])
def test_padding_and_what_is_not_there_change_nothing_to_the_bit(method, inputs, filling):
    model, (image, sequence, length) = model_of(method).train(), inputs
    present = torch.tensor(PRESENT["by sample"])
    other, padded = image.clone(), sequence.clone()
    other[~present[:, 0]] = padded[~present[:, 1]] = filling
    padded[torch.arange(7) >= length[:, None]] = filling
    results = []
    for batch in ((image, sequence), (other, padded)):
        each = copy.deepcopy(model)
        torch.manual_seed(2)  # dropout
        output = each(*batch, length, present)
        total_loss(output).backward()
        results.append([output.logits, *(p.grad for p in each.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    longer = torch.cat([padded, torch.full((4, 13, 5), filling)], dim=1)
    model.eval()
    a, b = model(image, sequence, length, present).logits, model(image, longer, length, present).logits
    if FUSIONS[method].reads_tokens:  # a sum over more terms, the others 0, may be rounded otherwise
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    else:
        assert torch.equal(a, b)


def test_each_branch_counts_where_it_is_there(method, inputs):
    model = model_of(method).eval()
    image, sequence, length = inputs
    for name, present in PRESENT.items():
        present = torch.tensor(present)
        logits = model(image, sequence, length, present).logits
        differs = [
            (model(*changed, length, present).logits != logits).any(1)
            for changed in ((image + 1, sequence), (image, sequence + 1))
        ]
        assert torch.equal(torch.stack(differs, dim=1), present), name


def test_bf16(method, inputs):
    model = model_of(method).train()
    for present in PRESENT.values():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(*inputs, torch.tensor(present))
        loss = total_loss(output)
        if loss.requires_grad:
            loss.backward()
        assert torch.isfinite(output.logits).all()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_what_the_fusion_loss_trains(method, inputs):
    """Each branch; but nothing at all under late, whose opinions come from heads that learn from their own losses."""
    model = model_of(method).train()
    output = model(*inputs, torch.tensor(PRESENT["all"]))
    if method == "late":
        assert not output.logits.requires_grad and all(o.requires_grad for o in output.unimodal_logits.values())
        return
    output.logits.square().sum().backward()
    for part in (model.image_branch, model.temporal_branch):
        assert all(p.grad is not None and p.grad.any() for p in part.parameters())
    assert all(p.grad is None for p in model.unimodal_heads.parameters())


def test_late_needs_no_stand_in_that_was_trained():
    """Where concat's is 0 as at first, evaluate.py warns."""
    one, logits, present = torch.arange(1), torch.zeros(1, 3), torch.tensor([[False, True]])
    predictions = Predictions([*"abc"], one, one, present, logits, dict.fromkeys(DIMS, logits))
    assert untrained_absences(predictions, FUSIONS["late"](DIMS, 3).absent) == []
    assert len(untrained_absences(predictions, FUSIONS["concat"](DIMS, 3, hidden_size=4).absent)) == 1


def test_late_is_trained_resumed_and_evaluated_without_a_group_of_its_own(monkeypatch, tmp_path, capsys):
    add_waves(monkeypatch)
    groups = ", ".join(f"{name}: {{lr: 1.0e-3}}" for name in ("image_branch", "temporal_branch", "unimodal_heads"))
    arguments = ["--config", str(ROOT / "configs" / "smoke.yaml"), f"run.folder={tmp_path}", WAVES, "run.device=cpu"]
    arguments += ["model.image_branch.weights=none", "model.fusion_head.method=late", f"optimizer.groups={{{groups}}}"]
    arguments += ["learning_rates.reductions=[]"]
    assert train.main([*arguments, "run.epochs=1"]) == 2
    line = (
        "balance.gradients.image_branch.own: found 0, but with model.fusion_head.method=late a branch learns from its"
    )
    assert line in capsys.readouterr().err
    arguments += [f"balance.gradients.{branch}.own=1" for branch in ("image_branch", "temporal_branch")]
    assert train.main([*arguments, "run.epochs=1"]) == 0
    assert train.main([*arguments, "run.epochs=2", "--resume", "auto"]) == 0
    best = tmp_path / "smoke" / "checkpoints" / "best.pt"
    assert not any(name.startswith("fusion_head") for name in torch.load(best, weights_only=True)["model"])
    printed = capsys.readouterr().out
    assert evaluate.main(["--checkpoint", str(best), "--device", "cpu"]) == 0
    report = json.loads((tmp_path / "smoke" / "evaluation" / "test" / "report.json").read_text())
    assert f"test accuracy {report['accuracy']:.4f}" in printed


# Groups, layers, settings.


@pytest.mark.parametrize("method", WITH_PARAMETERS)
@pytest.mark.parametrize("branches", BRANCHES, ids=["image", "sequence", "both"])
def test_biases_and_stand_ins_are_undecayed_and_layers_go_from_input_to_logits(method, branches):
    head = model_of(method, branches).fusion_head
    names = {parameter: name for name, parameter in head.named_parameters()}
    undecayed = {names[parameter] for parameter in biases_and_norms(head)}
    assert undecayed == {name for name in names.values() if name.startswith("absent.") or name.endswith("bias")}
    layers = [{names[parameter].split(".")[0] for parameter in layer} for layer in layers_in_order(head)]
    between = {"concat": [], "attention": [{"attention"}, {"layers"}], "sum": [{"layers"}]}.get(method, [])
    first = {"concat": "layers", "gated": "unit"}.get(method, "projections")
    assert layers == [{"absent", first}, *between, {"layers"}]


def test_a_group_takes_all_of_a_method_and_late_needs_none(method):
    model = model_of(method)
    groups = ["image_branch", "temporal_branch", "unimodal_heads", *(["fusion_head"] if method != "late" else [])]
    config = OptimizerConfig(name="AdamW", groups={name: GroupConfig(lr=0.1, no_decay=True) for name in groups})
    _, built = build_optimizer(model, config)
    assert sum(len(group.parameters) for group in built) == len(list(model.parameters()))


def test_every_method_is_named_where_the_config_describes_it(method):
    assert method in FusionHeadConfig.model_fields["method"].description.replace(",", " ").split()


def build(method, **changes):
    settings = {
        "image_branch": {"architecture": "squeezenet1_1", "weights": "none"},
        "temporal_branch": {"hidden_size": 6, "num_layers": 1, "bidirectional": False, "dropout": 0.0},
        "fusion_head": {"hidden_size": 4, "dropout": 0.0, "method": method},
        "gates": {},
        "seed": 0,
    }
    settings["fusion_head"] |= changes.pop("fusion_head", {})
    sizes = {"image_size": 64, "num_features": 5, "num_classes": 3}
    return build_fusion_classifier(**(settings | changes), **sizes)[0]


def test_the_settings_of_the_config_reach_the_method():
    head = build("gated", fusion_head={"hidden_size": 7, "dropout": 0.25}).fusion_head
    assert head.unit.image_branch.out_features == 7 and head.layers[0].p == 0.25


def test_an_architecture_without_tokens_is_an_error_where_they_are_read(monkeypatch):
    monkeypatch.setattr("models.image_branch._LAST_MAP", ())
    build("concat")
    message = (
        r"^model.image_branch.architecture: squeezenet1_1 gives no tokens, which model.fusion_head.method=attention "
        r"reads; choose another architecture or method$"
    )
    with pytest.raises(ValueError, match=message):
        build("attention")
