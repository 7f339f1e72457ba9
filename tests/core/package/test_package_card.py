from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import pytest

from ppdd_core.package import card, manifest
from ppdd_core.package.build import PackageContent
from ppdd_core.package.manifest import CARD, MANIFEST, Manifest


@pytest.fixture
def stated(built: Mapping[str, bytes]) -> Manifest:
    return manifest.read(built[MANIFEST])


@pytest.fixture
def text(built: Mapping[str, bytes]) -> str:
    return built[CARD].decode()


def test_says_what_from_whom_how_good_how_private_how_to_load(text: str) -> None:
    for said in (
        "# hospital-a/cxr 1.0.0",
        "For research only. Not for clinical decisions.",
        "6 synthetic chest X-rays, 2 for each of 3 classes",
        "**Hospital A**",
        "| **this package** | convnet | 2 | 2 | 77.5 ± 3.5 % | 77.5 ± 3.5 % | 0.800 ± 0.000 |",
        "| COVID | 70.0 % | 50.0 % to 80.0 % | 90.0 % | 80.0 % to 95.0 % |",
        "**Verdict: passed.**",
        "| Membership inference, AUC | 0.52 | 0.48 to 0.56 | 0.6 | within |",
        "- *Membership inference, AUC*: what a stronger attack finds",
        "from ppdd_core import load_package",
        "| 0 | COVID | 1230 or more |",
        "| 2 | Normal | fewer than 20 |",
        "| parameter pruning (σ) | 0.1, similarity signed\\_ratio |",
        "general research use (DUO:0000042)",
        "- Last day of use: 2027-12-31",
    ):
        assert said in text, said


def test_loading_takes_three_lines(text: str) -> None:
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None and len(code[1].strip().splitlines()) == 3


def test_small_counts_are_not_told(text: str) -> None:
    assert "1234" not in text
    assert "| 1 | Lung\\_Opacity | fewer than 20 |" in text


def test_promises_nothing(text: str) -> None:
    assert not re.search("anonym", text, re.IGNORECASE)
    assert "proves that nobody can be recognised" in text


def test_every_baseline_stands_in_the_table(stated: Manifest, content: PackageContent) -> None:
    row = content.evaluation["summary"][0]
    summary = [
        {**row, "method": method}
        for method in ("distilled", "random_real", "k_centre", "mtt_unpruned")
    ]
    summary.append({**row, "method": "full_data", "images_per_class": None})
    summary.append({"method": "new_idea", "accuracy": {"mean": 0.5, "sd": None}})
    text = card.write_card(
        stated, evaluation={**content.evaluation, "summary": summary}, privacy=content.privacy
    )
    for words in (
        "| as many real images, drawn at random |",
        "| as many real images, chosen by k-centre |",
        "| distilled without parameter pruning (MTT) |",
        "| all real training images | convnet | all |",
        "| new\\_idea |",
        "| 50.0 % | – |",
    ):
        assert words in text, words


def test_without_an_evaluation_it_says_so(stated: Manifest, content: PackageContent) -> None:
    text = card.write_card(stated, evaluation={}, privacy=content.privacy)
    assert "No evaluation was run for this package." in text


def test_a_failed_verdict_stands_at_the_top_with_reasons_and_override(
    stated: Manifest, content: PackageContent
) -> None:
    measured = {**content.privacy["measurements"][0], "passed": False, "value": 0.7}
    privacy = {
        **content.privacy,
        "verdict": "failed",
        "reasons": ["membership inference may reach an AUC of 0.74"],
        "measurements": [measured],
        "initialisation": "real",
        "override": {"by": "steward", "reason": "Ethics board <b>12/26</b> agreed"},
    }
    text = card.write_card(stated, evaluation=content.evaluation, privacy=privacy)
    head = text[: text.index("## How good")]
    assert "The privacy verdict of this package is: failed." in head
    assert "- membership inference may reach an AUC of 0.74" in text
    assert "| 0.7 | 0.48 to 0.56 | 0.6 | **beyond** |" in text
    assert "**real images: each synthetic image started as the image of a patient**" in text
    assert (
        "**Released all the same** by steward, for this reason: Ethics board &lt;b&gt;12/26" in text
    )


HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://example.org/pixel.png)",
    "a | b | c",
    "`code`",
    "**bold** _it_ ~~no~~ # head",
    "https://example.org and www.example.org and me@example.org",
    "&lt;b&gt; &amp;",
    "[ref]: https://example.org",
    "$x$",
    "<https://example.org>",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_words_stay_words(stated: Manifest, content: PackageContent, name: str) -> None:
    classes = (name, "Normal", "Other")
    hostile = dataclasses.replace(
        stated,
        site_name=name,
        classes=classes,
        source={**stated.source, "classes": dict.fromkeys(classes)},
        software={"ppdd": name},
    )
    measured = {**content.privacy["measurements"][0], "title": name, "does_not_show": name}
    privacy = {**content.privacy, "reasons": [f"{name}\n# {name}"], "measurements": [measured]}
    row = {**content.evaluation["summary"][0], "architecture": name, "method": name}
    text = card.write_card(hostile, evaluation={"summary": [row]}, privacy=privacy)
    assert card.find_faults(text) == []
    plain = card.write_card(stated, evaluation={"summary": [row]}, privacy=content.privacy)
    assert text.count("\n#") == plain.count("\n#")
    for line in text.splitlines():
        if line.startswith("| 0 |"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4
    assert "https://" not in text and "www." not in text and "@" not in text


@pytest.mark.parametrize(
    "added",
    ["<b>", "</p>", "<!-- x -->", "<https://example.org>", "[a](https://x)", "![a](b)", "[a]: b"],
)
def test_finds_what_a_card_must_not_hold(text: str, added: str) -> None:
    assert card.find_faults(text) == []
    assert card.find_faults(text + "\n" + added) != []
