import wave

import numpy as np
import pytest
import torch
from PIL import Image

from data.manifest.cache import Uncached
from data.manifest.config import ManifestConfig
from data.manifest.facts import stored_form
from tests.data.manifest.tables import MANIFEST


@pytest.fixture
def config(tmp_path):
    def make(**settings):
        return ManifestConfig(**{**MANIFEST, "manifest": str(tmp_path / "table.csv"), **settings})

    return make


@pytest.mark.parametrize("depth", [np.uint8, np.uint16, np.float32])
def test_images_are_stored_in_their_depth_and_never_enlarged(config, depth):
    """Shrunk to half its width, a row 0, 1, 2, 3, ... becomes the means of 4 pixels, weighted 1, 3, 3, 1: at its left
    edge (3 x 0 + 3 x 1 + 2) / 7, then 2.5, 4.5, ...; halves go to the even number."""
    pixels = np.tile(np.arange(16, dtype=depth), (3, 8, 1))
    assert stored_form(pixels, config(image_size=16)) is pixels  # though only 8 high
    stored = stored_form(pixels, config(image_size=8))
    assert (stored.shape, stored.dtype) == ((3, 8, 8), depth)
    expected = [5 / 7, 2.5, 4.5, 6.5] if depth == np.float32 else [1, 2, 4, 6]
    np.testing.assert_allclose(stored[2, 5, :4], expected, rtol=1e-6)


def test_white_and_black_stay_so(config):
    pixels = np.random.default_rng(0).choice(np.array([0, 255], dtype=np.uint8), (3, 31, 50))
    stored = stored_form(pixels, config(image_size=17))
    assert stored.min() >= 0 and 0 < stored.mean() < 255
    assert (stored_form(np.full_like(pixels, 255), config(image_size=17)) == 255).all()


def test_what_is_read_does_not_depend_on_the_number_of_threads(tmp_path, config):
    """With 4 threads torch sums the features of 10 seconds in another order."""
    noise = np.random.default_rng(0).integers(-9999, 9999, 160_000, dtype=np.int16)
    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setparams((1, 2, 16000, len(noise), "NONE", ""))
        out.writeframes(noise.tobytes())
    Image.fromarray(noise.astype(np.uint16).reshape(400, 400)).save(tmp_path / "a.png")
    samples = Uncached(tmp_path, config())
    before = torch.get_num_threads()
    try:
        for cell, modality in (("a.wav", "sequence"), ("a.png", "image")):
            found = []
            for threads in (1, 4):
                torch.set_num_threads(threads)
                found.append(samples.read(modality, cell))
                assert torch.get_num_threads() == threads
            np.testing.assert_array_equal(*found)
    finally:
        torch.set_num_threads(before)
