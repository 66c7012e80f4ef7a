import numpy as np
import pytest
import torch
from torch import nn

from app.evaluation.modality_use import answers, describe_use
from app.training.objective import BRANCHES
from models.encoded import Encoded

CPU = {"device": torch.device("cpu"), "precision": "fp32"}


class Reader(nn.Module):
    """A model of 3 classes that gets the class itself as both inputs, and answers by `weights` of image and sequence;
    an absent input says nothing."""

    def __init__(self, image: float, sequence: float):
        super().__init__()
        self.weights = {"image_branch": image, "temporal_branch": sequence}
        self.unimodal_heads = dict.fromkeys(BRANCHES, nn.Identity())

    def encode(self, branch, inputs):
        read = {"image_branch": "image", "temporal_branch": "sequence"}[branch]
        return Encoded(inputs[read].flatten(1).float())

    def fuse(self, encoded, batch_size):
        parts = [self.weights[name] * part.pooled for name, part in encoded.items() if part is not None]
        return sum(parts)


def batch_of(labels, windows=None, present=None):
    one_hot = torch.eye(3)[torch.tensor(labels)]
    counts = torch.tensor(windows or [1] * len(labels))
    batch = {
        "image": one_hot,
        "sequence": one_hot.repeat_interleave(counts, 0)[:, None],
        "length": torch.ones(int(counts.sum()), dtype=torch.int64),
        "label": torch.tensor(labels),
        "present": torch.tensor(present or [[1, 1]] * len(labels), dtype=torch.bool),
    }
    return batch | ({"windows": counts} if windows else {})


def use_of(model, batches, stand_ins=None):
    return describe_use(answers(model, batches, **CPU), stand_ins or {})


@pytest.mark.parametrize("windows", [None, [1, 3, 2] * 40])
def test_an_input_without_weight_is_ignored_and_the_other_used(windows):
    use = use_of(Reader(1.0, 0.0), [batch_of([0, 1, 2] * 40, windows)])
    image, sequence = use["inputs"]["image"], use["inputs"]["sequence"]
    assert (use["samples"], use["accuracy"], image["verdict"], sequence["verdict"]) == (120, 1.0, "used", "ignored")
    # Another sample is of the same class in 39 of 119 cases.
    assert image["shuffled"] == pytest.approx(39 / 119, abs=0.1) and image["shuffling_costs"] == 1 - image["shuffled"]
    low, high = image["interval_95"]
    assert low < image["shuffling_costs"] < high
    assert sequence["interval_95"] == [0.0, 3 / 120] and sequence["shuffled"] == 1.0
    assert (image["own_head"], image["other_absent"], sequence["own_head"]) == (1.0, 1.0, 1.0)
    assert sequence["other_absent"] == pytest.approx(1 / 3)  # nothing is said: the first class


def test_a_model_that_needs_both_uses_both():
    use = use_of(Reader(1.0, 1.0), [batch_of([0, 1, 2] * 20), batch_of([2, 1, 0] * 20)])
    assert [part["verdict"] for part in use["inputs"].values()] == ["used", "used"]
    assert use["inputs"]["image"]["in_words"].startswith("used: shuffling costs ")


def test_a_shuffled_sequence_brings_all_of_its_windows():
    """Windows vote by their mean: those of the others are taken whole, or the votes would be mixed."""
    batch = batch_of([0, 1], [3, 2])
    right = answers(Reader(0.0, 1.0), [batch], **CPU)
    assert right["full"].all() and not right["shuffled/temporal_branch"].any()
    assert right["shuffled/image_branch"].all()


def test_a_few_samples_are_too_few_for_ignored():
    use = use_of(Reader(1.0, 0.0), [batch_of([0, 1, 2] * 19)])
    assert use["inputs"]["sequence"]["verdict"] == "unclear"
    assert use["inputs"]["sequence"]["in_words"].startswith("unclear: 57 samples are too few to tell: 0.0 points")


def test_samples_without_both_inputs_or_without_a_label_do_not_count():
    batch = batch_of([0, 1, 2, 0], [2, 1, 2, 1], [[1, 1], [0, 1], [1, 1], [1, 1]])
    batch["label"][3] = -1
    right = answers(Reader(1.0, 1.0), [batch, batch_of([1], present=[[1, 0]])], **CPU)
    assert {values.shape[-1] for values in right.values()} == {2} and right["full"].all()
    assert use_of(Reader(1.0, 1.0), [batch_of([1])]) == {}


def test_what_stands_in_for_an_absent_input_is_told_to_be_untrained():
    stand_ins = {"image_branch": torch.zeros(2), "temporal_branch": torch.tensor([0.0, 1.0])}
    use = use_of(Reader(1.0, 1.0), [batch_of([0, 1, 2])], stand_ins)
    trained = {name: part["other_absent_was_trained"] for name, part in use["inputs"].items()}
    assert trained == {"image": True, "sequence": False}


def test_the_interval_is_that_of_a_mean_and_the_same_each_time():
    """Against the normal approximation, at a size where it holds."""
    generator = np.random.default_rng(1)
    full = generator.random(4000) < 0.9
    right = {"full": full, **{f"{kind}/{branch}": full for kind in ("own", "only") for branch in BRANCHES}}
    shuffled = generator.random((5, 4000)) < 0.6
    right |= {f"shuffled/{branch}": shuffled for branch in BRANCHES}
    first, again = (describe_use(right, {})["inputs"]["image"] for _ in range(2))
    costs = full - shuffled.mean(0)
    error = 1.96 * costs.std(ddof=1) / np.sqrt(4000)
    assert first == again
    assert first["interval_95"] == pytest.approx([costs.mean() - error, costs.mean() + error], abs=0.05 * error)
