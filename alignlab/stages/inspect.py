"""inspect: the first training rows as a person reads them, before anything is trained; no weights are loaded."""

from __future__ import annotations

import html
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from alignlab.pipeline import Run
from alignlab.protocols import Array, Row
from alignlab.records import write_text
from alignlab.seeds import derive

WIDTH = 80
PAGE_LINES = 2000
"""lines of a row in the page"""
LONGEST = 800
"""characters of one line in the terminal"""
LEGEND = "* is scored; ¦ parts scored tokens, ↵ is a newline, ␣ a space at an end"

Context = tuple[list[int], list[int]]
"""the last token whose text is whole, and those after it that have begun a character"""


@dataclass(frozen=True)
class Token:
    """A token of a line."""

    text: str
    title: str
    """its id and what its edge has in every column"""
    special: bool


@dataclass
class Line:
    """Tokens that follow one another without a branch and whose edges have the same values."""

    indent: int
    """branches above it"""
    values: tuple[str, ...] | None
    """of the columns that differ within the row; None where nothing is scored"""
    tokens: list[Token]


def inspect(run: Run) -> list[str]:
    """Print the rows and write ``inspect.html``. It leaves nothing that another stage reads, so it is done anew each time."""
    config, text = run.config, run.text
    method = type(config.method).__name__
    title = f"inspect: the first rows that {method} trains on"
    blocks, page = (
        [title, LEGEND],
        [f"<h1>{html.escape(title)}</h1><p>Marked tokens are scored; touch one for its id and values.</p>"],
    )
    for number, row in enumerate(islice(config.method.rows(config.data.training(), text, config.seed), config.inspect.rows), 1):
        seen = config.method.vary(row, np.random.default_rng(derive(config.seed, "inspect", number)))
        head = [f"row {number}: {_counts(row)}", *_columns(row)]
        if seen is not row:
            head.append(f"each pass sees a variant of it, for instance one with {len(seen.source)} scored edges")
        names, most = beside(row), config.inspect.lines
        found = list(islice(lines(row, names, text.tokenizer), max(PAGE_LINES, most) + 1))
        blocks.append("\n".join(_plain(head, names, found, most, row)))
        page.append(_section(head, names, found, row))
    _show("\n\n".join(blocks) if len(blocks) > 2 else "inspect: there is nothing to train on")
    write_text(run.path("inspect.html"), _PAGE.format(title=html.escape(title), body="\n".join(page)))
    run.say(f"inspect: {run.path('inspect.html')}")
    return []


def _show(text: str) -> None:
    from rich.console import Console

    encoding = sys.stdout.encoding or "utf-8"
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line in text.encode(encoding, "replace").decode(encoding).split("\n"):
        console.print(line, style="green" if line.startswith("* ") else None)


def lines(row: Row, names: Sequence[str], tokenizer: Any) -> Iterator[Line]:
    """A row as lines, depth first, with the columns ``names`` beside them."""
    splitting = [row.columns[name] for name in names]
    children, edge_of = _children(row)
    special = set(getattr(tokenizer, "added_tokens_decoder", {})) | set(tokenizer.all_special_ids)

    def token_of(item: int) -> int:
        return int(row.tokens[item]) if item < len(row.tokens) else int(row.target[item - len(row.tokens)])

    line: Line | None = None
    stack: list[tuple[int, int, Context, bool]] = [(root, 0, ([], []), False) for root in reversed(children[-1])]
    while stack:
        item, indent, before, follows = stack.pop()
        edge, token, below = edge_of.get(item), token_of(item), children[item]
        piece, context = _piece(tokenizer, before, token, last=len(below) != 1)
        values = None if edge is None else tuple(f"{column[edge]:.4g}" for column in splitting)
        shown = Token(piece, f"token {token}{'' if edge is None else _title(row, edge)}", token in special)
        if line is not None and follows and line.values == values:
            line.tokens.append(shown)
        else:
            if line is not None:
                yield line
            line = Line(indent, values, [shown])
        alone = len(below) == 1
        stack += [(child, indent + (not alone), context, alone) for child in reversed(below)]
    if line is not None:
        yield line


def _children(row: Row) -> tuple[Mapping[int, list[int]], dict[int, int]]:
    """What follows each node, and the edge of each: nodes by index, edges to a token that is no node counted on from there."""
    count = len(row.tokens)
    node = {(int(p), int(t)): n for n, (p, t) in enumerate(zip(row.parent, row.tokens, strict=True))}
    edge_of: dict[int, int] = {}
    for e, pair in enumerate(zip(row.source.tolist(), row.target.tolist(), strict=True)):
        n = node.get(pair, -1)
        edge_of[n if n >= 0 and n not in edge_of else count + e] = e
    children: dict[int, list[int]] = defaultdict(list)
    for n, parent in enumerate(row.parent.tolist()):
        children[parent].append(n)
    for item, e in edge_of.items():
        if item >= count:
            children[int(row.source[e])].append(item)
    for below in children.values():
        below.sort(key=lambda item: edge_of.get(item, -1))
    return children, edge_of


def _piece(tokenizer: Any, before: Context, token: int, *, last: bool) -> tuple[str, Context]:
    """The text that a token adds after others, and what must be known of them for the next.

    A character may take several tokens: the one that completes it shows it.
    """
    done, begun = before
    text = tokenizer.decode([*done, *begun, token], skip_special_tokens=False)
    if not text.endswith("\ufffd"):
        return text[len(tokenizer.decode(done, skip_special_tokens=False)) :], ([token], [])
    if last or len(begun) > 3:
        return str(tokenizer.convert_ids_to_tokens(token)), ([token], [])
    return "", (done, [*begun, token])


def beside(row: Row) -> list[str]:
    """Columns to show beside the tokens: the first one, and those that differ other than at the ends of answers."""
    children, edge_of = _children(row)
    inside = [e for item, e in edge_of.items() if children[item]]

    def differs(column: Array) -> bool:
        none = 0 if column.dtype.kind == "f" else -1
        return len(np.unique(column)) > 1 and bool((column[inside] != none).any())

    return [name for i, (name, column) in enumerate(row.columns.items()) if i == 0 or differs(column)]


def _counts(row: Row) -> str:
    floor = f", floor {row.columns['floor'].sum():.4g}" if "floor" in row.columns else ""
    return f"{len(row.tokens)} nodes, {len(row.source)} scored edges, mass {row.mass:.4g}{floor}"


def _columns(row: Row) -> list[str]:
    """A line on the columns that are not shown beside the tokens."""
    shown, ends, everywhere = beside(row), [], []
    for name, column in row.columns.items():
        if name not in shown and len(np.unique(column)) <= 1:
            everywhere.append(f"{name} {column[0]:.4g}" if len(column) else name)
        elif name not in shown:
            ends.append(f"{name} (sum {column.sum():.4g})" if column.dtype.kind == "f" else name)
    said = [f"{where}: {', '.join(found)}" for where, found in (("at the ends", ends), ("everywhere", everywhere)) if found]
    return ["not shown beside the tokens: " + "; ".join(said)] if said else []


def _title(row: Row, edge: int) -> str:
    return "".join(f", {name} {column[edge]:.6g}" for name, column in row.columns.items())


def _visible(text: str) -> str:
    """Newlines and what does not print, made visible."""
    named = {"\n": "↵", "\t": "⇥"}
    return "".join(named.get(c) or (c if c.isprintable() else f"\\x{ord(c):02x}") for c in text)


def _left_out(shown: Sequence[Line], row: Row) -> str:
    more = len(row.source) - sum(len(line.tokens) for line in shown if line.values is not None)
    return f"... {more} more scored edges are left out"


def _plain(head: Sequence[str], names: Sequence[str], found: Sequence[Line], most: int, row: Row) -> list[str]:
    """A row for the terminal."""
    from rich.cells import cell_len, chop_cells

    kept = found[:most]
    cells = [list(line.values or [""] * len(names)) for line in kept]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    out = [part for line in head for part in textwrap.wrap(line, WIDTH)]
    if names:
        out.append(("  " + " ".join(n.rjust(w) for n, w in zip(names, widths, strict=True))).rstrip())
    for line, values in zip(kept, cells, strict=True):
        text = _ends(("¦" if line.values is not None else "").join(_visible(token.text) for token in line.tokens))
        if len(text) > LONGEST:
            half = LONGEST // 2
            text = f"{text[:half]} ... {len(text) - 2 * half} characters left out ... {text[-half:]}"
        lead = ("* " if line.values is not None else "  ") + " ".join(v.rjust(w) for v, w in zip(values, widths, strict=True))
        lead += "  " * (1 + min(line.indent, 8))
        chopped = chop_cells(text, max(20, WIDTH - cell_len(lead))) or [""]
        out += [lead + chopped[0], *(" " * cell_len(lead) + part for part in chopped[1:])]
    return [*out, _left_out(kept, row)] if len(found) > len(kept) else out


def _ends(text: str) -> str:
    """A text whose spaces at the ends can be seen."""
    body = text.strip(" ")
    if not body:
        return "␣" * len(text)
    start = len(text) - len(text.lstrip(" "))
    return "␣" * start + body + "␣" * (len(text) - start - len(body))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>
:root{{color-scheme:light dark}}
body{{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:0 auto;padding:1rem}}
h1{{font-size:1.4rem}}h2{{font-size:1.1rem;margin:2rem 0 0}}p{{margin:.2rem 0 .6rem}}
.wide{{overflow-x:auto}}table{{border-collapse:collapse}}
th,td{{padding:.1rem .6rem .1rem 0;vertical-align:top;text-align:right;font-variant-numeric:tabular-nums}}
td:last-child{{text-align:left;font-family:ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;min-width:14rem}}
.scored{{background:#3a83;outline:1px solid #3a8a;outline-offset:-1px;border-radius:2px}}
.special{{color:#a30}}@media(prefers-color-scheme:dark){{.special{{color:#fa7}}}}
</style></head><body>
{body}
</body></html>
"""


def _section(head: Sequence[str], names: Sequence[str], found: Sequence[Line], row: Row) -> str:
    """A row for the page."""
    kept = found[:PAGE_LINES]
    body = [f"<h2>{html.escape(head[0])}</h2>", *(f"<p>{html.escape(line)}</p>" for line in head[1:])]
    body.append("<div class='wide'><table><tr>" + "".join(f"<th>{html.escape(n)}</th>" for n in names) + "<th></th></tr>")
    for line in kept:
        cells = "".join(f"<td>{v}</td>" for v in line.values or [""] * len(names))
        tokens = "".join(_span(token, line.values is not None) for token in line.tokens)
        body.append(f"<tr>{cells}<td style='padding-left:{min(line.indent, 12)}rem'>{tokens}</td></tr>")
    body.append("</table></div>")
    return "\n".join([*body, f"<p>{_left_out(kept, row)}</p>"] if len(found) > len(kept) else body)


def _span(token: Token, scored: bool) -> str:
    classes = " ".join(name for name, wanted in (("scored", scored), ("special", token.special)) if wanted)
    text = html.escape(_visible(token.text)).replace("↵", "↵\n")
    return f"<span class='{classes}' title='{html.escape(token.title, quote=True)}'>{text}</span>"
