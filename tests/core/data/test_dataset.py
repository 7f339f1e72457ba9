import hashlib
import io
import multiprocessing
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ppdd_core.data.cache import cached_images
from ppdd_core.data.dataset import LabelledImages, labelled_images, load_images, split_by_patient
from ppdd_core.data.decoding import decode_all
from ppdd_core.data.images import Decoded
from ppdd_core.data.sources import Source, list_images, open_source
from ppdd_core.errors import BadConfigError, BadImageError, SourceError

SIZE = 16


def png(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


FILES = {
    f"{label}/{n:02}.png": png(100 * at + n) for at, label in enumerate("AB") for n in range(6)
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "source", FILES)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., LabelledImages]:
    def load(path: Path, **options: object) -> LabelledImages:
        arguments: dict[str, object] = {
            "image_size": SIZE,
            "cache_dir": tmp_path / "cache",
            "processes": 0,
        }
        data, _ = load_images(path, **{**arguments, **options})  # type: ignore[arg-type]
        return data

    return load


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "images").iterdir() if path.name != "seen")


def test_images_come_back_sorted_with_labels_and_digests(
    folder: Path, load: Callable[..., LabelledImages]
) -> None:
    data = load(folder)
    assert data.classes == ("A", "B")
    assert data.labels_R.tolist() == [0] * 6 + [1] * 6
    assert data.counts() == {"A": 6, "B": 6}
    for at, name in enumerate(sorted(FILES)):
        digest = hashlib.sha256(FILES[name]).hexdigest()
        assert data.digests[at] == digest
        assert data.patients[at] == f"image:{digest}"
        assert np.array_equal(data.pixels_RHW[at], np.asarray(Image.open(io.BytesIO(FILES[name]))))


def test_pixels_are_read_only_and_mapped(folder: Path, load: Callable[..., LabelledImages]) -> None:
    data = load(folder)
    assert isinstance(data.pixels_RHW.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        data.pixels_RHW[0, 0, 0] = 1


def test_children_and_this_process_decode_alike(folder: Path, tmp_path: Path) -> None:
    got = [
        load_images(folder, image_size=9, cache_dir=tmp_path / f"{n}", processes=n)[0]
        for n in (0, 1, 3)
    ]
    assert len({data.fingerprint for data in got}) == 1


def test_a_folder_and_a_zip_of_it_are_one_cache_entry(
    folder: Path, tmp_path: Path, load: Callable[..., LabelledImages]
) -> None:
    with zipfile.ZipFile(tmp_path / "same.zip", "w") as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    assert load(folder).fingerprint == load(tmp_path / "same.zip").fingerprint
    assert len(entries(tmp_path / "cache")) == 1


class Counted:
    """A source that counts how often it is read."""

    def __init__(self, source: Source) -> None:
        self.source, self.reads = source, 0
        self.contents, self.stamp, self.close = source.contents, source.stamp, source.close

    def read(self, name: str) -> bytes:
        self.reads += 1
        return self.source.read(name)


def test_a_second_run_reads_nothing_and_a_touched_file_is_not_decoded_again(
    folder: Path, tmp_path: Path
) -> None:
    with open_source(folder) as (source, _):
        counted = Counted(source)
        reads = []
        for _ in range(3):
            listing = list_images(counted)
            cached = cached_images(
                counted, listing.entries, image_size=SIZE, cache_dir=tmp_path, processes=0
            )
            assert len(cached.records) == len(FILES)
            reads.append(counted.reads)
            if len(reads) == 2:
                os.utime(folder / "A/00.png", ns=(1, 1))
    assert reads == [24, 24, 36]  # hash and decode; nothing; hash


def test_a_changed_file_is_noticed(folder: Path, load: Callable[..., LabelledImages]) -> None:
    first = load(folder)
    (folder / "A/00.png").write_bytes(png(999))
    second = load(folder)
    assert second.fingerprint != first.fingerprint
    assert not np.array_equal(second.pixels_RHW[0], first.pixels_RHW[0])


def test_everything_that_decides_content_is_in_the_fingerprint(folder: Path) -> None:
    data, _ = load_images(folder, image_size=SIZE, cache_dir=folder.parent / "c", processes=0)
    pixels, rows = np.array(data.pixels_RHW), np.arange(12)
    values = [data.classes, data.patients, data.digests, data.splits]

    def fingerprint(
        pixels_RHW: NDArray[np.uint8], labels_R: NDArray[np.int64], changed: int = -1
    ) -> str:
        classes, patients, digests, splits = (
            ("x", *value[1:]) if at == changed else value for at, value in enumerate(values)
        )
        made = labelled_images(
            pixels_RHW, labels_R, classes=classes, patients=patients, digests=digests, splits=splits
        )
        return made.fingerprint

    same = fingerprint(pixels, data.labels_R)
    assert same == data.fingerprint == data.select(rows).fingerprint
    others = {fingerprint(pixels, data.labels_R, changed) for changed in range(4)}
    others |= {fingerprint(pixels, 1 - data.labels_R), fingerprint(255 - pixels, data.labels_R)}
    others.add(data.select(rows[::-1]).fingerprint)
    assert len(others - {same}) == 7


@pytest.mark.parametrize("fault", ["pixels", "index", "cut", "gone", "garbage"])
def test_a_damaged_cache_is_made_anew(
    folder: Path, tmp_path: Path, load: Callable[..., LabelledImages], fault: str
) -> None:
    fingerprint = load(folder).fingerprint
    (entry,) = entries(tmp_path / "cache")
    name = "index.json" if fault == "index" else "pixels.npy"
    data = bytearray((entry / name).read_bytes())
    data[-300] ^= 1
    if fault == "gone":
        (entry / name).unlink()
    elif fault == "garbage":
        (entry / "sums.json").write_text("[1]")
    else:
        (entry / name).write_bytes(data[:-1] if fault == "cut" else data)
    assert load(folder).fingerprint == fingerprint
    assert load(folder).fingerprint == fingerprint
    assert len(entries(tmp_path / "cache")) == 1


def test_leftovers_of_a_killed_run_are_swept_up_and_live_ones_kept(
    folder: Path, tmp_path: Path, load: Callable[..., LabelledImages]
) -> None:
    import fcntl

    dead, alive = tmp_path / "cache/images/building-dead", tmp_path / "cache/images/building-alive"
    for left in (dead, alive):
        write_files(left, {"pixels.npy": b"half"})
    held = os.open(alive, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    load(folder)
    os.close(held)
    assert not dead.exists()
    assert alive.exists()


def _load_in_process(folder: Path, cache: Path, barrier: object, results: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    data, _ = load_images(folder, image_size=SIZE, cache_dir=cache, processes=0)
    results.put(data.fingerprint)  # type: ignore[attr-defined]


def test_two_processes_at_once_make_one_entry(folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    running = [
        context.Process(
            target=_load_in_process, args=(folder, tmp_path / "cache", barrier, results)
        )
        for _ in range(3)
    ]
    for process in running:
        process.start()
    fingerprints = {results.get(timeout=30) for _ in running}
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert len(fingerprints) == 1
    assert len(entries(tmp_path / "cache")) == 1


def test_the_cache_is_private_and_follows_ppdd_home(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPDD_HOME", str(tmp_path / "home"))
    load_images(folder, image_size=SIZE, processes=0)
    (entry,) = entries(tmp_path / "home/cache")
    assert (tmp_path / "home/cache").stat().st_mode & 0o077 == 0
    assert entry.stat().st_mode & 0o077 == 0


def test_a_cache_that_cannot_be_written_is_a_clear_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SourceError, match="PPDD_HOME"):
        load_images(folder, image_size=SIZE, cache_dir=tmp_path / "file", processes=0)


def test_bad_files_are_skipped_listed_and_leave_no_gap(
    folder: Path, tmp_path: Path, load: Callable[..., LabelledImages]
) -> None:
    good = load(folder)
    write_files(
        folder, {"A/00b.png": b"rubbish", "B/00b.png": FILES["B/00.png"][:-60], "B/zz.png": b""}
    )
    data, findings = load_images(folder, image_size=SIZE, cache_dir=tmp_path / "c", processes=0)
    assert data.fingerprint == good.fingerprint
    assert [file.name for file in findings.unreadable] == ["A/00b.png", "B/00b.png", "B/zz.png"]
    for file in findings.unreadable:
        assert file.name in file.reason
    again = load_images(folder, image_size=SIZE, cache_dir=tmp_path / "c", processes=0)
    assert again[1] == findings


def test_nothing_readable_is_an_error_with_reasons(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "s", {"A/1.png": b"x", "B/1.png": b"y"})
    with pytest.raises(SourceError, match=r"none of the 2 image files.*not a PNG, JPEG or DICOM"):
        load_images(folder, image_size=SIZE, cache_dir=tmp_path / "c", processes=0)
    assert entries(tmp_path / "c") == []


def test_progress_runs_up_to_all_files(folder: Path, load: Callable[..., LabelledImages]) -> None:
    steps: list[tuple[int, int, int]] = []
    for _ in range(2):
        load(
            folder,
            on_progress=lambda done, total: steps.append((done, total, threading.get_ident())),
        )
        assert steps[-1][:2] == (12, 12)
        assert steps == sorted(steps)
        assert {(total, thread) for _, total, thread in steps} == {(12, threading.get_ident())}
        steps.clear()


def test_an_image_size_that_cannot_be_is_refused(folder: Path) -> None:
    with pytest.raises(BadConfigError, match="image_size"):
        load_images(folder, image_size=0)


def test_loading_imports_no_torch(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ppdd_core.data.dataset import load_images; "
        f"load_images(Path({str(folder)!r}), image_size=8, cache_dir=Path({str(tmp_path / 'c')!r}));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --------------------------------------------------------------------------- decoding in children


def outcomes(files: Mapping[str, bytes], **options: int) -> list[object]:
    names = list(files)
    got = dict(decode_all(names, files.__getitem__, image_size=SIZE, **options))
    return [got[at] for at in range(len(names))]


def test_a_file_that_kills_its_decoder_harms_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The children import this instead of Pillow's opener; the parent's code is the real one."""
    trap = (
        "import os, signal, time\n"
        "import ppdd_core.data.images as images\n"
        "real = images._grey\n"
        "def grey(data, name):\n"
        "    if name == 'crash': os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if name == 'hang': signal.alarm(1); time.sleep(60)\n"
        "    if name == 'hoard': bytearray(2**40)\n"
        "    return real(data, name)\n"
        "images._grey = grey\n"
    )
    start = subprocess.Popen

    def trapped(command: list[str], **options: object) -> object:
        return start([*command[:-1], trap + command[-1]], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", trapped)
    files = {
        "a.png": png(1),
        "crash": png(2),
        "b.png": png(3),
        "hang": png(4),
        "hoard": png(5),
        "c.png": png(6),
    }
    got = outcomes(files, processes=1)
    assert [type(outcome) for outcome in got] == [
        Decoded, BadImageError, Decoded, BadImageError, BadImageError, Decoded,
    ]  # fmt: skip
    assert "crashed the decoder (SIGSEGV)" in str(got[1])
    assert "took longer than" in str(got[3])
    assert "memory" in str(got[4])


def test_an_error_of_the_reader_ends_the_work_and_the_children() -> None:
    def read(name: str) -> bytes:
        if name == "50":
            raise SourceError("changed")
        return png(1)

    with pytest.raises(SourceError, match="changed"):
        list(decode_all([str(n) for n in range(200)], read, image_size=SIZE, processes=2))
    assert threading.active_count() == 1


def children() -> set[str]:
    """Return the process ids of this process's children, unburied ones too."""
    tasks = Path("/proc/self/task").iterdir()
    return {pid for task in tasks for pid in (task / "children").read_text().split()}


def test_leaving_early_stops_the_children() -> None:
    before = children()
    stream = decode_all(["a"] * 200, lambda _: png(1), image_size=SIZE, processes=2)
    next(stream)
    assert children() > before
    stream.close()
    assert threading.active_count() == 1
    assert children() == before


# ------------------------------------------------------------------------------ split by patient


def made(
    patients: list[str], labels: list[int] | None = None, splits: list[str] | None = None
) -> LabelledImages:
    count = len(patients)
    labels = labels or [0] * count
    return labelled_images(
        np.arange(count, dtype=np.uint8).reshape(count, 1, 1).copy(),
        np.array(labels),
        classes=[f"class {n}" for n in range(max(labels) + 1)],
        patients=patients,
        digests=[f"digest {n}" for n in range(count)],
        splits=splits or [""] * count,
    )


def parts(data: LabelledImages, **options: float) -> dict[str, str]:
    """Return patient -> part, after checking that every image is in exactly one."""
    split = split_by_patient(data, **{"seed": 0, **options})  # type: ignore[arg-type]
    found: dict[str, str] = {}
    for name in ("train", "validation", "test"):
        part: LabelledImages = getattr(split, name)
        for patient in part.patients:
            assert found.setdefault(patient, name) == name
    sizes = len(split.train) + len(split.validation) + len(split.test)
    assert sizes == len(data)
    assert set(found) == set(data.patients)
    return found


MANY = [f"p{n // 2}" for n in range(4000)]


def test_shares_come_out_as_asked_and_patients_stay_together() -> None:
    found = list(parts(made(MANY)).values())
    assert abs(found.count("test") / 2000 - 0.2) < 0.03
    assert abs(found.count("validation") / 2000 - 0.15) < 0.03


def test_the_split_depends_on_the_seed_alone() -> None:
    data = made(MANY)
    assert parts(data) == parts(data)
    assert parts(data) != parts(data, seed=1)
    assert parts(data.select(np.arange(len(data))[::-1])) == parts(data)


def test_added_files_move_nobody() -> None:
    before = parts(made(MANY))
    after = parts(made([*MANY, *(f"new{n}" for n in range(500)), "p1", "p2"]))
    assert {patient: after[patient] for patient in before} == before


def test_patients_who_share_an_image_are_not_separated() -> None:
    data = made([f"p{n}" for n in range(40)])
    digests = [f"digest {n // 10}" for n in range(40)]
    shared = labelled_images(
        data.pixels_RHW, data.labels_R, classes=data.classes, patients=data.patients, digests=digests,
        splits=data.splits,
    )  # fmt: skip
    found = parts(shared)
    for group in range(4):
        assert len({found[f"p{10 * group + n}"] for n in range(10)}) == 1


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("patients", "expected"),
    [
        (1, {"train"}),
        (2, {"train", "test"}),
        (3, {"train", "test", "validation"}),
        (6, {"train", "test", "validation"}),
    ],
)
def test_a_small_class_is_in_every_part_that_it_can_fill(
    seed: int, patients: int, expected: set[str]
) -> None:
    names = [f"p{n}" for n in range(200)] + [f"small{n // 2}" for n in range(2 * patients)]
    found = parts(made(names, [0] * 200 + [1] * 2 * patients), seed=seed)
    assert {part for patient, part in found.items() if patient.startswith("small")} == expected


def test_the_manifests_test_rows_are_the_test_part() -> None:
    splits = ["test" if n % 4 == 0 else "train" for n in range(400)]
    data = made([f"p{n}" for n in range(400)], splits=splits)
    found = parts(data)
    assert {patient for patient, part in found.items() if part == "test"} == {
        f"p{n}" for n in range(0, 400, 4)
    }
    drawn = list(found.values()).count("validation")
    assert abs(drawn / 300 - 0.15) < 0.06
    splits[1] = "validation"
    assert parts(made([f"p{n}" for n in range(400)], splits=splits))["p1"] == "validation"
    assert (
        list(parts(made([f"p{n}" for n in range(400)], splits=splits)).values()).count("validation")
        == 1
    )


def test_rows_without_a_split_follow_their_patient() -> None:
    found = parts(made(["a", "a", "b", "c", "d"], splits=["test", "", "train", "", ""]))
    assert found["a"] == "test"
    assert {found[p] for p in "bcd"} == {"train", "validation"}


def test_a_patient_in_two_splits_is_refused() -> None:
    with pytest.raises(SourceError, match=r"1 patients.*'p1'"):
        split_by_patient(made(["p0", "p1", "p1"], splits=["train", "train", "test"]), seed=0)


def test_impossible_shares_are_refused() -> None:
    for validation, test in [(-0.1, 0.2), (0.5, 0.5), (0.0, 1.0)]:
        with pytest.raises(BadConfigError, match="shares"):
            split_by_patient(made(MANY), seed=0, validation=validation, test=test)


def test_a_share_of_nothing_gives_an_empty_part() -> None:
    split = split_by_patient(made(MANY), seed=0, validation=0.0, test=0.0)
    assert (len(split.train), len(split.validation), len(split.test)) == (4000, 0, 0)
