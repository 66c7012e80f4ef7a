from dataclasses import replace

import pytest
import torch

from app.best_weights import BestWeights
from app.config_schema import ReductionConfig
from app.freezing import Freezing
from app.learning_rates import describe_event
from app.param_groups import build_optimizer


@pytest.fixture
def set_up(small_model, optimizer_config, learning_rates_of):
    rule = ReductionConfig(
        groups=["image_branch"], monitor="val/loss", rule="plateau", factor=0.1, patience=0, restore_best=True
    )

    def build(*rules):
        _, groups = build_optimizer(small_model, optimizer_config)
        rates = learning_rates_of(groups, monitors=["val/loss"], reductions=list(rules or [rule]))
        return rates, BestWeights(groups, Freezing(small_model, groups), rates)

    build.rule = rule
    return build


def set_all(model, value):
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)


def validate(rates, best, loss, epoch):
    events = rates.after_validation({"val/loss": loss}, epoch=epoch, step=10 * epoch)
    best.keep(events)
    best.restore(events)
    return events


def test_the_reduced_groups_weights_and_statistics_come_back_and_no_others(small_model, set_up):
    rates, best = set_up()
    for epoch, loss in enumerate([1.0, 0.5, 0.7], start=1):
        set_all(small_model, epoch)
        events = validate(rates, best, loss, epoch)
    assert [event["restored"] for event in events] == [True]
    assert "its best weights are back" in describe_event(events[0])
    for name, value in small_model.state_dict().items():
        expected = 2 if name.startswith("image_branch.") else 3
        assert (value == expected).all(), name


def test_without_restore_best_nothing_is_kept_and_nothing_comes_back(small_model, set_up):
    rates, best = set_up(replace(set_up.rule, restore_best=False))
    for epoch, loss in enumerate([1.0, 2.0], start=1):
        set_all(small_model, epoch)
        events = validate(rates, best, loss, epoch)
    assert [event["restored"] for event in events] == [False]
    assert best.state_dict() == {}
    assert all((value == 2).all() for value in small_model.state_dict().values())


def test_the_copy_survives_a_stop(small_model, set_up):
    rates, best = set_up()
    set_all(small_model, 1)
    validate(rates, best, 1.0, 1)
    resumed_rates, resumed = set_up()
    resumed_rates.load_state_dict(rates.state_dict())
    resumed.load_state_dict(best.state_dict())
    set_all(small_model, 2)
    validate(resumed_rates, resumed, 2.0, 2)
    assert (small_model.image_branch[0].weight == 1).all()
    assert (small_model.fusion_head.layers[0].weight == 2).all()
