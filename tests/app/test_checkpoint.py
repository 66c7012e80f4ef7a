import copy
import math
import os
import zipfile

import pytest
import torch

from app import checkpoint
from app.config_schema import GroupConfig, OptimizerConfig
from app.param_groups import build_optimizer, known_optimizers


def step_once(model, optimizer, seed=0):
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    optimizer.step()


def test_content_comes_back_and_is_readable_with_weights_only(tmp_path):
    path = tmp_path / "deep" / "x.pt"
    checkpoint.save_checkpoint(path, {"model": {"a": torch.arange(3)}, "epoch": 4, "names": ["b"]})
    plain = torch.load(path, weights_only=True)
    content = checkpoint.load_checkpoint(path)
    assert plain["epoch"] == content["epoch"] == 4
    assert torch.equal(content["model"]["a"], torch.arange(3))


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    checkpoint.save_checkpoint(path, {"epoch": 1})

    def fail(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save_checkpoint(path, {"epoch": 2})
    assert checkpoint.load_checkpoint(path)["epoch"] == 1
    assert os.listdir(tmp_path) == ["x.pt"]


def test_every_flipped_byte_of_a_tensor_is_noticed(tmp_path):
    path = tmp_path / "x.pt"
    checkpoint.save_checkpoint(path, {"model": {"a": torch.zeros(1000)}})
    with zipfile.ZipFile(path) as archive:
        entry = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    content = bytearray(path.read_bytes())
    content[entry.header_offset + 2000] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # torch itself does not notice
    with pytest.raises(ValueError, match=r"x.pt is damaged"):
        checkpoint.load_checkpoint(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("hello"), "is not a checkpoint"),
        (lambda path: path.write_bytes(b""), "is not a checkpoint"),
        (lambda path: torch.save({"state": 1}, path), "something else than a checkpoint"),
        (lambda path: torch.save([1], path), "something else than a checkpoint"),
        (lambda path: checkpoint.save_checkpoint(path, {"version": 99}), "has version 99"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, write, message):
    path = tmp_path / "x.pt"
    write(path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        checkpoint.load_checkpoint(path)
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_was_cut_short_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    checkpoint.save_checkpoint(path, {"model": {"a": torch.zeros(1000)}})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut short"):
        checkpoint.load_checkpoint(path)


LOSSES = {"training loss": 0.5, "validation loss": 0.5}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda m, o: m.image_branch[0].weight.data.fill_(math.inf),
            "1 tensors of image_branch .* image_branch.0.weight",
        ),
        (lambda m, o: m.image_branch[1].running_var.fill_(math.nan), "image_branch .*first image_branch.1.running_var"),
        (
            lambda m, o: o.state[m.temporal_branch.lstm.bias_hh_l1]["exp_avg_sq"].view(-1)[3].fill_(math.nan),
            "temporal_branch are not finite .first exp_avg_sq of temporal_branch.lstm.bias_hh_l1",
        ),
        (
            lambda m, o: [p.data.fill_(math.nan) for p in (m.image_branch[0].bias, m.fusion_head.layers[0].bias)],
            "2 tensors of image_branch and fusion_head are .* lower the lr of image_branch and fusion_head, or",
        ),
    ],
    ids=["weight", "buffer", "moment", "two groups"],
)
def test_a_state_that_is_not_finite_is_named_by_group_and_step(small_model, optimizer_config, spoil, message):
    optimizer, groups = build_optimizer(small_model, optimizer_config)
    step_once(small_model, optimizer)
    checkpoint.raise_if_not_finite(small_model, optimizer, groups, LOSSES, epoch=3, step=66)
    spoil(small_model, optimizer)
    with pytest.raises(FloatingPointError, match=message) as error:
        checkpoint.raise_if_not_finite(small_model, optimizer, groups, LOSSES, epoch=3, step=66)
    assert str(error.value).startswith("after epoch 3, step 66: ")
    assert "the checkpoint of epoch 2 stays" in str(error.value)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_is_not_finite_is_named(small_model, optimizer_config, name):
    optimizer, groups = build_optimizer(small_model, optimizer_config)
    with pytest.raises(FloatingPointError, match=f"after epoch 1, step 9: the {name} is nan.*no checkpoint yet"):
        checkpoint.raise_if_not_finite(small_model, optimizer, groups, {**LOSSES, name: math.nan}, epoch=1, step=9)


def test_model_state_must_fit_before_anything_changes(small_model):
    state = {name: value.clone() + 1 for name, value in small_model.state_dict().items()}
    before = {name: value.clone() for name, value in small_model.state_dict().items()}
    state["fusion_head.layers.0.weight"] = torch.zeros(2, 2)
    del state["image_branch.0.bias"]
    with pytest.raises(
        ValueError, match=r"image_branch.0.bias is missing; fusion_head.layers.0.weight has shape \(2, 2\)"
    ):
        checkpoint.load_model_state(small_model, state, "x.pt")
    assert all(torch.equal(before[name], value) for name, value in small_model.state_dict().items())


def test_moments_follow_their_parameter_also_when_groups_change_places(small_model, optimizer_config):
    optimizer, groups = build_optimizer(small_model, optimizer_config)
    step_once(small_model, optimizer)
    state = checkpoint.optimizer_state(optimizer, groups)

    reordered = dict(reversed(optimizer_config.groups.items()))
    other, other_groups = build_optimizer(small_model, type(optimizer_config)(name="AdamW", groups=reordered))
    checkpoint.load_optimizer_state(other, other_groups, state, "x.pt")
    for parameter in small_model.parameters():
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(other.state[parameter][key], value)
            assert other.state[parameter][key] is not value
    step_once(small_model, other, seed=1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda moment: torch.zeros(3), "exp_avg of image_branch.0.weight has shape"),
        (lambda moment: moment * float("nan"), "exp_avg of image_branch.0.weight is not finite"),
    ],
)
def test_moments_that_would_crash_or_poison_a_fused_step_are_refused(small_model, optimizer_config, damage, message):
    optimizer, groups = build_optimizer(small_model, optimizer_config)
    step_once(small_model, optimizer)
    state = checkpoint.optimizer_state(optimizer, groups)
    state["image_branch.0.weight"]["exp_avg"] = damage(state["image_branch.0.weight"]["exp_avg"])
    other, other_groups = build_optimizer(small_model, optimizer_config)
    with pytest.raises(ValueError, match=message):
        checkpoint.load_optimizer_state(other, other_groups, state, "x.pt")
    assert not other.state


@pytest.mark.parametrize("name", sorted(known_optimizers()))
def test_every_optimizer_continues_as_if_it_had_not_stopped(small_model, name):
    values = {"params": ["*"] if name != "Muon" else ["*lstm.weight*"], "lr": 0.01}
    if name == "Muon":  # takes matrices only
        for parameter_name, parameter in small_model.named_parameters():
            parameter.requires_grad_("lstm.weight" in parameter_name)
    config = OptimizerConfig(name=name, groups={"all": GroupConfig(**values)})
    resumed_model = copy.deepcopy(small_model)
    optimizer, groups = build_optimizer(small_model, config)
    step_once(small_model, optimizer)
    resumed_model.load_state_dict(small_model.state_dict())
    resumed, resumed_groups = build_optimizer(resumed_model, config)
    state = checkpoint.optimizer_state(optimizer, groups)
    assert checkpoint.load_optimizer_state(resumed, resumed_groups, state, "x.pt") == []
    step_once(small_model, optimizer, seed=1)
    step_once(resumed_model, resumed, seed=1)
    for a, b in zip(small_model.parameters(), resumed_model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "options"), [("SGD", {}), ("SGD", {"momentum": 0.9}), ("AdamW", {"amsgrad": True}), ("NAdam", {})]
)
def test_moments_of_another_optimizer_are_left_and_named(small_model, optimizer_config, name, options):
    optimizer, groups = build_optimizer(small_model, optimizer_config)
    step_once(small_model, optimizer)
    state = checkpoint.optimizer_state(optimizer, groups)
    config = OptimizerConfig(name=name, groups={"all": GroupConfig(lr=0.01, params=["*"], options=options)})
    other, other_groups = build_optimizer(small_model, config)
    afresh = checkpoint.load_optimizer_state(other, other_groups, state, "x.pt")
    assert afresh == [name for name, _ in small_model.named_parameters()]
    assert not other.state
    step_once(small_model, other)
