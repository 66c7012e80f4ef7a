"""Fixtures shared by the tests: a small model whose parts have Duet's names, and a small complete config."""

from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
import torchvision
from omegaconf import OmegaConf
from torch import nn
from torchvision.models import regnet

from app.config import parse_config
from app.config_schema import GroupConfig, LearningRatesConfig, OptimizerConfig
from app.learning_rates import LearningRates
from models.fusion_classifier import FusionClassifier
from models.fusion_head import FusionHead
from models.image_branch import build_network
from models.temporal_branch import TemporalBranch

ROOT = Path(__file__).parent.parent
GROUP_NAMES = ("image_branch", "temporal_branch", "fusion_head", "unimodal_heads")


@pytest.fixture
def tree() -> dict:
    """configs/fusion.yaml as plain values, to be changed and parsed."""
    return OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "fusion.yaml"))


@pytest.fixture
def config(tree):
    return parse_config(tree)[0]


@pytest.fixture
def small_model() -> FusionClassifier:
    """Real branches, small: 8x8 images, 5 features per frame, 3 classes, BatchNorm and dropout included."""
    torch.manual_seed(0)
    image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    temporal = TemporalBranch(5, hidden_size=6, num_layers=2, dropout=0.1)
    heads = {"image_branch": nn.Linear(4, 3), "temporal_branch": nn.Linear(6, 3)}
    return FusionClassifier(image, temporal, FusionHead([4, 6], 3, hidden_size=7, dropout=0.1), heads)


@pytest.fixture
def small_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    length = torch.tensor([4, 9, 1, 6, 9, 2])
    sequence = torch.randn(6, 9, 5, generator=generator)
    sequence[torch.arange(9) >= length[:, None]] = 0
    return {
        "image": torch.randn(6, 3, 8, 8, generator=generator),
        "sequence": sequence,
        "length": length,
        "present": torch.ones(6, 2, dtype=torch.bool),
        "label": torch.tensor([0, 1, 2, 0, 1, 2]),
        "index": torch.arange(6),
    }


@pytest.fixture
def optimizer_config() -> OptimizerConfig:
    """A different lr, weight decay and beta2 for every group, so that a mix-up shows."""
    groups = {
        name: GroupConfig(lr=10.0 ** -(i + 1), weight_decay=0.01 * i, betas=[0.9, 0.99 - 0.01 * i])
        for i, name in enumerate(GROUP_NAMES)
    }
    return OptimizerConfig(name="AdamW", groups=groups)


@pytest.fixture
def learning_rates_of():
    """LearningRates over built groups, with settings as they would stand in a config."""

    def make(groups, *, monitors=(), steps_per_epoch=10, epochs=10, **settings):
        return LearningRates(
            {group.name: group.config for group in groups},
            {group.name: group.param_groups for group in groups},
            LearningRatesConfig(**{"warmup_steps": 0, "reductions": [], **settings}),
            monitors=list(monitors),
            steps_per_epoch=steps_per_epoch,
            epochs=epochs,
        )

    return make


@contextmanager
def on_meta():
    """Networks that are built in it take no memory for their tensors."""
    from_init_params = regnet.BlockParams.from_init_params

    def on_cpu(**values):  # RegNet reads numbers out of tensors while it is built
        with torch.device("cpu"):
            return from_init_params(**values)

    with mock.patch.object(regnet.BlockParams, "from_init_params", on_cpu), torch.device("meta"):
        yield


@pytest.fixture(scope="session")
def meta_networks() -> dict[str, nn.Module]:
    """All classification networks of torchvision, complete, in eval mode."""
    with on_meta():
        return {name: build_network(name).eval() for name in torchvision.models.list_models(module=torchvision.models)}
