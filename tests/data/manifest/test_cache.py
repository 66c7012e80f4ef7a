import multiprocessing
import os
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.manifest import cache as cache_module
from data.manifest.cache import Cache, CacheError, ImageFacts, SequenceFacts, folder_of, stored_form
from data.manifest.config import ManifestConfig
from data.manifest.source import Manifest
from data.spec import SPLITS
from tests.conftest import replace
from tests.data.manifest.tables import MANIFEST, good_rows, write_rows


@pytest.fixture
def config(tmp_path):
    def make(**settings):
        folder = {"cache_folder": str(tmp_path / "cache")}
        return ManifestConfig(**{**MANIFEST, "manifest": str(tmp_path / "table.csv"), **folder, **settings})

    return make


@pytest.fixture
def rows(tmp_path):
    """Ten images and nine sequences: grey, colour, 16 bits; arrays, a table, a recording of 10 seconds."""
    rows = good_rows(tmp_path)
    generator = np.random.default_rng(1)
    Image.fromarray(generator.integers(0, 256, (30, 21, 3), dtype=np.uint8)).save(tmp_path / "0.png")
    Image.fromarray(generator.integers(0, 60000, (9, 13), dtype=np.uint16)).save(tmp_path / "1.png")
    (tmp_path / "2.csv").write_text("a,b,c\n" + "0.1,-2.5,1e30\n" * 7)
    rows[2]["sequence"] = "2.csv"
    write_noise(tmp_path / "6.wav")
    rows[6]["sequence"] = "6.wav"
    rows[9]["sequence"] = ""
    return rows


def write_noise(path):
    noise = np.random.default_rng(0).integers(-9999, 9999, 160_000, dtype=np.int16)
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 16000, len(noise), "NONE", ""))
        out.writeframes(noise.tobytes())


@pytest.fixture
def table(tmp_path, rows):
    return write_rows(tmp_path / "table.csv", rows)


@pytest.fixture
def many_processes(monkeypatch):
    """Two, which are each given three files at once."""
    monkeypatch.setattr(cache_module, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(cache_module, "_FILES_AT_ONCE", 3)


@pytest.fixture
def decoded(monkeypatch):
    """The files that this process decodes, by name."""
    names, decode = [], cache_module.decode
    monkeypatch.setattr(cache_module, "decode", lambda *args: names.append(args[1].name) or decode(*args))
    return names


@pytest.fixture
def threads():
    """Sets how many torch has."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


DEEP = {"image": {"value_range": [0, 65535]}, "audio": {"num_mfcc": 3}}


def batches(source, epoch=0):
    splits = source.splits(seed=0, image_mean=[0.5, 0.2, 0.1], image_std=[0.1, 0.2, 0.3])
    return [splits[name][epoch, torch.arange(len(splits[name]))] for name in SPLITS]


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), name


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


def test_what_is_read_does_not_depend_on_the_number_of_threads(tmp_path, config, threads):
    """With 4 threads torch sums the features of 10 seconds in another order."""
    write_noise(tmp_path / "a.wav")
    Image.fromarray(np.random.default_rng(0).integers(0, 65535, (400, 400), dtype=np.uint16)).save(tmp_path / "a.png")
    cache = Cache(tmp_path, config())
    for cell, modality in (("a.wav", "sequence"), ("a.png", "image")):
        found = []
        for num in (1, 4):
            threads(num)
            found.append(cache.read(modality, cell))
            assert torch.get_num_threads() == num
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("processes", ["one", "two"])
def test_batches_do_not_depend_on_the_cache(config, table, threads, processes, request):
    threads(4)
    if processes == "two":
        request.getfixturevalue("many_processes")
    plain = Manifest(config(cache="none", **DEEP))
    expected = batches(plain)
    for cache in ("folder", "folder", "memory"):  # built, found, and none of it
        source = Manifest(config(cache=cache, **DEEP))
        assert source.spec == plain.spec
        assert_equal(batches(source), expected)
    assert {batch["image"].dtype for batch in expected} == {torch.float32}


class TestWhatIsDecoded:
    def test_each_file_once_for_the_memory(self, config, table, tmp_path, decoded):
        source = Manifest(config(cache="memory", **DEEP))
        decoded.clear()
        first = batches(source)
        assert decoded and len(decoded) == len(set(decoded))
        assert_equal(batches(source), first)
        assert len(decoded) == len(set(decoded)) and not (tmp_path / "cache").exists()

    def test_the_second_start_decodes_nothing(self, config, table, monkeypatch, many_processes):
        first = Manifest(config(**DEEP))
        monkeypatch.setattr(cache_module, "decode", lambda *args: pytest.fail("decoded again"))
        again = Manifest(config(**DEEP))
        assert again.spec == first.spec
        assert_equal(batches(again), batches(first))
        assert first.notes[-1].startswith("cache: 19 files, 19 decoded now; ")
        assert again.notes[-1].startswith("cache: 19 files, 0 decoded now; ")
        assert again.notes[-1].endswith(f"KiB in {folder_of(config())}")

    def test_so_does_one_of_another_table(self, config, table, tmp_path, decoded):
        Manifest(config(**DEEP))
        decoded.clear()
        (tmp_path / "moved").mkdir()
        for path in tmp_path.glob("*.*"):
            path.rename(tmp_path / "moved" / path.name)
        Manifest(config(manifest=str(tmp_path / "moved" / "table.csv"), **DEEP))
        assert decoded == []

    def test_another_content_is(self, config, table, tmp_path, decoded):
        first = batches(Manifest(config(**DEEP)))
        decoded.clear()
        Image.new("L", (8, 8), 7).save(tmp_path / "3.png")
        (tmp_path / "4.npy").rename(tmp_path / "kept.npy")
        shutil.copy(tmp_path / "kept.npy", tmp_path / "4.npy")  # another file of the same content
        second = batches(Manifest(config(**DEEP)))
        assert decoded == ["3.png"]
        assert not torch.equal(first[0]["image"][3], second[0]["image"][3])
        assert torch.equal(first[0]["image"][4], second[0]["image"][4])

    @pytest.mark.parametrize(
        ("changes", "of"),
        [
            ({"image_size": 9}, "image"),
            ({"image": {"max_pixels": 1000, "value_range": [0, 1]}}, "image"),
            ({"image": {"value_range": [5, 6]}}, None),
            ({"sequence": {"fill": "zero"}}, "sequence"),
            ({"audio": {"num_mels": 30, "num_mfcc": 3}}, "sequence"),
            ({"sequence": {"deltas": True, "normalise": False}}, None),
            ({"batch_size": 2, "max_length": 2000, "on_error": "skip"}, None),
        ],
    )
    def test_what_decides_how_it_is_decoded_counts(self, config, table, decoded, changes, of):
        Manifest(config(**DEEP))
        decoded.clear()
        Manifest(config(**{**DEEP, **changes}))
        expected = {
            "image": [f"{i}.png" for i in range(10)],
            "sequence": ["2.csv", "6.wav"] + [f"{i}.npy" for i in (0, 1, 3, 4, 5, 7, 8)],
        }
        assert sorted(decoded) == sorted(expected.get(of, []))
        decoded.clear()
        Manifest(config(**DEEP))  # what was there before is there still
        assert decoded == []

    def test_a_version_of_a_library_counts(self, config, table, decoded, monkeypatch):
        Manifest(config(**DEEP))
        decoded.clear()
        version = cache_module.metadata.version
        monkeypatch.setattr(cache_module.metadata, "version", lambda name: version(name) + "x" * (name == "pillow"))
        Manifest(config(**DEEP))
        assert len(decoded) == 19

    def test_the_suffix_of_a_sequence_counts(self, config):
        """It decides how the file is read."""
        cache = Cache(Path(), config())
        keys = [
            [cache._key(modality, Path(name), "content") for name in ("a.csv", "b.CSV", "c.tsv")]
            for modality in ("sequence", "image")
        ]
        assert keys[0][0] == keys[0][1] != keys[0][2] and len(set(keys[1])) == 1 and not set(keys[0]) & set(keys[1])

    def test_what_has_a_problem_is_never_kept(self, config, rows, tmp_path, decoded):
        (tmp_path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
        table = write_rows(tmp_path / "table.csv", rows)
        for _ in range(2):
            decoded.clear()
            with pytest.raises(ValueError, match="row 2, column image, '0.png': is corrupt, cut off, or not a PNG"):
                Manifest(config(manifest=str(table), **DEEP))
            assert "0.png" in decoded
        assert decoded == ["0.png"]

    def test_a_file_that_changes_while_it_is_read_is_a_finding(self, config, table, tmp_path, monkeypatch):
        decode = cache_module.decode

        def slow(modality, path, config):
            found = decode(modality, path, config)
            if path.name == "3.npy":
                np.save(path, np.zeros((5, 3)))
            return found

        monkeypatch.setattr(cache_module, "decode", slow)
        with pytest.raises(ValueError, match="row 5, column sequence, '3.npy': was changed while it was read"):
            Manifest(config(**DEEP))


def read_all(cache, files):
    return [cache.read(*file) for file in files]


def in_child(cache, files, results):
    results.put([array.tobytes() for array in read_all(cache, files)])


FILES = [("image", f"{i}.png") for i in range(10)] + [("sequence", f"{i}.npy") for i in (0, 1, 3, 4, 5, 7, 8)]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_other_processes_read_what_their_parent_reads(config, table, method):
    cache = Manifest(config(**DEEP)).cache
    expected = [array.tobytes() for array in read_all(cache, FILES)]
    context = multiprocessing.get_context(method)
    results = context.Queue()
    children = [context.Process(target=in_child, args=(cache, FILES, results)) for _ in range(2)]
    for child in children:
        child.start()
    assert results.get(timeout=300) == results.get(timeout=300) == expected
    for child in children:
        child.join()
        assert child.exitcode == 0


class TestEntries:
    def test_a_sequence_keeps_the_type_of_its_file(self, config, table, tmp_path):
        """So that an offset can be subtracted before what is left becomes float32."""
        frames = 1e9 + np.random.default_rng(0).normal(size=(5, 3))
        np.save(tmp_path / "3.npy", frames)
        for _ in ("built", "found"):
            source = Manifest(config(**DEEP))
            np.testing.assert_array_equal(source.cache.read("sequence", "3.npy"), frames, strict=True)
        assert source.cache.read("sequence", "6.wav").dtype == np.float32
        assert batches(source)[0]["sequence"].dtype == torch.float32

    FACTS = (
        ("image", ImageFacts("00ff", 640, 480, "float32", -1e-45, 0.1)),
        ("sequence", SequenceFacts("", False, 7, ("ä", "b\n"), (1 / 3, 1e300), (5e-324, 0.0))),
        ("sequence", SequenceFacts("", True, 7, None, (2.0,), (0.5,))),
    )

    @pytest.mark.parametrize(("modality", "facts"), FACTS)
    @pytest.mark.parametrize("shape", [(3, 5, 5), (4, 2), (2, 1, 1)])
    @pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.float64])
    def test_facts_and_values_come_back_to_the_bit(self, config, tmp_path, modality, facts, shape, kind):
        cache = Cache(tmp_path, config(), tmp_path / "cache")
        stored = (np.random.default_rng(0).normal(size=shape) * 100).astype(kind)
        size = cache._keep("key", facts, stored)
        assert cache._kept_facts("key", modality) == (facts, size)
        values = cache._kept_values("key")
        np.testing.assert_array_equal(values, stored)
        assert values.dtype == kind and values.flags.writeable

    def test_no_flipped_bit_is_taken_for_a_sample(self, config, tmp_path):
        cache = Cache(tmp_path, config(), tmp_path / "cache")
        stored, (modality, expected) = np.ones((2, 3), np.float32), self.FACTS[2]
        cache._keep("key", expected, stored)
        path = cache._path("key")
        entry = path.read_bytes()
        for bit in range(8 * len(entry)):
            flipped = bytearray(entry)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            facts, values = cache._kept_facts("key", modality), cache._kept_values("key")
            assert facts is None or facts[0] == expected
            assert values is None or (values.dtype == stored.dtype and np.array_equal(values, stored))
            assert facts is None or values is None or entry.index(b" ") > bit // 8  # upper case in a checksum
        for length in range(len(entry)):
            path.write_bytes(entry[:length])
            assert cache._kept_values("key") is None

    @pytest.mark.parametrize("damage", ["flip", "cut", "delete", "replace by a folder"])
    def test_what_is_damaged_is_decoded_again(self, config, table, tmp_path, decoded, damage):
        """While training, and at the next start, which mends it."""
        source = Manifest(config(**DEEP))
        expected = batches(source)
        path = source.cache._path(source.cache.keys["sequence", "3.npy"])
        entry = path.read_bytes()
        path.unlink()
        if damage == "flip":
            path.write_bytes(entry[:-1] + bytes([entry[-1] ^ 1]))
        elif damage == "cut":
            path.write_bytes(entry[:20])
        elif damage == "replace by a folder":
            path.mkdir()
        decoded.clear()
        assert_equal(batches(source), expected)
        assert decoded == ["3.npy"]
        if damage == "replace by a folder":
            with pytest.raises(CacheError, match="Is a directory"):
                Manifest(config(**DEEP))
        else:
            assert_equal(batches(Manifest(config(**DEEP))), expected)
            assert path.read_bytes() == entry

    def test_a_whole_folder_that_is_deleted_while_training(self, config, table):
        source = Manifest(config(**DEEP))
        expected = batches(source)
        shutil.rmtree(folder_of(config()))
        assert_equal(batches(source), expected)


class TestErrors:
    @pytest.mark.parametrize("processes", ["one", "two"])
    def test_a_folder_that_is_no_folder(self, config, table, tmp_path, processes, request):
        if processes == "two":
            request.getfixturevalue("many_processes")
        (tmp_path / "cache").write_text("a file")
        with pytest.raises(CacheError) as raised:
            Manifest(config())
        assert str(raised.value) == (
            f"data.cache: {tmp_path / 'cache' / 'decoded'} cannot be written (Not a directory); make room, name "
            "another folder (data.cache_folder), or set data.cache=none"
        )
        assert multiprocessing.active_children() == []

    def test_what_cannot_be_written_whole_leaves_nothing(self, config, table, tmp_path, monkeypatch):
        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(CacheError, match=r"cannot be written \(No space left on device\); make room"):
            Manifest(config())
        assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_table_that_is_not_there_leaves_no_folder(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="table.csv: is not there"):
        Manifest(config())
    assert not (tmp_path / "cache").exists()


def test_the_folder(config, tmp_path):
    assert folder_of(config()) == tmp_path / "cache" / "decoded"
    assert folder_of(replace(config(), cache_folder=None)) == Path(os.environ["DUET_CACHE"]) / "decoded"
    assert folder_of(config(cache_folder="~/x")) == Path.home() / "x" / "decoded"
    assert folder_of(config(cache="none")) is None
