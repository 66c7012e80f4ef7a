"""report.html as a browser without a network would get it."""

import re
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.figure import Figure

from app.evaluation.certainty import describe_certainty
from app.evaluation.predictions import Predictions
from app.evaluation.report import FIGURES, scores_of, write_predictions, write_report
from app.evaluation.scores import accuracy_by_column
from app.training.objective import BRANCHES, Objective

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=y>', "{{ 7 * 7 }}"]
SECTIONS = ["Does the model use both inputs?", "Classes", "The worst mistakes", "How far to trust its probabilities"]
SECTIONS += ["Subgroups", "What made the checkpoint"]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.headings, self.addresses, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "data")]

    def handle_endtag(self, tag):
        while self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)


@pytest.fixture
def predictions():
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(60) % 3
    logits = torch.randn(60, 3, generator=generator) + 2 * torch.eye(3)[label]
    present = torch.ones(60, 2, dtype=torch.bool)
    present[:9, 1] = False
    own = dict.fromkeys(BRANCHES, logits)
    return Predictions(HOSTILE, torch.arange(60), label, present, logits, own)


def report_of(predictions, whole=True):
    group = {"name": HOSTILE[0], "num_values": 1234, "lr": 0.001, "weight_decay": 0.0}
    report = {"split": f"{HOSTILE[0]}.csv", **scores_of(predictions, Objective())}
    report |= {"checkpoint": "runs/<b>/best.pt", "epoch": 3, "step": 9, "weights": "none", "groups": [group]}
    report |= {"reductions": {HOSTILE[0]: 0.3}, "versions": {"torch": "2"}, "rows": {"test": "60 rows"}}
    report |= {"not_default": ["loss.label_smoothing: 0.0 -> 0.1"]}
    if whole:
        for mistake in report["worst_mistakes"]:
            mistake["cells"] = {HOSTILE[1]: HOSTILE[0]}
        certainty = describe_certainty(predictions)
        temperature = {"value": 1.5, "samples": 60, "at_limit": False, "fitted_on": "val"}
        report["calibration"] = {"stored": 1.0, "as_it_is": certainty, "with_temperature": certainty}
        report["calibration"]["temperature"] = temperature
        cells = [{"speaker": HOSTILE[i % 2]} for i in range(len(predictions))]
        report["by"] = {"speaker": accuracy_by_column("speaker", cells, predictions.correct)}
        use = {"own_head": 0.5, "other_absent": 0.4, "other_absent_was_trained": False, "shuffled": 0.3}
        use |= {"shuffling_costs": 0.2, "interval_95": [0.1, 0.3], "verdict": "used", "in_words": "used: it costs"}
        report["modality_use"] = {
            "samples": 60,
            "accuracy": 0.5,
            "shuffles": 5,
            "inputs": {"image": use, "sequence": use},
        }
    return report


@pytest.mark.parametrize("whole", [True, False])
def test_the_page_is_one_file_without_any_address_and_shows_names_as_text(predictions, tmp_path, whole):
    report = report_of(predictions, whole)
    files = write_report(tmp_path, report, Figure()).split(", ")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    without_pictures = re.sub(r"data:[\w/;,+=]+", "", text)
    assert not re.search(r"https?:|//|url\(|@import", without_pictures)
    assert "script" not in page.tags and "alert(1)" in text and "{{ 7 * 7 }}" in text and "49 " not in page.headings
    assert page.tags.count("img") == len(page.addresses) == (3 if whole else 2)
    assert ("in the table" in text) == whole
    assert page.headings == (SECTIONS if whole else ["Classes", "The worst mistakes", "Subgroups", SECTIONS[-1]])
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())


def test_nothing_of_an_earlier_report_is_left(predictions, tmp_path):
    report = report_of(predictions)
    write_report(tmp_path, report, Figure())
    assert {f"{name}.png" for name in FIGURES} < {path.name for path in tmp_path.iterdir()}
    write_predictions(tmp_path, predictions.rows())
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def test_a_report_of_perfect_predictions_and_of_a_class_without_samples(tmp_path):
    label = torch.tensor([0, 1, 0, 1])
    logits = 30 * torch.eye(3)[label]
    perfect = Predictions(
        ["a", "b", "c"], torch.arange(4), label, torch.ones(4, 2).bool(), logits, dict.fromkeys(BRANCHES, logits)
    )
    report = report_of(perfect)
    assert write_report(tmp_path, report).startswith("report.json, report.html, confusion_matrix.png, reliability.png")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The worst mistakes" not in Page(text).headings
    assert not re.search(r"\bnan\b", re.sub(r"data:[\w/;,+=]+", "", text))
