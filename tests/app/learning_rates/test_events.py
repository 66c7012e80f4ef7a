import dataclasses

import pytest

from app.learning_rates.events import LrEvent
from app.records.run_log import to_json

REDUCED = LrEvent(
    group="fusion_head",
    lr_before=0.5,
    lr_after=0.25,
    cause="threshold",
    rule=2,
    monitor="val/loss",
    value=1.5,
    factor=0.5,
    min_lr=0.0,
)
UNFROZEN = LrEvent(group="image_branch", lr_before=0.0, lr_after=0.1, cause="unfreeze")


def test_the_lines_of_lr_events_jsonl():
    """Read by other programs: the keys, their order, and null where a rule had no best value yet."""
    assert to_json(REDUCED.as_record()) == (
        '{"group": "fusion_head", "from": 0.5, "cause": "threshold", "rule": 2, "to": 0.25, "monitor": "val/loss", '
        '"value": 1.5, "best": null, "factor": 0.5, "min_lr": 0.0, "restored": false}'
    )
    assert '"best": 0.25, ' in to_json(dataclasses.replace(REDUCED, best=0.25).as_record())
    assert to_json(dataclasses.replace(REDUCED, restored=True).as_record()).endswith(', "restored": true}')
    assert to_json(UNFROZEN.as_record()) == '{"group": "image_branch", "from": 0.0, "to": 0.1, "cause": "unfreeze"}'


def test_an_event_in_words():
    assert REDUCED.describe() == "lr of fusion_head 0.5 -> 0.25 (threshold): val/loss is 1.5000"
    restored = dataclasses.replace(REDUCED, best=0.25, restored=True)
    assert restored.describe() == (
        "lr of fusion_head 0.5 -> 0.25 (threshold): val/loss is 1.5000, best 0.2500; "
        "its best weights are back, its moments start afresh"
    )
    assert UNFROZEN.describe() == "lr of image_branch 0 -> 0.1: unfrozen"


def test_an_event_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        REDUCED.restored = True
