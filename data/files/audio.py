"""One recording -> features, frame by frame."""

import io
import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from app.section import Section
from data.files.containers import CHECKS
from data.files.decoding import MAX_BYTES, decoding, printed_by_c, read_bytes, without_warnings
from data.files.paths import BadFile

if TYPE_CHECKING:
    import torch

_MAX_SAMPLES = MAX_BYTES // 4  # float32
_MAX_KERNEL = 2**25  # values; two rates without a common divisor would take gigabytes
_BLOCK = 2**22  # samples of all channels, decoded at once
_FRAMES_AT_ONCE = 2**14  # a spectrogram of hours takes gigabytes
_RATES = (1000, 1_000_000)  # Hz; a header that says less or more is corrupt
_LOG_OFFSET = 1e-6  # as in torchaudio's MFCC


class AudioConfig(Section):
    features: Literal["mfcc", "log_mel"] = Field(
        "mfcc",
        description="log_mel: log(power in each mel band + 1e-6); mfcc: the first num_mfcc of their cosine transform",
    )
    sample_rate: int = Field(16000, ge=1000, le=192_000, description="Hz; recordings of another rate are resampled")
    window: float = Field(25.0, gt=0, le=1000, description="milliseconds that a frame looks at")
    hop: float = Field(10.0, gt=0, le=1000, description="milliseconds from a frame to the next")
    num_mels: int = Field(40, ge=1, le=512, description="mel bands, from 0 Hz to half the sample_rate")
    num_mfcc: int = Field(13, ge=1, description="coefficients of a frame, at most num_mels; ignored for log_mel")

    @field_validator("window", "hop")
    @classmethod
    def _is_a_sample_at_least(cls, milliseconds: float, info: ValidationInfo) -> float:
        rate = info.data.get("sample_rate")
        if rate is not None and milliseconds * rate / 1000 < 1:
            raise ValueError(f"found {milliseconds}, less than one sample of {rate} Hz")
        return milliseconds

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
    files that are cut off or corrupt as far as their format tells (see data/manifest/containers.py).
    """
    mono, rate = read_recording(path)
    with decoding("an audio file"):
        features = _features(_resampled(mono, rate, audio.sample_rate), audio)
        if not np.isfinite(features).all():
            raise BadFile(f"has samples up to {np.abs(mono).max():g}, too large for features; scale them to 1")
    return features, len(mono) / rate


def read_recording(path: Path) -> tuple[np.ndarray, int]:
    """(samples,) float32, the mean of the channels, and their rate in Hz. Raises BadFile as read_audio."""
    content = read_bytes(path)
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


def _decode(content: bytes) -> tuple[np.ndarray, int]:
    """(samples,) float32, the mean of the channels, and their rate in Hz."""
    import soundfile

    with soundfile.SoundFile(io.BytesIO(content)) as file:
        if file.format not in CHECKS:
            raise BadFile(f"holds {file.format_info}; allowed: WAV, FLAC, Ogg, MP3")
        if not _RATES[0] <= file.samplerate <= _RATES[1]:
            raise BadFile(f"says that its sample rate is {file.samplerate} Hz; correct its header")
        least = CHECKS[file.format](content)
        promised = file.frames
        if promised > _MAX_SAMPLES:
            raise BadFile(f"claims {promised} samples a channel, more than {_MAX_SAMPLES}; split it")
        blocks = []
        while len(block := file.read(max(1, _BLOCK // file.channels), dtype="float32", always_2d=True)):
            blocks.append(block.mean(axis=1))
    mono = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    least = promised if least is None else least
    if len(mono) < least:
        remedy = "place the whole file there, or convert it to WAV or FLAC"
        raise BadFile(f"can be read in part only, {len(mono)} of {least} samples a channel; {remedy}")
    return mono, file.samplerate


def _resampled(mono: np.ndarray, rate: int, target: int) -> "torch.Tensor":
    import torch

    waveform = torch.from_numpy(mono)
    if rate == target:
        return waveform
    divisor = math.gcd(rate, target)
    if (rate // divisor) * (target // divisor) > _MAX_KERNEL or len(mono) / rate * target > _MAX_SAMPLES:
        raise BadFile(f"has a sample rate of {rate} Hz, which cannot be brought to {target} Hz; resample it yourself")
    return _resampler(rate, target)(waveform)


@lru_cache(maxsize=8)
def _resampler(rate: int, target: int) -> "torch.nn.Module":
    import torchaudio

    return torchaudio.transforms.Resample(rate, target)


def _features(waveform: "torch.Tensor", audio: AudioConfig) -> np.ndarray:
    """(samples,) -> (T, F); T is one more than the number of whole hops."""
    import torch

    fft, hop = _fft_size(audio.sample_rate, audio.window), _samples(audio.sample_rate, audio.hop)
    num_frames = 1 + len(waveform) // hop
    padded = torch.nn.functional.pad(waveform, (fft // 2, fft // 2))
    parts = []
    for first in range(0, num_frames, _FRAMES_AT_ONCE):
        last = min(first + _FRAMES_AT_ONCE, num_frames) - 1
        part = _transform(audio)(padded[first * hop : last * hop + fft])  # (F, frames)
        parts.append(part if audio.features == "mfcc" else torch.log(part + _LOG_OFFSET))
    return torch.cat(parts, dim=1).T.contiguous().numpy()


@lru_cache(maxsize=8)
def _transform(audio: AudioConfig) -> "torch.nn.Module":
    from torchaudio.transforms import MFCC, MelSpectrogram

    mel = {
        "n_fft": _fft_size(audio.sample_rate, audio.window),
        "win_length": _samples(audio.sample_rate, audio.window),
        "hop_length": _samples(audio.sample_rate, audio.hop),
        "n_mels": audio.num_mels,
        "center": False,  # the padding is here
    }
    if audio.features == "mfcc":
        return MFCC(audio.sample_rate, audio.num_mfcc, log_mels=True, melkwargs=mel)
    return MelSpectrogram(audio.sample_rate, **mel)


def _samples(sample_rate: int, milliseconds: float) -> int:
    return round(milliseconds * sample_rate / 1000)


def _fft_size(sample_rate: int, window: float) -> int:
    return 2 ** math.ceil(math.log2(max(2, _samples(sample_rate, window))))
