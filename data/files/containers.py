"""What an audio file says of its length, held against its bytes: libsndfile decodes less without an error.

tests/data/files/test_audio.py has a file for each fault. What no check can see: changed samples in a WAV or an MP3
frame, and the cut itself in a WAV without a length, as pipes write it, or between two frames of an MP3 without a count.
"""

import struct

from data.files.paths import BadFile

_WHOLE = "place the whole file there"
_LENGTH_UNKNOWN = 0x7FFF0000  # bytes; what a program writes into a WAV's header that cannot go back to it: this or more
_LONGEST_LOG = 2047  # characters of libsndfile's log; what is beyond them is lost
_BITRATES = {  # kbit/s of MPEG layer III, by the header's number, MPEG 1 and the others
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz, by MPEG version
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3", b"3DI")  # what may follow the last MP3 frame


def check_wav(content: bytes) -> None:
    """libsndfile takes the samples that are there for all. Raises BadFile where the header says more, or none."""
    order, position = ">" if content.startswith(b"RIFX") else "<", 12
    while position + 8 <= len(content):
        name, size = struct.unpack_from(f"{order}4sI", content, position)
        there = len(content) - position - 8
        if name == b"data" and size < _LENGTH_UNKNOWN and (size > there or there > size == 0):
            raise BadFile(f"is cut off: its header says {size} bytes of samples, {there} are there; {_WHOLE}")
        position += len(content) if name == b"data" else 8 + size + size % 2


def check_ogg(content: bytes, log: str) -> None:
    """libsndfile skips damaged pages, and takes the last one there for the end. Its log says so, unless long comments
    fill it: then at least the last page must be marked as the last (RFC 3533). Raises BadFile."""
    damage = [line for line in log.splitlines() if line.startswith(("Ogg:", "Ogg :"))]
    if len(log) >= _LONGEST_LOG and not content[content.rfind(b"OggS") :][5:6] > b"\3":
        damage.append("its last page is not marked as the last")
    if damage:
        raise BadFile(f"is cut off or corrupt ({damage[0]}); {_WHOLE}")


def check_mp3(content: bytes) -> int | None:
    """Without a count of the frames libsndfile guesses the length from the first of them and the file's size, and
    stops there.

    Returns the samples a channel that must be decoded at least; None where there is a count, which libsndfile keeps to.
    Raises BadFile for a file that ends within a frame, or has something else between them.
    """
    if any(name in content[:200] for name in (b"Xing", b"Info", b"VBRI")):
        return None
    position = content.find(b"\xff")
    while 0 <= position and not _is_start(content, position):
        position = content.find(b"\xff", position + 1)
    samples = of_frame = 0
    while frame := _mp3_frame(content, position):
        position, of_frame = position + frame[0], frame[1]
        samples += of_frame
    if position > len(content):
        raise BadFile(f"is cut off in its last frame; {_WHOLE}")
    if not samples or (rest := content[position:].strip(b"\0")) and not rest.startswith(_TAGS):
        raise BadFile(f"is corrupt: no MP3 frame at byte {max(position, 0)}; {_WHOLE}")
    return samples - 2 * of_frame  # the first may need one that is not there


def _is_start(content: bytes, position: int) -> bool:
    """Whether two frames follow each other from there, or one ends the file."""
    frame = _mp3_frame(content, position)
    after = position + frame[0] if frame else 0
    return frame is not None and (after >= len(content) or _mp3_frame(content, after) is not None)


def _mp3_frame(content: bytes, position: int) -> tuple[int, int] | None:
    """The bytes and the samples of the frame that begins there; None: no frame."""
    header = int.from_bytes(content[position : position + 4], "big")
    version, rate = header >> 19 & 3, header >> 10 & 3
    if position + 4 > len(content) or header >> 21 != 0x7FF or header >> 17 & 3 != 1 or version == 1 or rate == 3:
        return None
    bitrate = _BITRATES[version == 3][header >> 12 & 15]
    samples = 1152 if version == 3 else 576
    size = samples // 8 * bitrate * 1000 // _RATES[version][rate] + (header >> 9 & 1)
    return (size, samples) if bitrate else None
