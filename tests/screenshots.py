"""Makes the pictures of docs/ anew, from runs that are there.

    python -m tests.screenshots runs fusion manifest starving_branch balanced

The first argument is the folder of runs, the others are four of them: the first is shown on all pages, the second (of
recordings) is listened to, the scores of the last two stand side by side. Needs Chromium and tests/requirements.txt;
evaluate.py must have been run on the first.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.conftest import ROOT

DOCS = ROOT / "docs"


def main(runs: str, first: str, second: str, *pair: str) -> None:
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", runs, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server, sync_playwright() as running:
        try:
            address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
            chromium = shutil.which("chromium") or shutil.which("chromium-browser")
            browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1500, "height": 1150})
            shoot(
                page, f"{address}?darkMode=false&runFilter=%5E{first}#timeseries", "tensorboard", closes_settings=True
            )
            of_pair = f"{address}?darkMode=false&runFilter=%5E({'%7C'.join(pair)})&smoothing=0#timeseries"
            shoot(page, of_pair, "tensorboard_balance", height=760)
            shoot(page, f"{address}?darkMode=false#images", "tensorboard_images", run=first)
            shoot(page, f"{address}?darkMode=false#text", "tensorboard_text", run=first)
            shoot(page, f"{address}?darkMode=false#hparams", "tensorboard_hparams")
            shoot(page, f"{address}?darkMode=false#audio", "tensorboard_audio", run=second)
            page.goto((Path(runs).resolve() / first / "evaluation" / "test" / "report.html").as_uri())
            page.screenshot(path=DOCS / "report.png")
            browser.close()
        finally:
            server.terminate()


def shoot(
    page: Page, address: str, name: str, run: str | None = None, closes_settings: bool = False, height: int = 1150
) -> None:
    """run: the only one that is shown, on pages whose runs are chosen by a field of their own."""
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_timeout(6000)
    if closes_settings:
        page.get_by_role("button", name="Settings").last.click()
    if run:
        page.get_by_label("Write a regex to filter runs").fill(f"^{run}$")
    page.wait_for_timeout(3000)
    page.screenshot(path=DOCS / f"{name}.png", clip={"x": 0, "y": 0, "width": 1500, "height": height})


if __name__ == "__main__":
    main(*sys.argv[1:])
