"""A report as a list of blocks, written as Markdown and as one self-contained HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    """A section's title."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Code:
    """Something to copy."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows under a header; numbers are right-aligned."""

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


@dataclass(frozen=True)
class Image:
    """A plot, with the words for someone who cannot see it."""

    path: Path
    alt: str


Block = Heading | Text | Code | Table | Image

_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem;border-bottom:1px solid #8888}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.3rem 0}th,td{padding:.2rem .8rem .2rem 0;text-align:right;border-bottom:1px solid #8884}
th:first-child,td:first-child{text-align:left;word-break:break-word}
img{max-width:100%;height:auto;background:#fff;border-radius:4px}
pre{overflow-x:auto;background:#8882;padding:.6rem;border-radius:4px}
@media print{body{max-width:none}img{break-inside:avoid}}
"""


def markdown(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The report as Markdown; images are linked relative to ``folder``."""
    parts = [f"# {title}"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"## {text}")
            case Text(text):
                parts.append(text)
            case Code(text):
                parts.append(f"```\n{text}\n```")
            case Image(path, alt):
                parts.append(f"![{alt}]({path.relative_to(folder).as_posix()})")
            case Table(header, rows, caption):
                line = lambda cells: "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"  # noqa: E731
                rule = "| --- |" + " ---: |" * (len(header) - 1)
                parts.append("\n".join([*([caption, ""] if caption else []), line(header), rule, *map(line, rows)]))
    return "\n\n".join(parts) + "\n"


def webpage(title: str, blocks: Sequence[Block]) -> str:
    """The report as one HTML file that needs no network."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    for block in blocks:
        match block:
            case Heading(text):
                body.append(f"<h2>{html.escape(text)}</h2>")
            case Text(text):
                body.append(f"<p>{html.escape(text)}</p>")
            case Code(text):
                body.append(f"<pre tabindex='0'>{html.escape(text)}</pre>")
            case Image(path, alt):
                data = base64.b64encode(path.read_bytes()).decode()
                body.append(f"<p><img src='data:image/png;base64,{data}' alt='{html.escape(alt, quote=True)}'></p>")
            case Table(header, rows, caption):
                body.append(_html_table(header, rows, caption))
    head = "<meta charset='utf-8'><meta name='viewport' content='width=device-width,initial-scale=1'>"
    head += f"<title>{html.escape(title)}</title>"
    return (
        f"<!doctype html>\n<html lang='en'><head>{head}<style>{_STYLE}</style></head><body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    top = "".join(f"<th scope='col'>{html.escape(cell)}</th>" for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<div class='wide' tabindex='0'><table>{title}<thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"
