import io
import itertools
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

from app.messages import Findings
from app.section import check_section
from data.files.audio import AudioConfig
from data.files.paths import BadFile
from data.files.sequences import Sequence, SequenceConfig, read_sequence
from tests.data.files.damage import damaged_copies

AUDIO = AudioConfig()


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a file with this suffix."""
    numbers = itertools.count()

    def read_bytes(content: bytes | str, suffix: str, **config) -> Sequence:
        path = tmp_path / f"{next(numbers)}{suffix}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_sequence(path, SequenceConfig(**config), AUDIO)

    return read_bytes


@pytest.fixture
def complaint(read):
    def complain(content: bytes | str, suffix: str, **config) -> str:
        with pytest.raises(BadFile) as caught:
            read(content, suffix, **config)
        (line,) = str(caught.value).splitlines()
        return line

    return complain


def npy(array, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array), **options)
    return file.getvalue()


def npz(*arrays, save=np.savez) -> bytes:
    file = io.BytesIO()
    save(file, *arrays)
    return file.getvalue()


def npy_of_shape(shape: str, body: bytes = bytes(24), descr: str = "'<f4'") -> bytes:
    """With any header."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + body


def short(value) -> str:
    """A name for a case, out of its words."""
    return value[:40] if isinstance(value, str) and "\n" not in value else ""


FRAMES = np.arange(6.0).reshape(3, 2)  # T 3, F 2


def same(found: Sequence, expected, dtype=np.float64) -> None:
    assert found.frames.flags.c_contiguous and found.frames.flags.writeable
    np.testing.assert_array_equal(found.frames, np.array(expected, dtype), strict=True)


@pytest.mark.parametrize("dtype", ["?", "u1", "<i2", ">i4", "<u8", "<f2", "<f4", ">f4", "<f8", ">f8", "longdouble"])
def test_arrays_of_every_real_type(dtype, read):
    stored = FRAMES.astype(dtype)
    own = np.float32 if np.dtype(dtype).str[1:] in ("b1", "u1", "i2", "f2", "f4") else np.float64
    for content, suffix in [
        (npy(stored), ".npy"),
        (npz(stored), ".NPZ"),
        (npz(stored, save=np.savez_compressed), ".npz"),
    ]:
        same(read(content, suffix), stored, own)
        same(read(content, suffix, layout="FT"), stored.T, own)


def test_arrays_of_one_dimension_and_in_fortran_order(read):
    same(read(npy([1.5, 2, 3]), ".npy"), [[1.5], [2], [3]])
    same(read(npy([1.5, 2, 3]), ".npy", layout="FT"), [[1.5], [2], [3]])
    same(read(npy(np.asfortranarray(FRAMES)), ".npy"), FRAMES)
    assert read(npy(FRAMES), ".npy")[1:] == (None, None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty (0 bytes)"),
        (b"no array at all", "not a .npy of numbers after all (the magic string is not correct"),
        (npy(FRAMES)[:-1], "not a .npy of numbers after all (EOF: reading array data, expected 48 bytes got 47"),
        (2 * npy(FRAMES), "holds more than one array, or is corrupt, after shape (3, 2); save one array a file"),
        (npy(np.array([{}, []], object), allow_pickle=True), "not a .npy of numbers after all (Object arrays"),
        (npy(FRAMES.astype(complex)), "holds values of the type complex128; save real numbers"),
        (npy(np.array(["1", "2"])), "holds values of the type <U1"),
        (npy(np.array(["2020-01-01", "2020-01-02"], "M8[D]")), "holds values of the type datetime64[D]"),
        (npy(np.zeros(3, [("a", "f4")])), "holds values of the type"),
        (npy(np.zeros((2, 3, 4))), "has 3 dimensions (shape (2, 3, 4)); a sequence has (T, F) or (T,)"),
        (npy(1.0), "has 0 dimensions"),
        (npy(np.zeros((0, 3))), "has no frames; a sequence needs two"),
        (npy(np.zeros((3, 0))), "has no features"),
        (npy(np.zeros(1)), "has one frame; a sequence needs two"),
        (npy(np.zeros((1, 40))), "has one frame of 40 features; a sequence needs two; did you mean data.seq"),
        (npy([1.0, -np.inf]), "has -inf at frame 2 of 2, feature 1 of 1, which is not finite"),
        (npy([[0.0, 1], [3, -1e39]]), "has -1e+39 at frame 2 of 2, feature 2 of 2, which is too large for float32"),
        (npy([1.0, np.nan, np.nan]), "has 2 gaps (NaN or empty cells), the first at frame 2 of 3, feature 1 of 1;"),
        (npy_of_shape("(10**15,)"), "not a .npy of numbers after all"),
        (npy_of_shape("(1000000000000000, 2)"), "is corrupt, cut off, or not a .npy of numbers after all"),
        (npy_of_shape("(-3, -2)"), "not a .npy of numbers after all"),
        (npy_of_shape("(-3, 2)"), "not a .npy of numbers after all"),
        (npy_of_shape("(3, 2)", descr="'(2,)<f4'"), "not a .npy of numbers after all"),
        (npy_of_shape("(3, __import__('os'))"), "not a .npy of numbers after all"),
        (npy_of_shape("(" * 9000), "is corrupt, cut off, or not a .npy of numbers after all"),
    ],
    ids=short,
)  # fmt: skip
def test_each_bad_array_has_words_of_its_own(content, words, complaint):
    assert words in complaint(content, ".npy")
    if content:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("arr_0.npy", content)
        assert words.replace(".npy", ".npz") in complaint(archive.getvalue(), ".npz")


def test_archives_hold_one_array_of_a_limited_size(complaint, read, monkeypatch):
    assert "holds 2 arrays (arr_0, arr_1); save the one that is meant" in complaint(npz(FRAMES, FRAMES), ".npz")
    assert "holds 0 arrays" in complaint(npz(), ".npz")
    monkeypatch.setattr("data.files.sequences.MAX_BYTES", 2**20)
    bomb = npz(np.zeros(2**20, np.uint8), save=np.savez_compressed)
    assert len(bomb) < 2000 and "holds an array of 1048704 bytes, more than 1048576" in complaint(bomb, ".npz")


def test_an_archive_that_lies_about_its_size_is_not_unpacked(complaint):
    archive, content = io.BytesIO(), npy(FRAMES)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("arr_0.npy", content + bytes(2**24))
    bomb, size = archive.getvalue(), struct.pack("<I", len(content) + 2**24)
    assert len(bomb) < 20_000 and bomb.count(size) == 2
    tracemalloc.start()
    try:
        assert "is corrupt" in complaint(bomb.replace(size, struct.pack("<I", len(content))), ".npz")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_file_above_the_limit_is_not_read(complaint, monkeypatch):
    monkeypatch.setattr("data.files.decoding.MAX_BYTES", 100)
    assert "is larger than" in complaint(npy(FRAMES), ".npy")


@pytest.mark.parametrize(
    ("text", "frames", "columns"),
    [
        ("1,2\n3,4.5\n", [[1, 2], [3, 4.5]], None),
        ("x,y\n1,2\n3,4\n", [[1, 2], [3, 4]], ("x", "y")),
        ("\ufeffx , y\r\n 1 , 2\r\n3,4e2\r\n\r\n\r\n", [[1, 2], [3, 400]], ("x", "y")),
        ("7\n8", [[7], [8]], None),
        ("x\n7\n8", [[7], [8]], ("x",)),
        ("time,x,Timestamp\n0.0,1,2020-01-01\n0.1,2,noon\n", [[1], [2]], ("x",)),
        ('"a,\nb","c;d"\n1,2\n3,4\n', [[1, 2], [3, 4]], ("a,\nb", "c;d")),
        ("Na,K\n1,2\n3,4\n", [[1, 2], [3, 4]], ("Na", "K")),
        ("0\n1\n", [[0], [1]], None),
        ("0\n0.5\n1\n", [[0], [0.5], [1]], None),
        ("0.0,1.0\n1,2\n", [[0, 1], [1, 2]], None),
        ("0,1,3\n1,2,3\n", [[0, 1, 3], [1, 2, 3]], None),
    ],
)
def test_tables(text, frames, columns, read):
    for suffix, separator in ((".csv", ","), (".CSV", ","), (".tsv", "\t")):
        if separator == "," or "a,\nb" not in text:
            found = read(text.replace(",", separator), suffix, layout="FT")  # rows are frames whatever the layout
            same(found, frames)
            assert found.columns == columns and found.seconds is None


@pytest.mark.parametrize(
    ("text", "suffix", "words"),
    [
        ("", ".csv", "is empty (0 bytes)"),
        ("\n\n", ".csv", "has no frames; write one a row"),
        ("x,y\n", ".csv", "has a header and no frames"),
        ("1.O,2\n3,4\n5,6\n", ".csv", "has '1.O,2' in line 1, which is neither a row of numbers nor a name that is no "
         "number for each column; correct it (from pandas: save with index=False, and with names or header=False)"),
        ("1,2,\"3,0\"\n3,4,5\n", ".csv", "has '1,2,3,0' in line 1, which is neither"),
        ("time,0,1\n0.0,1,2\n0.1,2,3\n", ".csv", "has 'time,0,1' in line 1, which is neither"),
        (",0,1\n0,0.5,1.5\n1,2.5,3.5\n", ".csv", "has ',0,1' in line 1, which is neither"),
        ("0,1,2\n5,7,9\n1,2,3\n", ".csv", "has '0,1,2' in line 1, which is neither"),
        ("0\n0.5\n1.5\n", ".csv", "has '0' in line 1, which is neither"),
        (",x,y\n0,1,2\n1,3,4\n", ".csv", "has ',x,y' in line 1, which is neither"),
        ("Unnamed: 0,x\n0,1\n1,3\n", ".csv", "has 'Unnamed: 0,x' in line 1, which is neither"),
        ("x,y,\n1,2,\n3,4,\n", ".csv", "has 'x,y,' in line 1, which is neither"),
        ("x,y\n1,2\n", ".csv", "has one frame; a sequence needs two"),
        ("time\n1\n2\n", ".csv", "has no columns beside time; add the features"),
        ("time,TimeStamp\n1,2\n2,3\n", ".csv", "has no columns beside time"),
        ("x,y\n1,2\n3\n", ".csv", "has 1 cells in line 3, 2 in its first; make all rows equal (commas, or"),
        ("1,2\n\n3,4\n", ".csv", "has 0 cells in line 2"),
        ("1,2\n3,4,\n", ".csv", "has 3 cells in line 2"),
        ("x,y\n1,2\n3,four\n", ".csv", "has 'four' in line 3, column 'y': no number; correct it"),
        ("1,2\n3,4\n5,x\n", ".csv", "has 'x' in line 3, column 2: no number"),
        ('"two\nlines",y\n1,2\n3,x\n', ".csv", "has 'x' in line 4, column 'y'"),
        ("1,2\n1_0,2\n", ".csv", "has '1_0' in line 2, column 1: no number"),
        ("x\n" + "y" * 500 + "\n", ".csv", "has '" + "y" * 40 + "' in line 2"),
        ("a;b\n1;2\n3;4\n", ".csv", "has '1;2' in line 2, column 'a;b': no number; correct it (commas, or in a .tsv "
         "tabs, between cells; decimals with a point)"),
        ("a\tb\n1\t2\n", ".csv", "has '1\\t2' in line 2, column 'a\\tb': no number"),
        ("a,b\n1,2\n", ".tsv", "has '1,2' in line 2, column 'a,b': no number"),
        ("0,5;1,5\n2,5;3,5\n", ".csv", "has '0,5;1,5' in line 1, which is neither a row of numbers"),
        ("1;0,5\n0,5;1,5\n", ".csv", "has '1;0,5' in line 1, which is neither a row of numbers"),
        ("x\ty\n1,5\t2\n", ".tsv", "has '1,5' in line 2, column 'x': no number"),
        ('x,y\n"1,5",2\n', ".csv", "decimals with a point"),
        ("x,y\n1,inf\n2,3\n", ".csv", "has inf at frame 1 of 2, feature 'y', which is not finite"),
        ("x,y\n1,1e39\n2,3\n", ".csv", "has 1e+39 at frame 1 of 2, feature 'y', which is too large for float32"),
        ("x,y\n1,2\n,3\nNA,4\n", ".csv", "has 2 gaps (NaN or empty cells), the first at frame 2 of 3, feature 'x'; "
         "correct it, or set data.sequence.fill to interpolate or zero"),
        (b"x,\xe4\n1,2\n", ".csv", "is not UTF-8 (byte 2); save it as UTF-8"),
        ("x,y\n1,2\n".encode("utf-16"), ".csv", "is not UTF-8 (byte 0)"),
        ('x,y\n1,"' + "2" * 200_000 + "\n", ".csv", "is corrupt, cut off, or not a .csv of numbers"),
        ("1\n2\n", ".txt", "has the suffix '.txt', of no kind of sequence; allowed: .wav .flac .ogg .mp3 .npy .npz"),
        ("1\n2\n", "", "has the suffix ''"),
    ],
    ids=short,
)  # fmt: skip
def test_each_bad_table_has_words_of_its_own(text, suffix, words, complaint):
    assert words in complaint(text, suffix)


GAPS = "x,y,z\n,7,5\n1,NA,5\nnan,null,5\n4,None,5\n,NaN,5\n"


def test_gaps_by_hand(read):
    # x: - 1 - 4 -: the ends held, 2.5 half-way between; y: 7 and nothing after it.
    same(read(GAPS, ".csv", fill="interpolate"), [[1, 7, 5], [1, 7, 5], [2.5, 7, 5], [4, 7, 5], [4, 7, 5]])
    same(read(GAPS, ".csv", fill="zero"), [[0, 7, 5], [1, 0, 5], [0, 0, 5], [4, 0, 5], [0, 0, 5]])
    array = np.array([[np.nan, 2, np.nan, np.nan, 8]])
    same(read(npy(array), ".npy", fill="interpolate", layout="FT"), [[2], [2], [4], [6], [8]])


def test_what_cannot_be_filled(complaint):
    empty = "x,y\n1,\n2,\n"
    assert "has nothing but gaps from frame 1 of 2, feature 'y', on" in complaint(empty, ".csv", fill="interpolate")
    for fill in ("interpolate", "zero"):
        assert "has inf at frame 2 of 3" in complaint('1\ninf\n""\n', ".csv", fill=fill)


WHOLE_FILES = {
    ".npy": npy(np.linspace(0, 1, 60).reshape(20, 3)),
    ".npz": npz(np.linspace(0, 1, 60).reshape(20, 3), save=np.savez_compressed),
    ".csv": "a,b\n" + "".join(f"{i},{i / 7}\n" for i in range(20)),
    ".tsv": "".join(f"{i}\t{i / 7}\n" for i in range(20)),
}


@pytest.mark.parametrize("suffix", WHOLE_FILES)
def test_damage_ends_in_badfile_or_an_array_and_prints_nothing(suffix, read, capfd):
    content = WHOLE_FILES[suffix]
    content = content.encode() if isinstance(content, str) else content
    whole = read(content, suffix).frames
    refused = 0
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for damaged in damaged_copies(content):
            try:
                frames = read(damaged, suffix).frames
            except BadFile as error:
                assert len(str(error).splitlines()) == 1
                refused += 1
            else:
                assert frames.dtype in (np.float32, np.float64) and frames.ndim == 2 and np.isfinite(frames).all()
                assert suffix != ".npz" or np.array_equal(frames, whole)  # a checksum over all
    assert refused >= (20 if suffix in (".npy", ".npz") else 1)
    assert (capfd.readouterr(), shown) == (("", ""), [])


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"layout": "tf"}, "sequence.layout: found 'tf', expected one of TF, FT"),
        ({"fill": "mean"}, "sequence.fill: found 'mean', expected one of error, interpolate, zero"),
    ],
)
def test_each_bad_value_of_the_config_is_told_with_its_key(values, line):
    with pytest.raises(Findings) as caught:
        check_section(SequenceConfig, values, "sequence")
    assert str(caught.value) == line
