"""The token microscope: what a judgment does to the probability of every token of a response, to look at."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.evaluate.detection import THRESHOLDS, Inspected, Quality, curve, detected, levels, log_ratios, with_gold
from alignlab.report import webpage
from alignlab.report.document import Table, cut
from alignlab.report.token_plots import COOL, METRICS, OPACITY, STEPS, WARM, parted, rgb, shade, visible

MOST_RESPONSES = 300
"""on a page"""
LONGEST_NAME, LONGEST_TEXT = 120, 4000
"""characters of a name; of an instruction or a judgment"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""what a browser may load for the page: nothing"""

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300, 170, 28, 8, 8, 22
"""of a chart on the page: its size, and the room about its axes"""


# --- the page --------------------------------------------------------------------------------------------------------


def microscope(models: Mapping[str, Sequence[Inspected]], threshold: float, title: str) -> str:
    """One HTML file that needs no network: every response with its tokens tinted by their ratio, and a slider for the threshold.

    Without scripts it shows the given threshold. At most ``MOST_RESPONSES`` responses, and no more than fit
    ``webpage.MOST_BYTES``; the figures are of all. A response may hold any text: it is shown, never run.

    Args:
        models: ``before`` and perhaps ``after`` -> the same responses in the same order; ValueError otherwise.
        threshold: a ratio of probabilities, above 0.
        title: of the page.
    """
    responses = list(zip(*models.values(), strict=True))
    for same in responses:
        if len({(item.name, *item.pieces) for item in same}) > 1:
            raise ValueError(f"{same[0].name}: the models' responses are not the same")
    stops = sorted({*THRESHOLDS, threshold})
    at = stops.index(threshold)
    curves = {name: curve(items, stops) for name, items in models.items() if with_gold(items)}
    figures = [_figures(items, curves.get(name), stops) for name, items in models.items()]
    data = {"stops": [f"{stop:g}" for stop in stops], "x": [round(_x(stop, stops), 1) for stop in stops], "figures": figures}
    top = f"{_intro(models, bool(curves))}\n{_controls(list(models), data, at, bool(curves))}\n"
    if curves:
        top += _charts(models, curves, stops, at)
    room = webpage.MOST_BYTES - len(_page(title, list(models), top, data).encode())
    articles: list[str] = []
    tokens: list[list[list[float | None]]] = []
    left_out: list[str] = []
    for number, same in enumerate(responses, 1):
        if len(articles) < MOST_RESPONSES:
            article = _response(number, list(models), same, threshold)
            values = [_values(item, stops) for item in same]
            size = len(article.encode("utf-8", "replace")) + len(json.dumps(values))
            if size <= room:
                room -= size
                articles.append(article)
                tokens += values
                continue
        left_out.append(same[0].name)
    below = _left_out(left_out, len(responses)) + "\n".join(articles)
    return _page(title, list(models), f"{top}<h2 id='responses'>Responses</h2>\n{below}", data | {"tokens": tokens})


def _page(title: str, names: Sequence[str], content: str, data: Mapping[str, Any]) -> str:
    """The file: styles, content, data and script."""
    here = Path(__file__).parent
    style = "".join((here / name).read_text(encoding="utf-8") for name in ("style.css", "microscope.css"))
    script = (here / "microscope.js").read_text(encoding="utf-8")
    embedded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    name = html.escape(visible(cut(title, LONGEST_NAME)))
    page = (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<meta http-equiv='Content-Security-Policy' content=\"{POLICY}\">"
        f"<meta name='color-scheme' content='light dark'><title>{name}</title>"
        f"<style>\n{style}{_tints()}{_switches(len(names))}</style></head>\n"
        "<body class='microscope'>\n<a class='skip' href='#responses'>Skip to the responses</a>\n"
        f"<header><h1>{name}</h1></header>\n<main>\n{content}\n</main>\n"
        "<div id='tip' role='status' hidden></div>\n"
        f"<script type='application/json' id='data'>{embedded}</script>\n<script>\n{script}</script>\n</body></html>\n"
    )
    return page.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be written


def _tints() -> str:
    """A class of each tint: w1 to w5 warm, c1 to c5 cool."""
    return "".join(
        f".{letter}{step} {{ background-color: rgb({' '.join(map(str, rgb(colour)))} / {opacity}); }}\n"
        for letter, colour in (("w", WARM), ("c", COOL))
        for step, opacity in enumerate(OPACITY, 1)
    )


def _switches(count: int) -> str:
    """Which models are shown, by the chosen radio button."""
    return "".join(f"body:has(#only{i}:checked) .model:not(.m{i}) {{ display: none; }}\n" for i in range(count))


def _figures(items: Sequence[Inspected], qualities: Sequence[Quality] | None, stops: Sequence[float]) -> list[list[str]]:
    """At each threshold, in words: tokens detected, their share of all; precision, recall and F1 where known."""
    found = [level for item in items for level in levels(item, stops)]
    rows = []
    for i in range(len(stops)):
        count = sum(level > i for level in found)
        rows.append([str(count), f"{100 * count / max(len(found), 1):.1f}%"])
        if qualities:
            rows[-1] += [f"{value:.3f}" for value in qualities[i]]
    return rows


def _values(item: Inspected, stops: Sequence[float]) -> list[list[float | None]]:
    """For the script: log p without and with the judgment, and the level, of each token; null where p is 0."""
    rounded = [[round(p, 4) if math.isfinite(p) else None for p in column] for column in (item.plain, item.judged)]
    return [*rounded, [*levels(item, stops)]]


def _intro(models: Mapping[str, Sequence[Inspected]], known: bool) -> str:
    """What is seen here, and the legend."""
    items = next(iter(models.values()), [])
    tokens = sum(len(item.pieces) for item in items)
    steps = [*(f"c{step}" for step in range(5, 0, -1)), "", *(f"w{step}" for step in range(1, 6))]
    bar = "".join(f"<span class='{step}'></span>" for step in steps)
    wrong = f"; {len(with_gold(items))} of the responses have their wrong tokens known" if known else ""
    gold = "<li><span class='g'>wrong</span> known to be wrong</li>" if known else ""
    return (
        "<p class='lead'>Each response is scored twice: after the instruction alone, and after the instruction with the judgment. "
        "A token is detected as wrong where the judgment makes it more than <i>threshold</i> times as likely.</p>\n"
        f"<p class='note'>{len(items)} responses, {tokens} tokens{wrong}.</p>\n"
        "<div class='legend'><div><div class='scale' role='img' aria-label='Tints from blue, less likely with the judgment, "
        f"to orange, likelier with it'>{bar}</div><div class='ends'><span>{STEPS[-1]:g}× less likely</span><span>no change</span>"
        f"<span>{STEPS[-1]:g}× likelier</span></div></div><ul><li><span class='d w4'>detected</span> above the threshold</li>{gold}"
        "</ul></div>"
    )


def _controls(names: Sequence[str], data: Mapping[str, Any], at: int, known: bool) -> str:
    """Slider, switch and figures; they stay in sight."""
    header = ["detected", "of all", *(METRICS if known else [])]
    head = "".join(f"<th scope='col' class='number'>{name}</th>" for name in header)
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(visible(name))}</th>"
        + "".join(f"<td class='number'>{cell}</td>" for cell in [*data["figures"][i][at], *[""] * len(header)][: len(header)])
        + "</tr>"
        for i, name in enumerate(names)
    )
    choices = [("both", "all" if len(names) > 2 else "both"), *((f"only{i}", html.escape(visible(n))) for i, n in enumerate(names))]
    radios = "".join(
        f"<label><input type='radio' name='which' id='{key}'{' checked' if key == 'both' else ''}> {label}</label>"
        for key, label in choices
    )
    return (
        "<div class='bar' role='region' aria-label='Threshold and figures'><div class='dials'>"
        "<div class='dial'><label for='threshold'>Threshold "
        f"<output for='threshold' id='value'>{data['stops'][at]}</output></label>"
        f"<input type='range' id='threshold' min='0' max='{len(data['stops']) - 1}' step='1' value='{at}' hidden>"
        "<noscript>(the slider needs JavaScript)</noscript></div>"
        + (f"<fieldset><legend>Model</legend>{radios}</fieldset>" if len(names) > 1 else "")
        + f"</div><table id='figures'><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


# --- curves on the page ----------------------------------------------------------------------------------------------


def _x(threshold: float, stops: Sequence[float]) -> float:
    """Where a threshold stands in a chart: logarithmic from the first to the last."""
    share = math.log(threshold / stops[0]) / math.log(stops[-1] / stops[0])
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(value: float) -> float:
    return TOP + (1 - value) * (HEIGHT - TOP - BOTTOM)


def _charts(
    models: Mapping[str, Sequence[Inspected]], curves: Mapping[str, Sequence[Quality]], stops: Sequence[float], at: int
) -> str:
    """A chart of each metric against the threshold, and all figures as a table."""
    charts = "".join(_chart(name, i, curves, stops, at) for i, name in enumerate(METRICS))
    best = {name: max(zip(values, stops, strict=True), key=lambda pair: pair[0].f1) for name, values in curves.items()}
    words = "; ".join(f"{name} {quality.f1:.3f} at {stop:g}" for name, (quality, stop) in best.items())
    header = ["threshold", *(f"{name}: {metric}" for name in curves for metric in ("detected", *METRICS))]
    counts = {name: _figures(models[name], curves[name], stops) for name in curves}
    rows = [
        [f"{stop:g}", *(cell for name in curves for cell in (counts[name][i][0], *counts[name][i][2:]))]
        for i, stop in enumerate(stops)
    ]
    table = webpage._table(
        Table(header, rows, "Over all tokens of the responses with known wrong tokens; detected: of all responses.")
    )
    return (
        f"<h2>Detection by threshold</h2>\n<p>Best F1: {html.escape(visible(words))}.</p>\n<div class='charts'>{charts}</div>\n"
        f"<p class='note key'>{_key(curves)}</p>\n<details><summary>Figures at every threshold</summary>{table}</details>\n"
    )


def _kind(name: str) -> str:
    return "before" if name == "before" else "after"


def _key(names: Mapping[str, object]) -> str:
    return " ".join(
        f"<svg viewBox='0 0 28 8' width='28' height='8' aria-hidden='true'><path class='{_kind(name)}' d='M0 4H28'/></svg>"
        f"<span>{html.escape(visible(name))}</span>"
        for name in names
    )


def _chart(metric: str, column: int, curves: Mapping[str, Sequence[Quality]], stops: Sequence[float], at: int) -> str:
    marks = "".join(
        f"<path class='grid' d='M{LEFT} {_y(v):.1f}H{WIDTH - RIGHT}'/>"
        f"<text x='{LEFT - 5}' y='{_y(v) + 4:.1f}' text-anchor='end'>{v:g}</text>"
        for v in (0, 0.5, 1)
    ) + "".join(
        f"<text x='{_x(t, stops):.1f}' y='{HEIGHT - 6}' text-anchor='middle'>{t:g}</text>"
        for t in (1, 1.5, 2, 3, 5)
        if stops[0] <= t <= stops[-1]
    )
    lines = "".join(
        f"<path class='{_kind(name)}' d='M"
        + "L".join(f"{_x(stop, stops):.1f} {_y(q[column]):.1f}" for stop, q in zip(stops, values, strict=True))
        + "'/>"
        for name, values in curves.items()
    )
    words = ", ".join(f"{name} {values[at][column]:.3f}" for name, values in curves.items())
    label = html.escape(visible(f"{metric} against the threshold; at {stops[at]:g}: {words}"))
    here = f"<path class='here' d='M0 {TOP}V{HEIGHT - BOTTOM}' transform='translate({_x(stops[at], stops):.1f})'/>"
    return (
        f"<figure><figcaption>{metric}</figcaption><svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{label}'>"
        f"{marks}{here}{lines}</svg></figure>"
    )


# --- responses on the page -------------------------------------------------------------------------------------------


def _left_out(names: Sequence[str], total: int) -> str:
    if not names:
        return ""
    some = ", ".join(cut(name, LONGEST_NAME) for name in names[:5]) + (", …" if len(names) > 5 else "")
    words = f"{len(names)} of {total} responses are left out below, to keep this file small ({some}). The figures above are of all."
    return f"<p class='note'>{html.escape(visible(words))}</p>\n"


def _response(number: int, names: Sequence[str], same: Sequence[Inspected], threshold: float) -> str:
    """A response under its instruction and judgment, once for each model."""
    first = same[0]
    name = html.escape(visible(cut(first.name, LONGEST_NAME)))
    asked = "".join(
        f"<div><h4>{label}</h4>{webpage._pre(visible(cut(text, LONGEST_TEXT)))}</div>"
        for label, text in (("Instruction", first.instruction), ("Judgment", first.judgment))
    )
    columns = "".join(
        f"<div class='model m{i}'><h4>{html.escape(visible(model))}: "
        f"<span class='count'>{sum(detected(item, threshold))}</span> of {len(item.pieces)} tokens detected</h4>"
        f"<div class='tokens' dir='auto' tabindex='0' role='group' aria-label='Response {number}, {html.escape(visible(model))}; "
        f"arrow keys go from token to token'>{_tokens(item, threshold)}</div></div>"
        for i, (model, item) in enumerate(zip(names, same, strict=True))
    )
    return (
        f"<article aria-labelledby='r{number}'><h3 id='r{number}'>{number}. <bdi>{name}</bdi></h3>\n"
        f"<div class='asked'>{asked}</div>\n<div class='columns'>{columns}</div></article>"
    )


def _tokens(item: Inspected, threshold: float) -> str:
    gold = item.gold or [0] * len(item.pieces)
    spans = []
    for piece, ratio, found, wrong in zip(item.pieces, log_ratios(item), detected(item, threshold), gold, strict=True):
        step = shade(ratio)
        kinds = [f"w{step}" if step > 0 else f"c{-step}" if step else "", "d" if found else "", "g" if wrong else ""]
        attribute = f" class='{' '.join(filter(None, kinds))}'" if any(kinds) else ""
        space, text = parted(piece)
        spans.append(f"{space}<span{attribute}>{html.escape(text)}</span>")
    return "".join(spans)
