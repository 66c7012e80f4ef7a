import itertools
import math

import pytest
from omegaconf import OmegaConf

from app.commands.root_config import Config, load_config, parse_config, read_part
from app.config import differences, save_config
from app.learning_rates.rules import PlateauConfig, ThresholdConfig
from app.messages import Findings
from app.param_groups.groups import GroupConfig
from app.section import schema_of, sections_of, tag_key_of, tag_of
from app.training.group_stats import StatisticsConfig
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
    for name, schema in schema_of(Config)["properties"].items():
        tag_key = tag_key_of(schema)
        (section,) = (s for s in sections_of(schema) if not tag_key or tag_of(s, tag_key) == tree[name][tag_key])
        assert set(tree[name]) == set(section["properties"])
    text = (ROOT / "configs" / "fusion.yaml").read_text()
    for kind in (GroupConfig, PlateauConfig, ThresholdConfig):
        for name in kind.model_fields:
            assert name in text or name in ("above", "below", "repeat"), name


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
        ("optimizer.groups.image_branch.betas", [0.9], "betas: found [0.9], expected a list of 2, each a num"),
        ("optimizer.groups.image_branch.betas", [1.2, 0.9], "betas[0]: found 1.2, must be >= 0 and < 1"),
        ("optimizer.groups.image_branch.betas", [0.9, 1.0], "betas[1]: found 1.0, must be >= 0 and < 1"),
        ("optimizer.groups.image_branch.betas", 0.9, "optimizer.groups.image_branch.betas: found 0.9"),
        (
            "optimizer.groups.image_branch",
            3,
            "image_branch: found 3, expected a mapping with the keys lr, w",
        ),
        ("optimizer.groups", [1], "optimizer.groups: found [1], expected a mapping of names"),
        ("optimiser", {}, "optimiser: unknown key; did you mean 'optimizer'?"),
        ("run.device", "gpu", "run.device: found 'gpu', expected one of auto, cpu, cuda, mps"),
        ("run.epochs", 1.5, "run.epochs: found 1.5, expected a whole number"),
        ("run.epochs", 0, "run.epochs: found 0, must be >= 1"),
        ("model.temporal_branch.dropout", 1.0, "must be >= 0 and < 1"),
        ("learning_rates.reductions", {"a": 1}, "learning_rates.reductions: found {'a': 1}, expected a list"),
        ("run.name", "${nowhere.there}", "run.name: "),
        (
            "optimizer.groups.image_branch.betas",
            ["${nowhere.there}", 0.9],
            "betas[0]: Interpolation key 'nowhere.there' not found",
        ),
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


GROUP = "optimizer.groups.image_branch"
RULE = "learning_rates.reductions[1]"
EPOCHS = "a whole number >= 0, or a mapping with the keys monitor, above, below, at_most"


@pytest.mark.parametrize(
    ("key", "value", "finding"),
    [
        (f"{GROUP}.lr", "1", f"{GROUP}.lr: found '1', expected a number > 0"),
        (f"{GROUP}.lr", True, f"{GROUP}.lr: found True, expected a number > 0"),
        (f"{GROUP}.no_decay", 1, f"{GROUP}.no_decay: found 1, expected true or false"),
        (f"{GROUP}.no_decay", "true", f"{GROUP}.no_decay: found 'true', expected true or false"),
        (f"{GROUP}.freeze_until", 1.0, f"{GROUP}.freeze_until: found 1.0, expected {EPOCHS}"),
        (f"{GROUP}.freeze_until", False, f"{GROUP}.freeze_until: found False, expected {EPOCHS}"),
        (f"{GROUP}.clip_norm", "1", f"{GROUP}.clip_norm: found '1', expected a number > 0, or null"),
        (f"{GROUP}.betas", ["0.9", 0.99], f"{GROUP}.betas[0]: found '0.9', expected a number >= 0 and < 1"),
        (f"{GROUP}.clip_norm", [1], f"{GROUP}.clip_norm: found [1], expected a number > 0, or null"),
        ("run.precision", "fp16", "run.precision: found 'fp16', expected one of fp32, bf16"),
        ("run.seed", None, "run.seed: found None, expected a whole number >= 0"),
    ],
)
def test_a_value_of_another_type_is_refused_also_where_it_could_be_converted(tree, key, value, finding):
    with pytest.raises(ValueError) as error:
        parse_config(at(tree, key, value))
    assert str(error.value) == finding


def test_a_whole_number_is_a_number_and_so_is_1e_4_in_a_file(tmp_path):
    text = (
        (ROOT / "configs" / "fusion.yaml").read_text().replace("lr: 5.0e-4", "lr: 1e-4").replace("lr: 6.0e-3", "lr: 1")
    )
    (tmp_path / "x.yaml").write_text(text)
    groups = load_config(tmp_path / "x.yaml")[0].optimizer.groups
    assert [groups[name].lr for name in ("image_branch", "temporal_branch")] == [1e-4, 1.0]


@pytest.mark.parametrize("known", ["groups", "monitor", "factor", "patience"])
def test_a_misspelt_key_is_told_with_the_one_that_is_meant(tree, known):
    reduction = tree["learning_rates"]["reductions"][1]
    reduction[f"{known}x"] = reduction.pop(known)
    with pytest.raises(ValueError) as error:
        parse_config(tree)
    missing, unknown = str(error.value).splitlines()
    assert missing.startswith(f"{RULE}.{known}: missing; add it (")
    assert unknown.startswith(f"{RULE}.{known}x: unknown key; did you mean '{known}'? known here: groups, monit")


@pytest.mark.parametrize(
    ("entry", "findings"),
    [
        ({"rule": "platau"}, [f"{RULE}.rule: found 'platau', expected one of plateau, threshold"]),
        ({"rule": ["plateau"]}, [f"{RULE}.rule: found ['plateau'], expected one of plateau, threshold"]),
        ({"groups": []}, [f"{RULE}.rule: missing; add one of plateau, threshold"]),
        ({"rulex": "plateau"}, [f"{RULE}.rule: missing; add one of plateau, threshold"]),
        (3, [f"{RULE}: found 3, expected a mapping with the keys groups, monitor, rule, factor, "]),
        (None, [f"{RULE}: found None, expected a mapping with the keys groups, monitor, rule, factor, "]),
        (
            {"rule": "threshold", "groups": ["fusion_head"], "monitor": "val/loss", "factor": 0},
            [f"{RULE}.factor: found 0, must be > 0 and < 1"],
        ),
        (
            {"rule": "threshold", "groups": ["fusion_head"], "monitor": "val/loss", "factor": 0.5, "repeat": "no"},
            [f"{RULE}.repeat: found 'no', expected true or false"],
        ),
    ],
)
def test_entries_of_several_kinds_are_named_as_in_the_file(tree, entry, findings):
    tree["learning_rates"]["reductions"][1] = entry
    with pytest.raises(ValueError) as error:
        parse_config(tree)
    lines = str(error.value).splitlines()
    assert len(lines) == len(findings)
    assert all(line.startswith(finding) for line, finding in zip(lines, findings, strict=True)), lines


def test_all_findings_are_told_at_once(tree):
    tree["run"].update(seed=-1, epoch=tree["run"].pop("epochs"))
    tree["optimizer"]["groups"]["image_branch"].update(lr="fast", betas=[0.9, True])
    tree["learning_rates"]["reductions"][1].update(factor=2, above=1.0)
    tree["model"]["temporal_branch"] = tree["model"]["image_branch"] = None
    del tree["statistics"]
    with pytest.raises(ValueError) as error:
        parse_config(tree)
    assert [line.split(": ")[:2] for line in str(error.value).splitlines()] == [
        ["run.seed", "found -1, must be >= 0"],
        ["run.epochs", "missing; add it (a whole number >= 1)"],
        ["run.epoch", "unknown key; did you mean 'epochs'? known here"],
        ["model", "image_branch and temporal_branch are both null; a model needs one of them"],
        [f"{GROUP}.lr", "found 'fast', expected a number > 0"],
        [f"{GROUP}.betas[1]", "found True, expected a number >= 0 and < 1"],
        [f"{RULE}.factor", "found 2, must be > 0 and < 1"],
        [f"{RULE}.above", "belongs to rule"],
        ["statistics", f"missing; add it (a mapping with the keys {', '.join(StatisticsConfig.model_fields)})"],
    ]


ONLY = "only ${another.key} is read; set it on the command line, "


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("data.root", "${oc.env:ROOT}", 'data.root="$ROOT"'),
        ("run.name", "x-${oc.env:NAME,a}", 'run.name="$NAME"'),
        (f"{GROUP}.betas", [0.9, "${ oc.env : BETA }"], f'{GROUP}.betas[1]="$BETA"'),
        ("run.seed", "${oc.decode:${oc.env:SEED}}", 'run.seed="$VALUE"'),
        ("run", "${oc.create:{}}", 'run="$VALUE"'),
        ("run.name", "a-${other:1}", 'run.name="$VALUE"'),
    ],
)
def test_the_environment_and_the_like_are_not_read(tree, monkeypatch, key, value, remedy):
    monkeypatch.setenv("ROOT", "swordfish")
    with pytest.raises(ValueError) as error:
        parse_config(at(tree, key, value))
    found = value[1] if isinstance(value, list) else value
    assert str(error.value) == f"{remedy.split('=')[0]}: found {found!r}, {ONLY}{remedy}"


JUNK = [None, True, "x", "", 3, -1.5, 10**400, math.nan, [], [1], [[]], {}, {"a": 1}, {1: 2}, {"rule": None}]
JUNK += [{"name": {}}, "${nowhere}", "${optimizer}", "${run}", "${learning_rates.reductions}", "a\nb"]


def keys_in(node, key=""):
    """Of every value, and every mapping and list, in a tree."""
    if key:
        yield key
    if isinstance(node, dict):
        for name, value in node.items():
            yield from keys_in(value, f"{key}.{name}" if key else name)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from keys_in(value, f"{key}[{i}]")


def test_whatever_stands_anywhere_is_accepted_or_told_by_its_key(tree):
    """Three kinds of junk at each place, in turn: no other exception, and no finding at another key of a section."""
    tree["learning_rates"]["schedules"] = {"fusion_head": {"name": "step", "every_epochs": 1, "factor": 0.5}}
    places = list(keys_in(tree))
    assert "learning_rates.schedules.fusion_head.factor" in places and "learning_rates.reductions[2]" in places
    refused = 0
    for i, (key, k) in enumerate(itertools.product(places, range(3))):
        changed = OmegaConf.create(tree)
        OmegaConf.update(changed, key, JUNK[(5 * i + k) % len(JUNK)], merge=False)
        try:
            parse_config(changed)
        except Findings as error:
            refused += 1
            for line in str(error).splitlines():
                told = line.split(": ")[0]
                about_groups = key.startswith("optimizer.groups") and "unknown group" in line
                assert told.startswith(key) or key.startswith(told) or about_groups, (key, line)
    assert refused > 200


def test_all_bad_overrides_are_told_at_once():
    with pytest.raises(ValueError) as error:
        fusion("run.name", "run.seed=1", "a=[")
    assert [line[:20] for line in str(error.value).splitlines()] == ["override 'run.name':", "override 'a=[': whil"]


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("learning_rates.reductions[5].patience=1", "learning_rates.reductions has no entry 5: it is a list of 3"),
        ("learning_rates.reductions[3]=x", "learning_rates.reductions has no entry 3: it is a list of 3"),
        ("learning_rates.reductions[-1].patience=1", "learning_rates.reductions has no entry -1: it is a list of 3"),
        ("learning_rates.reductions.x=1", "learning_rates.reductions has no entry x: it is a list of 3"),
        ("learning_rates.reductions[0].groups[1]=x", "learning_rates.reductions[0].groups has no entry 1: it is a l"),
    ],
)
def test_an_entry_that_a_list_does_not_have_is_told_with_its_length(override, found):
    with pytest.raises(ValueError) as error:
        fusion(override)
    assert str(error.value).startswith(f"override '{override}': {found}")
    assert str(error.value).endswith("counted from 0; to add one, replace the whole list")


@pytest.mark.parametrize("key", ["optimizer.groups.image_branch", "optimizer.groups.image_branch.options", "run"])
def test_a_part_that_points_to_what_holds_it_is_refused(tree, key):
    with pytest.raises(ValueError) as error:
        parse_config(at(tree, key, "${optimizer}"))
    assert str(error.value).startswith(key)


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
        ("run.name", 7, "run.name: found 7, expected a text; put it in quotes"),
        ("run.name", 1e-4, "run.name: found 0.0001, expected a text; put it in quotes"),
        ("run.name", True, "run.name: found True, expected a text; put it in quotes"),
        ("run.folder", None, "run.folder: found None, expected a text; put it in quotes"),
        ("optimizer.name", 3, "optimizer.name: found 3, expected a text; put it in quotes"),
        ("optimizer.groups.image_branch.params", ["a", 1], "image_branch.params[1]: found 1, expected a text; put"),
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


def test_an_override_may_point_elsewhere_to_a_list_too():
    groups = "optimizer.groups"
    config, tree = fusion(
        "run.name=${optimizer.name}-${run.seed}",
        f"{groups}.image_branch.betas=${{{groups}.temporal_branch.betas}}",
        f"{groups}.unimodal_heads=${{{groups}.fusion_head}}",
        f"{groups}.fusion_head.lr=2e-3",
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


def test_a_part_of_a_saved_config_is_read_whatever_the_others_hold(tree, config):
    tree["run"]["folder"] = tree["optimizer"] = None
    del tree["data"]["augmentation"]
    assert read_part(tree, "data") == config.data
    assert read_part(tree, "model") == config.model
    assert (read_part(tree, "run.seed"), read_part(tree, "run.precision")) == (0, "fp32")
    tree["data"]["batch_size"] = "many"
    with pytest.raises(ValueError, match="^data.batch_size: found 'many', expected a whole number >= 2"):
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
        ("a: [1", "cannot be read as YAML (while parsing a flow sequence"),
        ("a: 1\na: 2", "cannot be read as YAML (while constructing a mapping"),
        (b"\xff\xfe", "cannot be read as YAML ('utf-8' codec can't decode"),
        ("- 1\n- 2\n", "holds a list; expected a YAML file with the sections run, data,"),
        ("", "holds nothing; expected a YAML file with the sections run, data,"),
        ("# nothing\n---\n", "holds nothing; expected"),
        ("3", "cannot be read as YAML"),
    ],
)
def test_files_that_are_no_config_are_refused(tmp_path, content, message):
    path = tmp_path / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as error:
        load_config(path)
    assert str(path) in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(
        ValueError, match="cannot be read as YAML .*Is a directory.*; expected a YAML file with the sect"
    ):
        load_config(tmp_path)


def test_a_missing_file_is_named_with_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError, match=r"nowhere.yaml does not exist; available: .*configs/fusion.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_differences_name_the_leaves_that_changed():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert differences(old, old) == []
    rules = {"rules": [{"rule": "plateau", "patience": 1}, {"rule": "plateau", "patience": 1}]}
    changed = {"rules": [{"rule": "plateau", "patience": 1}, {"rule": "plateau", "patience": 5}]}
    assert differences(rules, changed) == ["rules[1].patience: 1 -> 5"]
    assert differences(rules, {"rules": []}) == [f"rules: {rules['rules']} -> []"]
    assert differences(old, {"a": {"b": 2, "c": [1, 2]}, "e": 4}) == ["a.b: 1 -> 2", "d: 3 -> None", "e: None -> 4"]


@pytest.mark.parametrize(
    ("override", "key", "name"),
    [
        ("learning_rates.schedules={1: {name: cosine}}", "learning_rates.schedules", 1),
        ("optimizer.groups={2: {lr: 0.1}}", "optimizer.groups", 2),
        ("run={3: 1}", "run", 3),
    ],
)
def test_a_name_that_yaml_reads_as_something_else_is_one_line(override, key, name):
    with pytest.raises(Findings) as error:
        load_config(ROOT / "configs" / "smoke.yaml", [override])
    assert f"{key}.{name}: a name is a text; put {name} in quotes" in str(error.value).splitlines()
