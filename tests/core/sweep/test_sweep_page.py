"""Both forms of a report say the same, load nothing, and keep what comes from outside as text."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

from ppdd_core.package.previews import draw_image
from ppdd_core.sweep.page import (
    Block,
    Drawing,
    Heading,
    Paragraph,
    Picture,
    Strip,
    Table,
    files,
    to_html,
    to_markdown,
)
from ppdd_core.sweep.svg import Point, Series, plot
from tests.core.sweep.reading import Page

HOSTILE = '<script>alert(1)</script> | `x` [a](http://b) & "c"'


def grey_png() -> bytes:
    import numpy as np

    return draw_image(np.full((4, 4), 128, dtype=np.uint8))


def blocks() -> list[Block]:
    drawing = plot("t", [Series(HOSTILE, [Point(1, 1)])], x="x", y="y")
    return [
        Heading(HOSTILE),
        Paragraph(HOSTILE),
        Paragraph(HOSTILE, code=True),
        Table(["what", "n"], [[HOSTILE, "1"], ["b", "2"]], frozenset({1}), HOSTILE),
        Drawing("a-plot", drawing, HOSTILE),
        Strip(HOSTILE, [Picture("a-picture", grey_png(), "step 1")]),
    ]


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    text = to_html(HOSTILE, blocks())
    page = Page(text)
    assert page.tags.isdisjoint({"script", "link", "iframe", "object", "form"})
    assert [source.split(",")[0] for source in page.sources] == ["data:image/png;base64"]
    assert base64.b64decode(page.sources[0].split(",")[1]) == grey_png()
    assert page.text.count("alert(1)") >= 6
    assert "http://b" not in " ".join(page.links)
    assert page.tables == [[["what", "n"], [HOSTILE, "1"], ["b", "2"]]]
    HTMLParser().feed(text)


def test_markdown_keeps_tables_whole_and_names_its_pictures() -> None:
    text = to_markdown("A & B", blocks(), folder="figures")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    for row in rows:
        assert row.replace("\\|", "").count("|") == 3
    outside_code = [line for line in text.splitlines() if not line.startswith("`")]
    assert "<" not in "".join(outside_code).replace("\\<", "")
    assert [name for name, _ in files(blocks())] == ["a-plot.svg", "a-picture.png"]
    for name, _ in files(blocks()):
        assert f"(figures/{name})" in text
