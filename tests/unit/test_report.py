"""Blocks of a report as Markdown and as a page: what must hold whatever they contain."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import Page, check_page

from alignlab.report import plots, webpage
from alignlab.report.document import (
    MOST_ROWS,
    Code,
    Column,
    Facts,
    Fold,
    Heading,
    Image,
    Samples,
    Table,
    Text,
    cut,
    flat,
    markdown,
)

NASTY = "<script>alert('x')</script> & \"quoted\" `code` | a_b *c* ](http://x.y)"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    steps = [{"step": i, "loss": 3.0 - i / 10, "floor": 1.0} for i in range(1, 9)]
    return plots.curve(steps, tmp_path / "plots" / "a curve.png")


def blocks(image: Path, text: str = NASTY) -> list:
    table = Table(["", text, "n"], [[text, text, "1.5 [1.2, 1.7]"], ["b", "", "-"]], text)
    samples = Samples(text, text, [Column("before", text, [text, ""]), Column("after", text, [text])])
    return [
        Text(text, lead=True),
        Heading(text),
        Facts([(text, text)]),
        Code(text),
        Heading(text, 3),
        table,
        Image(image, text),
        Fold(text, [Text(text), Image(image, text, "below"), table]),
        Heading("Second"),
        samples,
    ]


def test_a_page_of_every_block_keeps_the_rules_whatever_it_says(image, tmp_path):
    page = check_page(webpage.webpage(NASTY, blocks(image), tmp_path))
    assert page.headings[:3] == [(1, NASTY), (2, NASTY), (3, NASTY)]
    assert page.words.count("alert('x')") == 26
    assert len(page.all("img")) == 2
    assert len(page.all("details")) == 1
    assert page.tables[0][1] == [NASTY, NASTY, "1.5 [1.2, 1.7]"]


def test_the_page_forbids_itself_to_load_anything(tmp_path):
    policy = next(a["content"] for a in Page(webpage.webpage("t", [Text("x")], tmp_path)).all("meta") if a.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@pytest.mark.parametrize(
    "text",
    ["\n\n two lines\n  and a tab\t.\n", "  before and behind  ", "<b>&amp;</b>", "אבג", "</pre><pre>", "\n", "a\u0301\u200b"],
)
def test_a_sample_is_shown_letter_by_letter(text, tmp_path):
    page = Page(webpage.webpage("t", [Samples("p", "ask", [Column("before", "", [text])])], tmp_path))
    assert page.texts[1].removeprefix("\n") == text


def test_what_cannot_be_seen_is_pictured(tmp_path):
    page = Page(webpage.webpage("t", [Samples("p", "ask", [Column("before", "", ["", "a\x00\r\x7fb", " x"])])], tmp_path))
    assert page.texts[1:3] == ["(empty)", "\na␀␍␡b"]
    assert len(page.all("mark")) == 1


def test_a_long_text_is_cut_with_a_mark():
    assert cut("x" * 10, 10) == "x" * 10
    assert cut("x" * 1234, 1000) == "x" * 1000 + " … [234 more characters]"


def test_a_page_stays_small_and_names_what_it_leaves_out(tmp_path):
    images = []
    for i in range(12):
        path = tmp_path / "plots" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (100).to_bytes(4, "big") * 2 + bytes(300_000))
        images.append(Image(path, f"plot {i}"))
    wide = Table(["a", "b"], [[f"row {i}", "é" * 2000] for i in range(MOST_ROWS + 100)])
    text = webpage.webpage("t", [Heading("Plots"), *images, Fold("more", [wide, wide]), Heading("Last"), Text("the end")], tmp_path)
    page = check_page(text)
    shown = len(page.all("img"))
    assert 0 < shown < 12
    assert all(f"plots/{i}.png" in page.words for i in range(shown, 12))
    assert "a table that report.md has" in page.words
    assert "the end" in page.words


def test_a_long_table_says_how_many_rows_it_leaves_out(tmp_path):
    long = Table(["a", "b"], [[f"row {i}", "1"] for i in range(MOST_ROWS + 100)], "All of them.")
    page, text = Page(webpage.webpage("t", [long], tmp_path)), markdown("t", [long], tmp_path)
    assert len(page.tables[0]) == MOST_ROWS + 1
    assert text.count("\n| row") == MOST_ROWS
    assert "All of them. 100 more rows are left out here." in text
    assert "All of them. 100 more rows are left out here." in page.words


def test_numbers_stand_to_the_right_and_names_to_the_left(tmp_path):
    table = Table(
        ["", "value", "range", "version", "where"], [["1", "1,234", "0.1 → 2e-05", "2.4.6", "x"], ["2", "-", "-0.5%", "", ""]]
    )
    assert table.numeric() == [False, True, True, False, False]
    assert "| --- | ---: | ---: | --- | --- |" in markdown("t", [table], tmp_path)
    page = Page(webpage.webpage("t", [table], tmp_path))
    assert [a.get("class") for a in page.all("td")[1:5]] == ["number", "number", None, None]


def test_markdown_is_read_as_it_was_meant(image, tmp_path):
    text = markdown("t", blocks(image), tmp_path)
    for link in re.findall(r"!\[.*?\]\(([^)]*)\)", text.replace("\\](", "")):
        assert (tmp_path / link.replace("%20", " ")).is_file()
    outside = re.sub(r"^(`{3,})\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"(?<!\\)<(?!/?(details|summary)>)", outside)
    rows = [line for line in outside.splitlines() if line.startswith("| ")]
    assert {len(re.split(r"(?<!\\)\|", row)) - 2 for row in rows} == {3}
    assert "````\na\n```\nb\n````" in markdown("t", [Code("a\n```\nb")], tmp_path)


def test_blocks_inside_folds_are_found(image):
    assert sum(isinstance(block, Image) for block in flat(blocks(image))) == 2


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_every_colour_of_text_can_be_read_on_every_ground(scheme):
    style = (Path(webpage.__file__).parent / "style.css").read_text()
    light, dark, printed = (dict(re.findall(r"--(\w+): (#\w+)", part)) for part in re.findall(r":root \{(.*?)\}", style, re.DOTALL))
    colours = {"light": light, "dark": light | dark, "print": light | printed}[scheme]

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ink in ("ink", "soft", "link"):
        for ground in ("paper", "wash"):
            high, low = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


def test_curves_of_a_method_s_own_logs_take_what_is_missing(tmp_path):
    rows = [{"step": i, "loss": 1.0, "a": None if i % 2 else i / 10, "b/c": -i} for i in range(1, 30)]
    assert plots.logs(rows, ["a", "b/c"], tmp_path / "logs.png").stat().st_size > 3000
