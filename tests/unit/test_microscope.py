"""The page and the pictures that show detected tokens, whatever the responses hold."""

from __future__ import annotations

import json
import math
import re
import subprocess
from html.parser import HTMLParser

import pytest
from pages import Page, chromium

from alignlab.evaluate.detection import (
    THRESHOLDS,
    Inspected,
    detected,
    levels,
    precision_recall_f1,
)
from alignlab.report import webpage
from alignlab.report.microscope import MOST_RESPONSES, POLICY, microscope
from alignlab.report.token_plots import COOL, MOST_PLOTTED, OPACITY, STEPS, WARM, detection_plot, rgb, shade, tokens_plot

INF = math.inf
HOSTILE = [
    "<b>x</b>",
    "</script><script>alert(1)</script>",
    " \u202eabc",
    "\x00\x07\x9b",
    "",
    "\n",
    "\t",
    " ",
    "مرحبا",
    "\ud800",
    "$\\frac",
    "'\"&amp;",
]


def item(ratios, gold=(), name="r") -> Inspected:
    """A response whose tokens have these ratios; exactly, since p with the judgment is 1."""
    pieces = [f" t{i}" for i in range(len(ratios))]
    return Inspected(name, "Do it.", "It is wrong.", pieces, [-math.log(r) for r in ratios], [0.0] * len(ratios), gold)


def hostile(name="h") -> Inspected:
    n = len(HOSTILE)
    odd = [-INF, -INF, -1.0, 0.0]
    return Inspected(
        name,
        HOSTILE[1] + HOSTILE[2],
        HOSTILE[3] + "</pre>",
        HOSTILE,
        [*odd, *[-1.0] * (n - 4)],
        [-INF, -1.0, -INF, *[-0.5] * (n - 3)],
        [1, 0] * (n // 2),
    )


# --- the page --------------------------------------------------------------------------------------------------------


class Shown(HTMLParser):
    """The tokens of every response on a page: text and classes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.groups: list[list[tuple[str, set[str]]]] = []
        self._inside, self._token = False, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if attributes.get("class") == "tokens":
            self.groups.append([])
            self._inside = True
        elif self._inside:
            assert (tag, set(attributes) - {"class"}) == ("span", set())
            self.groups[-1].append(("", set((attributes.get("class") or "").split())))
            self._token = True

    def handle_endtag(self, tag):
        self._inside &= tag != "div"
        self._token &= tag != "span"

    def handle_data(self, data):
        if self._inside and self._token:
            text, classes = self.groups[-1][-1]
            self.groups[-1][-1] = text + data, classes


def embedded(page: str) -> dict:
    (found,) = re.findall(r"<script type='application/json' id='data'>(.*?)</script>", page, re.S)
    return json.loads(found, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture(scope="module")
def models():
    before = [item([1.1, 1.2, 1.3, 3, 0.2], [0, 0, 1, 1, 0], "a"), hostile(HOSTILE[1]), item([1.25, 1.0], name="c")]
    after = [item([1.0, 2.2, 2.3, 3, 0.2], [0, 0, 1, 1, 0], "a"), hostile(HOSTILE[1]), item([1.0, 5.1], name="c")]
    return {"before": before, "after": after}


@pytest.fixture(scope="module")
def page(models) -> str:
    return microscope(models, 1.2, "".join(HOSTILE))


def test_marks_tints_and_figures_are_those_of_detection(models, page):
    groups, data = Shown(page).groups, embedded(page)
    items = [response for same in zip(*models.values(), strict=True) for response in same]
    assert len(groups) == len(items) == len(data["tokens"]) == 6
    for group, response, (plain, judged, found) in zip(groups, items, data["tokens"], strict=True):
        assert ["d" in classes for _, classes in group] == detected(response, 1.2)
        assert [int("g" in classes) for _, classes in group] == list(response.gold or [0] * len(group))
        assert found == levels(response, THRESHOLDS)
        assert len(plain) == len(judged) == len(found)
    assert [classes - {"d", "g"} for _, classes in groups[0]] == [{"w1"}, {"w2"}, {"w2"}, {"w4"}, {"c5"}]
    assert data["stops"][5] == "1.2"
    figures = next(table for table in Page(re.sub(r"<script.*</script>", "", page, flags=re.S)).tables if "of all" in table[0])
    for row, (name, responses), column in zip(figures[1:], models.items(), data["figures"], strict=True):
        quality = precision_recall_f1(responses, 1.2)
        count = sum(sum(detected(response, 1.2)) for response in responses)
        assert row == [name, *column[5]] == [name, str(count), f"{100 * count / 19:.1f}%", *(f"{value:.3f}" for value in quality)]


def test_hostile_text_is_shown_and_never_run(page):
    read = Page(page)
    assert [attributes.get("type") for attributes in read.all("script")] == ["application/json", None]
    assert page.count("alert(1)") == page.count("&lt;script&gt;alert(1)&lt;/script&gt;")
    assert not [tag for tag, attributes in read.tags if any(name.startswith("on") for name in attributes)]
    assert not {"img", "b", "iframe", "link"} & {tag for tag, _ in read.tags}
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)
    shown = [text for text, _ in Shown(page).groups[2]]
    assert shown == [
        "<b>x</b>",
        HOSTILE[1],
        "⟨U+202E⟩abc",
        "␀␇⟨U+009B⟩",
        "∅",
        "↵\n",
        "⇥\t",
        "␣",
        "مرحبا",
        "?",
        "$\\frac",
        "'\"&amp;",
    ]
    assert embedded(page)["tokens"][2][:2] == [[None, None, -1.0, 0.0, *[-1.0] * 8], [None, -1.0, None, *[-0.5] * 9]]


def test_the_page_loads_nothing(page):
    read = Page(page)
    assert next(a["content"] for a in read.all("meta") if a.get("http-equiv")) == POLICY
    for _, attributes in read.tags:
        assert all((attributes.get(name) or "#").startswith("#") for name in ("src", "href", "srcset", "action", "data"))
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|innerHTML|eval\(", page)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_threshold_of_ones_own_is_a_stop_of_the_slider(models):
    data = embedded(microscope(models, 1.234, "t"))
    assert data["stops"].index("1.234") == 6
    assert len(data["stops"]) == len(THRESHOLDS) + 1 == len(data["x"]) == len(data["figures"][0])


def test_without_gold_there_is_neither_precision_nor_a_curve():
    page = microscope({"before": [item([2.0])]}, 1.2, "t")
    assert "<td class='number'>100.0%</td></tr>" in page
    assert "precision" not in page[page.index("<body") : page.index("<script")]
    assert "radio" not in page
    assert "0 responses, 0 tokens" in microscope({"before": [], "after": []}, 1.2, "t")


def test_the_models_must_speak_of_the_same_responses():
    with pytest.raises(ValueError, match="not the same"):
        microscope({"before": [item([1.0])], "after": [item([1.0], name="other")]}, 1.2, "t")
    with pytest.raises(ValueError, match="shorter"):
        microscope({"before": [item([1.0])], "after": []}, 1.2, "t")


@pytest.mark.parametrize(("count", "length"), [(MOST_RESPONSES + 20, 3), (40, 1500)])
def test_a_page_stays_small_and_says_what_it_leaves_out(count, length):
    items = [item([2.0] * length, [0] * length, f"n{i}") for i in range(count)]
    page = microscope({"before": items, "after": items}, 1.2, "t")
    shown = page.count("<article")
    assert len(page.encode()) <= webpage.MOST_BYTES
    assert len(embedded(page)["tokens"]) == 2 * shown
    assert shown == MOST_RESPONSES if length == 3 else 5 < shown < count
    assert f"{count - shown} of {count} responses are left out below" in page
    assert f"n{shown}, n{shown + 1}" in page
    assert embedded(page)["figures"][0][0][0] == str(count * length)


def test_text_can_be_read_on_every_tint():
    def light(colour):
        return sum(
            f * (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)
            for f, v in zip((0.2126, 0.7152, 0.0722), colour, strict=True)
        )

    papers = re.findall(r"--paper: (#\w{6}); --ink: (#\w{6})", microscope({}, 1.2, "t"))
    assert len(papers) == 2
    for paper, ink in papers:
        for tint in (WARM, COOL):
            for opacity in OPACITY:
                mixed = [opacity * a + (1 - opacity) * b for a, b in zip(rgb(tint), rgb(paper), strict=True)]
                low, high = sorted([light([v / 255 for v in mixed]), light([v / 255 for v in rgb(ink)])])
                assert (high + 0.05) / (low + 0.05) >= 4.5, (paper, tint, opacity)


def test_tints_are_symmetric_and_grow_with_the_ratio():
    assert [shade(math.log(ratio)) for ratio in (1, 1.04, *(step * 1.001 for step in STEPS))] == [0, 0, 1, 2, 3, 4, 5]
    assert all(shade(-x) == -shade(x) for x in (0.0, 0.1, 0.5, INF))
    assert shade(math.nan) == 0


# --- in a browser ----------------------------------------------------------------------------------------------------

DRIVE = """<script>
const page = document, seen = {}, dial = page.getElementById('threshold');
const marks = () => [...page.querySelectorAll('.tokens')].map(g => [...g.children].map(t => +t.classList.contains('d')));
const figures = () => [...page.querySelectorAll('#figures tbody tr')].map(r => [...r.children].map(c => c.textContent));
const look = () => ({marks: marks(), figures: figures(), said: dial.getAttribute('aria-valuetext'), counts: [...page.querySelectorAll('.count')].map(c => +c.textContent),
                     width: page.documentElement.scrollWidth});
seen.stops = [];
for (const stop of [5, 13, 0, 24, 5]) { dial.value = stop; dial.dispatchEvent(new Event('input')); seen.stops.push([stop, look()]); }
const group = page.querySelector('.tokens'), tip = page.getElementById('tip'), press = key => group.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
group.focus(); press('ArrowRight'); press('End'); press('ArrowLeft');
seen.tip = [tip.hidden, [...tip.children].map(e => e.textContent)];
press('Escape'); seen.closed = tip.hidden;
page.querySelector('.tokens').children[2].click(); seen.touched = tip.firstChild.textContent;
page.getElementById('only1').click();
seen.models = [...page.querySelectorAll('.model')].map(m => +(m.offsetParent !== null));
seen.inner = innerWidth; seen.hidden = dial.hidden; seen.label = dial.labels[0].textContent;
document.body.innerHTML = '<pre id=out></pre>'; document.getElementById('out').textContent = JSON.stringify(seen);
</script>"""


def dumped(text: str, folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "page.html").write_text(text, encoding="utf-8")
    return chromium(folder, "--window-size=500,900", *arguments, "--dump-dom", (folder / "page.html").as_uri())


def test_a_browser_moves_the_slider_and_reads_a_token(models, page, tmp_path):
    done = dumped(page.replace("</body>", DRIVE + "</body>"), tmp_path)
    found = re.search(r'<pre id="out">(\{.*?\})</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert not [text for text in done.stderr.splitlines() if "CONSOLE" in text]
    items = [response for same in zip(*models.values(), strict=True) for response in same]
    for stop, look in seen["stops"]:
        threshold = THRESHOLDS[stop]
        assert look["marks"] == [[int(mark) for mark in detected(response, threshold)] for response in items]
        assert look["counts"] == [sum(marks) for marks in look["marks"]]
        totals = [sum(look["counts"][i::2]) for i in (0, 1)]
        for row, total, responses in zip(look["figures"], totals, models.values(), strict=True):
            assert row[1] == str(total)
            assert row[3:] == [f"{value:.3f}" for value in precision_recall_f1(responses, threshold)]
        assert look["said"] == f"{threshold:g}: before {totals[0]} detected, after {totals[1]} detected"
        assert look["width"] <= seen["inner"]
    hidden, words = seen["tip"]
    assert not hidden
    assert words == [
        "\u2068t3\u2069",
        "p without the judgment0.333",
        "p with it1.00",
        "ratio3.000",
        "log ratio+1.099 nats",
        "detected, known to be wrong",
    ]
    assert seen["closed"]
    assert seen["touched"] == "\u2068t2\u2069"
    assert seen["models"] == [0, 1] * 3
    assert (seen["hidden"], seen["label"]) == (False, "Threshold 1.2")


# --- pictures --------------------------------------------------------------------------------------------------------


def size(path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


@pytest.mark.filterwarnings("error")
def test_pictures_are_drawn_whatever_the_responses_hold(models, tmp_path):
    wide, high = size(detection_plot(models, 1.234, tmp_path / "plots" / "detection.png"))
    assert wide > 2 * high
    few = size(tokens_plot(models["before"], 1.2, tmp_path / "few.png"))
    most = size(tokens_plot([item([2.0] * 9)] * MOST_PLOTTED, 1.2, tmp_path / "most.png"))
    more = size(tokens_plot([item([2.0] * 9)] * 50, 1.2, tmp_path / "more.png"))
    long = size(tokens_plot([item([2.0] * 900)], 1.2, tmp_path / "long.png"))
    assert few[0] == most[0] == more[0] == long[0]
    assert most[1] == more[1] > few[1]
    assert long[1] < 400
    assert size(tokens_plot([], 1.2, tmp_path / "none.png"))[1] > 0
    assert not list(tmp_path.rglob("*.tmp"))
