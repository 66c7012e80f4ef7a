"""Makes small data sets of real files, to try "Your own data" of the README on.

python -m tests.example_data DIR

DIR/table.csv   written digits (PNG, scikit-learn's load_digits) and the same digits spoken (WAV), a class each; the
                voices of the validation and test splits are not those of training; a tenth of the rows has no image,
                a tenth no recording. The speech is espeak-ng's where that is installed, else three tones a digit.
DIR/new.csv     the test rows without their class
DIR/series/     <split>/<class>/*.csv: (T, F) series of a made-up sensor: still, walking, running; no images
"""

import argparse
import csv
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOICES = {
    "train": ("m1", "m2", "m3", "m5", "f1", "f2", "f4", "f5", "Alex", "Andrea", "Mario", "Linda"),
    "val": ("m4", "f3", "Annie"),
    "test": ("m7", "Denis", "Belinda"),
}
TAKES = 12  # of each digit by each voice, at other speeds and pitches
HEADER = ("image_path", "audio_path", "class", "split", "speaker", "words_per_minute")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--takes", type=int, default=TAKES, help="recordings of each digit by each voice")
    parser.add_argument("--tones", action="store_true", help="tones, also where espeak-ng is installed")
    args = parser.parse_args(arguments)
    speech = bool(shutil.which("espeak-ng")) and not args.tones
    rows = make_table(args.folder, args.takes, speech=speech)
    series = make_series(args.folder / "series")
    print(f"{rows} rows of images and {'speech' if speech else 'tones'}, {series} series: {args.folder}")
    return 0


def make_table(folder: Path, takes: int, *, speech: bool) -> int:
    """Returns the number of rows."""
    for name in ("images", "audio"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    digits = load_digits()
    unused = {digit: list(np.flatnonzero(digits.target == digit)) for digit in range(10)}
    rows = []
    for split, voices in VOICES.items():
        images = {digit: [unused[digit].pop() for _ in range(25 if split != "train" else 110)] for digit in range(10)}
        for speaker in voices:
            for digit in range(10):
                for take in range(takes):
                    name = f"{split}-{speaker}-{digit}-{take:02}"
                    speed, pitch = int(generator.integers(120, 240)), int(generator.integers(20, 80))
                    cells = (f"images/{name}.png", f"audio/{name}.wav")
                    missing = generator.choice(("", "image", "audio"), p=(0.8, 0.1, 0.1))
                    if missing != "image":
                        save_image(folder / cells[0], digits.images[generator.choice(images[digit])], generator)
                    if missing != "audio":
                        save_recording(folder / cells[1], digit, speaker, speed, pitch, generator, speech=speech)
                    cells = tuple("" if missing and cell.startswith(missing) else cell for cell in cells)
                    rows.append((*cells, WORDS[digit], split, speaker, speed))
    write_table(folder / "table.csv", HEADER, rows)
    new = [(image, audio, speaker, speed) for image, audio, _, split, speaker, speed in rows if split == "test"]
    write_table(folder / "new.csv", ("image_path", "audio_path", "speaker", "words_per_minute"), new)
    return len(rows)


def write_table(path: Path, header: tuple, rows: list[tuple]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def save_image(path: Path, gray: np.ndarray, generator: np.random.Generator) -> None:
    """gray: (8, 8) from 0 to 16. Saved at 32 x 32, moved about, with noise."""
    image = Image.fromarray((gray * 255 / 16).astype(np.uint8)).resize((24, 24), Image.Resampling.BILINEAR)
    canvas = np.zeros((32, 32))
    y, x = generator.integers(0, 9, 2)
    canvas[y : y + 24, x : x + 24] = image
    canvas = canvas + generator.normal(0, 60, canvas.shape)
    Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).save(path)


def save_recording(
    path: Path, digit: int, speaker: str, speed: int, pitch: int, generator: np.random.Generator, *, speech: bool
) -> None:
    if speech:
        voice = ["-v", f"en-us+{speaker}", "-s", str(speed), "-p", str(pitch)]
        subprocess.run(["espeak-ng", *voice, "-w", str(path), WORDS[digit]], check=True)
        return
    rate = 16000
    notes = (digit % 3, digit // 3 % 3, digit // 9)  # another melody for each digit
    time = np.arange(int(rate * 18 / speed)) / rate
    timbre = np.random.default_rng(list(speaker.encode())).uniform(0.1, 1, 4)
    parts = []
    for note in notes:
        frequency = (300 + 4 * pitch) * 2 ** (note / 3)
        parts.append(sum(timbre[k] * np.sin(2 * np.pi * frequency * (k + 1) * time) for k in range(4)) / 4)
    sound = np.concatenate(parts) + generator.normal(0, 0.05, len(time) * 3)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound.clip(-1, 1) * 32767).astype("<i2").tobytes())


def make_series(folder: Path) -> int:
    """Acceleration along three axes, 50 values a second, 1 to 3 seconds. Returns the number of files."""
    generator = np.random.default_rng(1)
    gaits = {"still": (0.0, 0.0), "walking": (1.8, 1.0), "running": (2.8, 2.5)}  # steps a second, swing in m/s^2
    number = 0
    for split, count in {"train": 150, "val": 30, "test": 30}.items():
        for name, (rate, swing) in gaits.items():
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                time = np.arange(generator.integers(50, 151)) / 50
                phase = 2 * np.pi * (rate * generator.uniform(0.9, 1.1) * time + generator.uniform())
                values = swing * np.stack([np.sin(phase), np.cos(phase), np.sin(2 * phase)], axis=1)
                values = values * generator.uniform(0.6, 1.4) + generator.normal(0, 0.5, values.shape) + (0, 0, 9.81)
                table = np.column_stack([time, values])
                path = folder / split / name / f"{i:03}.csv"
                np.savetxt(path, table, fmt="%.4f", delimiter=",", header="time,x,y,z", comments="")
                number += 1
    return number


if __name__ == "__main__":
    sys.exit(main())
