from types import SimpleNamespace

import pytest
import torch

from app.training import precision as precision_module
from app.training.precision import bf16_slowdown, choose_device, slow_precision


def test_a_device_that_is_not_there_is_refused():
    assert choose_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' is not available on this machine; use auto or one of"):
            choose_device("cuda")


@pytest.mark.parametrize(
    ("device", "precision", "slowdown", "expected"),
    [
        ("cpu", "bf16", 44.04, "bf16 takes 44.0 times as long as fp32 on this CPU"),
        ("cpu", "bf16", 2.0, "bf16 takes 2.0 times as long"),
        ("cpu", "bf16", 1.9, None),
        ("cpu", "bf16", 0.6, None),
        ("cpu", "fp32", 44.0, None),
        ("cuda", "bf16", 44.0, None),
    ],
)
def test_bf16_that_is_clearly_slower_is_reported(monkeypatch, device, precision, slowdown, expected):
    monkeypatch.setattr(precision_module, "bf16_slowdown", lambda model, batch, training: slowdown)
    text = slow_precision(None, dict, device=torch.device(device), precision=precision, training=True)
    assert text is None if expected is None else text.startswith(expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_probe_measures_the_model_in_bf16_against_fp32(monkeypatch, small_model, small_batch, training):
    """On a clock of its own, on which a pass takes 1 second in fp32 and 7 in bf16."""
    seconds, original, ran = [0.0], precision_module.autocast, []

    def timed(device, precision):
        seconds[0] += 7.0 if precision == "bf16" else 1.0
        return original(device, precision)

    def note(module, inputs, output):
        ran.append((type(module), output.dtype, output.requires_grad))

    small_model.image_branch[0].register_forward_hook(note)
    small_model.unimodal_heads["temporal_branch"].register_forward_hook(note)
    monkeypatch.setattr(precision_module, "autocast", timed)
    monkeypatch.setattr(precision_module, "time", SimpleNamespace(perf_counter=lambda: seconds[0]))
    assert bf16_slowdown(small_model, small_batch, training=training) == 7.0
    kinds = {type(small_model.image_branch[0]), torch.nn.Linear}
    assert {*ran} == {(kind, dtype, training) for kind in kinds for dtype in (torch.float32, torch.bfloat16)}


def test_without_samples_nothing_is_measured(small_model):
    assert (
        slow_precision(small_model, lambda: None, device=torch.device("cpu"), precision="bf16", training=False) is None
    )
