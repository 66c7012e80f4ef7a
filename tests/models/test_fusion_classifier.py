import pytest
import torch
from torch import nn

from models.encoded import Dims, Encoded
from models.fusion import Concat
from models.fusion_classifier import FusionClassifier, build_fusion_classifier


class First(nn.Module):
    """Stands for a temporal branch: the first frame."""

    def forward(self, sequence, length, with_tokens):
        assert not with_tokens  # Concat reads none
        return Encoded(sequence[:, 0])


def identity_model(loss_weight=0.0, image=True, temporal=True):
    torch.manual_seed(0)
    dims = {"image_branch": Dims(12, None)} if image else {}
    dims |= {"temporal_branch": Dims(5, None)} if temporal else {}
    return FusionClassifier(
        nn.Flatten() if image else None,
        First() if temporal else None,
        Concat(dims, 3, hidden_size=4),
        {name: nn.Linear(branch.pooled, 3) for name, branch in dims.items()},
        loss_weight=loss_weight,
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


@pytest.mark.parametrize("loss_weight", [0.0, 0.25, 1.0, 3.0])
def test_the_unimodal_gradient_reaches_a_branch_times_the_loss_weight(inputs, loss_weight):
    image = inputs[0].requires_grad_()
    model = identity_model(loss_weight)
    head = model.unimodal_heads["image_branch"]
    loss = model(*inputs).unimodal_logits["image_branch"].sum()
    loss.backward()
    full = head.weight.sum(0).view(3, 2, 2).expand_as(image)
    torch.testing.assert_close(image.grad if image.grad is not None else torch.zeros_like(image), loss_weight * full)
    torch.testing.assert_close(head.weight.grad, image.detach().flatten(1).sum(0).expand(3, -1))  # whole, always


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
        "unimodal_heads": {"loss_weight": 0.0},
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
