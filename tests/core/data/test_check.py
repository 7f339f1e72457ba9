import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ppdd_core.data.check import Findings
from ppdd_core.data.dataset import load_images
from ppdd_core.errors import SourceError

SIZE = 16


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def noise(seed: int, side: int = SIZE) -> bytes:
    grey = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    return png(Image.fromarray(grey))


def mask(seed: int) -> bytes:
    image = Image.new("L", (256, 256))
    ImageDraw.Draw(image).ellipse((20 + seed, 40, 120, 220), fill=255)
    return png(image)


def enough(label: str, count: int = 25) -> dict[str, bytes]:
    start = sum(map(ord, label)) * 1000
    return {f"{label}/{n:02}.png": noise(start + n) for n in range(count)}


def check(tmp_path: Path, files: Mapping[str, bytes], rows: str = "") -> Findings:
    for name, data in files.items():
        (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / name).write_bytes(data)
    if rows:
        (tmp_path / "s/manifest.csv").write_text(rows)
    return load_images(tmp_path / "s", image_size=SIZE, cache_dir=tmp_path / "c", processes=0)[1]


def codes(findings: Findings) -> dict[str, str]:
    return {finding.code: finding.severity for finding in findings.findings}


GOOD = {**enough("A"), **enough("B")}


def test_a_good_dataset_has_no_findings(tmp_path: Path) -> None:
    findings = check(tmp_path, GOOD)
    assert findings.findings == ()
    assert findings.images == 50
    assert findings.patients is None
    assert findings.classes == {"A": 25, "B": 25}
    assert findings.splits == {"": {"A": 25, "B": 25}}
    findings.refuse_errors()


@pytest.mark.parametrize(
    ("extra", "code", "severity", "count"),
    [
        pytest.param({"E/x.txt": b""}, "empty-class", "error", 1, id="class without images"),
        pytest.param(
            {"E/x.png": b"bad"}, "empty-class", "error", 1, id="class without readable images"
        ),
        pytest.param(enough("E", 2), "too-small-class", "error", 1, id="two images"),
        pytest.param(
            {f"E/{n}.png": noise(7) for n in range(9)},
            "too-small-class",
            "error",
            1,
            id="copies of one image",
        ),
        pytest.param(enough("E", 19), "small-class", "warning", 1, id="nineteen images"),
        pytest.param(enough("a"), "similar-class-names", "warning", 2, id="a and A"),
        pytest.param({"A/copy.png": GOOD["A/00.png"]}, "duplicates", "warning", 1, id="copy"),
        pytest.param(
            {"B/copy.png": GOOD["A/00.png"]}, "conflicting-labels", "error", 1, id="two labels"
        ),
        pytest.param({"A/bad.png": b"bad"}, "unreadable", "warning", 1, id="unreadable"),
        pytest.param(
            {f"A/bad{n}.png": b"bad" for n in range(13)}, "unreadable", "error", 13, id="many"
        ),
        pytest.param(
            {f"A/m{n}.png": mask(n) for n in range(3)}, "looks-like-masks", "warning", 3, id="masks"
        ),
        pytest.param(
            {f"A/m{n}.png": mask(n) for n in range(51)}, "looks-like-masks", "error", 51, id="all"
        ),
        pytest.param(
            {"A/blank.png": png(Image.new("L", (SIZE, SIZE), 90))},
            "blank-images",
            "warning",
            1,
            id="blank",
        ),
        pytest.param(
            {"A/small.png": noise(1, side=8)}, "enlarged", "note", 1, id="smaller than asked"
        ),
        pytest.param({"A/masks/1.png": mask(1)}, "masks-left-out", "note", 1, id="masks folder"),
        pytest.param({"top.png": noise(2)}, "passed-over", "warning", 1, id="outside the classes"),
        pytest.param({"A/notes.txt": b""}, "passed-over", "note", 1, id="other files"),
    ],
)
def test_each_fault_has_its_own_finding(
    tmp_path: Path, extra: Mapping[str, bytes], code: str, severity: str, count: int
) -> None:
    findings = check(tmp_path, {**GOOD, **extra})
    (found,) = (finding for finding in findings.findings if finding.code == code)
    assert (found.severity, found.count) == (severity, count)
    assert found.message
    assert found.advice
    assert code not in codes(check(tmp_path / "without", GOOD))


def test_one_class_is_an_error(tmp_path: Path) -> None:
    assert codes(check(tmp_path, enough("A"))) == {"too-few-classes": "error"}


def manifest(**splits: tuple[str, str]) -> str:
    """A manifest of GOOD, each image its own patient, in train or test; `splits` are exceptions."""
    rows = ["path,label,patient_id,split"]
    for name in GOOD:
        number = int(name[2:4])
        key = name[0] + name[2:4]
        patient, split = splits.get(key, (key, "test" if number % 5 == 0 else "train"))
        rows.append(f"{name},{name[0]},{patient},{split}")
    return "\n".join(rows)


def test_counts_follow_the_manifests_splits(tmp_path: Path) -> None:
    findings = check(tmp_path, GOOD, manifest())
    assert findings.findings == ()
    assert findings.patients == 50
    assert findings.splits == {"train": {"A": 20, "B": 20}, "test": {"A": 5, "B": 5}}


def test_a_patient_in_two_splits_is_an_error(tmp_path: Path) -> None:
    findings = check(
        tmp_path, GOOD, manifest(A01=("P", "train"), A02=("P", "test"), B03=("Q", "train"))
    )
    assert codes(findings) == {"patients-across-splits": "error"}
    assert findings.errors[0].examples == ("'P'",)
    with pytest.raises(SourceError, match="1 patient with images in more than one split"):
        findings.refuse_errors()


def test_a_copy_in_another_split_is_an_error(tmp_path: Path) -> None:
    files = {**GOOD, "A/01.png": GOOD["A/00.png"]}
    assert codes(check(tmp_path, files, manifest())) == {
        "duplicates-across-splits": "error",
        "duplicates": "warning",
    }


def test_a_class_that_a_split_lacks_is_a_warning(tmp_path: Path) -> None:
    rows = (
        manifest().replace(",B,", ",B,").replace("test", "train").replace("A00,train", "A00,test")
    )
    findings = check(tmp_path, GOOD, rows)
    assert codes(findings) == {"class-missing-in-split": "warning"}
    assert findings.findings[0].examples == ("'B in test'",)


def test_statistics_describe_the_originals_and_the_grey_levels(tmp_path: Path) -> None:
    deep = np.full((30, 20), 4095, dtype=np.uint16)
    deep[:15] = 0
    files = {
        "A/1.png": png(Image.fromarray(deep)),
        "A/2.png": png(Image.new("L", (40, 10), 51)),
        "B/1.png": png(Image.new("L", (SIZE, SIZE), 102)),
    }
    findings = check(tmp_path, files)
    assert findings.sizes.width == (16, 20, 40)
    assert findings.sizes.height == (10, 16, 30)
    assert findings.sizes.bits == {"8": 2, "12": 1}
    assert findings.grey_by_class["B"].mean == 102
    assert findings.grey_by_class["B"].sd == 0
    assert findings.grey_by_class["B"].histogram[102] == SIZE * SIZE
    assert sum(findings.grey.histogram) == 3 * SIZE * SIZE
    assert abs(findings.grey.mean - (127.5 + 51 + 102) / 3) < 1


def test_the_report_is_plain_json_and_the_same_each_time(tmp_path: Path) -> None:
    files = {**GOOD, "A/bad.png": b"bad", "A/copy.png": GOOD["A/00.png"]}
    first = json.dumps(check(tmp_path, files).to_dict(), allow_nan=False)
    assert json.dumps(check(tmp_path, files).to_dict(), allow_nan=False) == first
    value = json.loads(first)
    assert value["unreadable"] == [
        {
            "name": "A/bad.png",
            "label": "A",
            "reason": "'A/bad.png' is not a PNG, JPEG or DICOM file",
        }
    ]
    assert {"code", "severity", "message", "advice", "count", "examples"} == set(
        value["findings"][0]
    )


def test_hostile_names_are_shown_safely(tmp_path: Path) -> None:
    name = "A/\u202eevil\u2028[red]" + "x" * 150 + ".png"
    findings = check(tmp_path, {**GOOD, name: GOOD["A/00.png"]})
    (found,) = findings.findings
    assert found.message.isprintable()
    assert len(found.message) < 250
