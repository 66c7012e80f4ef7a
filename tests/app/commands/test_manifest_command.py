import pytest

from app.commands import manifest
from tests.conftest import ROOT
from tests.data.manifest.tables import good_rows, write_rows

CONFIG = ["--config", str(ROOT / "configs" / "manifest.yaml")]


@pytest.fixture
def rows(tmp_path):
    return good_rows(tmp_path)


def check(tmp_path, rows, capsys, *overrides):
    code = manifest.main(["check", str(write_rows(tmp_path / "table.csv", rows)), *CONFIG, *overrides])
    printed = capsys.readouterr()
    return code, printed.out, [line for line in printed.err.splitlines() if line.startswith("error: ")]


def test_check_says_what_a_good_table_holds(tmp_path, rows, capsys):
    rows[0]["image"] = ""
    (tmp_path / "4.png").write_bytes((tmp_path / "2.png").read_bytes())
    code, out, errors = check(tmp_path, rows, capsys)
    assert (code, errors) == (0, [])
    table = {line.split()[0]: line.split()[-3:] for line in out.splitlines() if line and line[-1].isdigit()}
    assert table["cat"] == table["dog"] == ["3", "1", "1"] and table["all"] == ["6", "2", "2"]
    assert "image and sequence      5    2     2" in out and "sequence only           1    0     0" in out
    # 6 to 15 frames, one file of each length
    assert "sequences: 10 files; features: 3; frames: 6 to 15, median 10, 10 % below 7, 10 % above 14" in out
    assert "images: 9 files; 8 x 8 (9); uint8 (9); values 2 to 255" in out
    assert "files with the same content as another: 1" in out and out.rstrip().endswith("findings: none")


def test_check_tells_all_findings_and_exits_with_2(tmp_path, rows, capsys):
    for i in range(30):
        rows.append({"image": f"missing-{i}.png", "sequence": "", "label": "cat", "split": "train"})
    code, out, errors = check(tmp_path, rows, capsys)
    assert code == 2 and len(errors) == 30 and "findings: 30, in 30 rows" in out
    assert (
        errors[29].endswith("correct the cell") and "row 41, column image, 'missing-29.png': is not there" in errors[29]
    )


def test_check_reads_as_the_config_says(tmp_path, rows, capsys):
    for row in rows:
        row["photo"], row["sequence"] = row.pop("image"), "nothing.npy"
    one_branch = [
        "model.temporal_branch=null",
        "optimizer.groups={image_branch: {lr: 1e-3}, fusion_head: {lr: 1e-3}, unimodal_heads: {lr: 1e-3}}",
        "learning_rates.reductions=[]",
    ]
    code, out, errors = check(tmp_path, rows, capsys, "data.columns={image: photo}", *one_branch)
    assert (code, errors) == (0, []) and "image: photo" in out and "sequences:" not in out
    code, _, (error,) = check(tmp_path, rows, capsys, *one_branch)
    assert code == 2 and "no column for the image" in error


def test_check_wants_a_config_of_a_manifest(tmp_path, rows, capsys):
    path = write_rows(tmp_path / "table.csv", rows)
    assert manifest.main(["check", str(path), "--config", str(ROOT / "configs" / "fusion.yaml")]) == 2
    assert "data.manifest: belongs to source: manifest, not to source: digits" in capsys.readouterr().err


def test_a_check_leaves_no_cache(tmp_path, rows, capsys):
    folder = f"data.cache_folder={tmp_path / 'decoded'}"
    assert manifest.main(["check", str(write_rows(tmp_path / "table.csv", rows)), *CONFIG, folder]) == 0
    assert not (tmp_path / "decoded").exists()
