import re

import pytest
from torch import nn

from app.param_groups.groups import GroupConfig, assign_parameters, describe_groups, group_table, parameter_table
from app.param_groups.optimizer import OptimizerConfig, build_optimizer
from tests.conftest import GROUP_NAMES


def config_of(groups: dict[str, list[str] | None]) -> OptimizerConfig:
    return OptimizerConfig(
        name="AdamW",
        groups={n: GroupConfig(lr=1e-3, weight_decay=0.0, betas=[0.9, 0.99], params=p) for n, p in groups.items()},
    )


def test_every_trainable_parameter_is_in_exactly_one_group(small_model, optimizer_config):
    optimizer, groups = build_optimizer(small_model, optimizer_config)
    held = [parameter for entry in optimizer.param_groups for parameter in entry["params"]]
    assert len(held) == len(set(held)) == len(list(small_model.parameters()))
    assert set(held) == set(small_model.parameters())
    for group in groups:
        (entry,) = group.param_groups
        assert set(entry["params"]) == set(getattr(small_model, group.name).parameters())


def test_patterns_match_whole_names(small_model):
    groups = {"biases": ["*.bias", "*.bias_*"], "rest": ["*weight*", "fusion_head.absent.*"]}
    claimed = assign_parameters(small_model, config_of(groups).groups)
    assert "temporal_branch.lstm.bias_ih_l0" in claimed["biases"]
    assert all("weight" in name or ".absent." in name for name in claimed["rest"])
    assert sum(map(len, claimed.values())) == len(list(small_model.parameters()))


def test_a_parameter_in_no_group_is_an_error_with_its_name(small_model):
    groups = {name: None for name in GROUP_NAMES if name != "fusion_head"}
    with pytest.raises(
        ValueError, match=r"6 trainable parameters \(fusion_head.absent.image_branch, .*belong to no group"
    ):
        build_optimizer(small_model, config_of(groups))


def test_long_lists_of_names_are_cut_after_ten(small_model):
    with pytest.raises(ValueError, match=r"and 6 more\)"):
        build_optimizer(small_model, config_of({"fusion_head": None}))


def test_a_parameter_in_two_groups_is_an_error_with_its_name_and_both_groups(small_model):
    groups = dict.fromkeys(GROUP_NAMES) | {"biases": ["fusion_head.layers.0.bias"]}
    with pytest.raises(ValueError, match=r"fusion_head.layers.0.bias \(in fusion_head and biases\).*more than one"):
        build_optimizer(small_model, config_of(groups))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"image_brunch": None}, "optimizer.groups.image_brunch: the model has no trainable parameter below a module"),
        ({"conv": ["image_branch.conv*"]}, "optimizer.groups.conv.params: 'image_branch.conv*' matches no trainable"),
        ({"none": []}, "optimizer.groups.none.params: empty"),
    ],
)
def test_a_group_that_matches_nothing_is_an_error(small_model, groups, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_optimizer(small_model, config_of(dict.fromkeys(GROUP_NAMES) | groups))


def test_a_tied_parameter_is_claimed_once_and_refused_twice(small_model):
    small_model.fusion_head.layers.add_module("tied", nn.Linear(4, 3))
    small_model.fusion_head.layers.tied.weight = small_model.unimodal_heads["image_branch"].weight
    with pytest.raises(ValueError, match=r"fusion_head.layers.tied.weight = unimodal_heads.image_branch.weight"):
        build_optimizer(small_model, config_of(dict.fromkeys(GROUP_NAMES)))
    optimizer, _ = build_optimizer(small_model, config_of({"all": ["*"]}))
    assert len(optimizer.param_groups[0]["params"]) == len(list(small_model.parameters()))


def test_the_table_has_a_line_for_each_group_with_its_values(small_model, optimizer_config):
    _, groups = build_optimizer(small_model, optimizer_config)
    lines = group_table(groups).splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(GROUP_NAMES)
    values = sum(p.numel() for p in small_model.temporal_branch.parameters())
    assert re.fullmatch(
        rf"temporal_branch +temporal_branch\.\* +8 +{values} +no +0.01 +0.01 +- +0.9, 0.98 +1e-08 +-", lines[1]
    )
    assert describe_groups(groups)[1]["lr"] == 0.01


def test_frozen_parameters_are_left_out(small_model, optimizer_config):
    small_model.image_branch[0].requires_grad_(False)
    _, groups = build_optimizer(small_model, optimizer_config)
    assert "image_branch.0.weight" not in groups[0].parameters


def test_the_list_of_parameters_gives_each_its_group_and_values(small_model, optimizer_config):
    _, groups = build_optimizer(small_model, optimizer_config)
    lines = parameter_table(groups).splitlines()[2:]
    assert [line.split()[0] for line in lines] == [name for name, _ in small_model.named_parameters()]
    (line,) = [line for line in lines if line.startswith("fusion_head.layers.0.weight ")]
    assert line.split() == ["fusion_head.layers.0.weight", "fusion_head", "7", "x", "10", "0.001", "0.02"]
