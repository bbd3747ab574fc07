"""Reading an HTML report as a program does: its outline, its tables, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags with their attributes in order; headings, tables and preformatted texts by content."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[int, str]] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.words = ""
        self._open: list[str] = []
        self._cell: list[str] | None = None
        self.feed(text)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self._open.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "pre":
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.words += data
        if self._open and re.fullmatch(r"h[1-6]", self._open[-1]):
            level, text = self.headings[-1]
            self.headings[-1] = level, text + data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data
        if "pre" in self._open:
            self.texts[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every element of a kind."""
        return [attributes for name, attributes in self.tags if name == tag]

    def table(self, first: str) -> list[list[str]]:
        """The table whose header begins with a word."""
        return next(table for table in self.tables if table[0][0] == first)


def check_page(text: str) -> Page:
    """What holds for every report: one file, no script, landmarks, headings in order, words for every picture and header."""
    page = Page(text)
    assert len(text.encode()) < 3_000_000
    assert page.all("html") == [{"lang": "en"}]
    assert not page.all("script")
    assert not page.all("link")
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,")), (tag, attributes[name])
    style = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"url\(|@import|@font-face", style)
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), page.headings
    assert all(words.strip() for _, words in page.headings)
    assert len(page.all("main")) == len(page.all("nav")) == 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(attributes["href"])[1:] for attributes in page.all("a")]
    assert set(links) <= set(ids)
    assert links[0] == "main"
    assert len(links) - 1 == levels.count(2)
    assert all((attributes.get("alt") or "").strip() for attributes in page.all("img"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    return page


def browser() -> str:
    """A Chromium on the PATH; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    return found


def chromium(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Headless, without a network and with a profile of its own."""
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command = [browser(), *common, f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True)


HARNESS = """<!doctype html><meta charset=utf-8><style>:root{color-scheme:light dark}</style><pre id=out></pre><script>
const frame = document.createElement('iframe');
frame.style = 'border:0;height:800px;width:WIDTHpx';
frame.onload = () => {
  const page = frame.contentDocument, view = frame.contentWindow, all = [...page.querySelectorAll('body *')];
  page.querySelectorAll('details').forEach(d => d.open = true);
  const rgba = s => { const v = s.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v };
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
                       return .2126 * r + .7152 * g + .0722 * b };
  const behind = e => { for (; e; e = e.parentElement) { const c = rgba(view.getComputedStyle(e).backgroundColor); if (c[3] == 1) return c }
                        return matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255] };
  const texts = all.filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()) && e.tagName != 'STYLE');
  const contrast = texts.map(e => { const a = light(rgba(view.getComputedStyle(e).color)), b = light(behind(e));
    return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.tagName + ': ' + e.textContent.slice(0, 40)] }).sort((x, y) => x[0] - y[0]);
  const scrolled = all.filter(e => e.scrollWidth > e.clientWidth + 1 && view.getComputedStyle(e).overflowX == 'auto');
  const images = [...page.images];
  const found = {
    width: page.documentElement.scrollWidth, inner: view.innerWidth, contrast: contrast[0], texts: texts.length,
    small: Math.min(...texts.map(e => parseFloat(view.getComputedStyle(e).fontSize))),
    images: images.length, broken: images.filter(i => !i.complete || !i.naturalWidth).length,
    unreachable: scrolled.filter(e => e.tabIndex < 0).map(e => e.outerHTML.slice(0, 80)),
    fetched: view.performance.getEntriesByType('resource').map(r => r.name).filter(n => !n.startsWith('data:')),
    paper: light(behind(page.body)),
    beside: [...page.querySelectorAll('.columns')].map(c => new Set([...c.children].map(e => e.offsetTop)).size == 1 && c.children.length > 1),
  };
  frame.remove();
  document.currentScript?.remove();
  document.getElementById('out').textContent = JSON.stringify(found);
};
frame.srcdoc = CONTENT;
document.body.append(frame);
</script>"""


def rendered(page: str, folder: Path, width: int, dark: bool) -> dict[str, Any]:
    """What a browser makes of a page in a window of that width: sizes, contrast, images, what can be reached."""
    folder.mkdir(exist_ok=True)
    content = json.dumps(page).replace("</", "<\\/")
    (folder / "harness.html").write_text(HARNESS.replace("WIDTH", str(width)).replace("CONTENT", content))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    address = (folder / "harness.html").as_uri()
    done = chromium(folder, "--window-size=1400,900", scheme, "--virtual-time-budget=20000", "--dump-dom", address)
    found = re.search(r'<pre id="out">(\{.*?\})</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return {**json.loads(re.sub("&gt;", ">", re.sub("&lt;", "<", found[1]).replace("&amp;", "&"))), "console": console}


def printed_pages(page: str, folder: Path) -> int:
    """How many pages a browser prints."""
    folder.mkdir(exist_ok=True)
    (folder / "print.html").write_text(page)
    chromium(folder, f"--print-to-pdf={folder / 'print.pdf'}", "--no-pdf-header-footer", (folder / "print.html").as_uri())
    return len(re.findall(rb"/Type\s*/Page\b", (folder / "print.pdf").read_bytes()))
