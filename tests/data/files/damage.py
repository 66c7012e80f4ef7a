"""A file, damaged in many ways."""

from collections.abc import Iterator

import numpy as np


def damaged_copies(content: bytes, cuts: int = 20, flips: int = 50) -> Iterator[bytes]:
    generator = np.random.default_rng(len(content))
    for part in range(cuts):
        yield content[: max(1, len(content) * part // cuts)]
    # Half of the flips among the first 100 bytes, where headers are.
    for number in range(flips):
        at = generator.integers(min(100, len(content)) if number % 2 else len(content))
        changed = bytearray(content)
        changed[at] ^= generator.integers(1, 256)
        yield bytes(changed)
