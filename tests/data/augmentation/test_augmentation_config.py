import re

import pytest
import yaml
from jsonschema import Draft202012Validator

from app.commands.reference import schema
from app.commands.root_config import Config, parse_config
from data.augmentation.config import AugmentationConfig
from tests.conftest import ROOT

(SHOWN,) = re.findall(r"^    augmentation:\n(?:     .*\n)+", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE)
ALL = yaml.safe_load(SHOWN)["augmentation"]


def test_every_effect_is_off_by_default(tree):
    del tree["data"]["augmentation"]
    augmentation = parse_config(tree)[0].data.augmentation
    assert augmentation == AugmentationConfig()
    assert [effect for part in (augmentation.image, augmentation.sequence) for _, effect in part] == [None] * 11
    assert augmentation.mixup is None


def test_all_effects_that_the_docs_show_are_valid_for_the_program_and_for_editors(tree):
    tree["data"]["augmentation"] = ALL
    config: Config = parse_config(tree)[0]
    augmentation = config.data.augmentation
    for name in ("image", "sequence"):
        assert list(type(getattr(augmentation, name)).model_fields) == list(ALL[name])  # in the order in which they act
    assert augmentation.mixup.alpha == 0.2
    assert augmentation.image.crop.ratio == [0.75, 1.333]
    Draft202012Validator(schema()).validate(tree)


@pytest.mark.parametrize(
    ("part", "effect", "value", "finding"),
    [
        ("image", "corp", {}, "corp: unknown key; did you mean 'crop'? known here: crop, flip, affine, colour, erase"),
        ("image", "crop", {"scale": [0.6, 1.0], "rato": [1.0, 1.0]}, "crop.rato: unknown key; did you mean 'ratio'?"),
        ("image", "crop", {}, "crop.scale: missing; add it (a list of 2, each a number > 0 and <= 1)"),
        ("image", "crop", {"scale": [1.0, 0.6]}, "crop.scale: found [1.0, 0.6], the first must be at most the second"),
        ("image", "crop", {"scale": [0.6]}, "crop.scale: found [0.6], expected a list of 2, each a number > 0 and"),
        ("image", "crop", {"scale": [0.6, 1.1]}, "crop.scale[1]: found 1.1, must be > 0 and <= 1"),
        ("image", "flip", 0.5, "flip: found 0.5, expected a mapping with the keys horizontal, vertical, or null"),
        ("image", "colour", {"hue": 0.6}, "colour.hue: found 0.6, must be >= 0 and <= 0.5"),
        ("sequence", "time_mask", {"count": 5, "max_share": 0.1}, "time_mask.count: found 5, must be >= 1 and <= 4"),
        ("sequence", "speed", {"factor": [1.1, 0.9]}, "speed.factor: found [1.1, 0.9], the first must be at most"),
        ("sequence", "gain", {"db": 3, "dB": 3}, "gain.dB: unknown key; did you mean 'db'? known here: db"),
    ],
)
@pytest.mark.parametrize("source", ["digits", "manifest"])
def test_what_is_wrong_is_told_by_its_full_key(tree, source, part, effect, value, finding):
    if source == "manifest":
        tree["data"] = {"source": "manifest", "manifest": "x.csv", "batch_size": 8, "image_size": 32}
    tree["data"]["augmentation"] = {part: {effect: value}}
    with pytest.raises(ValueError) as error:
        parse_config(tree)
    assert str(error.value).startswith(f"data.augmentation.{part}.{finding}") and "\n" not in str(error.value)
