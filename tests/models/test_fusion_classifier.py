import pytest
import torch
from torch import nn

from models.encoded import Dims, Encoded
from models.fusion import Concat
from models.fusion_classifier import FusionClassifier, Gates, build_fusion_classifier, gate


class First(nn.Module):
    """Stands for a temporal branch: the first frame."""

    def forward(self, sequence, length, with_tokens):
        assert not with_tokens  # Concat reads none
        return Encoded(sequence[:, 0])


def identity_model(gates=None, image=True, temporal=True):
    torch.manual_seed(0)
    dims = {"image_branch": Dims(12, None)} if image else {}
    dims |= {"temporal_branch": Dims(5, None)} if temporal else {}
    return FusionClassifier(
        nn.Flatten() if image else None,
        First() if temporal else None,
        Concat(dims, 3, hidden_size=4),
        {name: nn.Linear(branch.pooled, 3) for name, branch in dims.items()},
        gates=dict.fromkeys(dims, gates or Gates()),
    )


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return [
        torch.randn(4, 3, 2, 2),
        torch.randn(4, 6, 5),
        torch.tensor([6, 3, 1, 2]),
        torch.ones(4, 2, dtype=torch.bool),
    ]


def test_the_head_sees_both_embeddings_side_by_side(inputs):
    model = identity_model()
    output = model(*inputs)
    image, sequence = inputs[0].flatten(1), inputs[1][:, 0]
    assert torch.equal(output.logits, model.fusion_head.layers(torch.cat([image, sequence], dim=1)))
    assert torch.equal(output.embeddings["image_branch"], image)
    assert torch.equal(output.unimodal_logits["temporal_branch"], model.unimodal_heads["temporal_branch"](sequence))


@pytest.mark.parametrize("branch", ["image", "temporal"])
def test_one_branch_alone(inputs, branch):
    model = identity_model(image=branch == "image", temporal=branch == "temporal")
    output = model(*inputs)
    assert output.logits.shape == (4, 3)
    assert list(output.embeddings) == list(output.unimodal_logits) == [f"{branch}_branch"]


@pytest.mark.parametrize("fusion", [0.0, 1.0])
@pytest.mark.parametrize("own", [0.0, 0.25, 1.0, 3.0])
def test_the_unimodal_gradient_reaches_a_branch_times_own(inputs, fusion, own):
    image = inputs[0].requires_grad_()
    model = identity_model(Gates(fusion, own))
    head = model.unimodal_heads["image_branch"]
    loss = model(*inputs).unimodal_logits["image_branch"].sum()
    loss.backward()
    full = head.weight.sum(0).view(3, 2, 2).expand_as(image)
    torch.testing.assert_close(image.grad if image.grad is not None else torch.zeros_like(image), own * full)
    torch.testing.assert_close(head.weight.grad, image.detach().flatten(1).sum(0).expand(3, -1))  # whole, always


@pytest.mark.parametrize("own", [0.0, 1.0])
@pytest.mark.parametrize("fusion", [0.0, 0.25, 1.0, 3.0])
def test_the_fusions_gradient_reaches_a_branch_times_fusion(inputs, fusion, own):
    image = inputs[0].requires_grad_()
    whole, gated = identity_model(Gates(1.0, own)), identity_model(Gates(fusion, own))
    whole(*inputs).logits.square().sum().backward()
    full, image.grad = image.grad, None
    gated(*inputs).logits.square().sum().backward()
    assert full.abs().sum() > 0
    torch.testing.assert_close(image.grad if image.grad is not None else torch.zeros_like(image), fusion * full)
    for a, b in zip(whole.fusion_head.parameters(), gated.fusion_head.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)  # the head learns from all, always


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_gate_keeps_values_to_the_bit_and_one_that_is_shut_stops_nan(share):
    x = torch.randn(1000, requires_grad=True)
    y = gate(x, share)
    assert torch.equal(y, x)
    if share == 0:
        assert not y.requires_grad
    else:
        (y * torch.where(torch.arange(1000) == 3, float("nan"), 1.0)).sum().backward()
        assert x.grad[3].isnan() and (x.grad[4:] == share).all()


def test_tokens_are_gated_as_the_pooled_embedding_is():
    class Tokens(nn.Module):
        def forward(self, sequence, length, with_tokens):
            return Encoded(sequence[:, 0], sequence, torch.ones(sequence.shape[:2], dtype=torch.bool))

    class Sum(Concat):
        reads_tokens = True

        def forward(self, encoded, present, unimodal_logits):
            return encoded["temporal_branch"].tokens.sum((1, 2))[:, None].expand(-1, 3)

    gradients = {}
    for share in (0.25, 1.0):
        dims = {"temporal_branch": Dims(5, 5)}
        heads, gates = {"temporal_branch": nn.Linear(5, 3)}, {"temporal_branch": Gates(share, 0.0)}
        model = FusionClassifier(None, Tokens(), Sum(dims, 3, hidden_size=4), heads, gates=gates)
        sequence = torch.ones(2, 4, 5, requires_grad=True)
        present = torch.ones(2, 2, dtype=torch.bool)
        model(torch.zeros(2, 3, 1, 1), sequence, torch.tensor([4, 4]), present).logits.sum().backward()
        gradients[share] = sequence.grad
    assert torch.equal(gradients[0.25], 0.25 * gradients[1.0]) and gradients[1.0].abs().sum() > 0


def test_a_missing_modality_never_reaches_the_logits(inputs):
    model = identity_model()
    image, sequence, length, present = inputs
    present[1, 0] = present[2, 1] = False
    changed_image, changed_sequence = image.clone(), sequence.clone()
    changed_image[1], changed_sequence[2] = float("nan"), float("nan")
    a, b = model(*inputs).logits, model(changed_image, changed_sequence, length, present).logits
    assert torch.equal(a, b)


def test_a_model_without_an_image_branch_has_plain_values_for_its_unread_images():
    parts = {"temporal_branch": {"hidden_size": 4, "num_layers": 1, "bidirectional": False, "dropout": 0.0}}
    parts |= {
        "fusion_head": {"method": "concat", "hidden_size": 4, "dropout": 0.0},
        "gates": {},
        "seed": 0,
    }
    sizes = {"image_size": 16, "num_features": 5, "num_classes": 3}
    model, weights = build_fusion_classifier(image_branch=None, **parts, **sizes)
    assert model.image_branch is None
    assert (weights.description, weights.arguments, weights.image_size) == ("no image branch", {}, None)
    again, same = build_fusion_classifier(image_branch=None, **parts, **sizes, image_weights=weights)
    assert same == weights and again.state_dict().keys() == model.state_dict().keys()
    # A config that has got an image branch since then builds one, which that checkpoint will not fit.
    image_branch = {"architecture": "resnet18", "weights": "none"}
    other, _ = build_fusion_classifier(image_branch=image_branch, **parts, **sizes, image_weights=weights)
    assert other.image_branch is not None
