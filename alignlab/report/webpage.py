"""A report as one HTML file that needs no network, no script and less than three megabytes."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from alignlab.report.document import Block, Code, Facts, Fold, Heading, Image, Link, Samples, Table, Text

MOST_BYTES = 2_800_000
"""of the whole page"""
MOST_IMAGE_BYTES = 2_200_000
"""of its images"""

WIDE, NARROWEST = 800, 300
"""pixels from which on a plot has a line of the grid to itself; on the narrowest screen"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""what a browser may load for the page: nothing"""


def webpage(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The report as HTML. What would make it too large is named instead, by its place in ``folder``."""
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    page = _Page(folder)
    head = (
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<meta http-equiv='Content-Security-Policy' content=\"{POLICY}\">"
        f"<meta name='color-scheme' content='light dark'><title>{html.escape(title)}</title><style>\n{style}</style>"
    )
    sections = "\n".join(page.section(number, part) for number, part in enumerate(_sections(blocks)))
    titles = [block.text for block in blocks if isinstance(block, Heading) and block.level == 2]
    first = 1 if blocks and not _opens(blocks[0]) else 0
    links = "".join(f"<li><a href='#s{i + first}'>{html.escape(text)}</a></li>" for i, text in enumerate(titles))
    return (
        f"<!doctype html>\n<html lang='en'><head>{head}</head>\n<body>\n<a class='skip' href='#main'>Skip to the report</a>\n"
        f"<header><h1>{html.escape(title)}</h1></header>\n<nav aria-label='Contents'><ol>{links}</ol></nav>\n"
        f"<main id='main' tabindex='-1'>\n{sections}\n</main>\n</body></html>\n"
    )


def _opens(block: Block) -> bool:
    return isinstance(block, Heading) and block.level == 2


def _sections(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks from one section's heading to the next."""
    sections: list[list[Block]] = []
    for block in blocks:
        if _opens(block) or not sections:
            sections.append([])
        sections[-1].append(block)
    return sections


class _Page:
    """Renders blocks while there is room."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._room, self._image_room = MOST_BYTES, MOST_IMAGE_BYTES

    def section(self, number: int, blocks: Sequence[Block]) -> str:
        """A section under its heading, which names it for a screen reader."""
        if not _opens(blocks[0]):
            return f"<section>\n{self._blocks(blocks)}\n</section>"
        heading = f"<h2 id='s{number}'>{html.escape(blocks[0].text)}</h2>"  # type: ignore[union-attr]
        return f"<section aria-labelledby='s{number}'>\n{heading}\n{self._blocks(blocks[1:])}\n</section>"

    def _blocks(self, blocks: Sequence[Block]) -> str:
        """Blocks one after the other; plots that follow each other in a grid."""
        parts = []
        for are_images, group in groupby(blocks, lambda block: isinstance(block, Image)):
            inner = "\n".join(map(self.block, group))
            parts.append(f"<div class='plots'>\n{inner}\n</div>" if are_images else inner)
        return "\n".join(parts)

    def block(self, block: Block) -> str:
        """One block, or the word that it is left out."""
        if isinstance(block, Link):
            place = quote(block.path.relative_to(self._folder).as_posix())
            return f"<p><a href='{place}'>{html.escape(block.path.name)}</a>: {html.escape(block.text)}</p>"
        if isinstance(block, Fold):
            return f"<details><summary>{html.escape(block.title)}</summary>\n{self._blocks(block.blocks)}\n</details>"
        size = 4 * block.path.stat().st_size // 3 if isinstance(block, Image) else 0
        found = _rendered(block) if size <= self._image_room else ""
        needed = len(found.encode())
        if not found or needed > self._room:
            return f"<p class='note'>Left out here, to keep this file small: {html.escape(self._where(block))}.</p>"
        self._room -= needed
        self._image_room -= size
        return found

    def _where(self, block: Block) -> str:
        if isinstance(block, Image):
            return f"{block.path.relative_to(self._folder).as_posix()} ({block.caption or block.alt})"
        return f"a {type(block).__name__.lower()} that report.md has"


def _rendered(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text, lead):
            return f"<p{' class=lead' if lead else ''}>{html.escape(text)}</p>"
        case Code(text):
            return _pre(text)
        case Facts(items):
            pairs = "".join(f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in items)
            return f"<dl>{pairs}</dl>"
        case Image(path, alt, caption):
            return _figure(path.read_bytes(), alt, caption)
        case Table():
            return _table(block)
        case Samples():
            return _samples(block)
    raise TypeError(f"no block of a report: {block!r}")


def _pre(text: str) -> str:
    """Text letter by letter: control characters as their pictures, space at either end marked."""
    pictured = re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f]", lambda found: chr(0x2421 if found[0] == "\x7f" else 0x2400 + ord(found[0])), text
    )
    if not pictured:
        return "<pre><i>(empty)</i></pre>"
    marked = re.sub(r"\A\s+|\s+\Z", lambda found: f"\x00{found[0]}\x01", pictured)
    shown = html.escape(marked).replace("\x00", "<mark>").replace("\x01", "</mark>")
    return f"<pre dir='auto'>\n{shown}</pre>"  # a browser drops a line break that comes first


def _figure(content: bytes, alt: str, caption: str) -> str:
    """A plot; a wide one stays large enough to read on a narrow screen, and is scrolled."""
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    size = f"width='{width}' height='{height}' style='min-width:{width // 2}px'"
    image = f"<img src='data:image/png;base64,{base64.b64encode(content).decode()}' {size} alt='{html.escape(alt)}'>"
    below = f"<figcaption{'' if caption else ' aria-hidden=true'}>{html.escape(caption or alt)}</figcaption>"
    kind = " class='broad'" if width > WIDE else ""
    reach = " tabindex='0' role='group' aria-label='Plot'" if width // 2 > NARROWEST else ""  # what is scrolled needs the keyboard
    return f"<figure{kind}><div class='plot'{reach}>{image}</div>{below}</figure>"


def _samples(samples: Samples) -> str:
    columns = []
    for column in samples.columns:
        texts = "".join(f"<li>{_pre(text)}</li>" for text in column.texts)
        columns.append(
            f"<div><h4>{html.escape(column.title)}</h4><p class='note'>{html.escape(column.note)}</p><ol>{texts}</ol></div>"
        )
    return (
        f"<h3>{html.escape(samples.title)}</h3><div class='request'>{_pre(samples.request)}</div>"
        f"<div class='columns'>{''.join(columns)}</div>"
    )


def _table(table: Table) -> str:
    numeric = table.numeric()
    kinds = [" class='number'" if is_number else "" for is_number in numeric]
    rows, left_out = table.shown()

    def top(i: int, cell: str) -> str:
        return f"<th scope='col'{kinds[i]}>{_breakable(cell)}</th>" if cell else "<td></td>"

    def line(row: Sequence[str]) -> str:
        cells = "".join(f"<td{kinds[i]}>{_cell(cell, numeric[i])}</td>" for i, cell in enumerate(row) if i)
        return f"<tr><th scope='row'>{_breakable(row[0])}</th>{cells}</tr>"

    caption = html.escape(" ".join(filter(None, [table.caption, left_out])))
    name = html.escape(table.caption or table.header[0] or "Table")
    head = f"<thead><tr>{''.join(top(i, cell) for i, cell in enumerate(table.header))}</tr></thead>"
    kind = "wide" if any(numeric) else "wide prose"
    return (
        f"<div class='{kind}' tabindex='0' role='region' aria-label='{name}'><table>"
        f"{f'<caption>{caption}</caption>' if caption else ''}{head}<tbody>{''.join(map(line, rows))}</tbody></table></div>"
    )


def _breakable(name: str) -> str:
    """A name that may be broken after the marks that join its parts."""
    return re.sub(r"([_/.])(?=\w)", r"\1<wbr>", html.escape(name))


def _cell(text: str, numeric: bool) -> str:
    """A cell's content; an interval stays in one piece on a narrow screen."""
    escaped = html.escape(text)
    return re.sub(r"\[.*\]", lambda found: f"<span class='interval'>{found[0]}</span>", escaped) if numeric else escaped
