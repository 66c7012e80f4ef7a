import pytest
import torch

from app.learning_rates.best_weights import BestWeights
from app.learning_rates.rules import PlateauConfig
from app.param_groups.freezing import Freezing
from app.param_groups.optimizer import build_optimizer
from tests.conftest import replace

MONITORS = ["val/loss", "val/accuracy"]


@pytest.fixture
def set_up(small_model, optimizer_config, learning_rates_of):
    rule = PlateauConfig(
        groups=["image_branch"], monitor="val/loss", rule="plateau", factor=0.1, patience=0, restore_best=True
    )

    def build(*rules):
        optimizer, groups = build_optimizer(small_model, optimizer_config)
        rates = learning_rates_of(groups, monitors=MONITORS, reductions=list(rules or [rule]))
        best = BestWeights(optimizer, groups, Freezing(small_model, groups), rates)
        return rates, best

    build.rule = rule
    return build


def set_all(model, value):
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)


def validate(rates, best, loss, epoch, accuracy=0.5):
    metrics = {"val/loss": loss, "val/accuracy": accuracy}
    events = rates.after_validation(metrics, epoch=epoch, step=10 * epoch)
    events = best.keep(events)
    assert best.restore() == any(event.restored for event in events)
    return events


def test_the_reduced_groups_weights_and_statistics_come_back_and_no_others(small_model, set_up):
    rates, best = set_up()
    for epoch, loss in enumerate([1.0, 0.5, 0.7], start=1):
        set_all(small_model, epoch)
        events = validate(rates, best, loss, epoch)
    assert [event.restored for event in events] == [True]
    assert "its best weights are back, its moments start afresh" in events[0].describe()
    for name, value in small_model.state_dict().items():
        expected = 2 if name.startswith("image_branch.") else 3
        assert (value == expected).all(), name


def test_the_restored_groups_moments_start_from_the_beginning_and_no_others(small_model, set_up):
    rates, best = set_up()
    validate(rates, best, 1.0, 1)
    for parameter in small_model.parameters():
        parameter.grad = torch.ones_like(parameter)
    best.optimizer.step()
    validate(rates, best, 2.0, 2)
    held = {name for name, parameter in small_model.named_parameters() if parameter in best.optimizer.state}
    assert held == {name for name, _ in small_model.named_parameters() if not name.startswith("image_branch.")}
    best.optimizer.step()  # as a fresh optimizer would: the first step of AdamW has step 1
    steps = {name: best.optimizer.state[p]["step"].item() for name, p in small_model.named_parameters()}
    assert all(step == (1 if name.startswith("image_branch.") else 2) for name, step in steps.items())


def test_without_restore_best_nothing_is_kept_and_nothing_comes_back(small_model, set_up):
    rates, best = set_up(replace(set_up.rule, restore_best=False))
    for epoch, loss in enumerate([1.0, 2.0], start=1):
        set_all(small_model, epoch)
        events = validate(rates, best, loss, epoch)
    assert [event.restored for event in events] == [False]
    assert best.state_dict() == {"kept": {}, "pending": []}
    assert all((value == 2).all() for value in small_model.state_dict().values())


@pytest.mark.parametrize("order", [1, -1])
def test_a_rule_without_restore_best_restores_nothing_beside_a_sibling_that_has_it(small_model, set_up, order):
    """Same group, same monitor, same kind: they differ in patience and restore_best alone."""
    rules = [replace(set_up.rule, patience=2), replace(set_up.rule, restore_best=False)][::order]
    rates, best = set_up(*rules)
    restored = []
    for epoch, loss in enumerate([1.0, 2.0, 2.0, 2.0], start=1):
        set_all(small_model, epoch)
        restored.append([event.restored for event in validate(rates, best, loss, epoch)])
    assert restored == [[], [False], [False], [True, False][::order]]
    assert (small_model.image_branch[0].weight == 1).all()


def test_of_two_rules_that_restore_at_once_the_first_in_the_config_does(small_model, set_up):
    rates, best = set_up(replace(set_up.rule, monitor="val/accuracy"), set_up.rule)
    restored = []
    # The best accuracy is that of epoch 1, the best loss that of epoch 2.
    for epoch, (loss, accuracy) in enumerate([(1.0, 0.9), (0.5, 0.9), (2.0, 0.1)], start=1):
        set_all(small_model, epoch)
        restored.append([event.restored for event in validate(rates, best, loss, epoch, accuracy)])
    assert restored == [[], [True], [True, False]]
    assert (small_model.image_branch[0].weight == 1).all()


def resume(set_up, rates, best, *rules):
    resumed_rates, resumed = set_up(*rules)
    lines = resumed_rates.load_state_dict(rates.state_dict())
    return resumed_rates, resumed, lines + resumed.load_state_dict(best.state_dict())


def test_the_copy_survives_a_stop(small_model, set_up):
    rates, best = set_up()
    set_all(small_model, 1)
    validate(rates, best, 1.0, 1)
    resumed_rates, resumed, lines = resume(set_up, rates, best)
    assert lines == []
    set_all(small_model, 2)
    validate(resumed_rates, resumed, 2.0, 2)
    assert (small_model.image_branch[0].weight == 1).all()
    assert (small_model.fusion_head.layers[0].weight == 2).all()


def test_what_is_loaded_is_what_was_saved_and_nothing_of_before(small_model, set_up):
    rates, best = set_up()
    validate(rates, best, 1.0, 1)
    _, resumed, _ = resume(set_up, rates, best)
    assert resumed.kept.keys() == best.kept.keys() == {"0 image_branch"}
    for name, tensor in best.kept["0 image_branch"].items():
        assert torch.equal(resumed.kept["0 image_branch"][name], tensor), name
    untrained, _ = set_up()
    resumed.rules = {rule.key: rule for rule in untrained.rules}
    empty = {"kept": {}, "pending": []}
    assert resumed.load_state_dict(empty) == [] and resumed.state_dict() == empty


def test_the_copy_follows_its_rule_to_another_place_in_the_list(small_model, set_up):
    rates, best = set_up(set_up.rule, replace(set_up.rule, patience=1))
    set_all(small_model, 1)
    validate(rates, best, 1.0, 1)
    _, resumed, lines = resume(set_up, rates, best, replace(set_up.rule, patience=1))
    assert lines == []
    assert all((tensor == 1).all() for tensor in resumed.kept["0 image_branch"].values())


def test_the_copy_goes_with_the_best_that_starts_from_the_beginning(small_model, set_up):
    rates, best = set_up()
    validate(rates, best, 1.0, 1)
    _, resumed, lines = resume(set_up, rates, best, replace(set_up.rule, threshold=0.3))
    assert [line.split(" (")[0] for line in lines] == ["best of reductions[0] for image_branch"]
    assert resumed.kept == {}


def test_a_best_value_without_weights_is_named(small_model, set_up):
    rates, best = set_up(replace(set_up.rule, restore_best=False))
    validate(rates, best, 1.0, 1)
    _, resumed, lines = resume(set_up, rates, best, set_up.rule)
    (line,) = lines
    assert line.startswith("the best weights of reductions[0] for image_branch (none of this group are saved")
    assert resumed.kept == {}


def test_what_was_saved_before_the_weights_came_back_gets_them_when_it_is_loaded(small_model, set_up):
    """best.pt is saved between `keep` and `restore`: a run that goes on from it must not miss the restore."""
    rates, best = set_up()
    set_all(small_model, 1)
    validate(rates, best, 1.0, 1)
    for parameter in small_model.parameters():
        parameter.grad = torch.ones_like(parameter)
    best.optimizer.step()
    set_all(small_model, 2)
    events = rates.after_validation({"val/loss": 2.0, "val/accuracy": 0.5}, epoch=2, step=20)
    assert [event.restored for event in best.keep(events)] == [True]
    saved_rates, saved = rates.state_dict(), best.state_dict()
    assert saved["pending"] == ["0 image_branch"]

    resumed_rates, resumed = set_up()
    for parameter in small_model.parameters():
        resumed.optimizer.state[parameter] = dict(best.optimizer.state[parameter])
    resumed_rates.load_state_dict(saved_rates)
    assert resumed.load_state_dict(saved) == []
    assert (small_model.image_branch[0].weight == 1).all() and (small_model.image_branch[1].running_var == 1).all()
    assert (small_model.fusion_head.layers[0].weight == 2).all()
    held = {name for name, parameter in small_model.named_parameters() if parameter in resumed.optimizer.state}
    assert held == {name for name, _ in small_model.named_parameters() if not name.startswith("image_branch.")}
    assert resumed.state_dict()["pending"] == []

    resumed_rates, resumed = set_up(replace(set_up.rule, threshold=0.3))  # its best starts afresh
    resumed_rates.load_state_dict(saved_rates)
    assert resumed.load_state_dict(saved) == ["the weights that were to come back by reductions[0] for image_branch"]
