"""What decoupled training costs: a class that only image and sequence together tell."""

import pytest
import torch
from torch import nn

from app.training.objective import Objective, losses, total
from models.encoded import Dims, Encoded
from models.fusion import Concat
from models.fusion_classifier import FusionClassifier, Gates


class FirstFrame(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, sequence, length, with_tokens):
        return Encoded(self.network(sequence[:, 0]))


def batch_of(samples: int, seed: int) -> dict[str, torch.Tensor]:
    """One of 24 numbers of the image, and one of the frame, is a bit; the others are noise. The class is their XOR, so
    each bit alone says nothing of it."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(2, (samples, 2), generator=generator)
    image = torch.randn(samples, 3, 2, 4, generator=generator)
    sequence = torch.randn(samples, 1, 24, generator=generator)
    image[:, 0, 0, 0], sequence[:, 0, 0] = 2.0 * bits.T - 1
    present = torch.ones(samples, 2, dtype=torch.bool)
    length = torch.ones(samples, dtype=torch.long)
    return {"image": image, "sequence": sequence, "length": length, "present": present, "label": bits.sum(1) % 2}


@pytest.mark.parametrize(("gates", "learns"), [(Gates(1.0, 1.0), True), (Gates(0.0, 1.0), False)], ids=str)
def test_what_only_makes_sense_together_is_learnt_only_through_the_fusions_gradient(gates, learns):
    torch.manual_seed(0)
    dims = dict.fromkeys(("image_branch", "temporal_branch"), Dims(2, None))
    image, temporal = (nn.Sequential(nn.Flatten(), nn.Linear(24, 2), nn.Tanh()) for _ in dims)
    heads = {name: nn.Linear(2, 2) for name in dims}
    fusion = Concat(dims, 2, hidden_size=16)
    model = FusionClassifier(image, FirstFrame(temporal), fusion, heads, gates=dict.fromkeys(dims, gates))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def outputs(batch):
        return model(*(batch[name] for name in ("image", "sequence", "length", "present")))

    for step in range(400):
        batch = batch_of(256, seed=step)
        optimizer.zero_grad()
        total(losses(outputs(batch), batch, Objective())).backward()
        optimizer.step()
    unseen = batch_of(2000, seed=400)
    accuracy = (outputs(unseen).logits.argmax(1) == unseen["label"]).double().mean().item()
    assert accuracy > 0.98 if learns else accuracy < 0.6  # 0.5 is chance
