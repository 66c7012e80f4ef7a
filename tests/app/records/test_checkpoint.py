import copy
import errno
import math
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from app.config_schema import GroupConfig, OptimizerConfig
from app.param_groups.groups import build_optimizer, known_optimizers
from app.records import checkpoint


def step_once(model, optimizer, seed=0):
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    optimizer.step()


def test_content_comes_back_and_is_readable_with_weights_only(tmp_path, checkpoint_content):
    path = tmp_path / "deep" / "x.pt"
    checkpoint.save_checkpoint(path, {**checkpoint_content, "epoch": 4, "model": {"a": torch.arange(3)}})
    plain = torch.load(path, weights_only=True)
    content = checkpoint.load_checkpoint(path)
    assert plain["epoch"] == content["epoch"] == 4
    assert torch.equal(content["model"]["a"], torch.arange(3))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256:") and len(archive.comment) == 71


def full_disk_as_the_system_says_it(file):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_as_torch_says_it(file):
    try:
        full_disk_as_the_system_says_it(file)
    except OSError:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 768 vs 662")  # noqa: B904


@pytest.mark.parametrize("fail", [full_disk_as_the_system_says_it, full_disk_as_torch_says_it])
def test_a_failed_save_keeps_the_old_file_says_why_and_leaves_nothing_behind(
    tmp_path, monkeypatch, checkpoint_content, fail
):
    path = tmp_path / "x.pt"
    checkpoint.save_checkpoint(path, checkpoint_content)

    def save(content, file):
        file.write(b"half")
        fail(file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError) as error:
        checkpoint.save_checkpoint(path, {**checkpoint_content, "epoch": 2})
    assert str(error.value) == f"{path} could not be written: the disk is full; what it held before is still there"
    assert checkpoint.load_checkpoint(path)["epoch"] == 1
    assert os.listdir(tmp_path) == ["x.pt"]


def test_an_error_of_torch_that_is_not_the_disks_stays_what_it_is(tmp_path, monkeypatch, checkpoint_content):
    def save(content, file):
        raise RuntimeError("something else")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RuntimeError, match="something else"):
        checkpoint.save_checkpoint(tmp_path / "x.pt", checkpoint_content)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def refused(tmp_path):
    """Whether load_checkpoint refuses the file of these bytes as it shall."""

    def check(content: bytes | None = None, path=tmp_path / "damaged.pt") -> str:
        if content is not None:
            path.write_bytes(content)
        try:
            checkpoint.load_checkpoint(path)
        except ValueError as error:
            text = str(error)
        assert str(path) in text and "\n" not in text and checkpoint._REMEDY in text
        return text

    return check


@pytest.fixture
def saved(tmp_path, checkpoint_content):
    checkpoint.save_checkpoint(tmp_path / "saved.pt", checkpoint_content)
    return (tmp_path / "saved.pt").read_bytes()


def test_every_flipped_bit_is_noticed(tmp_path, saved, refused):
    """Of the archive's structure, its padding and its pickle; of tensors too, for they are small here."""
    path = tmp_path / "damaged.pt"
    path.write_bytes(saved)
    told = set()
    with open(path, "r+b", buffering=0) as file:
        for place, byte in enumerate(saved):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), place)
                told.add(refused(path=path))
            os.pwrite(file.fileno(), bytes([byte]), place)
    checkpoint.load_checkpoint(path)
    assert all("is damaged" in text or "is not a checkpoint" in text for text in told), told


def test_every_truncation_is_noticed(tmp_path, saved, refused):
    path = tmp_path / "damaged.pt"
    path.write_bytes(saved)
    told = []
    for length in reversed(range(len(saved))):
        os.truncate(path, length)
        told.insert(0, refused(path=path))
    assert "is empty" in told[0] and "is not a checkpoint" in told[1]
    assert all("is damaged, or was cut short" in text for text in told[2:])


@pytest.mark.parametrize(
    "extra", [b"\0", b"\n", b"\0" * 22, b"\0" * 71, b"PK\5\6" + b"\0" * 18, bytes(range(256)) * 300]
)
def test_bytes_before_or_after_are_noticed(saved, refused, extra):
    refused(saved + extra)
    refused(extra + saved)
    assert "is damaged" in refused(saved + saved)
    assert "is damaged" in refused(saved + extra + saved[-71:])


def test_a_file_of_an_older_version_is_refused_by_its_version(tmp_path, checkpoint_content, refused):
    path = tmp_path / "damaged.pt"
    torch.save({"format": checkpoint.FORMAT, "version": 1, **checkpoint_content}, path)  # as version 1 wrote it
    assert "has version 1, this program reads 2" in refused(path=path)
    torch.save({"format": checkpoint.FORMAT, **checkpoint_content}, path)
    assert "has version None" in refused(path=path)
    torch.save({"format": checkpoint.FORMAT, "version": 2, **checkpoint_content}, path)
    assert "is damaged" in refused(path=path)  # this version's own files end in a digest


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder, not a file"),
        (lambda path: os.mkfifo(path), "is not a file"),
        (lambda path: path.symlink_to(path), "does not exist"),
        (lambda path: path.write_text("hello"), "is not a checkpoint"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"sha256:" + b"0" * 64), "is damaged"),
        (lambda path: path.write_bytes(pickle.dumps([1] * 100, protocol=2)), "is not a checkpoint"),
        (lambda path: torch.save({"state": 1}, path), "something else than a checkpoint"),
        (lambda path: torch.save([1], path), "something else than a checkpoint"),
        (lambda path: torch.save(nn.Linear(1, 1), path), "is not a checkpoint"),
        (lambda path: checkpoint.save_checkpoint(path, {"version": 99}), "has version 99, this program reads 2"),
        (lambda path: checkpoint.save_checkpoint(path, {"format": 1}), "something else than a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, write, message):
    path = tmp_path / "x.pt"
    write(path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        checkpoint.load_checkpoint(path)
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that fails to be read")
def test_a_file_that_cannot_be_read_is_refused(refused):
    assert "cannot be read (Input/output error)" in refused(path=Path("/proc/self/mem"))


@pytest.mark.parametrize("part", checkpoint.PARTS)
def test_a_part_that_is_missing_or_of_another_form_is_named(tmp_path, checkpoint_content, refused, part):
    path = tmp_path / "x.pt"
    for wrong in ({}, {part: None}, {part: {1, 2}}):
        rest = {key: value for key, value in checkpoint_content.items() if key != part}
        checkpoint.save_checkpoint(path, {**rest, **wrong})
        assert f"lacks {part}, or holds it in another form" in refused(path=path)


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
