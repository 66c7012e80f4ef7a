"""One recording -> features, frame by frame."""

import io
import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from app.section import Section
from data.files.containers import check_mp3, check_ogg, check_wav
from data.files.decoding import decoding, printed_by_c, read_bytes, without_warnings
from data.files.paths import BadFile

if TYPE_CHECKING:
    import torch

_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")  # libsndfile's names
# Of others, such as MP3 and GSM 6.10 in a WAV, libsndfile reads too few samples or too many.
_WAV_SUBTYPES = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM")
_MAX_SAMPLES = 2**29  # of all channels: 2 GiB
_LOWEST_RATE = 1000  # Hz; a header that says less is corrupt
_MAX_KERNEL = 2**25  # values; two rates without a common divisor would take gigabytes
_LOG_OFFSET = 1e-6  # as in torchaudio's MFCC


class AudioConfig(Section):
    features: Literal["mfcc", "log_mel"] = Field(
        "mfcc",
        description="log_mel: log(power in each mel band + 1e-6); mfcc: the first num_mfcc of their cosine transform",
    )
    sample_rate: int = Field(16000, ge=1000, le=192_000, description="Hz; recordings of another rate are resampled")
    window: float = Field(25.0, ge=1, le=1000, description="milliseconds that a frame looks at")
    hop: float = Field(10.0, ge=1, le=1000, description="milliseconds from a frame to the next")
    num_mels: int = Field(40, ge=1, le=512, description="mel bands, from 0 Hz to half the sample_rate")
    num_mfcc: int = Field(13, ge=1, description="coefficients of a frame, at most num_mels; ignored for log_mel")

    @field_validator("num_mels")
    @classmethod
    def _no_band_is_empty(cls, num_mels: int, info: ValidationInfo) -> int:
        if not {"sample_rate", "window"} <= set(info.data):
            return num_mels
        from torchaudio.functional import melscale_fbanks

        rate, window = info.data["sample_rate"], info.data["window"]
        with without_warnings():
            bands = melscale_fbanks(_fft_size(rate, window) // 2 + 1, 0.0, rate / 2, num_mels, rate)
        if (bands.max(dim=0).values == 0).any():
            raise ValueError(
                f"found {num_mels}, too many for a window of {window:g} ms at {rate} Hz: some would hold no frequency; "
                "take fewer, or a longer window"
            )
        return num_mels

    @field_validator("num_mfcc")
    @classmethod
    def _no_more_than_bands(cls, num_mfcc: int, info: ValidationInfo) -> int:
        num_mels = info.data.get("num_mels", num_mfcc)
        if info.data.get("features") == "mfcc" and num_mfcc > num_mels:
            raise ValueError(f"found {num_mfcc}, must be <= num_mels {num_mels}")
        return num_mfcc


def read_audio(path: Path, audio: AudioConfig) -> tuple[np.ndarray, float]:
    """Features (T, F) float32 of the mean of all channels, and the seconds that the file lasts.

    As torchaudio.transforms.MFCC(log_mels=True) or MelSpectrogram compute them, with zeros before and after the
    recording, frame t centred at t hops, and an FFT of the next power of two above the window.

    Raises BadFile for other formats than WAV, FLAC, Ogg and MP3, for no samples, samples that are not finite, and
    files that are cut off or corrupt as far as their format tells.
    """
    mono, rate = read_recording(path)
    with decoding("an audio file"):
        features = _features(_resampled(mono, rate, audio.sample_rate), audio)
        if not np.isfinite(features).all():
            raise BadFile(f"has samples up to {np.abs(mono).max():g}, too large for features; scale them to 1")
    return features, len(mono) / rate


def read_recording(path: Path) -> tuple[np.ndarray, int]:
    """(samples,) float32, the mean of the channels, and their rate in Hz. Raises BadFile as read_audio."""
    content = _without_id3(read_bytes(path))
    with decoding("an audio file"):
        with printed_by_c() as printed:
            mono, rate = _decode(content)
        damage = [line for line in printed if "error" in line]
        if damage:
            raise BadFile(f"is corrupt ({damage[0]}); place the whole file there")
        if not len(mono):
            raise BadFile("has no samples; record it again, or leave the cell empty")
        if not np.isfinite(mono).all():
            raise BadFile("has samples that are not finite (NaN or infinity); correct it")
    return mono, rate


def _without_id3(content: bytes) -> bytes:
    """Less an ID3v2 tag in front, whose size is written in 7 bits a byte. mpg123 counts it as audio where an MP3 does
    not say how long it is."""
    if not content.startswith(b"ID3") or len(content) < 10:
        return content
    return content[10 + sum(byte << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0), strict=True)) :]


def _decode(content: bytes) -> tuple[np.ndarray, int]:
    """(samples,) float32, the mean of the channels, and their rate in Hz."""
    import soundfile

    with soundfile.SoundFile(io.BytesIO(content)) as file:
        if file.format not in _FORMATS or file.format.startswith("WAV") and file.subtype not in _WAV_SUBTYPES:
            raise BadFile(
                f"holds {file.format_info}, {file.subtype_info}; allowed: PCM or float WAV, FLAC, Ogg, MP3; convert it"
            )
        if file.frames * file.channels > _MAX_SAMPLES:
            raise BadFile(
                f"says that it has {file.frames} samples in each of {file.channels} channels, allowed are "
                f"{_MAX_SAMPLES} in all; split it, or encode it again if it came from a pipe"
            )
        samples = file.read(dtype="float32", always_2d=True)
        least = file.frames
        if file.format.startswith("WAV"):
            check_wav(content)
        elif file.format == "OGG":
            check_ogg(content, file.extra_info)
        elif file.format == "MP3" and (counted := check_mp3(content)) is not None:
            least = counted
        if len(samples) < least:
            found = f"{len(samples)} of {least} samples a channel"
            remedy = "if an MP3 does not say how long it is, run: ffmpeg -i old.mp3 -c copy new.mp3"
            raise BadFile(f"can be read in part only, {found}; place the whole file there or, {remedy}")
        fact = content.find(b"fact", 0, 200)
        if file.subtype.endswith("ADPCM") and fact > 0:  # how many there are before the filling of the last block
            samples = samples[: int.from_bytes(content[fact + 8 : fact + 12], "little") or None]
        return samples.mean(axis=1), file.samplerate


def _resampled(mono: np.ndarray, rate: int, target: int) -> "torch.Tensor":
    import torch

    waveform = torch.from_numpy(mono)
    if rate == target:
        return waveform
    divisor = math.gcd(rate, target)
    kernel = (rate // divisor) * (target // divisor)
    if rate < _LOWEST_RATE or kernel > _MAX_KERNEL or len(mono) / rate * target > _MAX_SAMPLES:
        raise BadFile(f"has a sample rate of {rate} Hz, which cannot be brought to {target} Hz; resample it yourself")
    return _resampler(rate, target)(waveform)


@lru_cache(maxsize=8)
def _resampler(rate: int, target: int) -> "torch.nn.Module":
    import torchaudio

    return torchaudio.transforms.Resample(rate, target)


def _features(waveform: "torch.Tensor", audio: AudioConfig) -> np.ndarray:
    """(samples,) -> (T, F); T is one more than the number of whole hops."""
    import torch

    features = _transform(audio)(waveform)  # (F, T)
    features = features if audio.features == "mfcc" else torch.log(features + _LOG_OFFSET)
    return features.T.contiguous().numpy()


@lru_cache(maxsize=8)
def _transform(audio: AudioConfig) -> "torch.nn.Module":
    from torchaudio.transforms import MFCC, MelSpectrogram

    mel = {
        "n_fft": _fft_size(audio.sample_rate, audio.window),
        "win_length": _samples(audio.sample_rate, audio.window),
        "hop_length": _samples(audio.sample_rate, audio.hop),
        "n_mels": audio.num_mels,
        "pad_mode": "constant",
    }
    if audio.features == "mfcc":
        return MFCC(audio.sample_rate, audio.num_mfcc, log_mels=True, melkwargs=mel)
    return MelSpectrogram(audio.sample_rate, **mel)


def _samples(sample_rate: int, milliseconds: float) -> int:
    return round(milliseconds * sample_rate / 1000)


def _fft_size(sample_rate: int, window: float) -> int:
    return 2 ** math.ceil(math.log2(max(2, _samples(sample_rate, window))))
