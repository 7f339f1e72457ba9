"""From a folder of chest X-rays to a signed package: the whole flow, one call per stage, resumable.

    images → split by patient → teachers → distilled set → evaluation + privacy report → signed package

Each stage leaves its result in the run folder and is skipped when that is there, so the same command goes on after a
kill at any moment, and ends in the same bytes:

    run.json          recipe, source fingerprint, identity, time of the first start
    teachers/         trajectories (or elsewhere, shared by several runs)
    distill/          state.safetensors, history.jsonl
    evaluation.json   privacy.json   nearest.json (rows of real images: stays at the site)
    package/          the package as a folder, and NAME-VERSION.zip beside it
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor

from ppdd_core.config import Recipe
from ppdd_core.data.check import Findings
from ppdd_core.data.dataset import (
    LabelledImages,
    Split,
    count_shared,
    load_images,
    split_by_patient,
)
from ppdd_core.data.distilled import DistilledSet, Normalisation
from ppdd_core.data.files import json_bytes, json_digest, write_atomically
from ppdd_core.data.tensors import labels_tensor, measure_normalisation, pixels_tensor
from ppdd_core.detector.disclosure import without_small_classes
from ppdd_core.detector.evaluate import (
    FullDataConfig,
    FullNetwork,
    Train,
    evaluate_sets,
    train_anew,
)
from ppdd_core.distill.loop import (
    Progress,
    Run,
    Segments,
    State,
    distil,
    first_state,
    load_state,
    save_state,
)
from ppdd_core.distill.start import starting_images, synthetic_labels
from ppdd_core.errors import BadConfigError, CheckpointError, TrainingError
from ppdd_core.nets.functional import FlatNet
from ppdd_core.package.build import (
    PackageContent,
    Usage,
    export_archive,
    source_summary,
    write_package,
)
from ppdd_core.package.manifest import MANIFEST, Manifest, identity_problems
from ppdd_core.package.manifest import read as read_manifest
from ppdd_core.package.signature import fingerprint
from ppdd_core.privacy.measure import measure_privacy
from ppdd_core.run_folder import belongs, claim, kept, locked, read_json, resumable
from ppdd_core.seeding import derive, split_seed
from ppdd_core.teachers.store import TrajectoryStore
from ppdd_core.teachers.train import RealImages, train_teachers

STAGES = ("images", "teachers", "distillation", "evaluation", "privacy", "package")
NEAREST = "nearest.json"
WATCHED = 600  # validation images on which teachers are watched
CHECKPOINT_STEPS = 10  # outer steps between two checkpoints
SNAPSHOTS = 6  # times that the distilled images are shown on the way, beside the start


@dataclass(frozen=True, slots=True)
class StageProgress:
    """Where a run is: one value per visible change, for a bar, a log or a table row."""

    stage: str  # one of STAGES
    done: int
    total: int
    note: str = ""
    accuracy: float | None = None  # balanced, of the newest teacher
    distillation: Progress | None = None


Measured = Literal["test", "validation"]  # which split figures are of
OnProgress = Callable[[StageProgress], None]
OnSnapshot = Callable[[int, DistilledSet], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Which real images: a path as `ppdd dataset check` takes it, and rows chosen by column."""

    path: Path
    where: Mapping[str, str] = dataclasses.field(default_factory=dict)
    test_where: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # rows to test on instead


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the package will be called and who signs it."""

    name: str  # site/name
    version: str
    site_id: str
    site_name: str
    usage: Usage
    key: Ed25519PrivateKey
    created: str | None = None  # UTC, YYYY-MM-DDTHH:MM:SSZ; None = when the run is first started

    def __post_init__(self) -> None:
        """Refuse now what the manifest would refuse after hours of work."""
        problems = identity_problems(
            name=self.name,
            version=self.version,
            site_id=self.site_id,
            site_name=self.site_name,
            usage=self.usage,
            created=self.created,
        )
        if problems:
            raise BadConfigError("; ".join(problems))


@dataclass(frozen=True, slots=True)
class Result:
    """What a run leaves: where the package lies, and what was found out about it."""

    manifest: Manifest
    folder: Path
    archive: Path
    evaluation: dict[str, Any]
    privacy: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Images:
    """One source dataset, split, with its normalisation."""

    split: Split
    normalisation: Normalisation
    findings: Findings


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The real image most like each distilled one: its row of `split.train` and their SSIM. Not for other sites."""

    rows: tuple[int, ...]
    ssim: tuple[float, ...]


def distill_package(
    source: Source,
    out: Path,
    recipe: Recipe,
    identity: Identity,
    *,
    device: torch.device,
    trajectories: Path | None = None,
    cache_dir: Path | None = None,
    processes: int = 0,
    on_images: Callable[[Images, Path], None] = lambda *_: None,
    on_snapshot: OnSnapshot = lambda *_: None,
    on_neighbours: Callable[[Images, DistilledSet, Neighbours], None] = lambda *_: None,
    on_progress: OnProgress = lambda _: None,
) -> Result:
    """Run every stage that `out` does not hold yet and return the verified package.

    `trajectories` names a folder of teachers shared by runs with the same images, network, teacher settings and seed.
    `on_images` is called with the images and that folder before any teacher is trained; it may put teachers there.
    `on_snapshot` is shown the distilled set now and then, `on_neighbours` the real image most like each distilled one:
    for people at the site, nothing of it reaches the package.
    A folder of another run raises CheckpointError; Ctrl-C becomes Interrupted once the state is on disk; a GPU
    without enough memory raises TrainingError.
    """
    folder, taught = out / "package", trajectories or out / "teachers"
    with resumable(out), _memory_explained(out):
        _refuse_other_package(folder, identity)
        images = load_split(source, recipe, cache_dir=cache_dir, on_progress=on_progress)
        start(images, recipe)  # refuses too few real images now, not after the teachers
        first = claim(out, _record(recipe, images, source), created=identity.created)
        shared = contextlib.nullcontext() if trajectories is None else locked(trajectories)
        with shared:
            on_images(images, taught)
            store = teach(
                images,
                recipe,
                taught,
                device=device,
                processes=processes,
                on_progress=on_progress,
            )
        distilled = distil_set(
            images,
            recipe,
            store,
            out / "distill",
            device=device,
            on_snapshot=on_snapshot,
            on_progress=on_progress,
        )
        of = json_digest({"set": _content(distilled), **_record(recipe, images, source)})
        evaluation = kept(
            out / "evaluation.json",
            of,
            lambda: evaluate(
                images,
                recipe,
                [(method(recipe), distilled)],
                device=device,
                on_progress=on_progress,
            ),
        )
        privacy = kept(
            out / "privacy.json",
            of,
            lambda: _privacy(images, recipe, distilled, device, out / NEAREST, on_progress),
        )
        neighbours = _neighbours(out / NEAREST, privacy, len(distilled))
        if neighbours is not None:
            on_neighbours(images, distilled, neighbours)
        on_progress(StageProgress("package", 0, 1))
        content = PackageContent(
            name=identity.name,
            version=identity.version,
            site_id=identity.site_id,
            site_name=identity.site_name,
            created=first,
            distilled=distilled,
            recipe=recipe,
            source=_summary_of_source(images.split.train, recipe),
            evaluation=evaluation,
            privacy=privacy,
            usage=identity.usage,
            software=software_versions(),
        )
        manifest = write_package(folder, content, identity.key)
        archive = out / f"{identity.name.split('/')[-1]}-{identity.version}.zip"
        export_archive(folder, archive)
        on_progress(StageProgress("package", 1, 1))
    return Result(manifest, folder, archive, evaluation, privacy)


@contextmanager
def _memory_explained(out: Path) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "the GPU has too little memory for this recipe; use fewer images per student step (--set "
            f"distill.batch_syn=10) with another --out and --trajectories {out / 'teachers'} ({error})"
        ) from None


def load_split(
    source: Source,
    recipe: Recipe,
    *,
    cache_dir: Path | None = None,
    on_progress: OnProgress = lambda _: None,
) -> Images:
    """Read the source dataset (once; later from the cache) and split it by patient.

    Error-level findings raise SourceError; test rows of patients, or copies of images, that are trained on
    raise BadConfigError.
    """

    def report(done: int, total: int) -> None:
        on_progress(StageProgress("images", done, total))

    data, findings = load_images(
        source.path,
        image_size=recipe.image_size,
        where=source.where or None,
        cache_dir=cache_dir,
        on_progress=report,
    )
    findings.refuse_errors()
    split = split_by_patient(data, seed=split_seed(recipe.seed))
    if source.test_where:
        tested, of_tested = load_images(
            source.path, image_size=recipe.image_size, where=source.test_where, cache_dir=cache_dir
        )
        of_tested.refuse_errors()
        split = dataclasses.replace(split, test=_foreign_test(tested, split))
    return Images(split, measure_normalisation(split.train), findings)


def _foreign_test(tested: LabelledImages, split: Split) -> LabelledImages:
    if tested.classes != split.train.classes:
        raise BadConfigError(
            f"--test-where chooses images of classes {', '.join(tested.classes)}; "
            f"training has {', '.join(split.train.classes)}"
        )
    shared = count_shared(tested, split.train, split.validation)
    if shared:
        raise BadConfigError(
            f"{shared:,} images chosen by --test-where are of patients (or copies of images) that are trained on; "
            "choose rows that share none"
        )
    return tested


def teach(
    images: Images,
    recipe: Recipe,
    folder: Path,
    *,
    device: torch.device,
    processes: int = 0,
    numbers: Iterable[int] | None = None,
    on_progress: OnProgress = lambda _: None,
) -> TrajectoryStore:
    """Train the teachers that `folder` lacks, or those of `numbers`, and return the store."""
    belongs(
        folder / "teachers.json",
        teachers_digest(images, recipe),
        what="teachers of other images, another network or other settings",
    )
    split, classes = images.split, len(images.split.train.classes)
    watched = split.validation if len(split.validation) else split.train
    rows = torch.randperm(
        len(watched), generator=torch.Generator().manual_seed(derive(recipe.seed, "watched"))
    )[:WATCHED]

    def report(done: int, total: int, accuracy: float) -> None:
        known = not math.isnan(accuracy)  # from the end of the first epoch on
        on_progress(
            StageProgress(
                "teachers",
                done,
                total,
                note=f"balanced accuracy {accuracy:.2f}" if known else "",
                accuracy=accuracy if known else None,
            )
        )

    store = TrajectoryStore(folder)
    train_teachers(
        _real(split.train, classes, images.normalisation),
        _real(watched.select(rows.numpy()), classes, images.normalisation),
        store,
        net=recipe.net,
        config=recipe.teacher,
        epochs=recipe.used_epochs,
        seed=recipe.seed,
        device=device,
        processes=processes,
        numbers=numbers,
        on_progress=report,
    )
    return store


def teachers_digest(images: Images, recipe: Recipe) -> str:
    """Return a digest of all that decides the teachers: runs that agree in it can share them."""
    return json_digest(
        {
            "images": images.split.train.fingerprint,
            "watched": images.split.validation.fingerprint,
            "image_size": recipe.image_size,
            "seed": recipe.seed,
            "net": dataclasses.asdict(recipe.net),
            # more teachers, or more epochs of them, are the same ones and others
            "teacher": dataclasses.asdict(
                dataclasses.replace(recipe.teacher, teachers=1, epochs=1)
            ),
        }
    )


def _real(data: LabelledImages, classes: int, normalisation: Normalisation) -> RealImages:
    return RealImages(pixels_tensor(data), labels_tensor(data), classes, normalisation)


def start(images: Images, recipe: Recipe) -> tuple[Tensor, tuple[tuple[int, ...], ...]]:
    """Return the first synthetic images and the rows of `split.train` each was made of."""
    train = images.split.train
    return starting_images(
        recipe.distill.init,
        synthetic_labels(len(train.classes), recipe.distill.images_per_class),
        pixels_tensor(train),
        labels_tensor(train),
        images.normalisation,
        names=train.classes,
        mean_of=recipe.distill.mean_of,
        generator=torch.Generator().manual_seed(derive(recipe.seed, "start")),
    )


def distil_set(
    images: Images,
    recipe: Recipe,
    store: TrajectoryStore,
    folder: Path,
    *,
    device: torch.device,
    on_snapshot: OnSnapshot = lambda *_: None,
    on_progress: OnProgress = lambda _: None,
) -> DistilledSet:
    """Take the distillation steps that `folder` does not hold yet and return the distilled set.

    `on_snapshot` is shown the set as it starts and SNAPSHOTS times on the way: at the same steps, whenever a run stops.
    """
    train = images.split.train
    run = Run(
        net=FlatNet(recipe.net, classes=len(train.classes), image_size=recipe.image_size),
        segments=Segments(store.read, recipe.teacher.teachers),
        labels_I=synthetic_labels(len(train.classes), recipe.distill.images_per_class).to(device),
        config=recipe.distill,
        seed=recipe.seed,
        device=device,
    )
    digest = distillation_digest(images, recipe)
    checkpoint, history = folder / "state.safetensors", folder / "history.jsonl"
    if checkpoint.exists():
        state = load_state(checkpoint, run_digest=digest, device=device)
    else:
        state = first_state(
            start(images, recipe)[0].to(device), run.labels_I, run.net.classes, recipe.distill
        )
    folder.mkdir(parents=True, exist_ok=True)
    lines = _lines_until(history, state.step)

    def so_far(at: State) -> DistilledSet:
        return DistilledSet(
            images=at.images_ICHW.cpu(),
            labels=at.labels(run.labels_I).cpu(),
            learning_rate=at.lr,
            classes=train.classes,
            normalisation=images.normalisation,
            net=recipe.net,
            augment=recipe.distill.augment,
        )

    shown = snapshot_steps(recipe.distill.iterations)
    if state.step == 0:
        on_snapshot(0, so_far(state))
    try:
        for reached, progress in distil(run, state):
            state = reached
            lines.append(json.dumps(_history_entry(progress)))
            if state.step % CHECKPOINT_STEPS == 0 or state.step == recipe.distill.iterations:
                write_atomically(history, ("\n".join(lines) + "\n").encode())
                save_state(checkpoint, state, run_digest=digest)
            on_progress(
                StageProgress(
                    "distillation",
                    progress.step,
                    progress.of,
                    note=f"loss {progress.loss:.3f}  α {progress.lr:.4f}  pruned {progress.pruned:.1%}",
                    distillation=progress,
                )
            )
            if state.step in shown:
                on_snapshot(state.step, so_far(state))
    except KeyboardInterrupt:
        save_state(checkpoint, state, run_digest=digest)
        write_atomically(history, ("\n".join(lines) + "\n").encode())
        raise
    return so_far(state)


def distillation_digest(images: Images, recipe: Recipe) -> str:
    """Return a digest of all that decides the distilled images."""
    return json_digest({"recipe": _what_decides(recipe), "images": images.split.train.fingerprint})


def snapshot_steps(iterations: int, count: int = SNAPSHOTS) -> frozenset[int]:
    """Return the steps after which the set is shown: `count` of them, evenly spaced, the last one among them."""
    return frozenset(-(-iterations * part // count) for part in range(1, count + 1))


def _history_entry(progress: Progress) -> dict[str, Any]:
    return {
        "step": progress.step,
        "loss": progress.loss,
        "lr": progress.lr,
        "pruned": progress.pruned,
        "rollbacks": progress.rollbacks,
    }


def _lines_until(history: Path, step: int) -> list[str]:
    """Return the history up to `step`: what a killed run wrote beyond its checkpoint is taken again.

    It is a record for people: lines that cannot be read are left out and stop nothing.
    """
    lines = []
    for line in history.read_text().splitlines() if history.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= step:
                lines.append(line)
    return lines


def evaluate(
    images: Images,
    recipe: Recipe,
    sets: Sequence[tuple[str, DistilledSet]],
    *,
    device: torch.device,
    baselines: Sequence[str] | None = None,
    sizes: Sequence[int] = (),
    on: Measured = "test",
    score_validation: bool = False,
    remembered: Callable[[Train], Iterable[FullNetwork]] = train_anew,
    on_progress: OnProgress = lambda _: None,
) -> dict[str, Any]:
    """Return evaluation.json of distilled sets of these images; the test images are looked at here only.

    `baselines` (the recipe's where None) are run at the sets' numbers of images per class and at `sizes`. `on`
    validation measures there instead, and looks at no test image. For the rest see `evaluate_sets`.
    """

    def report(done: int, total: int, what: str) -> None:
        on_progress(StageProgress("evaluation", done, total, note=what))

    split = images.split
    measured = split.test if on == "test" else split.validation
    evaluation = evaluate_sets(
        sets,
        train=split.train,
        validation=split.validation,
        test=measured,
        config=recipe.detector,
        seed=derive(recipe.seed, "evaluation") % 2**31,
        net=recipe.net,
        sizes=sizes,
        score_validation=score_validation,
        remembered=remembered,
        baselines=recipe.evaluation.names if baselines is None else baselines,
        other_nets=[
            dataclasses.replace(recipe.net, architecture=name)
            for name in recipe.evaluation.other_architectures
        ],
        step_sizes=recipe.evaluation.grid,
        full_data=FullDataConfig(
            networks=recipe.evaluation.full_networks,
            max_epochs=recipe.evaluation.full_epochs,
            epoch_images=recipe.evaluation.full_epoch_images,
        ),
        device=str(device),
        on_progress=report,
    )
    small = {name for part in (split.train, measured) for name in _small_classes(part, recipe)}
    return without_small_classes({**evaluation, "split": on}, small)


def _small_classes(data: LabelledImages, recipe: Recipe) -> set[str]:
    """Return the classes with fewer patients (images where none is known) than may be counted."""
    patients: dict[int, set[str]] = {number: set() for number in range(len(data.classes))}
    for label, patient in zip(data.labels_R.tolist(), data.patients, strict=True):
        patients[label].add(patient)
    least = recipe.privacy.min_class_size
    return {data.classes[number] for number, of in patients.items() if len(of) < least}


def _summary_of_source(train: LabelledImages, recipe: Recipe) -> dict[str, Any]:
    small = _small_classes(train, recipe)
    counts = {name: 0 if name in small else count for name, count in train.counts().items()}
    return source_summary(counts, recipe.privacy.min_class_size)


def method(recipe: Recipe) -> str:
    """Return what a set distilled by `recipe` is called in an evaluation."""
    return "mtt_unpruned" if recipe.distill.prune_below == 0 else "distilled"


def _privacy(
    images: Images,
    recipe: Recipe,
    distilled: DistilledSet,
    device: torch.device,
    nearest: Path,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Return privacy.json; which real images are nearest goes into the file `nearest`, which stays at the site."""

    def report(done: int, total: int) -> None:
        on_progress(StageProgress("privacy", done, total))

    initial_ICHW, sources = start(images, recipe)
    found = measure_privacy(
        distilled,
        train=images.split.train,
        held_out=images.split.validation,
        initial_ICHW=initial_ICHW,
        init_sources=sources,
        net_config=recipe.net,
        privacy=recipe.privacy,
        detector=recipe.detector,
        init=recipe.distill.init,
        seed=derive(recipe.seed, "privacy") % 2**31,
        device=device,
        on_progress=report,
    )
    write_atomically(nearest, json_bytes({"rows": list(found.nearest_train_rows)}))
    return found.to_dict()


def _neighbours(path: Path, privacy: Mapping[str, Any], images: int) -> Neighbours | None:
    """Return the nearest real images that the privacy stage found; None where a run folder does not have them."""
    if not path.exists():
        return None
    rows = read_json(path).get("rows", [])
    figures = {one["name"]: one["details"] for one in privacy["measurements"]}
    ssim = figures["near_copies"].get("best_ssim", [])
    if len(rows) != images or len(ssim) != images:
        return None
    return Neighbours(tuple(rows), tuple(ssim))


def _record(recipe: Recipe, images: Images, source: Source) -> dict[str, Any]:
    """Return what a run folder is tied to."""
    return {
        "recipe": recipe.to_dict(),
        "images": images.split.train.fingerprint,
        "test_images": images.split.test.fingerprint,
        "where": dict(source.where),
        "test_where": dict(source.test_where),
    }


def _refuse_other_package(folder: Path, identity: Identity) -> None:
    """Refuse at once what `write_package` would refuse at the end: a package there with other terms."""
    if not (folder / MANIFEST).exists():
        return
    stated = read_manifest((folder / MANIFEST).read_bytes())
    pairs = {
        "name": (stated.name, identity.name),
        "version": (stated.version, identity.version),
        "site name": (stated.site_name, identity.site_name),
        "terms": (stated.usage, identity.usage),
        "signing key": (stated.key, fingerprint(identity.key)),
    }
    different = [name for name, (there, wanted) in pairs.items() if there != wanted]
    if different:
        raise CheckpointError(
            f"{folder} holds the package with another {', '.join(different)}; delete that folder and its ZIP, "
            "and run again: only the package is written anew"
        )


def _what_decides(recipe: Recipe) -> dict[str, Any]:
    """Return the part of a recipe on which the distilled images depend."""
    value = recipe.to_dict()
    for name in ("preset", "detector", "evaluation", "privacy"):
        del value[name]
    return value


def _content(distilled: DistilledSet) -> str:
    """Return a digest of what a network is trained on."""
    hashed = hashlib.sha256(distilled.images.numpy().tobytes())
    hashed.update(distilled.labels.numpy().tobytes())
    hashed.update(distilled.learning_rate.hex().encode())
    return hashed.hexdigest()


def software_versions() -> dict[str, str]:
    """Return what the numbers of a run may depend on."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "pillow")}
    return {"ppdd": _ppdd_version(), "python": platform.python_version()} | versions


def _ppdd_version() -> str:
    from ppdd_core import __version__

    return __version__


def pick_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; a GPU that is not there raises BadConfigError."""
    if name not in ("auto", "cpu", "cuda"):
        raise BadConfigError(f"--device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise BadConfigError(
            "no CUDA device is visible to torch; use --device cpu, or check the driver"
        )
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
