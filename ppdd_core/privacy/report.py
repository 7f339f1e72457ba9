"""The privacy report as a value: measurements, thresholds, verdict; and the same verdict out of its JSON.

Torch-free, so that a release gate can judge again what a worker measured. What is measured, and how, lives
in the other modules of this folder; whether the bytes of a report are the signed ones is for `package`.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ppdd_core.config import Init, PrivacyConfig
from ppdd_core.errors import BadConfigError
from ppdd_core.privacy.wording import WORDS

Verdict = Literal["passed", "failed"]

FORMAT_VERSION = 1
MEASUREMENTS = tuple(WORDS)  # every report holds each of them once, in this order
SHARES = (  # values that lie in [0, 1]
    "nearest_real_neighbour_ssim",
    "nearest_real_neighbour_features",
    "initialisation_source_recognised",
    "membership_inference_auc",
    "membership_inference_tpr_at_1_fpr",
    "membership_inference_initialisation_auc",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One figure of the report; `value` is None where it could not be, or is not, measured.

    `interval` holds 95 % where sampling makes one. `threshold` and `passed` are None where no rule judges
    the figure. `details["not_measured"]` says why a value that should be there is not, `details["not_applicable"]`
    why there is nothing to measure.
    """

    name: str
    title: str
    value: float | int | None
    method: str
    does_not_show: str
    interval: tuple[float, float] | None = None
    threshold: float | int | None = None
    passed: bool | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, keys as in `privacy.json`."""
        return {
            "name": self.name,
            "title": self.title,
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval),
            "threshold": self.threshold,
            "passed": self.passed,
            "method": self.method,
            "does_not_show": self.does_not_show,
            "details": dict(self.details),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyReport:
    """Everything measured about one distilled set, judged by one policy."""

    thresholds: PrivacyConfig
    initialisation: Init
    measurements: tuple[Measurement, ...]
    nearest_train_rows: tuple[
        int, ...
    ] = ()  # most similar real image of each distilled one: stays at the site

    @property
    def verdict(self) -> Verdict:
        """Passed or failed."""
        return verdict(self.measurements)[0]

    def to_dict(self) -> dict[str, Any]:
        """Return `privacy.json`; which real image is nearest to which distilled one is not part of it."""
        word, reasons = verdict(self.measurements)
        return {
            "format_version": FORMAT_VERSION,
            "verdict": word,
            "reasons": reasons,
            "thresholds": dataclasses.asdict(self.thresholds),
            "initialisation": self.initialisation,
            "measurements": [measurement.to_dict() for measurement in self.measurements],
        }


@dataclass(frozen=True, slots=True)
class _Rule:
    """How the policy judges one figure."""

    threshold: str  # field of PrivacyConfig
    holds: Callable[[Measurement, float], bool]
    fault: str  # what a failed one means, with {value}, {low}, {high} and {threshold}
    needed: bool = True  # a figure that could not be measured fails


def _value(measurement: Measurement) -> float:
    return math.nan if measurement.value is None else float(measurement.value)


def _end(measurement: Measurement, index: int) -> float:
    return (
        _value(measurement) if measurement.interval is None else float(measurement.interval[index])
    )


_RULES = {
    "near_copies": _Rule(
        "max_near_copies",
        lambda m, limit: _value(m) <= limit,
        "{value:g} distilled images are near-copies of real ones ({threshold:g} allowed)",
    ),
    "membership_inference_auc": _Rule(
        "max_membership_auc",
        lambda m, limit: _end(m, 1) <= limit,
        "membership inference may reach an AUC of {high:.3f} (measured {value:.3f}, {threshold:g} allowed)",
    ),
    "membership_inference_tpr_at_1_fpr": _Rule(
        "max_tpr_at_1_fpr",
        lambda m, limit: _end(m, 0) <= limit,
        "membership inference finds at least {low:.3f} of the members at 1 % false alarms "
        "(measured {value:.3f}, {threshold:g} allowed)",
        needed=False,
    ),
    "membership_inference_initialisation_auc": _Rule(
        "max_membership_auc",
        lambda m, limit: _end(m, 0) <= limit,
        "membership inference of the images used for initialisation has an AUC of at least {low:.3f} "
        "(measured {value:.3f}, {threshold:g} allowed)",
        needed=False,
    ),
    "smallest_class": _Rule(
        "min_class_size",
        lambda m, limit: _value(m) >= limit,
        "the smallest class has {value:g} patients ({threshold:g} needed)",
    ),
}


@dataclass(frozen=True, slots=True)
class Limit:
    """What a policy asks of one figure of the report."""

    name: str  # of the figure
    value: float | int
    is_least: bool  # less is refused; else more is
    needed: bool  # a figure that could not be measured is refused too


def limits(policy: PrivacyConfig) -> tuple[Limit, ...]:
    """Return what a policy judges; which end of an interval counts is said by each figure's method."""
    return tuple(
        Limit(name, getattr(policy, rule.threshold), rule.threshold.startswith("min_"), rule.needed)
        for name, rule in _RULES.items()
    )


def judge(measurement: Measurement, policy: PrivacyConfig) -> Measurement:
    """Return the measurement with `threshold` and `passed` as the policy decides them.

    A figure the verdict needs and that has no value is not passed; one it can do without stays undecided.
    """
    rule = _RULES.get(measurement.name)
    if rule is None:
        return dataclasses.replace(measurement, threshold=None, passed=None)
    threshold = getattr(policy, rule.threshold)
    if measurement.value is None:
        return dataclasses.replace(
            measurement, threshold=threshold, passed=False if rule.needed else None
        )
    return dataclasses.replace(
        measurement, threshold=threshold, passed=rule.holds(measurement, float(threshold))
    )


def verdict(measurements: Iterable[Measurement]) -> tuple[Verdict, list[str]]:
    """Return the verdict and its reasons: faults first, then what could not be judged.

    Failed when a figure is not passed, or when one that every report must hold is missing.
    """
    given = {measurement.name: measurement for measurement in measurements}
    faults = [f"{name} is missing from the report" for name in MEASUREMENTS if name not in given]
    unjudged: list[str] = []
    for name, measurement in given.items():
        rule = _RULES.get(name)
        if measurement.passed is False:
            faults.append(_fault(measurement))
        elif (
            rule is not None
            and measurement.passed is None
            and "not_measured" in measurement.details
        ):
            unjudged.append(f"not judged: {measurement.title}: {_why_not(measurement)}")
    return ("failed" if faults else "passed"), faults + unjudged


def recompute_verdict(
    report: Mapping[str, Any], policy: PrivacyConfig | None = None
) -> tuple[Verdict, list[str]]:
    """Return the verdict that the values in a `privacy.json` deserve, and its reasons.

    The report's own thresholds are applied to its values again: an edited `passed`, `threshold`, `verdict` or
    count, a missing or repeated figure or anything malformed fails, and the reasons say what does not fit. With
    `policy` the values must satisfy that policy too, whatever thresholds the report was made with. Never raises
    for what stands in the report; a value changed together with everything that depends on it is found by the
    package signature only.
    """
    try:
        stated, measurements, problems = _read(report)
    except _MalformedError as problem:
        return "failed", [str(problem)]
    rejudged = [judge(measurement, stated) for measurement in measurements]
    for old, new in zip(measurements, rejudged, strict=True):
        if (old.threshold, old.passed) != (new.threshold, new.passed):
            problems.append(
                f"the report was altered: {old.name} says threshold {old.threshold} and passed {old.passed}, "
                f"its values give {new.threshold} and {new.passed}"
            )
    word, reasons = verdict(rejudged)
    if report.get("verdict") != word or report.get("reasons") != reasons:
        problems.append(
            f"the report was altered: verdict and reasons do not follow from its values ({word})"
        )
    if policy is not None:
        word, reasons = verdict(
            [judge(_recount(m, policy.near_copy_ssim), policy) for m in rejudged]
        )
    return ("failed" if problems else word), problems + reasons


class _MalformedError(Exception):
    """The report is not one; kept inside this module, where it becomes a reason."""


def _read(report: object) -> tuple[PrivacyConfig, list[Measurement], list[str]]:
    if not isinstance(report, Mapping) or report.get("format_version") != FORMAT_VERSION:
        raise _MalformedError(f"this is not a privacy report of format version {FORMAT_VERSION}")
    if report.get("initialisation") not in typing.get_args(Init):
        raise _MalformedError("the report does not say how the images were initialised")
    thresholds, listed = report.get("thresholds"), report.get("measurements")
    if not isinstance(thresholds, Mapping) or not isinstance(listed, list):
        raise _MalformedError("the report has no thresholds or no measurements")
    stated = _read_thresholds(thresholds)
    measurements = [_read_measurement(entry) for entry in listed]
    problems = []
    names = [measurement.name for measurement in measurements]
    problems += [
        f"{name} stands in the report twice"
        for name in sorted({n for n in names if names.count(n) > 1})
    ]
    problems += [
        f"{name} is not a figure of this report" for name in names if name not in MEASUREMENTS
    ]
    for measurement in measurements:
        if _recount(measurement, stated.near_copy_ssim).value != measurement.value:
            problems.append(
                "the report was altered: the near-copies do not agree with their similarities"
            )
    return stated, measurements, problems


def _read_thresholds(value: Mapping[str, Any]) -> PrivacyConfig:
    kinds = {f.name: int if f.type == "int" else float for f in dataclasses.fields(PrivacyConfig)}
    if set(value) != set(kinds):
        raise _MalformedError("the thresholds of the report are not those of a privacy policy")
    arguments: dict[str, Any] = {}
    for name, kind in kinds.items():
        number = value[name]
        if not _is_number(number) or (kind is int and not isinstance(number, int)):
            raise _MalformedError(f"threshold {name} of the report is not a number: {number!r}")
        arguments[name] = kind(number)
    try:
        return PrivacyConfig(**arguments)
    except BadConfigError as error:
        raise _MalformedError(f"the thresholds of the report cannot be: {error}") from None


def _read_measurement(entry: object) -> Measurement:
    fields = {f.name for f in dataclasses.fields(Measurement)}
    if not isinstance(entry, Mapping) or set(entry) != fields or not isinstance(entry["name"], str):
        raise _MalformedError("a measurement of the report lacks fields or has unknown ones")
    name, value, interval = entry["name"], entry["value"], entry["interval"]
    if not isinstance(entry["details"], Mapping):
        raise _MalformedError(f"the details of {name} are not an object")
    if any(not isinstance(entry[key], str) for key in ("title", "method", "does_not_show")):
        raise _MalformedError(f"{name} lacks its title, method or limits")
    if not (value is None or _is_number(value)) or (
        name in SHARES and value is not None and not 0 <= value <= 1
    ):
        raise _MalformedError(f"the value of {name} cannot be: {value!r}")
    if not (entry["threshold"] is None or _is_number(entry["threshold"])):
        raise _MalformedError(f"the threshold of {name} is not a number")
    if not (entry["passed"] is None or isinstance(entry["passed"], bool)):
        raise _MalformedError(f"{name} says neither passed nor failed nor undecided")
    if interval is not None:
        if (
            not isinstance(interval, list | tuple)
            or len(interval) != 2
            or not all(map(_is_number, interval))
        ):
            raise _MalformedError(f"the interval of {name} is not two numbers")
        if value is None or not interval[0] <= value <= interval[1]:
            raise _MalformedError(f"the interval of {name} does not hold its value")
    return Measurement(
        **{**entry, "interval": None if interval is None else (interval[0], interval[1])}
    )


def _recount(measurement: Measurement, near_copy_ssim: float) -> Measurement:
    if measurement.name != "near_copies":
        return measurement
    best = measurement.details.get("best_ssim")
    if not isinstance(best, list) or not all(map(_is_number, best)):
        raise _MalformedError("near_copies lacks the similarity of each distilled image")
    return dataclasses.replace(measurement, value=sum(ssim >= near_copy_ssim for ssim in best))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _fault(measurement: Measurement) -> str:
    rule = _RULES.get(measurement.name)
    if rule is None:
        return f"{measurement.name} did not pass"
    if measurement.value is None:
        return f"no figure for “{measurement.title}”, and the verdict needs one: {_why_not(measurement)}"
    return rule.fault.format(
        value=measurement.value,
        low=_end(measurement, 0),
        high=_end(measurement, 1),
        threshold=measurement.threshold,
    )


def _why_not(measurement: Measurement) -> str:
    return str(measurement.details.get("not_measured", "no reason given"))
