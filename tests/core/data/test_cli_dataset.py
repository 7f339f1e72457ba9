import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ppdd_core.cli.dataset import app, parse_where
from ppdd_core.errors import BadConfigError, SourceError

HOSPITALS = "aab"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """75 images in three classes and two hospitals; hospital b has a patient in two splits."""
    monkeypatch.setenv("PPDD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    rows = ["path,label,patient_id,hospital,split"]
    root = tmp_path / "source"
    root.mkdir()
    for n in range(120):
        grey = np.random.default_rng(n).integers(0, 256, (8, 8), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(grey).save(out, "PNG")
        (root / f"{n}.png").write_bytes(out.getvalue())
        hospital = HOSPITALS[n % 3]
        patient = "shared" if hospital == "b" and n > 100 else f"p{n}"
        rows.append(
            f"{n}.png,{('COVID', 'Normal')[n // 3 % 2]},{patient},{hospital},{('train', 'test')[n // 6 % 2]}"
        )
    (root / "manifest.csv").write_text("\n".join(rows))
    return root


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["check", "--image-size", "8", *map(str, arguments)])


def test_a_good_dataset_passes_with_its_counts(folder: Path) -> None:
    result = run(folder, "--where", "hospital=a")
    assert result.exit_code == 0
    assert "Nothing wrong was found" in result.stdout
    assert [word for line in result.stdout.splitlines() if "COVID" in line for word in line.split()][3:8:2] == [
        "20", "20", "40",
    ]  # fmt: skip


def test_an_error_finding_exits_with_3(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 3
    assert "patients-across-splits" in result.stdout


def test_json_is_one_document_with_everything(folder: Path) -> None:
    (folder / "0.png").write_bytes(b"bad")
    result = run(folder, "--json", "--where", "hospital=a", "--where", "label=COVID")
    value = json.loads(result.stdout)
    assert value["classes"] == {"COVID": 39}
    assert value["image_size"] == 8
    assert len(value["fingerprint"]) == 64
    assert [file["name"] for file in value["unreadable"]] == ["0.png"]
    assert {finding["code"] for finding in value["findings"]} == {"too-few-classes", "unreadable"}
    assert result.exit_code == 3


def test_unreadable_files_are_listed_and_markup_in_names_is_text(folder: Path) -> None:
    manifest = folder / "manifest.csv"
    manifest.write_text(manifest.read_text() + "\n[red]gone.png,[bold]Odd,p999,a,train")
    result = run(folder, "--where", "hospital=a")
    assert "'[red]gone.png' cannot be opened: No such file or directory" in result.stdout
    assert "'[bold]Odd'" in result.stdout


def test_refusals_come_through_as_our_errors(folder: Path) -> None:
    assert isinstance(run(folder, "--where", "hospital=z").exception, BadConfigError)
    assert isinstance(run(folder / "missing").exception, SourceError)


def test_where_is_parsed_at_its_first_equals_sign() -> None:
    assert parse_where(["a=b", " view = AP=PA "]) == {"a": "b", "view": "AP=PA"}
    for bad in (["hospital"], ["=a"], ["a=1", "a=2"]):
        with pytest.raises(BadConfigError, match="--where"):
            parse_where(bad)
