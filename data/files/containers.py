"""What an audio file says of its own length and content, held against its bytes: libsndfile clamps in silence.

What no check can see: changed samples in a WAV or in an MP3 frame, and the cut itself in a WAV without a length (as
pipes write it) or, between two frames, in an MP3 without a count of them. FLAC is checked by libsndfile as it decodes.
"""

import struct
import zlib

from data.files.paths import BadFile

_ANEW = "place the whole file there"
_LENGTH_UNKNOWN = 0x7FFF0000  # what programs write into a WAV's header that cannot go back to it: this or more
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_BITRATES = {  # kbit/s of MPEG layer III, by the header's number, MPEG 1 and the others
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz, by MPEG version
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3", b"3DI")  # what may follow the last MP3 frame
_MP3_FRAME = 1152  # samples, in MPEG 1


def check_wav(content: bytes) -> None:
    start = _after_id3(content)
    order = ">" if content[start : start + 4] == b"RIFX" else "<"
    position, long_size = start + 12, None
    while position + 8 <= len(content):
        name, size = struct.unpack_from(f"{order}4sI", content, position)
        there = len(content) - position - 8
        if name == b"ds64" and there >= 16:
            (long_size,) = struct.unpack_from("<Q", content, position + 16)  # after the size of the whole
        if name == b"data":
            if size == 0xFFFFFFFF and long_size:
                size = long_size
            elif size >= _LENGTH_UNKNOWN:
                return
            if size > there:
                raise BadFile(f"is cut off: its header says {size} bytes of samples, {there} are there; {_ANEW}")
            if size == 0 and there:
                raise BadFile(f"has a header that says 0 bytes of samples, {there} follow; write the file anew, closed")
            return
        position += 8 + size + size % 2


def check_flac(content: bytes) -> None:
    start = _after_id3(content)
    if int.from_bytes(content[start + 18 : start + 26], "big") % 2**36 == 0:  # STREAMINFO's number of samples
        raise BadFile("is a FLAC that does not say how long it is, as pipes write it; encode it anew, into a file")


def check_ogg(content: bytes) -> None:
    """Format: RFC 3533. Every page has a checksum, a number and, if it is the last one, a mark."""
    position, streams, flags, number = 0, set(), 0, None
    while position < len(content):
        end = _end_of_ogg_page(content, position)
        _, _, flags, _, stream, found, checksum = struct.unpack_from("<4sBBqIII", content, position)
        page = content[position : position + 22] + bytes(4) + content[position + 26 : end]
        if _ogg_checksum(page) != checksum:
            raise BadFile(f"is corrupt: wrong checksum of the page at byte {position}; {_ANEW}")
        if streams and stream not in streams:
            raise BadFile("holds more than one stream; save the one that is meant as a file of its own")
        if number is not None and found != number + 1:
            raise BadFile(f"lacks pages before byte {position}; {_ANEW}")
        streams.add(stream)
        position, number = end, found
    if not flags & 4:
        raise BadFile(f"is cut off: its last page is not marked as the last; {_ANEW}")


def _end_of_ogg_page(content: bytes, start: int) -> int:
    if content[start : start + 4] != b"OggS":
        raise BadFile(f"is corrupt: no Ogg page at byte {start}; {_ANEW}")
    if start + 27 <= len(content):
        segments = content[start + 26]
        end = start + 27 + segments + sum(content[start + 27 : start + 27 + segments])
        if end <= len(content):
            return end
    raise BadFile(f"is cut off in the page at byte {start}; {_ANEW}")


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 as in zlib, but with the bits of each byte, and of the result, the other way round, and from 0."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def check_mp3(content: bytes) -> int:
    """Returns how many samples must be decoded at least: of a variable bit rate without a count libsndfile leaves out
    most, for it guesses the length from the first frames."""
    start = _first_mp3_frame(content)
    position, frames, samples = start, 0, 0
    while frame := _mp3_frame(content, position):
        position, frames, samples = position + frame[0], frames + 1, samples + frame[1]
    frame_samples = samples // max(frames, 1)
    first = content[start : start + 48]
    at = max(first.find(b"Xing"), first.find(b"Info"))  # of LAME and all that followed it
    if at >= 0:
        has, *counts = struct.unpack_from(">III", content.ljust(start + at + 16, b"\0"), start + at + 4)
        size, there = counts[has & 1], len(content) - start
        if has & 2 and size > there:
            raise BadFile(f"is cut off: its header says {size} bytes of audio, {there} are there; {_ANEW}")
        if has & 1 and frames < counts[0]:
            raise BadFile(f"is cut off or corrupt: its header says {counts[0]} frames, {frames} are there; {_ANEW}")
        return samples - 5 * frame_samples  # the header names some to be left out at both ends
    if position > len(content):
        raise BadFile(f"is cut off in its last frame; {_ANEW}")
    if (rest := content[position:].strip(b"\0")) and not rest.startswith(_TAGS):
        raise BadFile(f"is corrupt: no MP3 frame at byte {position}; {_ANEW}")
    return samples - 2 * frame_samples  # the first may need one that is not there


def _first_mp3_frame(content: bytes) -> int:
    """Where two frames follow each other."""
    start = content.find(b"\xff", _after_id3(content))
    while start >= 0:
        frame = _mp3_frame(content, start)
        if frame and (start + frame[0] >= len(content) or _mp3_frame(content, start + frame[0])):
            return start
        start = content.find(b"\xff", start + 1)
    raise BadFile("is corrupt: it has no frames of MPEG layer III; convert it to WAV or FLAC")


def _mp3_frame(content: bytes, position: int) -> tuple[int, int] | None:
    """The bytes and the samples of the frame that begins there; None: no frame."""
    header = int.from_bytes(content[position : position + 4], "big")
    version, rate = header >> 19 & 3, header >> 10 & 3
    if position + 4 > len(content) or header >> 21 != 0x7FF or header >> 17 & 3 != 1 or version == 1 or rate == 3:
        return None
    bitrate = _BITRATES[version == 3][header >> 12 & 15]
    samples = _MP3_FRAME if version == 3 else _MP3_FRAME // 2
    size = samples // 8 * bitrate * 1000 // _RATES[version][rate] + (header >> 9 & 1)
    return (size, samples) if bitrate else None


def _after_id3(content: bytes) -> int:
    """Where the audio begins: after an ID3v2 tag, whose size is written in 7 bits a byte."""
    if not content.startswith(b"ID3") or len(content) < 10:
        return 0
    size = sum(byte << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0), strict=True))
    return 10 + size


# By libsndfile's name of the format. Each raises BadFile for what is cut off or corrupt, and may return the least
# number of samples a channel; None: as many as libsndfile promises.
CHECKS = {
    "WAV": check_wav,
    "WAVEX": check_wav,
    "RF64": check_wav,
    "FLAC": check_flac,
    "OGG": check_ogg,
    "MP3": check_mp3,
}
