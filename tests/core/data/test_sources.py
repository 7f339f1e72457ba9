import os
import stat
import struct
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdd_core.data import archive_source
from ppdd_core.data.manifest_table import parse_manifest
from ppdd_core.data.names import safe_name, shown
from ppdd_core.data.sources import Entry, Listing, list_images, open_source
from ppdd_core.errors import BadConfigError, BadImageError, SourceError, UnsafeSourceError

ANY = b"not decoded here"


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return path


def listed(path: Path, where: Mapping[str, str] | None = None) -> Listing:
    with open_source(path) as (source, manifest):
        return list_images(source, manifest=manifest, where=where)


def both(tmp_path: Path, files: Mapping[str, bytes]) -> list[Path]:
    return [write_files(tmp_path / "folder", files), write_zip(tmp_path / "same.zip", files)]


PLAIN = {"COVID/a.png": ANY, "COVID/b.JPG": ANY, "Normal/deep/c.dcm": ANY, "Normal/IM0001": ANY}
KAGGLE = {
    "COVID/images/COVID-1.png": ANY,
    "COVID/masks/COVID-1.png": ANY,
    "Normal/images/Normal-1.png": ANY,
    "Normal/masks/Normal-1.png": ANY,
    "COVID.metadata.xlsx": ANY,
    "README.md.txt": ANY,
}


def test_class_folders_give_labels(tmp_path: Path) -> None:
    for path in both(tmp_path, PLAIN):
        assert listed(path).entries == (
            Entry("COVID/a.png", "COVID", "", ""),
            Entry("COVID/b.JPG", "COVID", "", ""),
            Entry("Normal/IM0001", "Normal", "", ""),
            Entry("Normal/deep/c.dcm", "Normal", "", ""),
        )


@pytest.mark.parametrize("wrapper", ["", "COVID-19_Radiography_Dataset/", "a/b/"])
def test_the_kaggle_layout_leaves_masks_out(tmp_path: Path, wrapper: str) -> None:
    for path in both(tmp_path, {wrapper + name: data for name, data in KAGGLE.items()}):
        got = listed(path)
        assert [(entry.name, entry.label) for entry in got.entries] == [
            (f"{wrapper}COVID/images/COVID-1.png", "COVID"),
            (f"{wrapper}Normal/images/Normal-1.png", "Normal"),
        ]
        assert got.masks == 2
        assert got.passed_over == {"not an image": 2}
        assert got.empty_classes == ()


def test_train_and_test_folders_are_splits_not_classes(tmp_path: Path) -> None:
    files = {
        f"x/{split}/{label}/1.png": ANY for split in ("train", "val", "test") for label in "AB"
    }
    for path in both(tmp_path, files):
        got = {(entry.label, entry.split) for entry in listed(path).entries}
        assert got == {
            (label, split) for label in "AB" for split in ("train", "validation", "test")
        }


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    odd = {"top.png": ANY, "COVID/notes.txt": ANY, ".git/x.png": ANY, "__MACOSX/COVID/a.png": ANY}
    got = listed(write_zip(tmp_path / "a.zip", {**PLAIN, **odd}))
    assert got.passed_over == {"hidden": 2, "image outside the class folders": 1, "not an image": 1}
    assert len(got.entries) == len(PLAIN)


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "folder", {**PLAIN, "Masked/masks/a.png": ANY})
    (folder / "Empty").mkdir()
    assert listed(folder).empty_classes == ("Empty", "Masked")
    archive = write_zip(tmp_path / "a.zip", {**PLAIN, "Empty/": b"", "Other/x.txt": ANY})
    assert listed(archive).empty_classes == ("Empty", "Other")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        pytest.param({}, "no images", id="empty"),
        pytest.param({"a.png": ANY}, "outside the class folders", id="no class folders"),
        pytest.param({"COVID/a.gif": ANY}, "no images", id="other formats"),
        pytest.param(
            {"COVID/masks/a.png": ANY, "N/masks/b.png": ANY}, "only masks", id="masks only"
        ),
        pytest.param({"masks/a.png": ANY}, "only masks", id="a folder of masks"),
        pytest.param(
            {"images/a.png": ANY, "masks/a.png": ANY}, "folder above", id="inside a class"
        ),
    ],
)
def test_datasets_without_images_say_why(
    tmp_path: Path, files: Mapping[str, bytes], words: str
) -> None:
    (tmp_path / "folder").mkdir()
    for path in both(tmp_path, files):
        with pytest.raises(SourceError, match=words):
            listed(path)


def test_a_path_that_is_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"no zip")
    for name, words in [("missing", "does not exist"), ("x.zip", "not a readable ZIP")]:
        with pytest.raises(SourceError, match=words):
            listed(tmp_path / name)


# ---------------------------------------------------------------------------------- manifests

ROWS = (
    "\ufeffpath,label,patient_id,hospital,split\r\n"
    "img/1.png,COVID,p1,a,train\r\nimg/2.png,Normal,p2,b,Test\r\n./img/3.png, Normal ,p3,a,val\r\n\r\n"
)
BESIDE = {
    "img/1.png": ANY,
    "img/2.png": ANY,
    "img/3.png": ANY,
    "img/4.png": ANY,
    "masks/1.png": ANY,
}


@pytest.mark.parametrize("wrapper", ["", "data/"])
def test_a_manifest_gives_labels_patients_and_splits(tmp_path: Path, wrapper: str) -> None:
    files = {
        wrapper + name: data for name, data in {**BESIDE, "manifest.csv": ROWS.encode()}.items()
    }
    for path in both(tmp_path, files):
        got = listed(path)
        assert got.entries == (
            Entry(f"{wrapper}img/1.png", "COVID", "p1", "train"),
            Entry(f"{wrapper}img/2.png", "Normal", "p2", "test"),
            Entry(f"{wrapper}img/3.png", "Normal", "p3", "validation"),
        )
        assert got.passed_over == {"image not in the manifest": 1}
        assert got.masks == 1


def test_a_path_to_a_csv_reads_the_images_beside_it(tmp_path: Path) -> None:
    write_files(tmp_path, {**BESIDE, "other.csv": b"label;path\nN;img/1.png\n"})
    assert listed(tmp_path / "other.csv").entries == (Entry("img/1.png", "N", "", ""),)


def test_where_keeps_the_rows_that_fit_all(tmp_path: Path) -> None:
    folder = write_files(tmp_path, {**BESIDE, "manifest.csv": ROWS.encode()})
    assert [e.name for e in listed(folder, {"hospital": "a"}).entries] == ["img/1.png", "img/3.png"]
    assert [e.patient for e in listed(folder, {"Hospital": "a", "label": "Normal"}).entries] == [
        "p3"
    ]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"clinic": "a"}, "columns are 'path', 'label', 'patient_id', 'hospital', 'split'"),
        ({"hospital": "z"}, "holds 'a', 'b'"),
        ({"hospital": "b", "label": "COVID"}, "at once"),
    ],
)
def test_where_that_fits_nothing_lists_what_there_is(
    tmp_path: Path, where: Mapping[str, str], words: str
) -> None:
    folder = write_files(tmp_path, {**BESIDE, "manifest.csv": ROWS.encode()})
    with pytest.raises(BadConfigError, match=words):
        listed(folder, where)


def test_where_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfigError, match="needs a manifest.csv"):
        listed(write_files(tmp_path, PLAIN), {"hospital": "a"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", "lacks the column path and label", id="empty"),
        pytest.param("path,label\n", "no rows", id="header only"),
        pytest.param("file,label\na,b\n", "lacks the column path", id="no path column"),
        pytest.param("path,label,label\na,b,c\n", "twice", id="column twice"),
        pytest.param("path,label\na.png,N\nb.png\n", "line 3 has 1 columns", id="short row"),
        pytest.param("path,label\na.png,\n", "no usable label", id="no label"),
        pytest.param("path,label\na.png,N\x1b[2J\n", "no usable label", id="control characters"),
        pytest.param("path,label,split\na.png,N,holdout\n", "'holdout'; use train", id="split"),
        pytest.param(
            "path,label\n" + ",".join("x" * 10_000) + "\n", "10,000 columns", id="many columns"
        ),
        pytest.param("path,label" + ",x" * 1_000_000 + "\n", "1,000,002 columns", id="wide header"),
        pytest.param("path,label\na.png," + "x" * 2000 + "\n", "1024 characters", id="huge cell"),
        pytest.param("path,label\na.png," + "x" * 200_000 + "\n", "field limit", id="absurd cell"),
        pytest.param('path,label\na.png,"N\n', "line", id="open quote"),
    ],
)
def test_bad_manifests_are_refused_with_the_line(text: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        parse_manifest(text.encode(), name="manifest.csv")


def test_a_manifest_in_another_encoding_is_refused() -> None:
    with pytest.raises(SourceError, match="UTF-8"):
        parse_manifest("path,label\na.png,Lungenentzündung\n".encode("latin-1"), name="m.csv")


def test_too_many_classes_are_refused(tmp_path: Path) -> None:
    rows = "path,label\n" + "".join(f"{n}.png,{n}\n" for n in range(1001))
    with pytest.raises(SourceError, match="1,001 classes"):
        listed(write_files(tmp_path, {"manifest.csv": rows.encode()}))


# ---------------------------------------------------------------------- paths that leave the root

ESCAPES = [
    "../x.png", "a/../../b.png", "/etc/passwd", "C:\\x.png", "C:/x.png", "..\\x.png", "a\\b.png", "a//b.png",
    "a/..", "..", ".", "./", "", " ", "a\0b.png", "a\nb.png", "x" * 5000, "a/" * 100 + "b", "\ud800.png",
    "//server/share", "a/\x7f.png",
]  # fmt: skip


@pytest.mark.parametrize("name", ESCAPES, ids=ascii)
def test_paths_that_leave_their_root_are_refused(name: str) -> None:
    with pytest.raises(UnsafeSourceError) as caught:
        safe_name(name, where="manifest.csv, line 2")
    assert "manifest.csv, line 2" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@given(st.text(st.sampled_from("./\\ab:\0 \u2028\u202eC~-"), max_size=24) | st.text(max_size=30))
@settings(max_examples=500)
def test_an_accepted_path_stays_under_its_root(name: str) -> None:
    try:
        safe = safe_name(name, where="x")
    except UnsafeSourceError:
        return
    assert os.path.normpath(f"/root/{safe}") == f"/root/{safe}"
    assert "\\" not in safe
    assert "\0" not in safe


@given(st.text(max_size=200))
def test_shown_names_are_short_and_printable(name: str) -> None:
    assert shown(name).isprintable()
    assert len(shown(name)) <= 72


@pytest.mark.parametrize(
    "name", ["../x.png", "/etc/passwd", "a/../../b", "..\\x.png", "a\0.png"], ids=ascii
)
def test_a_manifest_or_zip_naming_an_outside_path_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_files(tmp_path / "f", {"manifest.csv": f"path,label\n{name},N\n".encode()})
    with pytest.raises(UnsafeSourceError, match="line 2"):
        listed(folder)
    same_length = "N" * len(name)  # zipfile would mend the name while writing
    archive = write_zip(tmp_path / "a.zip", {**PLAIN, same_length: ANY})
    archive.write_bytes(archive.read_bytes().replace(same_length.encode(), name.encode()))
    with pytest.raises(UnsafeSourceError, match="a.zip"):
        listed(archive)


def test_a_link_out_of_the_root_is_refused_and_one_inside_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = write_files(tmp_path / "f", PLAIN)
    (folder / "Normal/inside.png").symlink_to("../COVID/a.png")
    with open_source(folder) as (source, _):
        assert "Normal/inside.png" in source.contents()[0]
        assert source.read("Normal/inside.png") == ANY
    for target in (tmp_path / "secret.png", tmp_path):
        (folder / "Normal/outside.png").symlink_to(target)
        with pytest.raises(UnsafeSourceError, match="link out of the dataset"):
            listed(folder)
        (folder / "Normal/outside.png").unlink()


@pytest.mark.parametrize("name", ["out/secret.png", "out.png"])
def test_a_manifest_does_not_follow_links_out(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, {"secret/secret.png": b"secret", "f/other.csv": b""})
    (tmp_path / "f/out").symlink_to("../secret")
    (tmp_path / "f/out.png").symlink_to("../secret/secret.png")
    with open_source(tmp_path / "f/other.csv") as (source, _), pytest.raises(UnsafeSourceError):
        source.read(name)


def test_special_and_missing_files_are_unreadable_not_waited_for(tmp_path: Path) -> None:
    write_files(tmp_path, {"N/a.png": ANY})
    os.mkfifo(tmp_path / "N/pipe.png")
    with open_source(tmp_path) as (source, _):
        assert source.contents()[2] == {"special file": 1}
        for name in ("N/pipe.png", "N/missing.png", "N"):
            with pytest.raises(BadImageError):
                source.read(name)


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"N/a.png": ANY})
    with open_source(tmp_path) as (source, _):
        before = source.stamp("N/a.png")
        assert source.stamp("N/a.png") == before
        os.utime(tmp_path / "N/a.png", ns=(1, 1))
        assert source.stamp("N/a.png") != before
        assert source.stamp("N/none.png") == "missing"


# --------------------------------------------------------------------------------- hostile ZIPs


def corrupted(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write_zip(tmp_path / "one.zip", {**PLAIN, "COVID/zeros.png": bytes(20 * 2**20)})
    with pytest.raises(UnsafeSourceError, match="zeros.png' would grow"):
        listed(one)
    monkeypatch.setattr(archive_source, "LARGE", 2**16)
    part = bytes(2**16)  # each below the bound for one entry
    many = write_zip(tmp_path / "many.zip", {f"COVID/{n}.png": part for n in range(65)})
    with pytest.raises(UnsafeSourceError, match="many.zip' would grow"):
        listed(many)


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "a.zip", PLAIN)
    monkeypatch.setattr(archive_source, "MAX_ENTRIES", 3)
    with pytest.raises(UnsafeSourceError, match="4 entries"):
        listed(path)
    monkeypatch.setattr(archive_source, "MAX_ENTRIES", 100)
    monkeypatch.setattr(archive_source, "MAX_DIRECTORY_BYTES", 100)
    with pytest.raises(UnsafeSourceError, match="4 entries in"):
        listed(path)


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {**PLAIN, "COVID/z.png": b"other"})
    with pytest.raises(UnsafeSourceError, match="twice"):
        listed(corrupted(path, b"COVID/z.png", b"COVID/a.png"))


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "a.zip", {"A/a.png": ANY * 9, "B/b.png": ANY * 9}, zipfile.ZIP_STORED
    )
    data = bytearray(path.read_bytes())
    second = data.rfind(b"PK\x01\x02")
    (offset,) = struct.unpack_from("<I", data, second + 42)
    assert offset > 0
    struct.pack_into("<I", data, second + 42, 0)
    path.write_bytes(data)
    with pytest.raises(UnsafeSourceError, match="overlap"):
        listed(path)


def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path) -> None:
    for kind, words in [(stat.S_IFLNK, "a link"), (stat.S_IFIFO, "a special file")]:
        info = zipfile.ZipInfo("COVID/link.png")
        info.external_attr = (kind | 0o777) << 16
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr(info, b"/etc/passwd")
        with pytest.raises(UnsafeSourceError, match=words):
            listed(tmp_path / "a.zip")


def test_encrypted_or_exotic_entries_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"A/a.png": ANY})
    data = bytearray(path.read_bytes())
    data[data.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match="encrypted"):
        listed(path)
    with pytest.raises(SourceError, match="compression method 14"):
        listed(write_zip(tmp_path / "b.zip", {"A/a.png": ANY}, zipfile.ZIP_LZMA))


def test_damaged_entries_are_unreadable(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"A/a.png": ANY, "A/b.png": b"fine"}, zipfile.ZIP_STORED)
    corrupted(path, ANY, ANY[::-1])
    with open_source(path) as (source, _):
        with pytest.raises(BadImageError, match="damaged in the archive"):
            source.read("A/a.png")
        assert source.read("A/b.png") == b"fine"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_zip_raises_our_error_or_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.zip"
    damaged = bytearray(write_zip(path, PLAIN).read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))
    path.write_bytes(damaged[:cut])
    try:
        with open_source(path) as (source, manifest):
            for entry in list_images(source, manifest=manifest).entries:
                with suppress(BadImageError):
                    source.read(entry.name)
    except SourceError:
        pass
