"""measure_privacy: every figure of the privacy report, from real images and a distilled set.

Composes the other modules of this folder: the arithmetic is theirs, the sentences are in `wording`, the
verdict is in `report`. Nothing that points at a single real image leaves through the report's JSON, and no
exact number of patients.

Shape suffixes: I distilled images, R real images, M training side, N held-out side, C H W, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ppdd_core.config import DetectorConfig, Init, NetConfig, PrivacyConfig
from ppdd_core.data.dataset import LabelledImages
from ppdd_core.data.distilled import DistilledSet
from ppdd_core.data.tensors import to_tensor
from ppdd_core.errors import BadConfigError, SourceError
from ppdd_core.nets.fit import predict, train_on_set
from ppdd_core.nets.functional import FlatNet
from ppdd_core.privacy.initialisation import residual_correlation, source_likeness, source_ranks
from ppdd_core.privacy.intervals import Interval, bootstrap_mean, effective_trials, wilson
from ppdd_core.privacy.membership import (
    FEWEST_FOR_AUC,
    FEWEST_OTHERS,
    Scored,
    auc,
    fit_score,
    matched_rows,
    true_positives,
)
from ppdd_core.privacy.neighbours import (
    Nearest,
    Ranking,
    is_exact,
    nearer_share,
    nearest,
    nearest_features,
    pixels_of,
    rank,
)
from ppdd_core.privacy.report import Measurement, PrivacyReport, judge
from ppdd_core.privacy.wording import WORDS
from ppdd_core.seeding import derive

SUPPRESSED_BELOW = 20  # patients: a smaller number is never written into a report
ROUNDED_DOWN_TO = 10
MOST_PER_SIDE = 4  # training images tested per held-out one, where there are more
BASELINE_IMAGES = 50  # held-out images whose own nearest training image shows what is usual
BATCH = 32  # images through a network at a time: three times faster on a CPU than 256

Progress = Callable[[int, int], None]


def measure_privacy(
    distilled: DistilledSet,
    *,
    train: LabelledImages,
    held_out: LabelledImages,
    initial_ICHW: Tensor,
    init_sources: tuple[tuple[int, ...], ...],
    net_config: NetConfig,
    privacy: PrivacyConfig,
    detector: DetectorConfig,
    init: str,
    seed: int,
    device: torch.device,
    on_progress: Progress | None = None,
    trained: Sequence[Tensor] = (),
) -> PrivacyReport:
    """Return the privacy report of a distilled set.

    `train` are the real images the teachers saw, `held_out` those of other patients; `initial_ICHW` is what
    distillation started from (normalised as the set is), `init_sources[i]` the rows of `train` that image i
    was made of (empty for noise). `detector.seeds` networks are trained on the set, under its own augmentation,
    for membership inference; parameters of such networks may be given as `trained` instead. `on_progress`
    hears (done, 100).

    Shared patients, other classes or other sizes raise SourceError; sources that do not fit `init` or the
    images raise BadConfigError. Held-out images that are byte-equal to a training image are left out.
    """
    _refuse(distilled, train, held_out, initial_ICHW, init_sources, init)
    held_out = _without_copies(train, held_out)
    case = _Case(
        distilled=distilled,
        train=train,
        held_out=held_out,
        shown_IHW=_grey_levels(distilled, device),
        equal=_Sides.draw(
            train, held_out, privacy.members, ratio=1, seed=derive(seed, "privacy", "equal")
        ),
        tested=_Sides.draw(
            train,
            held_out,
            privacy.members,
            ratio=MOST_PER_SIDE,
            seed=derive(seed, "privacy", "tested"),
        ),
        policy=privacy,
        seed=seed,
    )
    percent = _Percent(on_progress)
    ranking = rank(case.shown_IHW, train.pixels_RHW, percent.part(0, 10))
    closest = nearest(case.shown_IHW, train.pixels_RHW, ranking)
    measurements = [
        _nearest_ssim(case, ranking),
        _near_copies(case, closest),
        _sources(case, ranking, init_sources, init),
        _residual(case, initial_ICHW),
        _smallest_class(case),
        *_statements(),
    ]
    percent.at(20)
    net = FlatNet(
        net_config,
        classes=len(distilled.classes),
        image_size=distilled.image_size,
        channels=distilled.images.shape[1],
    )
    networks = [theta_P.to(device) for theta_P in trained] or _train_networks(
        net,
        distilled,
        replace(detector, augment=distilled.augment),  # as everyone who uses the set trains
        seed=seed,
        device=device,
        on_progress=percent.part(20, 90),
    )
    measurements += [
        _nearest_features(case, net, networks[0]),
        *_membership(case, net, networks, init_sources),
    ]
    percent.at(100)
    order = list(WORDS)
    return PrivacyReport(
        thresholds=privacy,
        initialisation=cast("Init", init),
        measurements=tuple(
            judge(measurement, privacy)
            for measurement in sorted(measurements, key=lambda m: order.index(m.name))
        ),
        nearest_train_rows=tuple(int(row) for row in closest.row_I),
    )


@dataclass(frozen=True, slots=True)
class _Sides:
    """Rows of training images and of held-out images in the same class proportions."""

    train_M: np.ndarray
    held_out_N: np.ndarray

    @classmethod
    def draw(
        cls, train: LabelledImages, held_out: LabelledImages, limit: int, *, ratio: int, seed: int
    ) -> _Sides:
        """Draw both sides at random, one image per patient: what is counted is then independent."""
        ours, theirs = _one_per_patient(train, seed), _one_per_patient(held_out, seed)
        rows_M, rows_N = matched_rows(
            train.labels_R[ours], held_out.labels_R[theirs], limit=limit, ratio=ratio, seed=seed
        )
        return cls(ours[rows_M], theirs[rows_N])

    def sizes(self) -> dict[str, int]:
        """Return the sample sizes as they may be published."""
        return {
            "training_images": _rounded(len(self.train_M)),
            "held_out_images": _rounded(len(self.held_out_N)),
            "sizes_rounded_down_to": ROUNDED_DOWN_TO,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """What is measured against what."""

    distilled: DistilledSet
    train: LabelledImages
    held_out: LabelledImages
    shown_IHW: Tensor  # the distilled images as grey levels, 0 black and 1 white, not clipped
    equal: _Sides
    tested: _Sides
    policy: PrivacyConfig
    seed: int

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(derive(self.seed, "privacy", purpose))


def _refuse(
    distilled: DistilledSet,
    train: LabelledImages,
    held_out: LabelledImages,
    initial_ICHW: Tensor,
    init_sources: tuple[tuple[int, ...], ...],
    init: str,
) -> None:
    side = distilled.image_size
    for name, data in (("training", train), ("held-out", held_out)):
        if data.classes != distilled.classes:
            raise SourceError(
                f"the {name} images have the classes {data.classes}, the set {distilled.classes}"
            )
        if data.pixels_RHW.shape[1:] != (side, side):
            raise SourceError(
                f"the {name} images are {data.pixels_RHW.shape[1:]} pixels, the set {side}"
            )
    if not len(train) or not len(distilled):
        raise SourceError(
            "privacy can only be measured with at least one training and one distilled image"
        )
    shared = len(set(train.patients) & set(held_out.patients))
    if shared:
        raise SourceError(
            f"{shared} patients are on both sides; split by patient before measuring privacy"
        )
    if initial_ICHW.shape != distilled.images.shape or len(init_sources) != len(distilled):
        raise BadConfigError(
            f"initial images {tuple(initial_ICHW.shape)} and {len(init_sources)} lists of sources must fit "
            f"the distilled images {tuple(distilled.images.shape)}"
        )
    if any(bool(rows) == (init == "noise") for rows in init_sources):
        raise BadConfigError(
            f"init {init!r} does not fit its sources: noise has none, real and mean have some"
        )
    if any(not 0 <= row < len(train) for rows in init_sources for row in rows):
        raise BadConfigError(f"init_sources must be rows of the {len(train)} training images")


def _without_copies(train: LabelledImages, held_out: LabelledImages) -> LabelledImages:
    known = set(train.digests)
    keep = [row for row, digest in enumerate(held_out.digests) if digest not in known]
    return (
        held_out if len(keep) == len(held_out) else held_out.select(np.array(keep, dtype=np.int64))
    )


def _one_per_patient(data: LabelledImages, seed: int) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(len(data))
    first = {(data.patients[row], int(data.labels_R[row])): row for row in order.tolist()}
    return np.array(sorted(first.values()), dtype=np.int64)


def _grey_levels(distilled: DistilledSet, device: torch.device) -> Tensor:
    scale = distilled.normalisation
    return distilled.images.mean(1).float().to(device) * scale.std + scale.mean


def _nearest_ssim(case: _Case, ranking: Ranking) -> Measurement:
    name, sides = "nearest_real_neighbour_ssim", case.equal
    if not len(sides.held_out_N):
        return _unmeasured(name, "there are no held-out images of the same classes")
    real_MHW, other_NHW = (
        case.train.pixels_RHW[sides.train_M],
        case.held_out.pixels_RHW[sides.held_out_N],
    )
    to_train = nearest(case.shown_IHW, real_MHW, ranking.among(sides.train_M))
    to_others = nearest(case.shown_IHW, other_NHW, rank(case.shown_IHW, other_NHW))
    return _nearer(case, name, to_train, to_others)


def _nearest_features(case: _Case, net: FlatNet, theta_P: Tensor) -> Measurement:
    name, sides = "nearest_real_neighbour_features", case.equal
    if not len(sides.held_out_N):
        return _unmeasured(name, "there are no held-out images of the same classes")
    own_IF, train_MF, other_NF = (
        _features(net, theta_P, images)
        for images in (
            case.distilled.images,
            to_tensor(case.train.select(sides.train_M), case.distilled.normalisation),
            to_tensor(case.held_out.select(sides.held_out_N), case.distilled.normalisation),
        )
    )
    both_RF = torch.cat([train_MF, other_NF])
    centre_F, spread_F = both_RF.mean(0), both_RF.std(0).clamp_min(1e-6)
    to_train, to_others = (
        nearest_features(own_IF, real_RF, centre_F, spread_F) for real_RF in (train_MF, other_NF)
    )
    return _nearer(case, name, to_train, to_others)


def _nearer(case: _Case, name: str, to_train: Nearest, to_others: Nearest) -> Measurement:
    share = nearer_share(to_train, to_others)
    gap_I = to_train.similarity_I - to_others.similarity_I
    # Distilled images whose nearest real image is the same one move together: they count as one.
    closest = np.where(gap_I >= 0, to_train.row_I, -1 - to_others.row_I)
    independent = effective_trials(closest.tolist())
    return _measured(
        name,
        _short(share),
        interval=wilson(share, independent),
        details={
            **case.equal.sizes(),
            "independent_distilled_images": round(independent, 1),
            "mean_similarity_to_nearest_training_image": _short(to_train.similarity_I.mean()),
            "mean_similarity_to_nearest_held_out_image": _short(to_others.similarity_I.mean()),
            "mean_gap": _short(gap_I.mean()),
        },
    )


@torch.no_grad()
def _features(net: FlatNet, theta_P: Tensor, images_RCHW: Tensor) -> Tensor:
    return torch.cat(
        [net.features(theta_P, x.to(theta_P.device)).float() for x in images_RCHW.split(BATCH)]
    )


def _near_copies(case: _Case, closest: Nearest) -> Measurement:
    limit = case.policy.near_copy_ssim
    best = [_short(ssim) for ssim in closest.similarity_I]
    details: dict[str, Any] = {
        "near_copy_ssim": limit,
        "best_ssim": best,
        "largest_ssim": max(best),
        "every_pair_compared": is_exact(len(best), len(case.train), case.distilled.image_size),
    }
    if len(case.held_out):
        rows = np.sort(case.rng("usual").permutation(len(case.held_out))[:BASELINE_IMAGES])
        real_BHW = pixels_of(case.held_out.pixels_RHW[rows], case.shown_IHW.device)
        ranking = rank(real_BHW, case.train.pixels_RHW)
        usual = nearest(real_BHW, case.train.pixels_RHW, ranking, cost=0).similarity_I
        details["usual"] = {
            "what": "the same for real images of held-out patients: how alike different patients are",
            "median_ssim": _short(np.median(usual)),
            "largest_ssim": _short(usual.max()),
            "share_of_near_copies": _short((usual >= limit).mean()),
        }
    return _measured("near_copies", sum(ssim >= limit for ssim in best), details=details)


def _sources(
    case: _Case, ranking: Ranking, sources: tuple[tuple[int, ...], ...], init: str
) -> Measurement:
    name = "initialisation_source_recognised"
    if init == "noise":
        return _not_applicable(name, "no training image was used to initialise")
    ranks_I = source_ranks(ranking, sources)
    first, images = int((ranks_I == 1).sum()), len(ranks_I)
    correlation = [
        ranking.correlation_IR[i, list(rows)].max().item() for i, rows in enumerate(sources)
    ]
    most = max(len(rows) for rows in sources)
    return _measured(
        name,
        _short(first / images),
        interval=wilson(first / images, images),
        details={
            "sources_per_image": most,
            "chance": _short(min(1.0, most / len(case.train))),
            "median_rank": int(np.median(ranks_I)),
            "source_ssim": [
                _short(s) for s in source_likeness(case.shown_IHW, case.train.pixels_RHW, sources)
            ],
            "source_correlation": [_short(c) for c in correlation],
        },
    )


def _residual(case: _Case, initial_ICHW: Tensor) -> Measurement:
    name = "initialisation_residual_correlation"
    correlation_I = residual_correlation(case.distilled.images.cpu(), initial_ICHW.cpu())
    return _measured(
        name,
        _short(correlation_I.mean()),
        interval=bootstrap_mean(correlation_I, case.rng(name)),
        details={"largest": _short(np.abs(correlation_I).max())},
    )


def _train_networks(
    net: FlatNet,
    distilled: DistilledSet,
    detector: DetectorConfig,
    *,
    seed: int,
    device: torch.device,
    on_progress: Progress,
) -> list[Tensor]:
    images_ICHW, labels_I = distilled.images.to(device), distilled.labels.to(device)
    networks = []
    for number in range(detector.seeds):
        own_seed = derive(seed, "privacy", "network", number)
        done, of = number * detector.epochs, detector.seeds * detector.epochs
        networks.append(
            train_on_set(
                net,
                net.initial(own_seed).to(device),
                images_ICHW,
                labels_I,
                config=detector,
                lr=distilled.learning_rate,
                seed=own_seed,
                on_epoch=lambda epoch, _, done=done, of=of: on_progress(done + epoch, of),  # type: ignore[misc]
            )
        )
    return networks


def _membership(
    case: _Case, net: FlatNet, networks: Sequence[Tensor], sources: tuple[tuple[int, ...], ...]
) -> list[Measurement]:
    """Return the three figures of membership inference."""
    name = "membership_inference_auc"
    found, of_sources = (
        "membership_inference_tpr_at_1_fpr",
        "membership_inference_initialisation_auc",
    )
    sides = case.tested
    members, others = case.train.select(sides.train_M), case.held_out.select(sides.held_out_N)
    if min(len(members), len(others)) < FEWEST_FOR_AUC:
        few = f"it needs {FEWEST_FOR_AUC} training and as many held-out images of the same classes"
        return [_unmeasured(each, few) for each in (name, found, of_sources)]
    used_rows = np.unique([row for rows in sources for row in rows]).astype(np.int64)
    member, other, used = (
        _score(case, net, networks, data)
        for data in (members, others, case.train.select(used_rows))
    )
    overall, interval = auc(_mean(member), _mean(other))
    unused = _mean(member).among(~np.isin(sides.train_M, used_rows))
    details = {
        **sides.sizes(),
        "networks": len(networks),
        "auc_of_each_network": [_short(auc(m, o)[0]) for m, o in zip(member, other, strict=True)],
        "not_used_for_initialisation": _auc_details(unused, _mean(other))
        if len(used_rows)
        else None,
        "nearest_distilled_image_attack": {
            "what": "score: correlation with the most similar distilled image; needs no network",
            **_auc_details(_closeness(case, members), _closeness(case, others)),
        },
    }
    return [
        _measured(name, _short(overall), interval=interval, details=details),
        _true_positives(case, found, _mean(member), _mean(other)),
        _of_sources(of_sources, _mean(used), _mean(other)),
    ]


def _score(
    case: _Case, net: FlatNet, networks: Sequence[Tensor], data: LabelledImages
) -> list[Scored]:
    """Return what each network says."""
    images_RCHW = to_tensor(data, case.distilled.normalisation)
    return [
        Scored(
            fit_score(predict(net, theta_P, images_RCHW, batch_size=BATCH), data.labels_R),
            data.labels_R,
        )
        for theta_P in networks
    ]


def _mean(scored: Sequence[Scored]) -> Scored:
    """Return the mean over the networks: an attacker may train as many as it takes."""
    return Scored(np.mean([one.score_R for one in scored], axis=0), scored[0].label_R)


def _closeness(case: _Case, data: LabelledImages) -> Scored:
    correlation_IR = rank(case.shown_IHW, data.pixels_RHW).correlation_IR
    return Scored(correlation_IR.amax(0).double().cpu().numpy(), data.labels_R)


def _auc_details(members: Scored, others: Scored) -> dict[str, Any]:
    if not members.shares_class_with(others):
        return {"auc": None, "interval": None}
    value, interval = auc(members, others)
    return {"auc": _short(value), "interval": _ends(interval)}


def _true_positives(case: _Case, name: str, member: Scored, other: Scored) -> Measurement:
    if len(other.score_R) < FEWEST_OTHERS:
        few = f"1 % false alarms need at least {FEWEST_OTHERS} held-out images of the same classes"
        return _unmeasured(name, few)
    value, interval = true_positives(member, other, case.rng(name))
    return _measured(name, _short(value), interval=interval, details=case.tested.sizes())


def _of_sources(name: str, used: Scored, other: Scored) -> Measurement:
    if not len(used.score_R):
        return _not_applicable(name, "no training image was used to initialise")
    if not used.shares_class_with(other):
        return _unmeasured(name, "no held-out image is of a class of the images used to initialise")
    value, interval = auc(used, other)
    return _measured(name, _short(value), interval=interval, details={"images": len(used.score_R)})


def _smallest_class(case: _Case) -> Measurement:
    """Return a lower bound that gives away no exact number: what is suppressed elsewhere stays so."""
    name, needed = "smallest_class", case.policy.min_class_size
    pairs = set(zip(case.train.labels_R.tolist(), case.train.patients, strict=True))
    smallest = min(sum(label == c for label, _ in pairs) for c in range(len(case.train.classes)))
    bounds = [_rounded(smallest)] if smallest >= SUPPRESSED_BELOW else []
    bounds += [needed] if smallest >= needed else []
    if not bounds:
        return _unmeasured(
            name, f"fewer than {min(needed, SUPPRESSED_BELOW)} patients; the number is suppressed"
        )
    return _measured(name, max(bounds))


def _statements() -> list[Measurement]:
    undone = _not_applicable("differential_privacy", "no differential privacy was used")
    return [
        _not_applicable("metadata", "a statement about files, checked by package verification"),
        _measured(undone.name, None, details={**undone.details, "epsilon": None, "delta": None}),
    ]


def _measured(
    name: str,
    value: float | None,
    *,
    interval: Interval | None = None,
    details: dict[str, Any] | None = None,
) -> Measurement:
    words = WORDS[name]
    return Measurement(
        name=name,
        title=words.title,
        value=value,
        interval=_ends(interval),
        method=words.method,
        does_not_show=words.does_not_show,
        details=details or {},
    )


def _unmeasured(name: str, why: str) -> Measurement:
    return _measured(name, None, details={"not_measured": why})


def _not_applicable(name: str, why: str) -> Measurement:
    return _measured(name, None, details={"not_applicable": why})


def _rounded(count: int) -> int:
    return count // ROUNDED_DOWN_TO * ROUNDED_DOWN_TO


def _short(number: float) -> float:
    return round(float(number), 4)


def _ends(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else (_short(interval[0]), _short(interval[1]))


class _Percent:
    """Progress of the whole out of progress of its parts; never backwards."""

    def __init__(self, on_progress: Progress | None) -> None:
        self._report, self._last = on_progress, 0

    def at(self, percent: int) -> None:
        if self._report and percent > self._last:
            self._last = percent
            self._report(percent, 100)

    def part(self, start: int, end: int) -> Progress:
        return lambda done, of: self.at(start + (end - start) * done // max(of, 1))
