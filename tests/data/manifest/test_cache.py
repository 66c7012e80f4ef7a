import errno
import multiprocessing
import os
import pickle
import shutil
import sys
import wave
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.manifest import cache as cache_module
from data.manifest import reading
from data.manifest.cache import Answer, CacheError, FolderCache, Keys, Uncached, folder_of
from data.manifest.config import ManifestConfig
from data.manifest.facts import ImageFacts, stored_form
from data.manifest.items import pack
from data.manifest.source import Manifest
from data.spec import SPLITS
from tests.conftest import replace
from tests.data.manifest.tables import MANIFEST, good_rows, write_rows

SEQUENCE_ONLY, BOTH = ("sequence",), ("image", "sequence")


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
    """Two, which are each given three files at once; two files have been looked at before."""
    monkeypatch.setattr(reading, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(reading, "_FILES_AT_ONCE", 3)
    monkeypatch.setattr(reading, "_LOOKED_AT", 1)


@pytest.fixture
def decoded(monkeypatch):
    """The files that this process decodes for a cache, by name."""
    names, decode = [], reading.decode
    monkeypatch.setattr(reading, "decode", lambda *args: names.append(args[1].name) or decode(*args))
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
    samples = Uncached(tmp_path, config())
    for cell, modality in (("a.wav", "sequence"), ("a.png", "image")):
        found = []
        for num in (1, 4):
            threads(num)
            found.append(samples.read(modality, cell))
            assert torch.get_num_threads() == num
        np.testing.assert_array_equal(*found)


def test_keys_are_found_for_each_file():
    files = [("image", f"{i}.png") for i in range(3000)] + [("sequence", f"{i}.png") for i in range(3000)]
    keys = {file: i.to_bytes(16, "little") for i, file in enumerate(files)}
    found = Keys(keys)
    assert all(found[file] == key for file, key in keys.items())
    with pytest.raises(KeyError, match="3000.png"):
        found["image", "3000.png"]


class TestBatches:
    def test_they_do_not_depend_on_the_cache(self, config, table, threads, many_processes):
        threads(4)
        plain = Manifest(config(cache="none", **DEEP))
        expected = batches(plain)
        for cache in ("folder", "folder", "memory"):  # built, found, in memory
            source = Manifest(config(cache=cache, **DEEP))
            assert source.spec == plain.spec
            assert_equal(batches(source), expected)
        assert {batch["image"].dtype for batch in expected} == {torch.float32}

    def test_nor_on_the_processes_that_build_it(self, config, table, threads, monkeypatch):
        threads(4)
        expected = batches(Manifest(config(**DEEP)))
        shutil.rmtree(folder_of(config()))
        monkeypatch.setattr(reading, "_WORTH_PROCESSES", 1)
        monkeypatch.setattr(reading, "_LOOKED_AT", 1)
        assert_equal(batches(Manifest(config(**DEEP))), expected)


def test_many_bytes_are_written_before_all_of_a_piece_is_decoded(config, table, monkeypatch):
    """With a limit that a few files reach, or one."""
    expected, written = batches(Manifest(config(cache="none", **DEEP))), []
    put = FolderCache.put
    monkeypatch.setattr(FolderCache, "put", lambda self, answers: written.append(len(answers)) or put(self, answers))
    monkeypatch.setattr(reading, "_MOST_WAITING", 600)
    assert_equal(batches(Manifest(config(**DEEP))), expected)
    assert len(written) > 5 and sum(written) == 19


class TestWhatIsDecoded:
    def test_the_second_start_decodes_nothing(self, config, table, monkeypatch, many_processes):
        first = Manifest(config(**DEEP))
        monkeypatch.setattr(reading, "decode", lambda *args: pytest.fail("decoded again"))
        again = Manifest(config(**DEEP))
        assert again.spec == first.spec
        assert_equal(batches(again), batches(first))
        assert first.notes[-1].startswith("cache: 19 files, 0 were there; ")
        assert again.notes[-1].startswith("cache: 19 files, 19 were there; ")
        assert again.notes[-1].endswith(f"KiB in {folder_of(config())}")

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
        cache = FolderCache(config())
        keys = [
            [cache.key(modality, Path(name), b"content") for name in ("a.csv", "b.CSV", "c.tsv")]
            for modality in ("sequence", "image")
        ]
        assert keys[0][0] == keys[0][1] != keys[0][2] and len(set(keys[1])) == 1 and not set(keys[0]) & set(keys[1])

    def test_what_has_a_problem_is_never_kept(self, config, rows, tmp_path, decoded):
        (tmp_path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
        table = write_rows(tmp_path / "table.csv", rows)
        for _ in range(2):
            decoded.clear()
            with pytest.raises(ValueError, match="row 2, column image, '0.png': is cut off"):
                Manifest(config(manifest=str(table), **DEEP))
            assert "0.png" in decoded
        assert decoded == ["0.png"]

    def test_a_file_that_changes_while_it_is_read_is_a_finding(self, config, table, tmp_path, monkeypatch):
        decode = reading.decode

        def slow(modality, path, config):
            found = decode(modality, path, config)
            if path.name == "3.npy":
                np.save(path, np.zeros((5, 3)))
            return found

        monkeypatch.setattr(reading, "decode", slow)
        with pytest.raises(ValueError, match="row 5, column sequence, '3.npy': was changed while it was read"):
            Manifest(config(**DEEP))


def read_all(samples, files):
    return [samples.read(*file) for file in files]


def in_child(context, samples, files, results):
    found = read_all(samples, files)
    results.put([array.tobytes() for array in found])


class TestProcesses:
    FILES = [("image", f"{i}.png") for i in range(10)] + [("sequence", f"{i}.npy") for i in (0, 1, 3, 4, 5, 7, 8)]

    @pytest.mark.parametrize("cache", ["folder", "memory"])
    @pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
    def test_they_read_what_their_parent_reads_before_and_after(self, config, table, cache, method):
        samples = Manifest(config(cache=cache, **DEEP)).samples
        expected = [array.tobytes() for array in read_all(samples, self.FILES)]
        context = multiprocessing.get_context(method)
        results = context.Queue()
        children = [context.Process(target=in_child, args=(None, samples, self.FILES, results)) for _ in range(2)]
        for child in children:
            child.start()
        assert results.get(timeout=300) == results.get(timeout=300) == expected
        for child in children:
            child.join()
            assert child.exitcode == 0
        assert [array.tobytes() for array in read_all(samples, self.FILES)] == expected

    def test_a_child_gets_no_environment_of_its_parent(self, config, table):
        """It opens its own, and ends; its parent can write, and read, as before."""
        cache_module._close_all()
        samples = Manifest(config(**DEEP)).samples
        read_all(samples, self.FILES)
        assert len(cache_module._OPEN) == 1
        pid = os.fork()
        if pid == 0:
            inherited = len(cache_module._OPEN)
            read_all(samples, self.FILES)
            os._exit(inherited)
        assert os.waitpid(pid, 0)[1] == 0
        samples.put([Answer(None, b"k" * 16, b"item")])
        read_all(pickle.loads(pickle.dumps(samples)), self.FILES)

    def test_two_sources_of_one_table_in_one_process(self, config, table):
        first, second = Manifest(config(**DEEP)), Manifest(config(image_size=9, **DEEP))
        assert [batch["image"].shape[-1] for batch in (batches(first)[0], batches(second)[0])] == [8, 9]
        assert_equal(batches(first), batches(Manifest(config(cache="none", **DEEP))))

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is told by /proc")
    def test_what_is_read_is_no_memory_of_the_process(self, config):
        """48 MiB are read; pages of the file can be given back at any time, others cannot."""
        cache, stored = FolderCache(config()), np.zeros((3, 512, 512), np.uint8)
        facts = ImageFacts(bytes(16), 1, 1, "uint8", 0.0, 1.0)
        keys = {("image", f"{i}"): i.to_bytes(16, "little") for i in range(64)}
        for key in keys.values():
            cache.put([Answer(facts, key, pack(facts, stored + key[0]))])
        cache.finish(keys, 0)

        def pages_of(kind):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(kind)) // 1024

        cache_module._close_all()
        before = pages_of("RssAnon"), pages_of("RssFile")
        for i in range(64):
            assert cache.read("image", f"{i}")[2, 5, 7] == i
        assert pages_of("RssAnon") - before[0] < 8 and pages_of("RssFile") - before[1] >= 48


class TestErrors:
    @staticmethod
    def told(call, *words):
        with pytest.raises(CacheError) as raised:
            call()
        text = str(raised.value)
        assert all(word in text for word in ("data.cache", *words)) and "\n" not in text
        return text

    def test_a_folder_that_is_no_folder(self, config, table, tmp_path):
        (tmp_path / "cache").write_text("a file")
        self.told(lambda: Manifest(config()), "cannot be used (Not a directory)", "data.cache_folder", "memory or none")

    def test_a_folder_without_rights(self, config, table, monkeypatch):
        def refuse(*args, **kwargs):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "mkdir", refuse)
        self.told(lambda: Manifest(config()), "cannot be used (Permission denied)")

    @pytest.mark.parametrize("content", [b"nonsense", b"", os.urandom(20_000), bytes(20_000)])
    def test_a_file_that_is_no_cache(self, config, table, content):
        folder = folder_of(config())
        folder.mkdir(parents=True)
        (folder / "data.mdb").write_bytes(content)
        if content:
            self.told(lambda: Manifest(config()), f"{folder} is damaged (", "delete it and run again")
        else:
            Manifest(config(**DEEP))

    def test_a_file_that_is_cut_off(self, config, table):
        Manifest(config(**DEEP))
        cache_module._close_all()
        data = folder_of(config()) / "data.mdb"
        os.truncate(data, data.stat().st_size - 4096)
        self.told(lambda: Manifest(config()), "is damaged (data.mdb is cut off); delete it")

    def test_a_flipped_bit_in_a_sample_is_named_with_its_row(self, config, table, tmp_path):
        source = Manifest(config(**DEEP))
        expected = batches(source)
        self.flip(folder_of(config()), np.load(tmp_path / "3.npy").astype(np.float32).tobytes())
        with pytest.raises(OSError, match=r"row 5, column sequence, '3.npy': data.cache: .* is damaged \(wrong check"):
            batches(Manifest(config(**DEEP)))
        shutil.rmtree(folder_of(config()))
        assert_equal(batches(Manifest(config(**DEEP))), expected)

    def test_a_flipped_bit_in_the_facts_is_told_at_the_start(self, config, table, many_processes):
        Manifest(config(**DEEP))
        self.flip(folder_of(config()), b'"width": 21')
        self.told(lambda: Manifest(config(**DEEP)), "is damaged (wrong checksum); delete it")

    @staticmethod
    def flip(folder, content):
        cache_module._close_all()
        data = (folder / "data.mdb").read_bytes()
        assert data.count(content) >= 1  # pages that are in use no more still have it
        flipped = content[:8] + bytes([content[8] ^ 1]) + content[9:]
        (folder / "data.mdb").write_bytes(data.replace(content, flipped))

    def test_a_folder_that_is_replaced_while_it_is_read(self, config, table):
        train = Manifest(config(**DEEP))
        cache_module._close_all()
        shutil.rmtree(folder_of(config()))
        with pytest.raises(
            OSError, match=r"row 2, column sequence, '0.npy': data.cache: .* \(it was built, and is gone\)"
        ):
            batches(train)

    @staticmethod
    def enlarge(tmp_path, edge):
        """Of the ten images one has edge x edge x 3 bytes, one x 2, the others x 1."""
        for path in tmp_path.glob("*.png"):
            image = Image.open(path)
            pixels = np.random.default_rng(int(path.stem)).integers(0, 256, (edge, edge, len(image.getbands())))
            kind = np.uint16 if image.mode.startswith("I") else np.uint8
            Image.fromarray(pixels.squeeze().astype(kind)).save(path)

    def test_a_disk_that_gets_full(self, config, table, monkeypatch, many_processes, tmp_path):
        """The map of LMDB is as large as the disk: 1 MiB, and each image takes a quarter or more. All processes end."""
        self.enlarge(tmp_path, 512)
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**20 + 5, 0, 2**40))
        text = self.told(
            lambda: Manifest(config(image_size=512, **DEEP)), "the disk of", "is full (or fails); make room"
        )
        assert text.endswith("(data.cache_folder), or set data.cache=memory or none")
        assert multiprocessing.active_children() == []
        monkeypatch.undo()
        found = Manifest(config(image_size=512, **DEEP))
        assert found.notes[-1].split(", ")[1].split()[0] not in ("0", "19")
        assert_equal(batches(found), batches(Manifest(config(image_size=512, cache="none", **DEEP))))

    def test_a_disk_that_is_too_small_is_told_before(self, config, table, monkeypatch, many_processes, tmp_path):
        self.enlarge(tmp_path, 512)
        usage, decoded = namedtuple("usage", "total used free"), []
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 0, 2**21))
        monkeypatch.setattr(cache_module.FolderCache, "put", lambda self, answers: decoded.append(answers) or answers)
        text = self.told(
            lambda: Manifest(config(image_size=512, **DEEP)), "2.0 MiB are free on the disk of", "set data.c"
        )
        assert len(decoded) == 1  # two files
        assert float(text.split("about ")[1].split(" MiB")[0]) in (2.5, 5.0, 7.5)  # one of the ten images was drawn

    def test_a_disk_without_any_room(self, config, table, monkeypatch):
        """Where even the file of locks would not fit: writing to a map of it would end the process."""
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30, 0))
        self.told(lambda: Manifest(config()), "is full (or fails); make room")

    def test_memory_that_is_too_small_is_told_before(self, config, table, monkeypatch, tmp_path):
        self.enlarge(tmp_path, 64)
        monkeypatch.setattr(cache_module, "_available_memory", lambda: 10_000)
        in_memory = config(cache="memory", image_size=64, **DEEP)
        words = ("data.cache=memory: about", "9.8 KiB of memory are free; set data.cache=folder or none")
        self.told(lambda: Manifest(in_memory), *words)


def test_a_table_that_is_not_there_leaves_no_folder(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="table.csv: is not there"):
        Manifest(config())
    assert not (tmp_path / "cache").exists()


def test_available_memory_is_that_of_the_system():
    assert 2**20 < cache_module._available_memory() < 2**50


def test_a_name_that_no_folder_can_have(config, tmp_path):
    long = folder_of(config(manifest=str(tmp_path / ("ä b/" + "x" * 240)))).name
    assert long.startswith("x" * 40 + "-") and len(long) == 49
    assert folder_of(config()) != folder_of(config(manifest=str(tmp_path / "b" / "table.csv")))
    assert folder_of(replace(config(), cache_folder=None)).parent.parent == Path(os.environ["DUET_CACHE"])
