import dataclasses
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from app.config import differences, load_config, parse_config, read_part, save_config
from app.config_schema import Config, GroupConfig, ReductionConfig
from tests.conftest import ROOT


def at(tree: dict, key: str, value) -> dict:
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return tree


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path):
    config, tree = load_config(path)
    assert isinstance(config, Config)
    assert parse_config(tree)[0] == config


def test_the_default_config_shows_every_key_of_every_section(tree):
    """Groups, schedules and reductions have optional keys of their own, which a comment there lists."""
    for section in dataclasses.fields(Config):
        assert set(tree[section.name]) == {field.name for field in dataclasses.fields(section.type)}
    text = (ROOT / "configs" / "fusion.yaml").read_text()
    for kind in (GroupConfig, ReductionConfig):
        for field in dataclasses.fields(kind):
            assert field.name in text or field.name in ("above", "below", "repeat"), field.name


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.groups.image_branch.lr", -1e-3, "optimizer.groups.image_branch.lr: found -0.001, must be > 0"),
        ("optimizer.groups.image_branch.lr", 0, "must be > 0"),
        (
            "optimizer.groups.image_branch.lr",
            "fast",
            "optimizer.groups.image_branch.lr: found 'fast', expected a number",
        ),
        ("optimizer.groups.image_branch.lr", True, "expected a number"),
        ("optimizer.groups.image_branch.lr", math.nan, "must be > 0"),
        ("optimizer.groups.image_branch.lr", math.inf, "must be > 0"),
        ("optimizer.groups.image_branch.lr", ..., "optimizer.groups.image_branch.lr: missing; add it (a number > 0)"),
        ("optimizer.groups.image_branch.weigth_decay", 0.1, "did you mean 'weight_decay'?"),
        ("optimizer.groups.image_branch.betas", [0.9], "betas: found [0.9], expected two numbers"),
        ("optimizer.groups.image_branch.betas", [1.2, 0.9], "each value must be >= 0 and < 1"),
        ("optimizer.groups.image_branch.betas", [0.9, 1.0], "each value must be >= 0 and < 1"),
        ("optimizer.groups.image_branch.betas", 0.9, "optimizer.groups.image_branch.betas: found 0.9"),
        ("optimizer.groups.image_branch", 3, "optimizer.groups.image_branch: expected a mapping"),
        ("optimizer.groups", [1], "optimizer.groups: expected a mapping of names"),
        ("optimiser", {}, "optimiser: unknown key; did you mean 'optimizer'?"),
        ("run.device", "gpu", "run.device: found 'gpu', expected one of auto, cpu, cuda, mps"),
        ("run.epochs", 1.5, "run.epochs: found 1.5, expected a whole number"),
        ("run.epochs", 0, "run.epochs: found 0, must be >= 1"),
        ("model.temporal_branch.dropout", 1.0, "must be >= 0 and < 1"),
        ("learning_rates.reductions", {"a": 1}, "learning_rates.reductions: expected a list of entries"),
        ("run.name", "${nowhere.there}", "run.name: "),
        ("optimizer.groups.image_branch.betas", ["${nowhere.there}", 0.9], "betas: "),
    ],
)
def test_bad_values_are_refused_in_one_line_with_the_full_key(tree, key, value, message):
    with pytest.raises(ValueError) as error:
        parse_config(at(tree, key, value))
    assert message in str(error.value)
    assert key in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factr": 0.5}, "learning_rates.reductions[1].factr: unknown key; did you mean 'factor'?"),
        ({"factor": 1.0}, "learning_rates.reductions[1].factor: found 1.0, must be > 0 and < 1"),
        ({"patience": "two"}, "learning_rates.reductions[1].patience: found 'two'"),
        ({"groups": []}, "learning_rates.reductions[1].groups: empty"),
        ({"groups": ["temporal_brunch"]}, "unknown group 'temporal_brunch'; did you mean 'temporal_branch'?"),
        ({"min_lr": 1.0}, "learning_rates.reductions[1].min_lr: found 1.0, must be below optimizer.groups."),
    ],
)
def test_entries_of_lists_are_named_by_their_place(tree, change, message):
    tree["learning_rates"]["reductions"][1].update(change)
    with pytest.raises(ValueError) as error:
        parse_config(tree)
    assert message in str(error.value)


def test_overrides_reach_groups_and_list_entries_with_their_types():
    config, tree = load_config(
        ROOT / "configs" / "fusion.yaml",
        [
            "optimizer.groups.image_branch.lr=1e-4",
            "optimizer.groups.image_branch.betas=[0.8, 0.9]",
            "learning_rates.reductions[0].patience=7",
            "run.name=other",
        ],
    )
    assert config.optimizer.groups["image_branch"].lr == 1e-4
    assert config.optimizer.groups["image_branch"].betas == [0.8, 0.9]
    assert config.learning_rates.reductions[0].patience == 7
    assert tree["run"]["name"] == "other"


def fusion(*overrides: str):
    return load_config(ROOT / "configs" / "fusion.yaml", list(overrides))


TYPED = ["1e-4", "007", "yes", "null", "1_000", "~", "12:30", "0x1F", "true", "2024-01-01", "a #b", "lr=1: 2", "[x]"]


@pytest.mark.parametrize("typed", TYPED)
def test_a_text_is_what_was_typed_and_survives_being_saved(typed, tmp_path):
    keys = ("run.name", "run.folder", "model.image_branch.weights", "learning_rates.reductions[0].monitor")
    config, tree = fusion(*(f"{key}={typed}" for key in keys))
    found = (config.run.name, config.run.folder, config.model.image_branch.weights)
    assert (*found, config.learning_rates.reductions[0].monitor) == (typed,) * 4
    save_config(tree, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == (config, tree)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(("typed", "text"), [("'1e-4'", "1e-4"), ('"a b"', "a b"), ("'it''s'", "it's")])
def test_a_quoted_text_loses_its_quotes(typed, text):
    assert fusion(f"run.name={typed}")[0].run.name == text


def test_texts_in_a_list_are_as_typed_too():
    group = "optimizer.groups.image_branch.params"
    assert fusion(f"{group}=[007, yes, '1', a.*]")[0].optimizer.groups["image_branch"].params == [
        "007", "yes", "1", "a.*"
    ]  # fmt: skip
    assert fusion(f"{group}=null")[0].optimizer.groups["image_branch"].params is None
    config, _ = fusion(f"{group}=[a, b]", f"{group}[1]=1e-4", "run.seed=007", "model.temporal_branch=null")
    assert config.optimizer.groups["image_branch"].params == ["a", "1e-4"]
    assert config.run.seed == 7 and config.model.temporal_branch is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("run.name", 7, "run.name: found 7, a number, expected a text; put it in quotes"),
        ("run.name", 1e-4, "run.name: found 0.0001, a number, expected a text; put it in quotes"),
        ("run.name", True, "run.name: found True, a truth value, expected a text; put it in quotes"),
        ("run.folder", None, "run.folder: found null, expected a text; put it in quotes"),
        ("optimizer.name", 3, "optimizer.name: found 3, a number"),
        ("optimizer.groups.image_branch.params", ["a", 1], "image_branch.params[1]: found 1, a number"),
        ("run.name", "${run.seed}", "run.name: found 0, a number, expected a text; put text beside it, e.g. name-${ru"),
    ],
)
def test_what_is_no_text_in_a_file_is_refused(tree, key, value, message):
    with pytest.raises(ValueError) as error:
        parse_config(at(tree, key, value))
    assert message in str(error.value)


def test_an_override_replaces_a_mapping_and_a_list():
    schedules = "learning_rates.schedules"
    config, tree = fusion(f"{schedules}={{image_branch: {{name: cosine}}}}", f"{schedules}={{}}")
    assert config.learning_rates.schedules == {} == tree["learning_rates"]["schedules"]
    config, _ = fusion("learning_rates.reductions=[]", 'optimizer.groups={all: {lr: 1e-3, params: ["*"]}}')
    assert list(config.optimizer.groups) == ["all"] and config.learning_rates.reductions == []
    config, _ = fusion("optimizer.groups.image_branch={lr: 1e-4}", "optimizer.groups.image_branch.eps=1e-6")
    assert config.optimizer.groups["image_branch"] == GroupConfig(lr=1e-4, eps=1e-6)


def test_an_override_below_null_makes_the_mapping():
    config, _ = fusion("learning_rates.stop.monitor=val/loss", "learning_rates.stop.patience=3")
    assert (config.learning_rates.stop.monitor, config.learning_rates.stop.patience) == ("val/loss", 3)


def test_an_override_may_point_elsewhere_to_a_list_too(monkeypatch):
    monkeypatch.setenv("LR", "2e-3")
    groups = "optimizer.groups"
    config, tree = fusion(
        "run.name=${optimizer.name}-${run.seed}",
        f"{groups}.image_branch.betas=${{{groups}.temporal_branch.betas}}",
        f"{groups}.unimodal_heads=${{{groups}.fusion_head}}",
        f"{groups}.fusion_head.lr=${{oc.env:LR}}",
        "learning_rates.reductions[0].groups=${learning_rates.reductions[2].groups}",
        "run.seed=5",
    )
    assert config.run.name == "AdamW-5"
    assert config.optimizer.groups["image_branch"].betas == [0.9, 0.98] == tree["optimizer"]["groups"]["image_branch"][
        "betas"
    ]  # fmt: skip
    assert config.optimizer.groups["unimodal_heads"].lr == config.optimizer.groups["fusion_head"].lr == 2e-3
    assert config.learning_rates.reductions[0].groups == ["fusion_head", "unimodal_heads"]
    assert parse_config(tree)[0] == config


def test_an_override_below_a_value_that_points_elsewhere_is_refused(tmp_path):
    """It would change the value pointed to, which has another name."""
    groups = "optimizer.groups"
    with pytest.raises(
        ValueError, match=r"unimodal_heads is \$\{optimizer.groups.fusion_head\}; replace it as a whole"
    ):
        fusion(f"{groups}.unimodal_heads=${{{groups}.fusion_head}}", f"{groups}.unimodal_heads.lr=1")


def test_the_environment_stays_unresolved_when_an_override_names_it(monkeypatch):
    monkeypatch.setenv("SECRET", "swordfish")
    overrides = ["run.folder=${oc.env:SECRET}", "run.name=x-${oc.env:SECRET}", "optimizer.clip_norm=${oc.env:NO,null}"]
    config, tree = fusion(*overrides)
    assert (config.run.folder, config.run.name, config.optimizer.clip_norm) == ("swordfish", "x-swordfish", None)
    assert (tree["run"]["folder"], tree["run"]["name"]) == ("${oc.env:SECRET}", "x-${oc.env:SECRET}")
    assert tree["optimizer"]["clip_norm"] == "${oc.env:NO,null}"
    assert "swordfish" not in str(tree)
    assert parse_config(tree)[0] == config


def test_a_part_of_a_saved_config_needs_only_the_variables_that_it_reads(tree, config, monkeypatch):
    tree["run"]["folder"] = "${oc.env:NOWHERE}"
    tree["optimizer"]["groups"]["image_branch"]["lr"] = "${oc.env:NOWHERE}"
    tree["data"]["image_noise"] = "${optimizer.groups.fusion_head.lr}"
    assert read_part(tree, "data") == dataclasses.replace(config.data, image_noise=1e-3)
    assert read_part(tree, "model") == config.model
    assert (read_part(tree, "run.seed"), read_part(tree, "run.precision")) == (0, "fp32")
    tree["data"]["batch_size"] = "${oc.env:NOWHERE}"
    with pytest.raises(ValueError, match=r"^data.batch_size: .*Environment variable 'NOWHERE' not found"):
        read_part(tree, "data")
    tree["run"]["seed"] = -1
    with pytest.raises(ValueError, match="run.seed: found -1, must be >= 0"):
        read_part(tree, "run.seed")


@pytest.mark.parametrize(
    "override",
    [
        "run.name",
        "=3",
        "run.name.first=3",
        "optimizer.groups.image_branch.lr=[",
        "a.b=1",
        "[]=1",
        "run.name='x",
        "learning_rates.reductions[9].patience=1",
        "learning_rates.reductions.x=1",
        "run.epochs.x=1",
        "run.name=${x",
    ],
)
def test_bad_overrides_are_refused(override):
    with pytest.raises(ValueError) as error:
        load_config(ROOT / "configs" / "fusion.yaml", [override])
    assert "\n" not in str(error.value)
    assert override.split("=")[0].split(".")[0] in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("\x00", "not valid YAML"),
        (b"\xff\xfe", "is no text in UTF-8"),
        ("- 1\n- 2\n", "holds a list; expected a YAML file with the sections run, data,"),
        ("[]", "is empty; expected"),
        ("", "is empty; expected a YAML file with the sections run, data,"),
        ("# nothing\n---\n", "is empty; expected"),
        ("{}", "is empty; expected"),
        ("hello", "holds a single value; expected a YAML file with the sections run, data,"),
        ("3", "holds a single value"),
        ("yes", "holds a single value"),
        ("null", "holds a single value"),
    ],
)
def test_files_that_are_no_config_are_refused(tmp_path, content, message):
    path = tmp_path / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as error:
        load_config(path)
    assert str(path) in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_and_an_unreadable_file_are_no_config(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"is a folder; expected a YAML file with the sections run, data,"):
        load_config(tmp_path)
    unreadable = Path("/proc/self/mem")  # which nobody can read from its start, not even root
    if unreadable.exists():
        with pytest.raises(ValueError, match=r"/proc/self/mem cannot be read \(.*; expected a YAML file"):
            load_config(unreadable)


def test_a_missing_file_is_named_with_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError, match=r"nowhere.yaml does not exist; available: .*configs/fusion.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_secrets_of_the_environment_stay_out_of_the_saved_config(tree, monkeypatch):
    monkeypatch.setenv("SECRET", "swordfish")
    tree["run"]["folder"] = "${oc.env:SECRET}"
    tree["run"]["name"] = "${run.folder}-${optimizer.name}"
    tree["optimizer"]["groups"]["image_branch"]["params"] = ["image_branch.${oc.env:SECRET}", "${oc.env:NO,x}"]
    config, plain = parse_config(tree)
    assert config.run.folder == "swordfish"
    assert config.run.name == "swordfish-AdamW"
    assert config.optimizer.groups["image_branch"].params == ["image_branch.swordfish", "x"]
    assert plain["run"]["folder"] == "${oc.env:SECRET}"
    assert plain["run"]["name"] == "${run.folder}-${optimizer.name}"  # as written, for it reads the environment
    assert parse_config(plain)[0] == config
    assert "swordfish" not in OmegaConf.to_yaml(OmegaConf.create(plain))


def test_differences_name_the_leaves_that_changed():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert differences(old, old) == []
    assert differences(old, {"a": {"b": 2, "c": [1, 2]}, "e": 4}) == ["a.b: 1 -> 2", "d: 3 -> None", "e: None -> 4"]
