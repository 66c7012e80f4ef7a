from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from app.commands.trained import Trained, output_folder
from app.training.objective import Objective, balanced_weights


@pytest.mark.parametrize(
    ("counts", "sampler", "balanced", "expected"),
    [
        ((6, 3, 1), "shuffle", False, [0.6, 0.3, 0.1]),
        ((6, 3, 1), "shuffle", True, [1 / 3] * 3),
        ((6, 3, 1), "class_balanced", False, [1 / 3] * 3),
        ((6, 0, 2), "class_balanced", False, [1 / 2, 0, 1 / 2]),
        # drawn alike, and weighed by 1 / 6, 1 / 3, 1
        ((6, 3, 1), "class_balanced", True, [1 / 9, 2 / 9, 6 / 9]),
    ],
)
def test_the_prior_is_what_training_showed_of_each_class(counts, sampler, balanced, expected):
    spec = {"class_names": [*"abc"], "num_features": 5, "normalisation": {}, "class_counts": counts, "absent": (0, 0)}
    objective = Objective(balanced_weights(dict(zip("abc", counts, strict=True))) if balanced else None)
    saved = {"data_spec": {**spec, "rows": {}}}
    trained = Trained(Path("a.pt"), saved, None, objective, SimpleNamespace(sampler=sampler), {}, [])
    torch.testing.assert_close(trained.prior, torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("table", "kind", "name"),
    [
        (None, "", "val"),
        (None, "compare-", "compare-val"),
        ("new.csv", "", "new"),
        ("new.csv", "compare-", "compare-new"),
        ("test.csv", "", "test-table"),
        ("val", "", "val-table"),
        ("val", "compare-", "compare-val-table"),
        (".", "", "here"),
        ("late_fusion-val.csv", "", "late_fusion-val-table"),
    ],
)
def test_the_folder_of_a_tables_predictions_is_never_that_of_a_split(tmp_path, monkeypatch, table, kind, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = output_folder(SimpleNamespace(path=Path("x/best.pt")), "val", table and Path(table), kind)
    assert folder == Path("x/evaluation") / name
