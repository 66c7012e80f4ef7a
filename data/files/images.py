"""One image file -> pixels. What the file holds is kept: 8 bit, 16 bit or float, and none of them is cut to another."""

import io
import logging
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pydantic import Field, field_validator

from app.section import Section
from data.files.decoding import decoding, printed_by_c, read_bytes
from data.files.paths import BadFile

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints what Pillow logs of a bad file

# The classes themselves: Image.open has a limit of its own. JpegImageFile reads the first picture of an MPO, which is
# the photo that the phone took.
_READERS = {
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
    b"RIFF": WebPImageFile,
    b"BM": BmpImageFile,
    b"II": TiffImageFile,
    b"MM": TiffImageFile,
}
_DEEP = ("I;16", "I;16B", "I", "F")  # Pillow's modes of one channel that holds more than 8 bit
_BMP_RLE4 = 2
# Tags of TIFF.
_BITS, _PHOTOMETRIC, _STRIPS, _PLANES, _COLOUR_MAP, _TILE_WIDTH, _SAMPLE_FORMAT = 258, 262, 273, 284, 320, 322, 339


class ImageConfig(Section):
    value_range: list[float] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="[black, white] of 16-bit and float images; null: the least and the greatest value of the training "
        "split; 8-bit images are 0 to 255 always",
    )
    max_pixels: int = Field(
        89_478_485, ge=1, description="pixels (width x height) above which an image is refused before it is decoded"
    )

    @field_validator("value_range")
    @classmethod
    def _black_below_white(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and not np.float32(value[0]) < np.float32(value[1]):
            raise ValueError(f"found {value}, black must be less than white")
        return value


def read_image(path: Path, max_pixels: int) -> np.ndarray:
    """(C, H, W), C 1 (grey) or 3 (RGB); uint8, uint16 or float32, as the file holds it (1 bit: 0 and 255).

    JPEG, PNG, WebP, BMP or TIFF, by content. Alpha is composited over white, upright is what EXIF says (unreadable EXIF
    says nothing), palette and CMYK become RGB, whole numbers of 32 bit float32 if it holds them exactly.

    Raises BadFile for anything else: other formats, several frames, more than `max_pixels`, damage that can be seen
    (JPEG, WebP, BMP and TIFF have no checksums), values that are not finite, and what Pillow would read otherwise.
    """
    content = read_bytes(path)
    readers = [reader for start, reader in _READERS.items() if content.startswith(start)]
    if not readers:
        raise BadFile(f"is no image, it begins with {content[:8]!r}; allowed: JPEG, PNG, WebP, BMP, TIFF; convert it")
    with decoding(f"a {readers[0].format}"):
        image = readers[0](io.BytesIO(content))
        width, height = image.size
        if width * height > max_pixels:
            limit = f"data.image.max_pixels={max_pixels}"
            raise BadFile(f"has {width} x {height} pixels, above {limit}; make it smaller, or raise that")
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise BadFile(f"has {frames} frames or pages; save the one that is meant as a file of its own")
        if isinstance(image, PngImageFile):
            pixels = _decode_png(image, content)
        elif isinstance(image, TiffImageFile):
            pixels = _decode_tiff(image)
        elif image.info.get("compression") == _BMP_RLE4:
            raise BadFile("is a BMP compressed by RLE4, whose pixels Pillow misplaces; convert it to PNG")
        else:
            pixels = _to_numpy(image)
        if pixels.shape[2] in (2, 4):
            pixels = _over_white(pixels)
        if pixels.dtype == np.float32 and not np.isfinite(pixels).all():
            raise BadFile("has values that are not finite (NaN or infinity); correct it")
        return np.array(pixels.transpose(2, 0, 1), order="C")  # Pillow's own cannot be written to


def to_unit(pixels: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    """float32 with black 0 and white 1, never clipped.

    Args:
        value_range: (black, white) of uint16 and float32; uint8 is 0 to 255 always.

    Raises BadFile where a range is needed and there is none.
    """
    if pixels.dtype == np.uint8:
        return np.divide(pixels, np.float32(255), dtype=np.float32)
    if value_range is None:
        raise BadFile(
            f"holds {pixels.dtype} where all training images are of 8 bit; set data.image.value_range=[black, white]"
        )
    black, white = np.float32(value_range[0]), np.float32(value_range[1])
    return (pixels - black) / (white - black)


def _decode_png(image: PngImageFile, content: bytes) -> np.ndarray:
    """(H, W, C), alpha included. Of two bytes of a colour Pillow keeps one, by the byte order that it is told: both are
    read. Raises BadFile where it compares the transparent colour wrongly (see test_images.py).
    """
    PngImageFile(io.BytesIO(content)).verify()  # load() reads neither the checksums of the pixels nor the last chunk
    (tile,) = image.tile
    kind = tile.args
    if "transparency" in image.info and kind in ("L;2", "L;4", "I;16B", "RGB;16B") or kind == "LA;16B":
        raise BadFile("is a PNG whose transparency cannot be read without loss; save it as RGBA, or make it opaque")
    if kind not in ("RGB;16B", "RGBA;16B"):
        return _to_numpy(image)
    upper = _to_numpy(image)
    image = PngImageFile(io.BytesIO(content))
    image.tile = [tile._replace(args=kind[:-1] + "L")]
    return upper.astype(np.uint16) << 8 | _to_numpy(image)


def _decode_tiff(image: TiffImageFile) -> np.ndarray:
    """(H, W, C). Raises BadFile for what Pillow reads into other values (see test_images.py)."""
    tags, mode = image.tag_v2, image.mode
    bits, kind = max(tags.get(_BITS, (1,))), max(tags.get(_SAMPLE_FORMAT, (1,)))
    faults = {
        f"{bits}-bit {mode}": bits > 8 and mode not in _DEEP,
        f"{bits} bits that stores white as 0 (WhiteIsZero)": bits > 8 and tags.get(_PHOTOMETRIC) == 0,
        "signed 8-bit numbers": bits == 8 and kind == 2,
        "unsigned 32-bit numbers": bits == 32 and kind == 1,
        "a palette of 16-bit colours": any(value % 256 and value % 257 for value in tags.get(_COLOUR_MAP, ())),
        "YCbCr in separate planes": mode == "YCbCr" and tags.get(_PLANES) == 2,
        "tiles at StripOffsets": _TILE_WIDTH in tags and _STRIPS in tags,
    }
    for fault, is_there in faults.items():
        if is_there:
            raise BadFile(f"is a TIFF of {fault}, which cannot be read without loss; convert it to PNG")
    with printed_by_c() as printed:
        pixels = _to_numpy(image)
    damage = [line for line in printed if "Warning, " not in line]
    if damage:
        raise BadFile(f"is a corrupt TIFF ({damage[0]}); place the whole file there")
    return pixels


def _to_numpy(image: PIL.Image.Image) -> np.ndarray:
    """(H, W, C), alpha included, upright."""
    image.load()
    with suppress(Exception):
        PIL.ImageOps.exif_transpose(image, in_place=True)
    if image.mode in _DEEP:
        stored = np.asarray(image)[:, :, None]
        pixels = stored.astype(np.uint16 if image.mode.startswith("I;16") else np.float32)
        if image.mode == "I" and (pixels.astype(np.float64) != stored).any():
            raise BadFile("has whole numbers of 32 bit that float32 cannot hold exactly; save it as 16 bit or float")
        return pixels
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    pixels = np.asarray(image.convert(mode + "A" if image.has_transparency_data else mode))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _over_white(pixels: np.ndarray) -> np.ndarray:
    """The last channel is alpha; rounded to the nearest."""
    white = np.uint32(np.iinfo(pixels.dtype).max)
    colour, alpha = pixels[:, :, :-1].astype(np.uint32), pixels[:, :, -1:].astype(np.uint32)
    return ((colour * alpha + white * (white - alpha) + white // 2) // white).astype(pixels.dtype)
