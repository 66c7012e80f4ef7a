"""One image file -> pixels. What the file holds is kept: 8 bit, 16 bit or float, and none of them is cut to another."""

import io
import logging
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL.Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pydantic import Field, field_validator

from app.section import Section
from data.files import png
from data.files.decoding import decoding, printed_by_c, read_bytes
from data.files.paths import BadFile

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints what Pillow logs of a bad file

# The classes themselves: Image.open has a limit of its own. JpegImageFile reads the first picture of an MPO, which is
# the photo that the phone took.
_CLASSES = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # more than 4 GiB possible
    b"MM\0+": "TIFF",
}
_KNOWN_OTHERS = {
    b"GIF8": "a GIF",
    b"version https://git-lfs": "a Git LFS pointer; run: git lfs pull",
    b"<": "HTML or SVG",
}
# Pillow's modes -> those that numpy gets.
_MODES = {
    **{mode: mode for mode in ("L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16L", "I;16B")},
    **{"1": "L", "La": "LA", "RGBa": "RGBA", "P": "RGB", "PA": "RGBA", "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB"},
}
_ORIENTATION, _BITS, _PHOTOMETRIC, _COLOUR_MAP, _SAMPLE_FORMAT = 274, 258, 262, 320, 339  # tags of EXIF and TIFF
_UPRIGHT = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


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
    (JPEG, WebP, BMP and TIFF have no checksums), values that are not finite, and what Pillow would cut to 8 bit.
    """
    content = read_bytes(path)
    kind = _kind_of(content)
    with decoding(f"a {kind}"):
        parsed = None
        if kind == "PNG":
            parsed = png.parse(content)
            _check_size(parsed.width, parsed.height, max_pixels)
        image = _CLASSES[kind](io.BytesIO(content))
        _check_size(*image.size, max_pixels)
        frames = parsed.num_frames if parsed else getattr(image, "n_frames", 1)
        if frames > 1:
            raise BadFile(f"has {frames} frames or pages; save the one that is meant as a file of its own")
        if kind == "TIFF":
            pixels = _decode_tiff(image, max_pixels)
        else:
            image.load()
            pixels = png.decode_16_bit(parsed) if parsed and parsed.is_colour_of_16_bit else _to_numpy(image)
        if parsed and parsed.transparent is not None:
            pixels = _with_alpha(pixels, parsed)
        if pixels.shape[2] in (2, 4):
            pixels = _over_white(pixels)
        orientation = 1
        with suppress(Exception):
            orientation = image.getexif().get(_ORIENTATION, 1)
        pixels = _UPRIGHT.get(orientation, lambda same: same)(pixels)
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


def _kind_of(content: bytes) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WebP"
    for signature, kind in _SIGNATURES.items():
        if content.startswith(signature):
            return kind
    others = [kind for signature, kind in _KNOWN_OTHERS.items() if content.startswith(signature)]
    found = others[0] if others else f"something that begins with {content[:8]!r}"
    raise BadFile(f"is no image of a known format but {found}; allowed: {', '.join(_CLASSES)}")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadFile(
            f"has {width} x {height} pixels, above data.image.max_pixels={max_pixels}; make it smaller, or raise that"
        )
    if width * height == 0:
        raise BadFile(f"has {width} x {height} pixels; an image needs one at least")


def _decode_tiff(image: TiffImageFile, max_pixels: int) -> np.ndarray:
    """(H, W, C). Pillow reads some TIFFs into a mode that cannot hold them, or leaves white as 0: those are refused."""
    tags, mode = image.tag_v2, image.mode
    bits, signed = max(tags.get(_BITS, (1,))), max(tags.get(_SAMPLE_FORMAT, (1,))) == 2
    remedy = "convert it to a 16-bit PNG or to 8 bit"
    if bits > 8 and mode not in ("I;16", "I;16L", "I;16B", "I", "F"):
        raise BadFile(f"is a TIFF of {bits}-bit {mode}, which cannot be read without loss; {remedy}")
    if bits > 8 and tags.get(_PHOTOMETRIC, 0) == 0:
        raise BadFile(f"is a {bits}-bit TIFF that stores white as 0 (WhiteIsZero), which cannot be read; {remedy}")
    if bits == 8 and signed:
        raise BadFile(f"is a TIFF of signed 8-bit numbers, which cannot be read; {remedy}")
    if mode in ("P", "PA") and any(value % 256 and value % 257 for value in tags[_COLOUR_MAP]):
        raise BadFile(f"is a TIFF with a palette of 16-bit colours, which cannot be read without loss; {remedy}")
    with printed_by_c() as printed:
        _load_up_to(image, max_pixels)
    damage = [line for line in printed if "Warning, " not in line]
    if damage:
        raise BadFile(f"is a corrupt TIFF ({damage[0]}); place the whole file there")
    return _to_numpy(image, unsigned=bits == 32 and not signed)


def _load_up_to(image: TiffImageFile, max_pixels: int) -> None:
    """A tile of a TIFF may be larger than the image: there Pillow does look at its limit."""
    limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, max_pixels
    try:
        image.load()
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit


def _to_numpy(image: PIL.Image.Image, *, unsigned: bool = False) -> np.ndarray:
    """(H, W, C), alpha included; `unsigned`: mode I holds uint32."""
    if image.mode not in _MODES:
        raise BadFile(f"has pixels of the kind {image.mode}; convert it to RGB")
    mode = "RGBA" if image.mode == "P" and "transparency" in image.info else _MODES[image.mode]
    pixels = np.asarray(image if mode == image.mode else image.convert(mode))
    if mode.startswith("I;16"):
        pixels = pixels.astype(np.uint16)
    elif mode == "I":
        whole = pixels.view(np.uint32) if unsigned else pixels
        pixels = whole.astype(np.float32)
        if (pixels.astype(np.float64) != whole).any():
            raise BadFile("has whole numbers of 32 bit that float32 cannot hold exactly; save it as 16 bit or float")
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _with_alpha(pixels: np.ndarray, parsed: png.Png) -> np.ndarray:
    """Alpha 0 where a pixel has the colour that the PNG names as transparent. Pillow compares 2 and 4 bit wrongly."""
    depth = parsed.depth
    scale = 1 if depth >= 8 else 255 // (2**depth - 1)  # of fewer bits than 8, which Pillow spreads over 0 to 255
    transparent = [(value % 2**depth) * scale for value in parsed.transparent]
    opaque = (pixels != np.array(transparent)).any(axis=2, keepdims=True)
    return np.concatenate([pixels, opaque * np.iinfo(pixels.dtype).max], axis=2, dtype=pixels.dtype, casting="unsafe")


def _over_white(pixels: np.ndarray) -> np.ndarray:
    """The last channel is alpha; rounded to the nearest."""
    white = np.uint32(np.iinfo(pixels.dtype).max)
    colour, alpha = pixels[:, :, :-1].astype(np.uint32), pixels[:, :, -1:].astype(np.uint32)
    return ((colour * alpha + white * (white - alpha) + white // 2) // white).astype(pixels.dtype)
