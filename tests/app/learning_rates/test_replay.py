import pytest

from app.learning_rates.learning_rates import LearningRatesConfig
from app.learning_rates.replay import replay
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
