import pytest

from app.learning_rates.learning_rates import LearningRatesConfig
from app.learning_rates.replay import replay
from app.learning_rates.rules import PlateauConfig
from tests.app.learning_rates.test_learning_rates import reduction


def test_replay_takes_the_path_that_training_took(config):
    rules = [reduction(["temporal_branch"], patience=0), reduction(["image_branch"], "val/image_branch/loss")]

    settings = config.optimizer.groups, LearningRatesConfig(warmup_steps=0, reductions=rules)
    losses = [1.0, 0.9, 0.95, 0.8]
    records = [
        {"kind": "val", "epoch": e, "step": 66 * e, "loss": loss, "image_branch/loss": 1.0}
        for e, loss in enumerate(losses, start=1)
    ]
    lines = replay(*settings, records, epochs=config.run.epochs).splitlines()
    assert [line.split()[1:3] for line in lines if line.split()[0].isdigit()] == [
        ["0.0005", "0.006"],
        ["0.0005", "0.006"],
        ["5e-05", "0.0006"],
        ["5e-05", "0.0006"],
    ]
    assert sum("lr of temporal_branch 0.006 -> 0.0006" in line for line in lines) == 1
    with pytest.raises(ValueError, match="'val/image_branch/loss' is not a validation metric"):
        replay(*settings, [{"kind": "val", "epoch": 1, "step": 66, "loss": 1.0}], epochs=config.run.epochs)


def test_a_recall_is_replayed_also_of_a_class_that_is_called_loss(config):
    """It rises, so nothing is reduced; as a loss it would have."""
    rule = PlateauConfig(
        groups=["image_branch"], monitor="val/recall/loss", rule="plateau", factor=0.1, patience=0, min_lr=0.0
    )
    settings = config.optimizer.groups, LearningRatesConfig(warmup_steps=0, reductions=[rule])
    records = [
        {"kind": "val", "epoch": e, "step": 66 * e, "loss": 1.0, "recall/loss": recall}
        for e, recall in enumerate([0.1, 0.2, 0.3], start=1)
    ]
    assert "lr of image_branch" not in replay(*settings, records, epochs=3)
    assert "lr of image_branch 0.0005 -> 5e-05" in replay(*settings, [*records, {**records[0], "epoch": 4}], epochs=4)
