"""README.md: the card that people read before they use a package.

Torch-free; plain values in, Markdown out. Whatever comes from outside (names, reasons, sentences of a report) is
escaped, so that it stays text: no HTML, no links, no tables broken by a class name. The card claims what was
measured and names what was not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ppdd_core.config import Recipe
from ppdd_core.package.manifest import CONTACT_SHEET, DUO, Manifest
from ppdd_core.package.signature import printable

MAX_CARD_BYTES = 2**20

_METHODS = {
    "distilled": "**this package**",
    "random_real": "as many real images, drawn at random",
    "k_centre": "as many real images, chosen by k-centre",
    "mtt_unpruned": "distilled without parameter pruning (MTT)",
    "full_data": "all real training images",
}
_INITIALISATIONS = {
    "noise": "noise, so no image started as a patient's image",
    "real": "**real images: each synthetic image started as the image of a patient**",
    "mean": "means of several real images of one class",
}
_LINK = re.compile(r"\]\(([^)]*)\)")


def write_card(
    manifest: Manifest, *, evaluation: Mapping[str, Any], privacy: Mapping[str, Any]
) -> str:
    """Return the card of a package as Markdown."""
    recipe = Recipe.from_dict(manifest.recipe)
    parts = [
        _head(manifest, privacy),
        _how_good(evaluation, recipe),
        _how_private(privacy),
        _load(manifest),
        _classes(manifest),
        _made_how(manifest, recipe),
        _usage(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def find_faults(text: str) -> list[str]:
    """Return what a card of a package must not hold: raw HTML, or links that leave the package."""
    faults = []
    text = re.sub(r"\\.", "", text)  # what is escaped is text
    if "<" in text:
        faults.append("it holds raw HTML or an automatic link")
    if any(target != CONTACT_SHEET for target in _LINK.findall(text)) or re.search(
        r"^\s*\[[^]]*\]:", text, re.M
    ):
        faults.append("it links to something outside the package")
    return faults


def escape(value: Any) -> str:
    """Return text that Markdown shows as it is: on one line, without markup, links or table bars."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~#!$])", r"\\\1", text)
    return text.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def _head(manifest: Manifest, privacy: Mapping[str, Any]) -> str:
    failed = privacy.get("verdict") != "passed"
    warning = (
        "\n>\n> **The privacy verdict of this package is: failed.** See below." if failed else ""
    )
    return f"""# {escape(manifest.name)} {escape(manifest.version)}

> **For research only. Not for clinical decisions.** A network trained on these images is not a medical device.{warning}

{manifest.images} synthetic chest X-rays, {manifest.images_per_class} for each of {len(manifest.classes)} classes,\
 and a learning rate, distilled by **{escape(manifest.site_name)}** (`{manifest.site_id}`) on {manifest.created[:10]}.\
 A network trained on them learns part of what it would learn from the real images, which never left the site.

![Contact sheet: one row of synthetic images per class]({CONTACT_SHEET})"""


# --- how good ------------------------------------------------------------------------------------------


def _how_good(evaluation: Mapping[str, Any], recipe: Recipe) -> str:
    rows = [row for row in evaluation.get("summary", []) if isinstance(row, Mapping)]
    if not rows:
        return "## How good\n\nNo evaluation was run for this package."
    table = _table(
        [
            "trained on",
            "network",
            "per class",
            "networks",
            "accuracy",
            "balanced accuracy",
            "macro AUROC",
            "calibration error",
        ],
        [
            [
                _METHODS.get(str(row.get("method")), escape(row.get("method"))),
                escape(row.get("architecture")),
                "all" if row.get("images_per_class") is None else escape(row["images_per_class"]),
                escape(row.get("networks", "–")),
                _spread(row.get("accuracy"), percent=True),
                _spread(row.get("balanced_accuracy"), percent=True),
                _spread(row.get("macro_auroc")),
                _spread(row.get("calibration_error")),
            ]
            for row in rows
        ],
    )
    return (
        f"## How good\n\nMeasured once on the {escape(evaluation.get('split', 'test'))} split of the site's own"
        " images, none of which was used for distillation or for any choice. Mean ± standard deviation over"
        f" networks that differ in their seed.\n\n{table}{_per_class(evaluation, recipe)}\n\n"
        "These figures hold for this site's patients and machines. Other hospitals will see other figures: measure on"
        " your own images before you rely on any."
    )


def _per_class(evaluation: Mapping[str, Any], recipe: Recipe) -> str:
    results = [
        row
        for row in evaluation.get("results", [])
        if isinstance(row, Mapping)
        and row.get("method") == "distilled"
        and row.get("architecture") == recipe.net.architecture
    ]
    by_class: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        for row in result.get("per_class", []):
            by_class.setdefault(str(row.get("class")), []).append(row)
    if not by_class:
        return ""
    table = _table(
        ["class", "sensitivity", "95 % interval", "specificity", "95 % interval"],
        [
            [
                escape(name),
                _mean(row.get("sensitivity") for row in rows),
                _widest(row.get("sensitivity_interval") for row in rows),
                _mean(row.get("specificity") for row in rows),
                _widest(row.get("specificity_interval") for row in rows),
            ]
            for name, rows in by_class.items()
        ],
    )
    return (
        "\n\nPer class, for networks trained on this package (mean over networks; from the lowest to the highest"
        f" bound of their intervals):\n\n{table}"
    )


# --- how private ---------------------------------------------------------------------------------------


def _how_private(privacy: Mapping[str, Any]) -> str:
    measurements = [row for row in privacy.get("measurements", []) if isinstance(row, Mapping)]
    lines = ["## How private", "", _verdict(privacy), ""]
    lines.append(
        "The images were made from images of patients. What follows was measured; no measurement, and no set of"
        " them, proves that nobody can be recognised."
    )
    initialisation = _INITIALISATIONS.get(
        str(privacy.get("initialisation")), escape(privacy.get("initialisation"))
    )
    lines += ["", f"Optimisation started from {initialisation}."]
    if measurements:
        lines += [
            "",
            _table(
                ["measured", "value", "95 % interval", "threshold", "result"],
                [
                    [
                        escape(row.get("title") or row.get("name")),
                        _figure(row.get("value")),
                        _interval(row.get("interval")),
                        _figure(row.get("threshold")),
                        _result(row.get("passed")),
                    ]
                    for row in measurements
                ],
            ),
            "",
            "What these figures do not show:",
            "",
        ]
        lines += [
            f"- *{escape(row.get('title') or row.get('name'))}*: {escape(row.get('does_not_show') or 'not stated')}"
            for row in measurements
        ]
    return "\n".join(lines)


def _result(passed: Any) -> str:
    return "not judged" if passed is None else "within" if passed is True else "**beyond**"


def _verdict(privacy: Mapping[str, Any]) -> str:
    reasons = [escape(reason) for reason in privacy.get("reasons", [])]
    if privacy.get("verdict") == "passed":
        verdict = (
            "**Verdict: passed.** No figure lies beyond the threshold this site has set for it."
        )
    else:
        verdict = "**Verdict: failed.**"
    if reasons:
        verdict += "\n\n" + "\n".join(f"- {reason}" for reason in reasons)
    override = privacy.get("override")
    if isinstance(override, Mapping):
        who = f" by {escape(override['by'])}" if override.get("by") else ""
        reason = escape(override.get("reason", "none given"))
        verdict += f"\n\n**Released all the same**{who}, for this reason: {reason}"
    return verdict


# --- the rest ------------------------------------------------------------------------------------------


def _load(manifest: Manifest) -> str:
    archive = f"{manifest.name.split('/')[1]}-{manifest.version}.zip"
    return f"""## Load it

```python
from ppdd_core import load_package
package = load_package("{archive}")
images, labels, learning_rate = package.images, package.labels, package.learning_rate
```

Loading checks the signature and every file. `package` is a data set: `torch.utils.data.DataLoader(package,\
 batch_size={min(manifest.images, 256)}, shuffle=True)` serves it. `learning_rate` is the step size to train with,\
 `package.augment` the augmentation, `package.normalisation` what to apply to your own images. To check that the\
 package comes from whom you think, pin the key, after comparing its fingerprint with the site by another way:

```
ppdd package verify {archive} --key {manifest.key}
```

Signing key: `{printable(manifest.key)}`"""


def _classes(manifest: Manifest) -> str:
    counts = manifest.source["classes"]
    smallest = manifest.source["suppressed_below"]
    table = _table(
        ["label", "class", "real images behind it"],
        [
            [
                str(index),
                escape(name),
                f"fewer than {smallest}" if counts[name] is None else f"{counts[name]} or more",
            ]
            for index, name in enumerate(manifest.classes)
        ],
    )
    return (
        "## Classes\n\n"
        f"{table}\n\nCounts are rounded down to {manifest.source['rounded_down_to']}; below {smallest} none is given."
    )


def _made_how(manifest: Manifest, recipe: Recipe) -> str:
    net, teacher, distill = recipe.net, recipe.teacher, recipe.distill
    shape = " × ".join(str(side) for side in manifest.image_shape)
    network = (
        f"{net.architecture}, width {net.width}, depth {net.depth}"
        if net.architecture == "convnet"
        else net.architecture
    )
    rows = [
        ["preset", escape(recipe.preset)],
        [
            "images",
            f"{shape}, {manifest.dtype}, normalised with mean {manifest.mean:.6g} and standard deviation"
            f" {manifest.std:.6g}",
        ],
        ["network", network],
        ["teachers", f"{teacher.teachers} × {teacher.epochs} epochs, learning rate {teacher.lr:g}"],
        [
            "start epochs (I⁺), teacher epochs (K), student steps (J)",
            f"{distill.max_start_epoch}, {distill.teacher_epochs}, {distill.student_steps}",
        ],
        ["distillation steps", str(distill.iterations)],
        [
            "parameter pruning (σ)",
            f"{distill.prune_below:g}, similarity {escape(distill.similarity)}"
            if distill.prune_below
            else "none (MTT)",
        ],
        ["started from", escape(distill.init)],
        ["augmentation", escape(distill.augment or "none")],
        ["learned learning rate (α)", f"{manifest.learning_rate:.6g}"],
        ["seed", str(recipe.seed)],
        [
            "software",
            escape(
                ", ".join(
                    f"{name} {version}" for name, version in sorted(manifest.software.items())
                )
            ),
        ],
    ]
    return (
        "## How it was made\n\nDataset distillation by matching training trajectories, with parameter pruning"
        " (Li, Togo, Ogawa, Haseyama, 2023). Every number of the recipe is in `manifest.json`.\n\n"
        + _table(["", ""], rows)
    )


def _usage(manifest: Manifest) -> str:
    usage = manifest.usage
    purposes = "; ".join(f"{DUO[code]} ({code})" for code in usage.purposes)
    terms = (
        f"the text with sha256 `{usage.terms_sha256}`"
        if usage.terms_sha256
        else "none beyond these lines"
    )
    return (
        f"## Terms of use\n\n- Licence: {escape(usage.licence)}\n- Purposes: {purposes}\n- Terms: {terms}\n"
        f"- Last day of use: {usage.expires or 'none set'}\n- For research only; not for clinical decisions."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if _is_number(value) else "–"


def _interval(value: Any) -> str:
    if isinstance(value, Sequence) and len(value) == 2 and all(_is_number(end) for end in value):
        return f"{value[0]:.4g} to {value[1]:.4g}"
    return "–"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _spread(value: Any, *, percent: bool = False) -> str:
    if not isinstance(value, Mapping) or not _is_number(value.get("mean")):
        return "–"
    factor, digits = (100, 1) if percent else (1, 3)
    text = f"{factor * value['mean']:.{digits}f}"
    if _is_number(value.get("sd")):
        text += f" ± {factor * value['sd']:.{digits}f}"
    return text + (" %" if percent else "")


def _mean(values: Iterable[Any]) -> str:
    numbers = [value for value in values if _is_number(value)]
    return _percent(sum(numbers) / len(numbers)) if numbers else "–"


def _widest(intervals: Iterable[Any]) -> str:
    known = [
        pair
        for pair in intervals
        if isinstance(pair, Sequence) and len(pair) == 2 and all(map(_is_number, pair))
    ]
    if not known:
        return "–"
    return f"{_percent(min(low for low, _ in known))} to {_percent(max(high for _, high in known))}"
