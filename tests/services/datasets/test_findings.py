"""No name of a file or a patient outlives a check."""

from __future__ import annotations

import pytest

from ppdd_core.data.check import Findings
from ppdd_core.data.dataset import load_images
from ppdd_core.data.names import shown
from services.datasets.findings import blank_names, refusal, without_names
from services.datasets.schemas import FindingsOut
from tests.services.datasets.images import picture, write_folder


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """Findings about a dataset that has every fault that names files or patients."""
    root = tmp_path_factory.mktemp("found")
    rows, files = ["path,label,patient_id,split"], {}
    for number in range(12):
        label, split = ("COVID", "Normal")[number % 2], ("train", "test")[number // 6]
        name = f"img/Miller^Anna: {number}.png"
        files[name] = picture(number)
        rows.append(f"{name},{label},Miller^Anna{number % 3},{split}")
    files |= {
        "img/Smith-copy.png": picture(0),
        "img/Smith-other.png": picture(1),
        "img/Smith-broken.png": b"GIF89a Smith",
        "img/Smith-empty.png": b"",
    }
    rows += [f"{name},COVID,Smith,train" for name in files if "Smith" in name]
    write_folder(root, files)
    (root / "manifest.csv").write_text("\n".join(rows))
    _, findings = load_images(root, image_size=16, cache_dir=root / "cache", processes=0)
    return findings


def test_every_fault_is_kept_without_names(found: Findings) -> None:
    whole = str(found.to_dict())
    assert "Miller" in whole
    assert "Smith" in whole
    kept = without_names(found.to_dict(), {"train": 4})
    assert "Miller" not in str(kept)
    assert "Smith" not in str(kept)
    assert [one["code"] for one in kept["findings"]] == [one.code for one in found.findings]
    assert {one["code"] for one in kept["findings"]} >= {
        "patients-across-splits", "duplicates", "conflicting-labels", "unreadable",
    }  # fmt: skip
    by_code = {one["code"]: one["message"] for one in kept["findings"]}
    assert by_code["patients-across-splits"] == "3 patients with images in more than one split."
    assert by_code["unreadable"] == "2 files cannot be read and left out."
    assert kept["unreadable"] == {"COVID": 2}
    assert kept["unreadable_reasons"] == {
        "is not a PNG, JPEG or DICOM file": 1,
        "is empty (0 bytes)": 1,
    }


def test_what_is_kept_has_the_shape_that_is_shown(found: Findings) -> None:
    kept = without_names(found.to_dict(), {"train": 4})
    shown_again = FindingsOut.model_validate(kept).model_dump()
    assert shown_again["grey"]["histogram"] == kept["grey"]["histogram"]
    assert shown_again["patients_by_split"] == {"train": 4}
    assert set(kept) == set(shown_again)
    assert FindingsOut.model_validate(refusal("it is empty")).refusal == "it is empty"


@pytest.mark.parametrize("name", ["Miller.png", "O'Miller.png", 'a"O\'Miller".png', "x" * 90])
def test_quoted_names_are_blanked(name: str) -> None:
    text = f"{shown(name)} is a link out of the dataset; put the file itself there"
    assert blank_names(text) == "[…] is a link out of the dataset; put the file itself there"
