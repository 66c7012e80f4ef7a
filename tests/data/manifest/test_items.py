import numpy as np
import pytest

from data.manifest.facts import ImageFacts, SequenceFacts
from data.manifest.items import Damaged, facts_in, pack, stored_in

FACTS = (
    ImageFacts(b"\0\xff" * 8, 640, 480, "float32", -1e-45, 0.1),
    SequenceFacts(bytes(16), False, 7, ("ä", "b"), np.array([1 / 3, 1e300]), np.array([5e-324, 0.0])),
    SequenceFacts(bytes(16), True, 7, None, np.array([2.0]), np.array([0.5])),
)


@pytest.mark.parametrize("facts", FACTS)
@pytest.mark.parametrize("shape", [(3, 5, 5), (4, 2), (2, 1, 1)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_facts_and_values_come_back_to_the_bit(facts, shape, kind):
    stored = (np.random.default_rng(0).normal(size=shape) * 100).astype(kind)
    item = memoryview(pack(facts, stored) + b"what follows")
    found, values = facts_in(item), stored_in(item)
    assert type(found) is type(facts)
    for ours, theirs in zip(found, facts, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert type(ours) is type(theirs)
    np.testing.assert_array_equal(values, stored)
    assert values.dtype == kind and values.flags.writeable and values.flags.aligned


def test_no_flipped_bit_is_taken_for_an_item():
    """Each is found by whoever reads the part that it is in; the head is in both."""
    item = pack(FACTS[1], np.ones((2, 3), np.float32))
    for bit in range(8 * len(item)):
        flipped = bytearray(item)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            facts_in(memoryview(flipped))
            stored_in(memoryview(flipped))
