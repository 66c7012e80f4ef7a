"""report.html: an evaluation as one page that needs no other file, and no network."""

import base64
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

SHOWN_CLASSES = 40  # of the table; more are in report.json


def make_page(report: dict[str, Any], figures: dict[str, bytes]) -> str:
    """HTML. report: what report.json holds; figures: PNG by name."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of classes and cells are anybody's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "number": _number}
    page = environment.get_template("report.html.j2")
    pictures = {name: f"data:image/png;base64,{base64.b64encode(figure).decode()}" for name, figure in figures.items()}
    classes = report["classes"]
    by_f1 = sorted(classes, key=lambda name: _last_if_nan(classes[name]["f1"]["value"]))
    return page.render(
        report=report,
        pictures=pictures,
        origins=report.get("checkpoints", [report]),
        classes={name: classes[name] for name in (classes if len(classes) <= SHOWN_CLASSES else by_f1[:SHOWN_CLASSES])},
        by=report.get("by", {}),
        verdicts=report.get("modality_use", {}).get("inputs", {}),
    )


def _last_if_nan(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"
