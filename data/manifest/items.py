"""One item of a cache as bytes: the facts of a file, and its stored form."""

import json
import math
import struct
import zlib

import numpy as np

from data.manifest.facts import Facts, ImageFacts, SequenceFacts

_CHECKSUMS = struct.Struct("<II")  # of the head and the facts, of the head and the stored form
_HEAD = struct.Struct("<I4sI3Q")  # bytes of the facts; of the stored form its type, as numpy writes it, and its shape
_FACTS = _CHECKSUMS.size + _HEAD.size  # where they begin


class Damaged(ValueError):
    pass


def pack(facts: Facts, stored: np.ndarray) -> bytes:
    """
    Args:
        stored: of three dimensions at most.
    """
    stored = np.ascontiguousarray(stored)
    fields = facts._asdict() | {"digest": facts.digest.hex()}
    fields |= {name: value.tolist() for name, value in fields.items() if isinstance(value, np.ndarray)}
    text = json.dumps(fields).encode()  # floats come back as they were
    head = _HEAD.pack(len(text), stored.dtype.str.encode(), stored.ndim, *(*stored.shape, 0, 0, 0)[:3])
    start = zlib.crc32(head)
    return b"".join((_CHECKSUMS.pack(zlib.crc32(text, start), zlib.crc32(stored, start)), head, text, stored.tobytes()))


def facts_in(item: memoryview) -> Facts:
    """Raises Damaged."""
    size, *_ = _HEAD.unpack_from(item, _CHECKSUMS.size)
    if zlib.crc32(item[_CHECKSUMS.size : _FACTS + size]) != _CHECKSUMS.unpack_from(item)[0]:
        raise Damaged("wrong checksum")
    fields = json.loads(bytes(item[_FACTS : _FACTS + size]))
    fields["digest"] = bytes.fromhex(fields["digest"])
    if "depth" in fields:
        return ImageFacts(**fields)
    fields |= {name: np.array(fields[name]) for name in ("mean", "spread")}
    return SequenceFacts(**fields | {"columns": None if fields["columns"] is None else tuple(fields["columns"])})


def stored_in(item: memoryview) -> np.ndarray:
    """A copy. Raises Damaged.

    Args:
        item: may go on after its end.
    """
    size, kind, dimensions, *lengths = _HEAD.unpack_from(item, _CHECKSUMS.size)
    shape = lengths[:dimensions]
    try:
        kind = np.dtype(kind.rstrip(b"\0").decode())
        stored = np.frombuffer(item, kind, math.prod(shape), _FACTS + size).reshape(shape)
    except (TypeError, ValueError) as error:
        raise Damaged(str(error)) from None
    if zlib.crc32(stored, zlib.crc32(item[_CHECKSUMS.size : _FACTS])) != _CHECKSUMS.unpack_from(item)[1]:
        raise Damaged("wrong checksum")
    return stored.copy()
