"""Fixtures shared by the tests: a small model whose parts have Duet's names, and a small complete config."""

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
import torchvision
from omegaconf import OmegaConf
from torch import nn
from torchvision.models import regnet

from app.commands.root_config import parse_config
from app.learning_rates.learning_rates import LearningRates, LearningRatesConfig
from app.param_groups.groups import GroupConfig
from app.param_groups.optimizer import OptimizerConfig
from app.randomness import make_deterministic
from app.section import Section
from data.assets import IMAGENET_WEIGHTS, SPOKEN_DIGITS
from models.encoded import Dims
from models.fusion import Concat
from models.fusion_classifier import FusionClassifier
from models.image_branch import build_network
from models.temporal_branch import TemporalBranch

make_deterministic()  # as the program does, before the first computation

ROOT = Path(__file__).parent.parent
GROUP_NAMES = ("image_branch", "temporal_branch", "fusion_head", "unimodal_heads")


def replace(section: Section, **changes) -> Section:
    """Another of its kind, with the changes, checked."""
    return type(section)(**{**dict(section), **changes})


def one_group(optimizer: str = "AdamW", **settings) -> OptimizerConfig:
    """A single group, over the whole model unless `params` says otherwise."""
    return OptimizerConfig(name=optimizer, groups={"all": GroupConfig(**{"lr": 0.1, "params": ["*"], **settings})})


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory):
    """Decoded samples go into a folder of this session, also those of processes that tests start; the public files
    are those of the user."""
    folder = tmp_path_factory.mktemp("cache")
    for asset in (SPOKEN_DIGITS, IMAGENET_WEIGHTS):
        asset.path.parent.mkdir(parents=True, exist_ok=True)
        (folder / asset.path.parent.name).symlink_to(asset.path.parent)
    with mock.patch.dict(os.environ, {"DUET_CACHE": str(folder)}):
        yield


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
    dims = {"image_branch": Dims(4, None), "temporal_branch": temporal.dims}
    return FusionClassifier(image, temporal, Concat(dims, 3, hidden_size=7, dropout=0.1), heads)


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
def small_disk(tmp_path):
    """Makes a folder that is a disk of its own, of a size such as "75m"; called again, resizes it."""
    folder = tmp_path / "disk"

    def mount(size: str) -> Path:
        options = f"remount,size={size}" if folder.exists() else f"size={size}"
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            result = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            pytest.skip(f"no small disk can be mounted here: {error}")
        if result.returncode != 0:
            pytest.skip(f"no small disk can be mounted here: {result.stderr.strip()}")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def checkpoint_content() -> dict:
    """What a checkpoint must hold, small: an LSTM with Adam's moments after a step."""
    torch.manual_seed(0)
    lstm = nn.LSTM(2, 3)
    optimizer = torch.optim.Adam(lstm.parameters())
    lstm(torch.ones(4, 2))[0].sum().backward()
    optimizer.step()
    return {
        "saved_at": 1.0,
        "val": {"loss": 0.5},
        "config": {"run": {"seed": 0}},
        "versions": {"torch": "2"},
        "data_spec": {"class_names": ["a", "b"]},
        "image_weights": {"description": "random start"},
        "groups": [{"name": "temporal_branch"}],
        "position": {"epoch": 1, "step": 33, "monitor": "val/loss", "best": 0.5},
        "model": lstm.state_dict(),
        "optimizer": {name: dict(optimizer.state[p]) for name, p in lstm.named_parameters()},
        "learning_rates": {"reduction": {"temporal_branch": 1.0}},
        "best_weights": {},
        "train_step": {"batches": 33},
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
def with_groups(optimizer_config):
    """optimizer_config with settings changed: {group: its changes}, and those of the optimizer."""

    def change(changes: dict[str, dict], **settings) -> OptimizerConfig:
        groups = {name: replace(group, **changes.get(name, {})) for name, group in optimizer_config.groups.items()}
        return replace(optimizer_config, groups=groups, **settings)

    return change


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
