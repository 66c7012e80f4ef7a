"""TensorBoard as a person sees it: a real server on a real run, each page opened in a browser."""

import re
import shutil
import subprocess
import sys

import pytest

import train
from tests.conftest import GROUP_NAMES, ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.slow, pytest.mark.browser]
WAIT = 60_000  # milliseconds, on a machine that is busy with other things


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Its address; it shows one run of the smoke config."""
    runs = tmp_path_factory.mktemp("runs")
    reduction = "{groups: [image_branch], monitor: val/loss, rule: threshold, above: 0.001, factor: 0.3}"
    config = ["--config", str(ROOT / "configs" / "smoke.yaml"), f"run.folder={runs}", "run.device=cpu"]
    assert train.main([*config, f"learning_rates.reductions=[{reduction}]"]) == 0
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def page():
    if CHROMIUM is None:
        pytest.skip("no chromium here; install Debian's package of that name")
    playwright = pytest.importorskip("playwright.sync_api", reason="see tests/requirements.txt")
    with playwright.sync_playwright() as running:
        # Without WebGL the charts are SVG, whose lines can be read.
        switches = ["--no-sandbox", "--disable-gpu", "--disable-webgl", "--disable-webgl2", "--disable-3d-apis"]
        browser = running.chromium.launch(executable_path=CHROMIUM, args=switches)
        yield browser.new_page(viewport={"width": 1400, "height": 2400})
        browser.close()


def open_page(page, server, name):
    page.goto(f"{server}?darkMode=false#{name}")


def cards(page) -> dict[str, tuple[list[str], set[str]]]:
    """Of each chart that is open, by its tag: the names of its lines, and their colours."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("scalar-card")].map(card => [
            card.querySelector(".tag").title,
            [[...card.querySelectorAll("tb-data-table-content-row")].map(row => row.innerText.trim().split(/\\s+/)[0]),
             [...new Set([...card.querySelectorAll("svg path")].map(path => getComputedStyle(path).stroke)
                 .filter(color => color.startsWith("rgb")))]]]))"""
    )


def test_the_first_screen_has_a_line_of_its_own_colour_for_each_group(page, server):
    open_page(page, server, "timeseries")
    page.locator("scalar-card").nth(4).wait_for(timeout=WAIT)
    story = ["1_val/accuracy", "1_val/loss", "2_groups/lr", "2_groups/lr_event", "2_groups/update_ratio"]
    assert list(cards(page)) == story
    page.get_by_text("3_gradients", exact=True).click()  # the first two sections are open
    page.locator("scalar-card").nth(6).wait_for(timeout=WAIT)
    groups = sorted(f"smoke/groups/{group}" for group in GROUP_NAMES)
    fused_and_alone = ["smoke", "smoke/groups/image_branch", "smoke/groups/temporal_branch"]
    page.wait_for_function(
        """() => [...document.querySelectorAll("scalar-card")].every(card =>
            card.querySelector(".tag").title === "2_groups/lr_event" ||  // single points
            [...card.querySelectorAll("svg path")].some(path => getComputedStyle(path).stroke.startsWith("rgb")))""",
        timeout=WAIT,
    )
    shown = cards(page)
    expected = {"1_val/accuracy": fused_and_alone, "1_val/loss": fused_and_alone}
    assert list(shown) == [*story, "3_gradients/grad_norm", "3_gradients/grad_share"]
    expected |= {tag: groups for tag in ("2_groups/lr", "2_groups/update_ratio", *list(shown)[-2:])}
    for tag, names in expected.items():
        found, colors = shown[tag]
        assert sorted(found) == names and len(colors) == len(names), tag
    assert shown["2_groups/lr_event"][0] == ["smoke/groups/image_branch"]
    assert page.locator("image-card", has_text="2_groups/lr_events").count() == 1


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("text", ["1_groups", "image_branch", "0.9, 0.999", "2_lr_events", "threshold", "3_config"]),
        ("images", ["val/confusion_matrix", "val/predictions", "val/reliability", "val/worst_mistakes"]),
        ("hparams", ["lr image_branch", "weight_decay unimodal_heads", "8_test/accuracy"]),
        ("scalars", ["1_val", "2_groups", "3_gradients", "4_train", "5_statistics", "6_rules", "7_classes", "8_test"]),
    ],
)
def test_each_page_shows_what_it_is_there_for(page, server, name, texts):
    open_page(page, server, name)
    for text in texts:
        page.get_by_text(text, exact=False).first.wait_for(state="attached", timeout=WAIT)
    if name == "images":
        page.wait_for_function(
            """() => {
                const all = node => [...node.querySelectorAll("*")].flatMap(
                    element => [element, ...(element.shadowRoot ? all(element.shadowRoot) : [])]);
                return all(document).filter(e => e.tagName === "IMG" && e.naturalWidth > 100).length >= 3;
            }""",
            timeout=WAIT,
        )
