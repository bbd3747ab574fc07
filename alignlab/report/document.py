"""A report as a list of blocks, and how it is written as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

MOST_ROWS = 400
"""rows of a table that are shown"""


@dataclass(frozen=True)
class Heading:
    """A title: of a section (2), or of a part of one (3)."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    lead: bool = False
    """whether it is what a hurried reader shall read"""


@dataclass(frozen=True)
class Code:
    """Something to copy, or to read letter by letter."""

    text: str


@dataclass(frozen=True)
class Facts:
    """What is called how: names and values."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows under a header; columns of numbers are right-aligned."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def plain(self) -> str:
        """For a terminal: columns padded to their widest cell."""
        lines = [list(self.header), *[list(row) for row in self.rows]]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        return "\n".join(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def narrow(self, width: int) -> Table:
        """The table with as many of its first columns as fit a terminal, two at least."""
        kept = len(self.header)
        while kept > 2 and max(map(len, Table(self.header[:kept], [r[:kept] for r in self.rows]).plain().splitlines())) > width:
            kept -= 1
        return Table(self.header[:kept], [row[:kept] for row in self.rows], self.caption)

    def shown(self) -> tuple[Sequence[Sequence[str]], str]:
        """The rows of a report, and what to say of those that are left out."""
        more = len(self.rows) - MOST_ROWS
        return self.rows[:MOST_ROWS], f"{more} more rows are left out here." if more > 0 else ""

    def numeric(self) -> list[bool]:
        """Which columns hold numbers; the first names the row."""
        number = re.compile(r"-?$|[-+]?(\d[\d,]*(\.\d+)?(e[-+]?\d+)?|nan|inf)%?([\s\[].*)?$")
        return [i > 0 and all(number.match(row[i]) for row in self.rows) for i in range(len(self.header))]


@dataclass(frozen=True)
class Image:
    """A plot, with the words for someone who cannot see it."""

    path: Path
    alt: str
    caption: str = ""
    """words below it; empty = those of ``alt``"""


@dataclass(frozen=True)
class Link:
    """Another page of the run."""

    path: Path
    text: str


@dataclass(frozen=True)
class Column:
    """Texts of one model."""

    title: str
    note: str
    texts: Sequence[str]


@dataclass(frozen=True)
class Samples:
    """Completions of one prompt side by side, a column per model."""

    title: str
    request: str
    columns: Sequence[Column]


@dataclass(frozen=True)
class Fold:
    """Blocks that are read when asked for; printed in any case."""

    title: str
    blocks: Sequence[Block]


Block = Union[Heading, Text, Code, Facts, Table, Image, Link, Samples, Fold]  # noqa: UP007 - Fold refers to it before it exists


def flat(blocks: Sequence[Block]) -> Iterator[Block]:
    """All blocks, those inside folds too."""
    for block in blocks:
        yield block
        if isinstance(block, Fold):
            yield from flat(block.blocks)


def cut(text: str, most: int) -> str:
    """The text, or its beginning and how much more there is."""
    return text if len(text) <= most else f"{text[:most]} … [{len(text) - most} more characters]"


def markdown(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The report as Markdown; images are linked relative to ``folder``."""
    return "\n\n".join([f"# {_literal(title)}", *(_part(block, folder) for block in blocks)]) + "\n"


def _part(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_literal(text)}"
        case Text(text, lead):
            return f"**{_literal(text)}**" if lead else _literal(text)
        case Code(text):
            return _fenced(text)
        case Facts(items):
            return "\n".join(f"- {_literal(name)}: {_literal(value)}" for name, value in items)
        case Image(path, alt, caption):
            link = f"![{_literal(' '.join(alt.split()))}]({path.relative_to(folder).as_posix().replace(' ', '%20')})"
            return f"{link}\n\n{_literal(caption)}" if caption else link
        case Link(path, text):
            return f"[{_literal(path.name)}]({path.relative_to(folder).as_posix().replace(' ', '%20')}): {_literal(text)}"
        case Table():
            return _table(block)
        case Samples(title, request, columns):
            parts = [f"### {_literal(title)}", _fenced(request)]
            for column in columns:
                parts.append(f"{_literal(column.title)}: {_literal(column.note)}")
                parts += [_fenced(text) for text in column.texts]
            return "\n\n".join(parts)
        case Fold(title, inner):
            body = "\n\n".join(_part(part, folder) for part in inner)
            return f"<details><summary>{_literal(title)}</summary>\n\n{body}\n\n</details>"


def _table(table: Table) -> str:
    rows, left_out = table.shown()

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_literal(cell).replace("|", "\\|") for cell in cells) + " |"

    rule = "| " + " | ".join("---:" if numeric else "---" for numeric in table.numeric()) + " |"
    caption = " ".join(filter(None, [table.caption, left_out]))
    head = [_literal(caption), ""] if caption else []
    return "\n".join([*head, line(table.header), rule, *map(line, rows)])


def _literal(text: str) -> str:
    """On one line, with what Markdown would read as markup escaped; an underscore inside a word is none."""
    return re.sub(r"([\\`*<]|\](?=[(\[])|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
