"""Gates and streams in whole runs: what a branch learns when it is trained beside another."""

import pytest
import torch

from app.commands.build import build_model_and_data, build_run
from app.commands.root_config import load_config
from app.records.checkpoint import load_checkpoint
from data.spec import SPLITS
from tests.conftest import ROOT
from train import main

SMOKE = str(ROOT / "configs" / "smoke.yaml")
PARTS = ("image_branch", "temporal_branch")
DECOUPLED = [
    f"balance.gradients.{branch}.{key}={value}" for branch in PARTS for key, value in (("fusion", 0), ("own", 1))
]


def run(tmp_path, name, *overrides):
    """The checkpoint at the end of a short run with a global clip_norm of none, all of it decoupled."""
    settings = [f"run.folder={tmp_path}", f"run.name={name}", "run.limit_batches=6", "run.epochs=2", *DECOUPLED]
    assert main(["--config", SMOKE, *settings, *overrides]) == 0
    return load_checkpoint(tmp_path / name / "checkpoints" / "last.pt")


def of_branch(tensors, branch):
    own = (f"{branch}.", f"unimodal_heads.{branch}.")
    return {name: tensor for name, tensor in tensors.items() if name.startswith(own)}


def without(branch):
    """Overrides of a run that reads no input of `branch`, and has no reductions."""
    groups = {
        "image_branch": "{lr: 5.0e-4, weight_decay: 0.05, betas: [0.9, 0.999]}",
        "temporal_branch": "{lr: 6.0e-3, weight_decay: 0.01, betas: [0.9, 0.98]}",
        "fusion_head": "{lr: 1.0e-3, weight_decay: 0.01, betas: [0.9, 0.999]}",
        "unimodal_heads": "{lr: 1.0e-2, weight_decay: 0.0, betas: [0.9, 0.999]}",
    }
    kept = ", ".join(f"{name}: {value}" for name, value in groups.items() if name != branch)
    return [f"model.{branch}=null", f"optimizer.groups={{{kept}}}", "learning_rates.reductions=[]"]


@pytest.mark.slow
@pytest.mark.parametrize("branch", PARTS)
def test_a_decoupled_branch_ends_to_the_bit_where_it_ends_alone(tmp_path, branch):
    no_rules = "learning_rates.reductions=[]"
    both = run(tmp_path, "both", no_rules, "model.temporal_branch.num_layers=2")
    (other,) = set(PARTS) - {branch}
    layers = ["model.temporal_branch.num_layers=2"] if branch == "temporal_branch" else []
    alone = run(tmp_path, "alone", *layers, *without(other))
    for part in ("model", "optimizer"):
        beside, apart = of_branch(both[part], branch), of_branch(alone[part], branch)
        assert beside.keys() == apart.keys() and len(beside) >= 6
        for name, values in beside.items():
            values = values if isinstance(values, dict) else {"": values}
            for key, value in values.items():
                expected = apart[name][key] if key else apart[name]
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected)), (part, name, key)
    started = built(tmp_path).model.state_dict()
    assert any(not torch.equal(started[n], both["model"][n]) for n in of_branch(both["model"], branch))


def built(tmp_path, *overrides):
    config, _ = load_config(SMOKE, overrides)
    return build_model_and_data(config.model, config.data, seed=config.run.seed, device=torch.device("cpu"))


@pytest.mark.parametrize("branch", PARTS)
def test_initial_weights_of_a_part_depend_on_no_other_part(tmp_path, branch):
    (other,) = set(PARTS) - {branch}
    weights = "model.image_branch.weights=none"
    both, alone = built(tmp_path, weights), built(tmp_path, f"model.{other}=null", *([weights] * (branch == PARTS[0])))
    beside, apart = (of_branch(parts.model.state_dict(), branch) for parts in (both, alone))
    assert beside.keys() == apart.keys()
    assert all(torch.equal(beside[name], apart[name]) for name in beside)
    assert set(both.splits) == set(SPLITS)


@pytest.mark.parametrize("branch", PARTS)
def test_a_model_of_one_branch_loses_no_input(branch):
    (other,) = set(PARTS) - {branch}
    config, tree = load_config(SMOKE, ["balance.modality_dropout={image_branch: 0.5, temporal_branch: 0.5}"])
    assert any(build_run(config, tree).modality_dropout.shares)
    config, tree = load_config(SMOKE, [f"balance.modality_dropout.{branch}=0.9", *without(other)])
    assert not any(build_run(config, tree).modality_dropout.shares)
