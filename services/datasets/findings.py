"""What a check found, without the names of files and patients: fit for everybody who may read datasets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ppdd_core.data.names import shown

# Findings whose sentences name classes at most. All others are cut before the names begin.
NAMELESS = frozenset(
    {
        "empty-class", "too-few-classes", "similar-class-names", "too-small-class", "small-class",
        "class-missing-in-split", "enlarged", "masks-left-out", "passed-over",
    }
)  # fmt: skip
MAX_REASONS = 20

_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


def without_names(found: Mapping[str, Any], patients_by_split: Mapping[str, int]) -> dict[str, Any]:
    """Return `Findings.to_dict()` as it is kept: counts, statistics and sentences, no name of a file or patient."""
    unreadable = found["unreadable"]
    return {
        "refusal": None,
        "images": found["images"],
        "patients": found["patients"],
        "patients_by_split": dict(patients_by_split),
        "classes": found["classes"],
        "splits": found["splits"],
        "unreadable": dict(Counter(file["label"] for file in unreadable)),
        "unreadable_reasons": _reasons(unreadable),
        "masks_left_out": found["masks_left_out"],
        "passed_over": found["passed_over"],
        "sizes": found["sizes"],
        "grey": {**found["grey"], "histogram": list(found["grey"]["histogram"])},
        "grey_by_class": {
            label: {"mean": grey["mean"], "sd": grey["sd"]}
            for label, grey in found["grey_by_class"].items()
        },
        "findings": [_finding(one) for one in found["findings"]],
    }


def refusal(reason: str) -> dict[str, Any]:
    """Return what is kept of a dataset that could not be read at all."""
    return {"refusal": blank_names(reason), "findings": []}


def blank_names(text: str) -> str:
    """Return a message of the core with everything it quotes left out: names of files are quoted there."""
    return _QUOTED.sub("[…]", text)


def _finding(one: Mapping[str, Any]) -> dict[str, Any]:
    message = one["message"]
    if one["code"] not in NAMELESS:
        head, colon, _ = message.partition(": ")
        message = blank_names(head) + ("." if colon else "")
    kept = {name: one[name] for name in ("code", "severity", "advice", "count")}
    return {**kept, "message": message}


def _reasons(unreadable: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count why files cannot be read. Text of decoders is cut off: it may quote what a file holds."""
    counts: Counter[str] = Counter()
    for file in unreadable:
        start, reason = shown(file["name"]), file["reason"]
        told = reason[len(start) :].partition(":")[0].strip() if reason.startswith(start) else ""
        counts[blank_names(told) or "cannot be read"] += 1
    return dict(counts.most_common(MAX_REASONS))
