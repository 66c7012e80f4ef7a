import io
import itertools
import math
import os
import struct
import warnings

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from app.messages import Findings
from app.section import check_section
from data.files import audio as audio_module
from data.files.audio import AudioConfig
from data.files.paths import BadFile
from data.files.sequences import Sequence, SequenceConfig, read_sequence
from tests.conftest import replace
from tests.data.files.damage import damaged_copies

RATE = 16000
NOISE = np.random.default_rng(0).normal(size=RATE).astype(np.float32) * 0.1  # one second


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a file with this suffix."""
    numbers = itertools.count()

    def read_bytes(content: bytes, suffix: str = ".wav", **config) -> Sequence:
        path = tmp_path / f"{next(numbers)}{suffix}"
        path.write_bytes(content)
        return read_sequence(path, SequenceConfig(), AudioConfig(**config))

    return read_bytes


@pytest.fixture
def complaint(read):
    def complain(content: bytes, suffix: str = ".wav", **config) -> str:
        with pytest.raises(BadFile) as caught:
            read(content, suffix, **config)
        (line,) = str(caught.value).splitlines()
        return line

    return complain


def recording(samples=NOISE, rate=RATE, format="WAV", subtype=None, **options) -> bytes:
    """samples (N,) or (N, channels)."""
    file, channels = io.BytesIO(), 1 if np.ndim(samples) == 1 else np.shape(samples)[1]
    with soundfile.SoundFile(file, "w", rate, channels, subtype, format=format, **options) as sound:
        sound.write(np.asarray(samples))
    return file.getvalue()


def exact(samples, **options) -> bytes:
    return recording(samples, subtype="FLOAT", **options)


def torchaudio_features(
    samples: np.ndarray, *, log_mel: bool, rate: int = RATE, num_mfcc: int = 13, **changes
) -> np.ndarray:
    mel = {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 40, "pad_mode": "constant", **changes}
    if log_mel:
        features = torch.log(torchaudio.transforms.MelSpectrogram(rate, **mel)(torch.from_numpy(samples)) + 1e-6)
    else:
        features = torchaudio.transforms.MFCC(rate, num_mfcc, log_mels=True, melkwargs=mel)(torch.from_numpy(samples))
    return features.T.numpy()


def close(found: Sequence, expected: np.ndarray) -> None:
    assert found.frames.dtype == np.float32 and found.frames.flags.c_contiguous and found.columns is None
    np.testing.assert_allclose(found.frames, expected, rtol=1e-4, atol=1e-4)


def test_features_equal_torchaudio(read):
    found = read(exact(NOISE))
    assert found.frames.shape == (101, 13) and found.seconds == 1  # a frame at 0, 10, ..., 1000 ms
    close(found, torchaudio_features(NOISE, log_mel=False))
    close(read(exact(NOISE), features="log_mel"), torchaudio_features(NOISE, log_mel=True))


def test_features_of_another_config(read):
    changes = {"n_fft": 1024, "win_length": 960, "hop_length": 480, "n_mels": 30}
    config = {"sample_rate": 32000, "window": 30.0, "hop": 15.0, "num_mels": 30, "num_mfcc": 30}
    content = exact(NOISE, rate=32000)
    close(read(content, **config), torchaudio_features(NOISE, log_mel=False, rate=32000, num_mfcc=30, **changes))
    found = read(content, features="log_mel", **config)
    close(found, torchaudio_features(NOISE, log_mel=True, rate=32000, **changes))
    assert found.seconds == 0.5


def test_a_constant_is_known_by_hand(read):
    """Silence: the power of each band is 0, and the cosine transform of a constant c has c sqrt(bands) and zeros."""
    silence = np.zeros(800, np.float32)
    np.testing.assert_allclose(
        read(exact(silence), features="log_mel").frames, np.full((6, 40), math.log(1e-6)), rtol=1e-6
    )
    expected = np.zeros((6, 13))
    expected[:, 0] = math.log(1e-6) * math.sqrt(40)
    np.testing.assert_allclose(read(exact(silence)).frames, expected, atol=1e-4)


def test_channels_are_averaged(read):
    left, right = NOISE[:8000], NOISE[8000:]
    close(read(exact(np.stack([left, right], 1))), torchaudio_features((left + right) / 2, log_mel=False))


@pytest.mark.parametrize(
    ("rate", "seconds", "frames"), [(8000, 0.5, 51), (44100, 1, 101), (48000, 1, 101), (22050, 2, 201)]
)
def test_other_rates_are_resampled(rate, seconds, frames, read):
    samples = np.resize(NOISE, int(rate * seconds))
    found = read(exact(samples, rate=rate))
    assert found.frames.shape == (frames, 13) and found.seconds == seconds
    resampled = torchaudio.functional.resample(torch.from_numpy(samples), rate, RATE)
    assert len(resampled) == RATE * seconds
    np.testing.assert_allclose(
        found.frames, torchaudio_features(resampled.numpy(), log_mel=False), rtol=1e-3, atol=1e-2
    )


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        (".wav", {"subtype": "PCM_16"}, 0.05),
        (".WAV", {"subtype": "PCM_24"}, 0.05),
        (".wav", {"subtype": "DOUBLE"}, 0.05),
        (".wav", {"subtype": "ULAW"}, 5),
        (".wav", {"subtype": "MS_ADPCM"}, 5),
        (".wav", {"format": "WAVEX"}, 0.05),
        (".wav", {"subtype": "PCM_16", "endian": "BIG"}, 0.05),
        (".flac", {"format": "FLAC"}, 0.05),
        (".wav", {"format": "FLAC"}, 0.05),  # what it holds counts
        (".ogg", {"format": "OGG"}, 20),
        (".ogg", {"format": "OGG", "subtype": "OPUS"}, 60),
        (".mp3", {"format": "MP3"}, 60),
    ],
)
def test_every_format(suffix, options, tolerance, read):
    found = read(recording(**options), suffix)
    expected = torchaudio_features(NOISE, log_mel=False)
    assert abs(len(found.frames) - 101) <= 2 and abs(found.seconds - 1) < 0.02
    assert np.abs(found.frames[:100] - expected[:100]).max() < tolerance


def test_the_filling_of_adpcms_last_block_is_no_sample(read):
    content = recording(NOISE[:15_001], subtype="MS_ADPCM")
    assert len(soundfile.read(io.BytesIO(content))[0]) > 15_001
    assert read(content).seconds == 15_001 / RATE


def with_size(content: bytes, name: bytes, size: int) -> bytes:
    """Another size in the header of a WAV's chunk."""
    at = content.index(name) + 4
    return content[:at] + struct.pack("<I", size) + content[at + 4 :]


def with_number(content: bytes, at: int, form: str, number: int) -> bytes:
    return content[:at] + struct.pack(form, number) + content[at + struct.calcsize(form) :]


def with_flac_total(content: bytes, total: int) -> bytes:
    (packed,) = struct.unpack_from(">Q", content, 18)
    return with_number(content, 18, ">Q", packed >> 36 << 36 | total)


def mp3_frames(content: bytes) -> list[int]:
    """Where the frames begin, of 16 kHz (MPEG 2, layer III)."""
    kilobits = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    starts, at = [], 0
    while content[at : at + 2] == b"\xff\xf3":
        starts.append(at)
        at += 72 * 1000 * kilobits[content[at + 2] >> 4] // RATE + (content[at + 2] >> 1 & 1)
    return starts


def mp3_in_wav(frames: bytes) -> bytes:
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 5000, 1, 0, 12, 1, 2, 360, 1, 1393)
    chunks = ((b"fmt ", form), (b"fact", struct.pack("<I", RATE)), (b"data", frames))
    body = b"".join(name + struct.pack("<I", len(data)) + data for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


WAV, FLAC = recording(subtype="PCM_16"), recording(format="FLAC")
LONG_COMMENT = b"LIST" + struct.pack("<I", 2012) + b"INFOICMT" + struct.pack("<I", 2000) + b"x" * 2000
ODD_CHUNK = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"  # of odd size, so with a byte of padding
OGG, OPUS, MP3 = recording(format="OGG"), recording(format="OGG", subtype="OPUS"), recording(format="MP3")
CONSTANT = recording(format="MP3", bitrate_mode="CONSTANT", compression_level=0.5)
UNCOUNTED = CONSTANT[mp3_frames(CONSTANT)[1] :]
LOUD_THEN_QUIET = np.concatenate([NOISE, np.zeros(3 * RATE)])
VARIABLE = recording(LOUD_THEN_QUIET, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)


def test_a_wav_from_a_pipe_goes_to_its_end(read):
    expected = read(WAV).frames
    for size in (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000):
        np.testing.assert_array_equal(read(with_size(with_size(WAV, b"data", size), b"RIFF", size)).frames, expected)


def test_chunks_around_the_samples_of_a_wav_do_not_matter(read):
    expected = read(WAV).frames
    for content in (WAV[:36] + ODD_CHUNK + WAV[36:], WAV + ODD_CHUNK, WAV + b"junk"):
        np.testing.assert_array_equal(read(content).frames, expected)


@pytest.mark.parametrize(
    ("content", "suffix", "words"),
    [
        (b"", ".wav", "is empty (0 bytes)"),
        (b"RIFF and nothing else" * 9, ".wav", "is corrupt, cut off, or not an audio file after all"),
        (b"\xff\xfb and nothing else" * 99, ".mp3", "is "),
        (b"<!DOCTYPE html><html>404", ".mp3", "is HTML, SVG or XML; download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid", ".wav", "is a Git LFS pointer; run: git lfs pull"),
        (recording(format="AIFF"), ".wav", "holds AIFF (Apple/SGI), Signed 16 bit PCM; allowed: PCM or float"),
        (recording(format="W64"), ".wav", "; allowed: PCM or float WAV, FLAC, Ogg, MP3; convert it"),
        (recording(format="RF64"), ".wav", "; allowed: PCM or float WAV, FLAC, Ogg, MP3; convert it"),
        (recording(NOISE[:0]), ".wav", "has no samples"),
        (recording(NOISE[:1]), ".wav", "has one frame; a sequence needs two"),
        (recording(NOISE[:159]), ".wav", "has one frame; a sequence needs two"),
        (exact(np.array([0.1, np.nan] * 500)), ".wav", "has samples that are not finite"),
        (exact(np.array([0.1, np.inf] * 500)), ".wav", "has samples that are not finite"),
        (exact(np.array([0.1, 1e30] * 500)), ".wav", "has samples up to 1e+30, too large for features"),
        (WAV[:-1], ".wav", "is cut off: its header says 32000 bytes of samples, 31999 are there"),
        (WAV[:16000], ".wav", "is cut off: its header says 32000 bytes of samples, 15956 are there"),
        (WAV[:44], ".wav", "is cut off: its header says 32000 bytes of samples, 0 are there"),
        (with_size(WAV, b"data", 32002), ".wav", "is cut off"),
        (with_size(WAV, b"data", 0), ".wav", "is cut off: its header says 0 bytes of samples, 32000 are there"),
        ((WAV[:36] + ODD_CHUNK + WAV[36:])[:-2], ".wav", "is cut off: its header says 32000 bytes of samples, 31998"),
        (WAV[:36] + LONG_COMMENT + WAV[36:-2], ".wav", "is cut off: its header says 32000 bytes of samples, 31998"),
        (recording(format="WAVEX")[:-2], ".wav", "is cut off: its header says 32000 bytes"),
        (recording(subtype="PCM_16", endian="BIG")[:-2], ".wav", "is cut off: its header says 32000 bytes"),
        (recording(subtype="MS_ADPCM")[:-300], ".wav", "is cut off: its header says "),
        (recording(subtype="GSM610"), ".wav", "holds WAV (Microsoft), GSM 6.10; allowed: PCM or float WAV, FLAC, Ogg"),
        (mp3_in_wav(UNCOUNTED), ".wav", "; allowed: PCM or float WAV, FLAC, Ogg, MP3; convert it"),
        (with_number(WAV, 24, "<I", 1), ".wav", "has a sample rate of 1 Hz, which cannot be brought to 16000"),
        (with_number(WAV, 24, "<I", 15999), ".wav", "has a sample rate of 15999 Hz, which cannot be brought to 16000"),
        (with_number(WAV, 22, "<H", 0), ".wav", "is corrupt, cut off, or not an audio file"),
        (FLAC[: len(FLAC) // 2], ".flac", "is corrupt, cut off, or not an audio file"),
        (FLAC[:-1], ".flac", "is corrupt, cut off, or not an audio file"),
        (with_flac_total(FLAC, 0), ".flac", "encode it again if it came from a pipe"),
        (with_flac_total(FLAC, 2**36 - 1), ".flac", "says that it has 68719476735 samples in each of 1 channels"),
        (with_flac_total(FLAC, 20000), ".flac", "is "),
        (OGG[: len(OGG) // 2], ".ogg", "is cut off or corrupt (Ogg"),
        (OGG[: OGG.rindex(b"OggS")], ".ogg", "is cut off or corrupt (Ogg: Last page lacks an end-of-stream bit.)"),
        (OGG[: OGG.rindex(b"OggS") + 20], ".ogg", "is cut off or corrupt (Ogg: "),
        (OGG[:-5], ".ogg", "is cut off or corrupt (Ogg: "),
        (OGG + recording(format="OGG"), ".ogg", "is cut off or corrupt (Ogg: Junk after the last page.)"),
        (OGG + b"junk", ".ogg", "is cut off or corrupt (Ogg: Junk after the last page.)"),
        (OGG[:4000] + bytes([OGG[4000] ^ 1]) + OGG[4001:], ".ogg", "is cut off or corrupt (Ogg : Skipped 4292 bytes"),
        (OPUS[: OPUS.rindex(b"OggS")], ".ogg", "is "),
        (OPUS[:-5], ".ogg", "is "),
        (OPUS[:3000] + bytes([OPUS[3000] ^ 1]) + OPUS[3001:], ".ogg", "is "),
        (MP3[: len(MP3) // 2], ".mp3", "can be read in part only, 6383 of 16000 samples a channel; place the whole"),
        (MP3[: mp3_frames(MP3)[-1]], ".mp3", "can be read in part only, 15599 of 16000"),
        (MP3[: mp3_frames(MP3)[1]] + MP3[mp3_frames(MP3)[3] :], ".mp3", "can be read in part only"),
        (with_number(MP3, mp3_frames(MP3)[9], ">H", 0), ".mp3", "can be read in part only"),
        (UNCOUNTED[:-1], ".mp3", "is cut off in its last frame"),
        (UNCOUNTED[: len(UNCOUNTED) // 2 + 37], ".mp3", "is c"),
        (UNCOUNTED[:3000] + UNCOUNTED[3050:], ".mp3", "is corrupt: no MP3 frame at byte"),
        (UNCOUNTED + b"junk" * 9, ".mp3", "is corrupt: no MP3 frame at byte"),
        # Without the count in its first frame libsndfile guesses how long it is, and stops there.
        (VARIABLE[mp3_frames(VARIABLE)[1] :], ".mp3", "run: ffmpeg -i old.mp3 -c copy new.mp3"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_each_bad_recording_has_words_of_its_own(content, suffix, words, complaint, capfd):
    assert words in complaint(content, suffix)
    assert capfd.readouterr() == ("", "")


def test_long_comments_and_pictures_do_not_matter(read):
    expected = read(WAV).frames
    np.testing.assert_array_equal(read(WAV[:36] + LONG_COMMENT + WAV[36:]).frames, expected)
    samples, rate = soundfile.read(io.BytesIO(WAV), dtype="float32")
    long = io.BytesIO()
    with soundfile.SoundFile(long, "w", rate, 1, format="OGG", subtype="OPUS") as file:
        file.comment = "a description " * 200
        file.write(samples)
    content = long.getvalue()
    assert read(content, ".ogg").seconds == pytest.approx(1, abs=0.02)
    with pytest.raises(BadFile, match="is cut off or corrupt|is corrupt, cut off"):
        read(content[: content.rindex(b"OggS")], ".ogg")


def test_whole_mp3_without_a_count_of_its_frames_and_with_tags(read):
    tag, comment = b"ID3\4\0\0\0\0\2\1" + bytes(257), b"ID3\3\0\0\0\0\0\x0eCOMM\0\0\0\4\0\0\0eng"
    for content in (UNCOUNTED, tag + UNCOUNTED, UNCOUNTED + b"TAG" + bytes(125)):
        assert abs(read(content, ".mp3").seconds - 1) < 0.15
    for content in (tag + MP3, comment + MP3, MP3 + b"TAG" + bytes(125), MP3 + b"APETAGEX" + bytes(24)):
        np.testing.assert_array_equal(read(content, ".mp3").frames, read(MP3, ".mp3").frames)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
@pytest.mark.parametrize("channels", [1, 2])
def test_whole_mp3_of_every_kind_are_read_to_the_end(rate, mode, channels, read):
    samples = np.repeat(LOUD_THEN_QUIET[::4, None], channels, axis=1)
    content = recording(samples, rate, "MP3", bitrate_mode=mode, compression_level=0.5)
    assert read(content, ".mp3").seconds == len(samples) / rate


def test_what_mpg123_prints_as_an_error_makes_a_file_corrupt(complaint, monkeypatch, capfd):
    decode = audio_module._decode

    def decode_and_print(content):
        os.write(2, b"Warning: something else\n[libmpg123/layer3.c] error: dequantization failed!\n")
        return decode(content)

    monkeypatch.setattr(audio_module, "_decode", decode_and_print)
    assert "is corrupt ([libmpg123/layer3.c] error: dequantization failed!)" in complaint(MP3, ".mp3")
    assert capfd.readouterr() == ("", "")


def test_a_long_flac_of_silence_is_no_bomb(read):
    """Few bytes, many samples: what counts is what it unpacks to."""
    content = recording(np.zeros(60 * RATE), format="FLAC")
    assert len(content) < 20_000 and read(content, ".flac").seconds == 60


def test_a_recording_that_would_be_too_long_is_refused(complaint, monkeypatch):
    monkeypatch.setattr(audio_module, "_MAX_SAMPLES", 20_000)
    assert "20001 samples in each of 1 channels, allowed are 20000 in all" in complaint(recording(np.zeros(20_001)))
    assert "10001 samples in each of 2 channels" in complaint(recording(np.zeros((10_001, 2))))
    assert "cannot be brought to 48000 Hz" in complaint(recording(), sample_rate=48000)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [(".wav", WAV), (".flac", FLAC), (".ogg", OGG), (".ogg", OPUS), (".mp3", MP3)],
    ids=["WAV", "FLAC", "OGG", "OPUS", "MP3"],
)
def test_damage_ends_in_badfile_or_features_and_prints_nothing(suffix, content, read, capfd):
    whole = read(content, suffix).frames
    outcomes = []
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for damaged in damaged_copies(content):
            try:
                frames = read(damaged, suffix).frames
            except BadFile as error:
                assert len(str(error).splitlines()) == 1
                outcomes.append("refused")
            else:
                assert frames.dtype == np.float32 and frames.ndim == 2 and np.isfinite(frames).all()
                outcomes.append("same" if np.array_equal(frames, whole) else "changed")
    assert set(outcomes[:20]) == {"refused"}  # the cuts
    if suffix in (".flac", ".ogg"):
        assert outcomes.count("changed") <= 1  # all but FLAC's header is under a checksum
    assert (capfd.readouterr(), shown) == (("", ""), [])


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"num_mfcc": 41}, "audio.num_mfcc: found 41, must be <= num_mels 40"),
        ({"num_mels": 128}, "audio.num_mels: found 128, too many for a window of 25 ms at 16000 Hz: some would hold no "
         "frequency; take fewer, or a longer window"),
        ({"window": 0.05}, "audio.window: found 0.05, must be >= 1 and <= 1000"),
        ({"hop": 0.0}, "audio.hop: found 0.0, must be >= 1 and <= 1000"),
        ({"sample_rate": 16000.5}, "audio.sample_rate: found 16000.5, expected a whole number >= 1000 and <= 192000"),
        ({"features": "mel"}, "audio.features: found 'mel', expected one of mfcc, log_mel"),
    ],
)  # fmt: skip
def test_each_bad_value_of_the_config_is_told_with_its_key(values, line):
    with warnings.catch_warnings(record=True) as shown, pytest.raises(Findings) as caught:
        warnings.simplefilter("always")
        check_section(AudioConfig, values, "audio")
    assert str(caught.value) == line and shown == []


def test_num_mfcc_is_ignored_for_log_mel():
    assert AudioConfig(features="log_mel", num_mels=10).num_mfcc == 13
    assert replace(AudioConfig(), num_mels=13).num_mels == 13
