import io
import itertools
import logging
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_image

from app.messages import Findings
from app.section import check_section
from data.files.images import ImageConfig, read_image, to_unit
from data.files.paths import BadFile
from tests.data.files.damage import damaged_copies

MANY = 10**8
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a file without a suffix."""
    numbers = itertools.count()

    def read_bytes(content: bytes, max_pixels: int = MANY) -> np.ndarray:
        path = tmp_path / str(next(numbers))  # to write over a file is slow
        path.write_bytes(content)
        return read_image(path, max_pixels)

    return read_bytes


@pytest.fixture
def complaint(read):
    def complain(content: bytes, max_pixels: int = MANY) -> str:
        with pytest.raises(BadFile) as caught:
            read(content, max_pixels)
        (line,) = str(caught.value).splitlines()
        return line

    return complain


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def random(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(samples: np.ndarray, depth: int, colour_type: int, *, interlaced: bool = False, extra: bytes = b"") -> bytes:
    """samples (H, W, C), each of `depth` bit; every row with another filter."""
    height, width = samples.shape[:2]
    starts = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b""
    for x, y, dx, dy in starts if interlaced else ((0, 0, 1, 1),):
        part = samples[y::dy, x::dx]
        if part.size:
            rows += filtered([packed(row, depth) for row in part], max(1, CHANNELS[colour_type] * depth // 8))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlaced)
    if colour_type == 3:
        extra = chunk(b"PLTE", PALETTE[: 2**depth].tobytes()) + extra
    compressed = zlib.compress(rows)
    halves = (compressed[: len(compressed) // 2], compressed[len(compressed) // 2 :])
    body = b"".join(chunk(b"IDAT", half) for half in halves)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")


def packed(row: np.ndarray, depth: int) -> np.ndarray:
    if depth == 16:
        return np.frombuffer(row.astype(">u2").tobytes(), np.uint8)
    bits = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - depth :]
    return np.packbits(bits)


def filtered(rows: list[np.ndarray], pixel: int) -> bytes:
    """None, Sub, Up, Average, Paeth in turn, `pixel` bytes each."""
    done, above = b"", np.zeros_like(rows[0], dtype=int)
    for number, row in enumerate(rows):
        row, kind = row.astype(int), number % 5
        left, above_left = (np.concatenate([np.zeros(pixel, int), of[:-pixel]])[: len(row)] for of in (row, above))
        estimate = left + above - above_left
        distances = np.stack([abs(estimate - near) for near in (left, above, above_left)])
        paeth = np.choose(distances.argmin(axis=0), [left, above, above_left])
        guess = [0 * row, left, above, (left + above) // 2, paeth][kind]
        done += bytes([kind]) + ((row - guess) % 256).astype(np.uint8).tobytes()
        above = row
    return done


def tiff(data: bytes, tags: dict[int, tuple], *, order: str = "<", directory_first: bool = False) -> bytes:
    """One strip. tags: number -> values; all are shorts, and longs where they are large."""
    tags = {277: (1,), 262: (1,), **tags, 259: (1,), 273: (0,), 278: tags[257], 279: (len(data),)}
    for _ in range(2):  # the second time with the address of the data
        entries, extra = b"", b""
        directory = 8 if directory_first else 8 + len(data) + len(data) % 2
        after = directory + 2 + 12 * len(tags) + 4
        for tag, values in sorted(tags.items()):
            kind, code = ("I", 4) if max(values) > 65535 or tag in (273, 279) else ("H", 3)
            packed_values = struct.pack(f"{order}{len(values)}{kind}", *values)
            if len(packed_values) > 4:
                packed_values, extra = struct.pack(f"{order}I", after + len(extra)), extra + packed_values
            entries += struct.pack(f"{order}HHI", tag, code, len(values)) + packed_values.ljust(4, b"\0")
        block = struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + extra
        tags[273] = (8 + len(block) if directory_first else 8,)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", directory)
    return start + (block + data if directory_first else data.ljust(directory - 8, b"\0") + block)


def grey_tiff(pixels: np.ndarray, order: str = "<", **tags) -> bytes:
    """`pixels` (H, W); SampleFormat by its type."""
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    more = {int(tag[1:]): values for tag, values in tags.items()}
    shape = {256: (pixels.shape[1],), 257: (pixels.shape[0],), 258: (8 * pixels.dtype.itemsize,), 339: (kind,)}
    return tiff(pixels.astype(pixels.dtype.newbyteorder(order)).tobytes(), {**shape, **more}, order=order)


def over_white(samples: np.ndarray, white: int) -> np.ndarray:
    """(H, W, C + 1) -> (C, H, W), in exact fractions rounded to the nearest."""
    colour, alpha = samples[..., :-1].astype(object), samples[..., -1:].astype(object)
    return ((2 * (colour * alpha + white * (white - alpha)) + white) // (2 * white)).astype(int).transpose(2, 0, 1)


def same(found: np.ndarray, expected: np.ndarray, dtype) -> None:
    assert found.dtype == dtype and found.shape == expected.shape
    assert found.flags.c_contiguous and found.flags.writeable
    np.testing.assert_array_equal(found, expected)


KINDS_OF_PNG = [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (1, 3), (2, 3), (4, 3), (8, 3)]
KINDS_OF_PNG += [(8, 4), (16, 4), (8, 6), (16, 6)]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("depth", "colour_type"), KINDS_OF_PNG)
@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision are deprecated")
def test_every_kind_of_png(depth, colour_type, interlaced, read, complaint):
    limit = min(2**depth, len(PALETTE)) if colour_type == 3 else 2**depth
    dtype = np.uint16 if depth == 16 else np.uint8
    for shape in ((13, 11), (1, 1), (3, 2)):
        samples = np.random.default_rng(depth).integers(0, limit, (*shape, CHANNELS[colour_type]))
        content = png(samples, depth, colour_type, interlaced=interlaced)
        if (depth, colour_type) == (16, 4):
            assert "is a PNG whose transparency cannot be read without loss" in complaint(content)
            continue
        if colour_type == 3:
            expected = PALETTE[samples[..., 0]].transpose(2, 0, 1)
        elif colour_type in (4, 6):
            expected = over_white(samples, np.iinfo(dtype).max)
        else:
            expected = (samples * {1: 255, 2: 85, 4: 17}.get(depth, 1)).transpose(2, 0, 1)
        same(read(content), expected, dtype)
        if depth >= 8 and colour_type != 3:  # a second opinion on the file itself
            decoded = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.UNCHANGED)
            np.testing.assert_array_equal(decoded.numpy(), samples.transpose(2, 0, 1))


@pytest.mark.parametrize(("depth", "colour_type"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
def test_the_transparent_colour_of_a_png_becomes_white_or_is_refused(depth, colour_type, read, complaint):
    samples = np.random.default_rng(1).integers(0, 2**depth, (6, 5, CHANNELS[colour_type]))
    key = samples[2, 3]
    content = png(samples, depth, colour_type, extra=chunk(b"tRNS", key.astype(">u2").tobytes()))
    if depth not in (1, 8):
        assert "is a PNG whose transparency cannot be read without loss" in complaint(content)
        return
    expected = samples * (255 if depth == 1 else 1)
    expected[(samples == key).all(axis=2)] = 255
    same(read(content), expected.transpose(2, 0, 1), np.uint8)


@pytest.mark.parametrize("alphas", [(0, 255, 128, 255), (255, 0)])
def test_a_palette_with_transparency_is_composited_over_white(alphas, read):
    samples = np.arange(4).reshape(2, 2, 1)
    content = png(samples, 8, 3, extra=chunk(b"tRNS", bytes(alphas)))
    rgba = np.concatenate([PALETTE, np.array([*alphas, 255, 255])[:4, None]], axis=1)[samples[..., 0]]
    same(read(content), over_white(rgba, 255), np.uint8)
    # By hand: red at 0 is white; blue at 128 of 255 is (127, 127, 255).
    if len(alphas) == 4:
        assert read(content)[:, 0, 0].tolist() == [255, 255, 255] and read(content)[:, 1, 0].tolist() == [127, 127, 255]


def test_a_16_bit_png_written_by_pillow(read):
    pixels = random(5, 7, dtype=np.uint16)
    same(read(saved(Image.fromarray(pixels), "PNG")), pixels[None], np.uint16)


@pytest.mark.parametrize(
    ("mode", "kinds", "expected"),
    [
        ("1", ("PNG", "BMP", "TIFF"), [[[255, 0]]]),
        ("L", ("PNG", "BMP", "TIFF"), [[[200, 7]]]),
        ("RGB", ("PNG", "BMP", "TIFF", "WebP"), [[[10, 0]], [[20, 0]], [[250, 3]]]),
        ("RGBA", ("PNG", "TIFF", "WebP"), [[[157, 255]], [[161, 255]], [[253, 255]]]),
        ("LA", ("PNG", "TIFF"), [[[233, 255]]]),
        ("P", ("PNG", "BMP", "TIFF"), [[[9, 0]], [[8, 255]], [[7, 0]]]),
        ("PA", ("TIFF",), [[[157, 255]], [[157, 255]], [[157, 255]]]),
        ("CMYK", ("TIFF",), [[[165, 0]], [[84, 0]], [[205, 0]]]),
    ],
)
def test_every_mode_of_8_bit_by_hand(mode, kinds, expected, read):
    values = {
        "1": [255, 0],
        "L": [200, 7],
        "RGB": [(10, 20, 250), (0, 0, 3)],
        "RGBA": [(10, 20, 250, 102), (9, 9, 9, 0)],  # 102 of 255 is 0.4
        "LA": [(200, 102), (7, 0)],
        "P": [3, 1],
        "PA": [(3, 102), (1, 0)],
        "CMYK": [(50, 150, 0, 50), (0, 0, 0, 255)],  # (255 - ink) (255 - black) / 255
    }[mode]
    image = Image.new(mode, (2, 1))
    if mode in ("P", "PA"):
        image.putpalette(PALETTE.tobytes() if mode == "P" else bytes([9, 9, 9] * 4))
    image.putdata(values)
    for kind in kinds:
        found = read(saved(image, kind, **({"lossless": True, "exact": True} if kind == "WebP" else {})))
        same(found, np.array(expected), np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg_equals_pillow(mode, options, read):
    image = Image.fromarray(random(12, 10, 3)).resize((40, 30)).convert(mode)
    content = saved(image, "JPEG", quality=95, **options)
    expected = np.atleast_3d(Image.open(io.BytesIO(content)).convert("L" if mode == "L" else "RGB")).transpose(2, 0, 1)
    same(read(content), expected, np.uint8)


def test_the_first_picture_of_a_phone_photo_is_the_photo(read):
    photo, preview = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
    found = read(saved(photo, "MPO", save_all=True, append_images=[preview]))
    assert found.shape == (3, 16, 16) and found[0].min() > 240


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF"])
def test_exif_orientation_equals_pillow(orientation, kind, read):
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "WebP" else {}
    content = saved(Image.fromarray(random(4, 6, 3)), kind, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content)))).transpose(2, 0, 1)
    assert expected.shape == ((3, 6, 4) if orientation > 4 else (3, 4, 6))
    same(read(content), expected, np.uint8)


@pytest.mark.parametrize("colour_type", [0, 2, 6])
def test_exif_orientation_of_16_bit(colour_type, read):
    samples = random(3, 2, CHANNELS[colour_type], dtype=np.uint16)
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: the first row is the right column
    content = png(samples, 16, colour_type, extra=chunk(b"eXIf", exif.tobytes()[6:]))
    expected = over_white(samples, 65535) if colour_type == 6 else samples.transpose(2, 0, 1)
    same(read(content), np.rot90(expected, -1, axes=(1, 2)), np.uint16)


def test_broken_exif_is_no_orientation(read):
    samples = random(3, 2, 1)
    same(read(png(samples, 8, 0, extra=chunk(b"eXIf", b"MM\0*\xff\xff"))), samples.transpose(2, 0, 1), np.uint8)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        (np.array([[0, 65535, 258]], np.uint16), np.uint16),
        (np.array([[-32768, 32767, -2]], np.int16), np.float32),
        (np.array([[-(2**24), 2**24, 5]], np.int32), np.float32),
        (np.array([[0.25, -1e30, 3e38]], np.float32), np.float32),
        (np.array([[0, 200, 255]], np.uint8), np.uint8),
    ],
)
def test_grey_tiff_of_every_depth_and_byte_order(stored, dtype, order, read):
    same(read(grey_tiff(stored, order)), stored.astype(dtype)[None], dtype)


def test_tiff_of_12_bit(read):
    packed_12 = bytes([0x12, 0x34, 0x56, 0xFF, 0xF0, 0x00])  # 0x123, 0x456, 0xfff, 0x000
    content = tiff(packed_12, {256: (4,), 257: (1,), 258: (12,)})
    same(read(content), np.array([[[0x123, 0x456, 0xFFF, 0]]]), np.uint16)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff(compression, read):
    for pixels in (random(9, 8, 3), random(9, 8, dtype=np.uint16), random(9, 8).astype(np.float32)):
        expected = np.atleast_3d(pixels).transpose(2, 0, 1)
        same(read(saved(Image.fromarray(pixels), "TIFF", compression=compression)), expected, pixels.dtype)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("channels", "photometric", "extra"), [(3, 2, {}), (4, 2, {338: (2,)}), (4, 5, {}), (2, 1, {338: (2,)})]
)
def test_tiff_of_16_bit_colour_is_refused_not_cut(order, channels, photometric, extra, complaint):
    data = random(2, 2, channels, dtype=np.uint16).astype(f"{order}u2").tobytes()
    shape = {256: (2,), 257: (2,), 258: (16,) * channels, 262: (photometric,), 277: (channels,)}
    line = complaint(tiff(data, {**shape, **extra}, order=order))
    assert "cannot be read without loss; convert it to PNG" in line or "unknown pixel mode" in line


YCBCR = {256: (2,), 257: (2,), 262: (6,), 277: (3,)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (grey_tiff(np.array([[1, 2]], np.uint16), t262=(0,)), "stores white as 0 (WhiteIsZero)"),
        (grey_tiff(np.array([[1, 2]], np.float32), t262=(0,)), "stores white as 0 (WhiteIsZero)"),
        (grey_tiff(np.array([[1, -2]], np.int8)), "signed 8-bit numbers"),
        (grey_tiff(np.array([[2**24 + 1, 0]], np.int32)), "float32 cannot hold exactly"),
        (grey_tiff(np.array([[2**32 - 1, 0]], np.uint32)), "unsigned 32-bit numbers"),
        (grey_tiff(np.array([[1.0, np.nan]], np.float32)), "not finite (NaN or infinity)"),
        (grey_tiff(np.array([[-np.inf, 0.0]], np.float32)), "not finite (NaN or infinity)"),
        (grey_tiff(np.array([[1.0, 0.0]], np.float64)), "unknown pixel mode"),
        (grey_tiff(np.array([[0, 1]], np.uint8), t262=(3,), t320=(300,) * 768), "palette of 16-bit colours"),
        (grey_tiff(random(16, 16), t256=(10,), t322=(16,), t323=(16,)), "tiles at StripOffsets"),
        (tiff(random(3, 2, 2).tobytes(), {**YCBCR, 258: (8, 8, 8), 284: (2,)}), "YCbCr in separate planes"),
    ],
)
def test_tiff_that_pillow_would_change_is_refused(content, words, complaint):
    assert words in complaint(content)


ANIMATION = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]


@pytest.mark.parametrize("kind", ["PNG", "WebP", "TIFF"])
def test_several_frames_are_refused(kind, complaint):
    content = saved(ANIMATION[0], kind, save_all=True, append_images=ANIMATION[1:])
    assert "has 2 frames or pages; save the one that is meant" in complaint(content)


def rle4_bmp() -> bytes:
    """1 2 3 above 4 5 6, in absolute mode."""
    palette = b"".join(bytes([16 * i] * 3 + [0]) for i in range(16))
    data = bytes([0, 3, 0x45, 0x60, 0, 0, 0, 3, 0x12, 0x30, 0, 1])
    sizes = (54 + len(palette + data), 0, 54 + len(palette), 40, 3, 2, 1, 4, 2, len(data), 0, 0, 0, 0)
    return struct.pack("<2sIIIIiiHHIIiiII", b"BM", *sizes) + palette + data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty (0 bytes)"),
        (
            saved(ANIMATION[0], "GIF"),
            "is no image, it begins with b'GIF87a\\x04\\x00'; allowed: JPEG, PNG, WebP, BMP, TI",
        ),
        (saved(ANIMATION[0], "JPEG2000"), "is no image, it begins with b'\\x00\\x00\\x00\\x0cjP  '"),
        (b"<!DOCTYPE html><html>404", "is HTML, SVG or XML; download the file itself, or convert it"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer; run: git lfs pull"),
        (b"\x89PNG\r\n\x1a\n", "is corrupt, cut off, or not a PNG after all"),
        (b"\x89PNG\r\n\x1a\n" + b"garbage" * 9, "is corrupt, cut off, or not a PNG after all"),
        (b"\xff\xd8\xff" + b"garbage" * 9, "is corrupt, cut off, or not a JPEG after all"),
        (b"BM" + b"garbage" * 9, "is corrupt, cut off, or not a BMP after all"),
        (b"II*\0" + b"garbage" * 9, "is corrupt, cut off, or not a TIFF after all"),
        (b"RIFF\x30\0\0\0WEBP" + b"garbage" * 9, "is corrupt, cut off, or not a WEBP after all"),
        (png(np.empty((0, 3, 1)), 8, 0), "is corrupt, cut off, or not a PNG after all"),
        (png(np.empty((2, 0, 3)), 16, 2), "is corrupt, cut off, or not a PNG after all"),
        (png(np.zeros((2, 2, 1)), 8, 0, extra=chunk(b"acTL", b"\0\0\0\7\0\0\0\0")), "frames or pages; save the one"),
        (rle4_bmp(), "is a BMP compressed by RLE4"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_each_bad_file_has_words_of_its_own(content, words, complaint):
    assert words in complaint(content)


def test_a_png_with_a_filter_that_does_not_exist(complaint):
    for depth, colour_type in ((8, 2), (16, 2)):
        header = struct.pack(">IIBBBBB", 1, 1, depth, colour_type, 0, 0, 0)
        body = chunk(b"IDAT", zlib.compress(bytes([9] + [0] * (3 * depth // 8))))
        complaint(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b""))


@pytest.mark.parametrize(("depth", "colour_type"), [(8, 0), (16, 0), (16, 6)])
def test_a_bomb_is_refused_by_its_header(depth, colour_type, complaint):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, depth, colour_type, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    line = complaint(bomb, ImageConfig().max_pixels)
    assert "has 60000 x 60000 pixels, above data.image.max_pixels=89478485" in line


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP", "BMP", "TIFF"])
def test_max_pixels_is_the_limit(kind, read, complaint):
    content = saved(Image.new("RGB", (10, 10)), kind)
    assert read(content, 100).shape == (3, 10, 10)
    assert "has 10 x 10 pixels, above data.image.max_pixels=99" in complaint(content, 99)


def test_a_file_that_the_system_cannot_read(tmp_path):
    with pytest.raises(BadFile, match="cannot be read: Is a directory|cannot be read: Permission denied"):
        read_image(tmp_path, MANY)


def smooth(mode: str) -> Image.Image:
    ramp = np.add.outer(np.arange(24), np.arange(20))
    return Image.fromarray(np.stack([ramp * 5, ramp * 3, 255 - ramp], -1).astype(np.uint8)).convert(mode)


WHOLE_FILES = {
    "PNG": saved(smooth("RGB"), "PNG"),
    "PNG of 16 bit": png(random(9, 7, 3, dtype=np.uint16), 16, 2),
    "PNG with palette": saved(smooth("P"), "PNG", transparency=3),
    "JPEG": saved(smooth("RGB"), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
    "progressive JPEG": saved(smooth("L"), "JPEG", progressive=True),
    "WebP": saved(smooth("RGB"), "WebP"),
    "lossless WebP": saved(smooth("RGBA"), "WebP", lossless=True),
    "BMP": saved(smooth("RGB"), "BMP"),
    "BMP with palette": saved(smooth("P"), "BMP"),
    "TIFF": saved(smooth("RGB"), "TIFF"),
    "TIFF, its directory first": tiff(random(8, 8).tobytes(), {256: (8,), 257: (8,), 258: (8,)}, directory_first=True),
    "float TIFF": saved(Image.fromarray(random(9, 8).astype(np.float32)), "TIFF"),
    **{
        f"TIFF, {compression}": saved(smooth(mode), "TIFF", compression=compression)
        for compression, mode in {
            "tiff_lzw": "RGB", "tiff_adobe_deflate": "RGB", "packbits": "L", "jpeg": "RGB", "group4": "1"
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_no_cut_that_loses_picture_data_is_read(name, read):
    content = WHOLE_FILES[name]
    whole = read(content)
    cuts = {*range(1, len(content), max(1, len(content) // 60)), *range(len(content) - 30, len(content))}
    survived = []
    for end in sorted(cuts):
        try:
            found = read(content[:end])
        except BadFile:
            continue
        survived.append(end)
        np.testing.assert_array_equal(found, whole)
    # The last bytes of a TIFF's directory say that no other follows, those of CCITT group 4 that the data end, those of
    # a PNG are the checksum of nothing.
    assert survived == [] or name.startswith(("TIFF", "PNG", "float TIFF")) and len(content) - survived[0] <= 4


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_damage_ends_in_badfile_or_an_array_and_prints_nothing(name, read, capfd):
    changed, refused = 0, 0
    whole = read(WHOLE_FILES[name])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for content in damaged_copies(WHOLE_FILES[name]):
            try:
                found = read(content)
            except BadFile as error:
                assert len(str(error).splitlines()) == 1
                refused += 1
            else:
                assert found.ndim == 3 and found.shape[0] in (1, 3) and found.dtype in (np.uint8, np.uint16, np.float32)
                changed += not np.array_equal(found, whole)
    assert refused >= 20  # the cuts
    if "PNG" in name:
        assert changed == 0  # every byte is under a checksum
    assert (capfd.readouterr(), shown) == (("", ""), [])


def test_libtiff_s_complaints_make_a_file_corrupt(complaint, capfd):
    content = bytearray(WHOLE_FILES["TIFF, group4"])
    content[20] ^= 0xFF  # Pillow returns pixels nevertheless
    assert "Fax4Decode" in complaint(bytes(content))
    assert capfd.readouterr() == ("", "")


def test_what_pillow_logs_is_not_printed(complaint, capfd, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's own; without any, Python prints
    complaint(tiff(b"\1", {256: (1,), 257: (1,), 258: (8,), 277: (2000,)}))
    assert capfd.readouterr() == ("", "")


def test_warnings_and_standard_error_are_the_same_afterwards(read, complaint, capfd):
    show = warnings.showwarning
    read(WHOLE_FILES["TIFF, tiff_lzw"])
    complaint(WHOLE_FILES["TIFF, tiff_lzw"][:-200])
    os.write(2, b"mine")
    assert warnings.showwarning is show and capfd.readouterr() == ("", "mine")


def test_to_unit_is_black_0_and_white_1_and_clips_nothing():
    same(
        to_unit(np.array([[[0, 51, 255]]], np.uint8), (100.0, 200.0)), np.array([[[0, 0.2, 1]]], np.float32), np.float32
    )
    sixteen = np.array([[[1000, 3000, 2000, 0, 4000]]], np.uint16)
    same(to_unit(sixteen, (1000.0, 3000.0)), np.array([[[0, 1, 0.5, -0.5, 1.5]]]), np.float32)
    same(to_unit(np.array([[[-0.1, 0.7]]], np.float32), (-0.1, 0.7)), np.array([[[0, 1]]]), np.float32)
    with pytest.raises(BadFile, match="holds uint16 .* set data.image.value_range"):
        to_unit(sixteen, None)


def test_every_8_bit_value_becomes_its_fraction_of_255():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    np.testing.assert_array_equal(to_unit(values, None), (values / 255.0).astype(np.float32))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"value_range": [1.0]}, "image.value_range: found [1.0], expected a list of 2, each a number, or null"),
        ({"value_range": [2.0, 2.0]}, "image.value_range: found [2.0, 2.0], black must be less than white"),
        ({"max_pixels": 0}, "image.max_pixels: found 0, must be >= 1"),
    ],
)
def test_each_bad_value_of_the_config_is_told_with_its_key(values, line):
    with pytest.raises(Findings) as caught:
        check_section(ImageConfig, values, "image")
    assert str(caught.value) == line
