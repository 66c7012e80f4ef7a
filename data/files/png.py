"""PNG: its chunks, each checked, and colour of 16 bit, which Pillow cuts to 8 without a word.

Format: https://www.w3.org/TR/png-3
"""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from data.files.paths import BadFile

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type: grey, RGB, palette, grey with alpha, RGB with alpha
# First column, first row, step between columns, step between rows, of the passes of an interlaced image.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class Png(NamedTuple):
    width: int
    height: int
    depth: int
    colour_type: int
    interlaced: bool
    num_frames: int
    transparent: tuple[int, ...] | None  # the colour that stands for "nothing here", as stored; None in a palette image
    compressed: tuple[memoryview, ...]

    @property
    def is_colour_of_16_bit(self) -> bool:
        """Includes grey with alpha: all that Pillow cuts."""
        return self.depth == 16 and self.colour_type in (2, 4, 6)


def parse(content: bytes) -> Png:
    """Raises BadFile for a checksum that is wrong, and for a file that ends before its last chunk."""
    position, chunks, compressed = len(_SIGNATURE), {}, []
    view = memoryview(content)
    while b"IEND" not in chunks:
        if position + 12 > len(content):
            raise BadFile("is cut off: a PNG ends with the chunk IEND; place the whole file there")
        size, name = struct.unpack_from(">I4s", content, position)
        end = position + 8 + size
        if end + 4 > len(content):
            raise BadFile(f"is cut off in the chunk {name.decode('latin-1')!r}; place the whole file there")
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise BadFile(f"is corrupt: wrong checksum of the chunk {name.decode('latin-1')!r}; place the file anew")
        if name == b"IDAT":
            compressed.append(view[position + 8 : end])
        chunks.setdefault(name, view[position + 8 : end])
        position = end + 4
    width, height, depth, colour_type, *_, interlace = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    key = chunks.get(b"tRNS") if colour_type in (0, 2) else None
    return Png(
        width=width,
        height=height,
        depth=depth,
        colour_type=colour_type,
        interlaced=bool(interlace),
        num_frames=int.from_bytes(chunks.get(b"acTL", b"\0\0\0\1")[:4], "big"),
        transparent=struct.unpack(f">{_CHANNELS[colour_type]}H", key) if key is not None else None,
        compressed=tuple(compressed),
    )


def decode_16_bit(png: Png) -> np.ndarray:
    """(H, W, C) uint16, alpha included; of a PNG that is_colour_of_16_bit. Raises ValueError for too few rows.

    The filters of PNG work on each byte of a pixel alone, with the same byte of its neighbours. So the upper bytes are
    an image of 8 bit, the lower ones another, and Pillow decodes both.
    """
    channels = _CHANNELS[png.colour_type]
    passes = _PASSES if png.interlaced else ((0, 0, 1, 1),)
    sizes = [(-((y - png.height) // dy), -((x - png.width) // dx)) for x, y, dx, dy in passes]
    sizes = [(max(rows, 0), 1 + 2 * channels * columns) for rows, columns in sizes if columns > 0]  # filter, row
    whole = sum(rows * row for rows, row in sizes)
    raw = zlib.decompressobj().decompress(b"".join(png.compressed), whole)
    halves: tuple[list, list] = [], []
    start = 0
    for rows, row in sizes:
        block = np.frombuffer(raw, np.uint8, rows * row, start).reshape(rows, row)
        for half, parts in enumerate(halves):
            parts.append(np.concatenate([block[:, :1], block[:, 1 + half :: 2]], axis=1).tobytes())
        start += rows * row
    upper, lower = (np.asarray(PngImageFile(io.BytesIO(_of_8_bit(png, b"".join(half))))) for half in halves)
    return upper.astype(np.uint16) << 8 | lower


def _of_8_bit(png: Png, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", png.width, png.height, 8, png.colour_type, 0, 0, png.interlaced)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
