"""The verdict: what fails it, and that an edited report cannot keep it."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from ppdd_core.config import PrivacyConfig
from ppdd_core.privacy.report import Measurement, PrivacyReport, judge, recompute_verdict, verdict
from ppdd_core.privacy.wording import WORDS

POLICY = PrivacyConfig()
GOOD: dict[str, dict[str, Any]] = {
    "nearest_real_neighbour_ssim": {"value": 0.5, "interval": (0.3, 0.7)},
    "near_copies": {"value": 0, "details": {"best_ssim": [0.2, 0.89]}},
    "membership_inference_auc": {"value": 0.52, "interval": (0.48, 0.56)},
    "membership_inference_tpr_at_1_fpr": {"value": 0.02, "interval": (0.0, 0.06)},
    "smallest_class": {"value": 20},
}


def report(policy: PrivacyConfig = POLICY, /, **changes: Any) -> PrivacyReport:
    measurements = []
    for name, words in WORDS.items():
        facts: dict[str, Any] = {"value": None, **GOOD.get(name, {}), **changes.get(name, {})}
        measurement = Measurement(
            name=name,
            title=words.title,
            method=words.method,
            does_not_show=words.does_not_show,
            **facts,
        )
        measurements.append(judge(measurement, policy))
    return PrivacyReport(
        thresholds=policy, initialisation="noise", measurements=tuple(measurements)
    )


def as_json(value: PrivacyReport) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(json.dumps(value.to_dict(), allow_nan=False))
    return loaded


def entry(value: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(m for m in value["measurements"] if m["name"] == name)
    return found


def test_a_good_report_passes_and_is_the_same_out_of_its_json() -> None:
    good = report()
    word, reasons = recompute_verdict(as_json(good))
    assert good.verdict == word == "passed"
    assert reasons == good.to_dict()["reasons"] == []


def test_a_figure_that_could_not_be_judged_is_named_though_the_report_passes() -> None:
    unmeasured = {"value": None, "interval": None, "details": {"not_measured": "too few"}}
    word, reasons = recompute_verdict(as_json(report(membership_inference_tpr_at_1_fpr=unmeasured)))
    assert word == "passed"
    assert len(reasons) == 1
    assert reasons[0].startswith("not judged: ")
    assert reasons[0].endswith("too few")


@pytest.mark.parametrize(
    ("name", "facts", "says"),
    [
        pytest.param(
            "near_copies",
            {"value": 1, "details": {"best_ssim": [0.95]}},
            "near-copies",
            id="near-copy",
        ),
        pytest.param(
            "membership_inference_auc",
            {"value": 0.58, "interval": (0.55, 0.61)},
            "0.610",
            id="upper end",
        ),
        pytest.param(
            "membership_inference_auc", {"value": None}, "no figure", id="AUC not measured"
        ),
        pytest.param(
            "membership_inference_tpr_at_1_fpr",
            {"value": 0.1, "interval": (0.06, 0.2)},
            "0.060",
            id="members found",
        ),
        pytest.param(
            "membership_inference_initialisation_auc",
            {"value": 0.8, "interval": (0.65, 0.9)},
            "initialisation",
            id="sources found",
        ),
        pytest.param("smallest_class", {"value": 10}, "10 patients", id="small class"),
        pytest.param("smallest_class", {"value": None}, "no figure", id="suppressed class"),
    ],
)
def test_each_rule_fails_the_verdict_and_says_why(
    name: str, facts: dict[str, Any], says: str
) -> None:
    failed = report(**{name: {"interval": None, **facts}})
    word, reasons = recompute_verdict(as_json(failed))
    assert failed.verdict == word == "failed"
    assert says in reasons[0]


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        pytest.param("membership_inference_tpr_at_1_fpr", {"value": None}, id="too few for 1 %"),
        pytest.param(
            "membership_inference_initialisation_auc",
            {"value": 0.7, "interval": (0.5, 0.9)},
            id="wide",
        ),
        pytest.param(
            "nearest_real_neighbour_ssim", {"value": 1.0, "interval": (0.9, 1.0)}, id="no rule"
        ),
    ],
)
def test_what_is_no_evidence_of_a_leak_does_not_fail(name: str, facts: dict[str, Any]) -> None:
    assert report(**{name: {"interval": None, **facts}}).verdict == "passed"


def test_a_missing_figure_fails() -> None:
    complete = report().measurements
    for measurement in complete:
        word, reasons = verdict([m for m in complete if m is not measurement])
        assert word == "failed"
        assert measurement.name in reasons[0]


Edit = Callable[[dict[str, Any]], object]


def on(name: str, /, **facts: Any) -> Edit:
    return lambda value: entry(value, name).update(facts)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(on("membership_inference_auc", passed=True), id="passed flag"),
        pytest.param(lambda r: r.update(verdict="passed", reasons=[]), id="verdict"),
        pytest.param(
            on("membership_inference_auc", threshold=0.9, passed=True), id="threshold of a figure"
        ),
        pytest.param(lambda r: r["thresholds"].update(max_membership_auc=0.9), id="thresholds"),
        pytest.param(on("membership_inference_auc", value=0.5), id="value outside its interval"),
        pytest.param(on("near_copies", value=0, passed=True), id="count without its similarities"),
        pytest.param(lambda r: r["measurements"].pop(0), id="figure removed"),
        pytest.param(lambda r: r["measurements"].append(r["measurements"][0]), id="figure twice"),
    ],
)
def test_an_edited_report_stays_failed(edit: Edit) -> None:
    bad = report(
        membership_inference_auc={"value": 0.8, "interval": (0.75, 0.85)},
        near_copies={"value": 1, "details": {"best_ssim": [0.95]}},
    )
    edited = as_json(bad)
    edit(edited)
    word, reasons = recompute_verdict(edited)
    assert word == "failed"
    assert reasons


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(on("near_copies", passed=None), id="passed flag"),
        pytest.param(on("near_copies", details={"best_ssim": [0.95]}), id="similarity"),
        pytest.param(lambda r: r.update(verdict="failed"), id="verdict"),
        pytest.param(lambda r: r["reasons"].append("fine"), id="reasons"),
        pytest.param(lambda r: r["thresholds"].update(min_class_size=5), id="thresholds"),
    ],
)
def test_a_report_that_contradicts_itself_fails_though_its_values_are_good(edit: Edit) -> None:
    edited = as_json(report())
    edit(edited)
    word, reasons = recompute_verdict(edited)
    assert word == "failed"
    assert "altered" in reasons[0]


def test_the_policy_of_the_gate_counts_not_the_one_the_report_was_made_with() -> None:
    lax = PrivacyConfig(near_copy_ssim=0.99, max_membership_auc=0.9)
    made_lax = report(lax, near_copies={"value": 0, "details": {"best_ssim": [0.95]}})
    assert recompute_verdict(as_json(made_lax))[0] == "passed"
    word, reasons = recompute_verdict(as_json(made_lax), POLICY)
    assert word == "failed"
    assert "near-copies" in reasons[0]
    strict = replace(POLICY, max_membership_auc=0.55)
    assert recompute_verdict(as_json(report()), strict)[0] == "failed"


MALFORMED: list[Any] = [
    {},
    [],
    None,
    "report",
    {"format_version": 2},
    {"format_version": 1, "initialisation": "noise", "thresholds": {}, "measurements": []},
]
SPOILT: list[Edit] = [
    lambda r: r.update(initialisation="patients"),
    lambda r: r.update(measurements={}),
    lambda r: r.update(measurements=[1]),
    lambda r: r["thresholds"].update(max_membership_auc="0.9"),
    lambda r: r["thresholds"].update(max_membership_auc=7),
    lambda r: r["thresholds"].update(members=True),
    lambda r: r["thresholds"].update(extra=1),
    on("membership_inference_auc", value=float("nan")),
    on("membership_inference_auc", value=-0.1, interval=[-0.2, 0.0]),
    on("membership_inference_auc", value="0.5"),
    on("membership_inference_auc", interval=[0.4]),
    on("membership_inference_auc", interval=[0.4, None]),
    on("membership_inference_auc", passed="yes"),
    on("membership_inference_auc", threshold="0.6"),
    on("membership_inference_auc", title=None),
    on("near_copies", details=None),
    on("near_copies", details={"best_ssim": ["0.1"]}),
    on("near_copies", name=["near_copies"]),
    on("near_copies", name="near_misses"),
    lambda r: r["measurements"][0].update(note="x"),
]


def test_anything_malformed_is_a_reason_never_an_exception() -> None:
    spoilt = list(MALFORMED)
    for edit in SPOILT:
        value = copy.deepcopy(as_json(report()))
        edit(value)
        spoilt.append(value)
    for value in spoilt:
        word, reasons = recompute_verdict(value)
        assert word == "failed", value
        assert reasons


def test_the_guide_names_every_figure_and_every_threshold() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "privacy.md").read_text(encoding="utf-8")
    for name in [*WORDS, *(field.name for field in fields(PrivacyConfig))]:
        assert f"`{name}`" in guide


def test_the_report_can_be_judged_without_torch() -> None:
    code = "import sys, ppdd_core.privacy.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
