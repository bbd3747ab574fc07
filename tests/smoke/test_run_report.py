"""The report of a real run: its numbers, its rules, and what a browser makes of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import Page, check_page, printed_pages, rendered

import alignlab
from alignlab.records import read_jsonl

QUICK = ["hardware=cpu", "tracker=none", "train.max_steps=12", "suite.samples=20", "suite.bootstrap=50"]
LONG = "x" * 300 + " <script>document.title = 'no'</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> alignlab.RunFolder:
    """Trained, held out, sampled only; many targets; a request that would break a page."""
    folder = tmp_path_factory.mktemp("report")
    prompts = {
        "tasks/digits": {"request": "Pick a digit.", "targets": ["{1}", "{2}", "{3}"], "weights": [2, 1, 1]},
        "tasks/other": {"request": LONG, "targets": ["{4}", "{5}"], "split": "test"},
        "wide": {"request": "Pick a number.", "targets": [f"{{{i}}}" for i in range(1, 31)]},
        "free": {"request": "Say what you like.", "split": "test"},
        "checked": {"request": "Name a digit.", "targets": ["{1}", "{2}"]},
    }
    for name, content in prompts.items():
        path = folder / "prompts" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    command = [sys.executable, "-m", "alignlab", *QUICK, "data.path=prompts", "run_dir=run", "data.validation=0.34"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return alignlab.RunFolder(folder / "run")


@pytest.fixture(scope="module")
def html(run) -> str:
    return (run.path / "report.html").read_text()


@pytest.fixture(scope="module")
def page(html) -> Page:
    return check_page(html)


def markdown_tables(text: str) -> list[list[list[str]]]:
    tables = re.findall(r"((?:^\|.*\|\n?)+)", text, re.MULTILINE)
    rows = [[re.split(r" (?<!\\)\| ", line.strip("| \n")) for line in table.splitlines()] for table in tables]
    return [[row for i, row in enumerate(table) if i != 1] for table in rows]


def shows(shown: str, value: float) -> bool:
    """Whether a figure is the value, rounded to the digits that it shows."""
    digits, _, exponent = shown.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return abs(float(shown) - value) <= 0.501 * unit or abs(float(shown) - value) <= 0.0006 * abs(value)


def test_the_figures_of_every_prompt_are_those_of_results_json(run, page):
    expected = {name: value for name, value in run.results.items() if "/" in name}
    assert len(expected) > 20
    header, *rows = page.table("prompt")
    seen = set()
    for prompt, *cells in rows:
        for metric, cell in zip(header[1:], cells, strict=True):
            if cell == "-":
                assert f"{metric}/{prompt}" not in expected
                continue
            found = expected[f"{metric}/{prompt}"]
            seen.add(f"{metric}/{prompt}")
            for shown, which in zip(cell.split(" → "), found, strict=True):
                assert shows(shown, found[which]["value"]), (metric, prompt, which)
    assert seen == set(expected)
    again = next(t for t in markdown_tables((run.path / "report.md").read_text()) if t[0][0] == "prompt")
    assert [[cell.replace("\\", "") for cell in row] for row in again] == [header, *rows]


def test_the_summary_and_the_first_sentence_say_what_results_json_says(run, page):
    summary = page.tables[0]
    assert summary[0][1:3] == ["before", "after"]
    suffixes = {"": "", " trained": ":trained", " held out": ":held-out"}
    for name, *cells in summary[1:]:
        metric, _, group = name.partition(",")
        found = run.results[metric + suffixes[group]]
        for which, cell in zip(("before", "after"), cells, strict=False):
            numbers = re.findall(r"[\d.]+(?:e-?\d+)?", cell)
            values = [found[which][part] for part in ("value", "low", "high")][: len(numbers)]
            assert all(shows(*pair) for pair in zip(numbers, values, strict=True)), (name, which)
    sentence = re.search(r"Over 5 prompts, kl went from (\S+) before training to (\S+) after", page.words)
    assert sentence, page.words[:500]
    assert all(shows(sentence[i + 1], run.results["kl"][which]["value"]) for i, which in enumerate(("before", "after")))


def test_the_curve_is_told_in_words(run, page):
    metrics = run.metrics
    words = f"Loss {metrics[0]['loss']:.4f} at the first step, {metrics[-1]['loss']:.4f} at the last of 12"
    assert any(words in str(image["alt"]) for image in page.all("img"))
    logs = next(table for table in page.tables if table[0] == ["", "first", "least", "greatest", "last"])
    kl = next(row for row in logs if row[0] == "kl")
    values = [row["kl"] for row in metrics]
    expected = (values[0], min(values), max(values), values[-1])
    assert all(shows(*pair) for pair in zip(kl[1:], expected, strict=True))


def test_samples_stand_side_by_side_as_they_were_drawn(run, page):
    for name, request in (("tasks/digits", "Pick a digit."), ("tasks/other", LONG), ("free", "Say what you like.")):
        at = len(page.texts) - 1 - page.texts[::-1].index("\n" + request)
        drawn = [s["text"] for which in ("before", "after") for s in run.samples if (s["prompt"], s["model"]) == (name, which)]
        expected = [*drawn[:5], *drawn[20:25]]
        assert [text.removeprefix("\n") for text in page.texts[at + 1 : at + 11]] == [t or "(empty)" for t in expected]
    cut_off = page.table("completions")
    for row, which in zip(cut_off[1:], ("before", "after"), strict=True):
        finishes = [s["finish"] for s in run.samples if s["model"] == which]
        assert row[1:3] == [str(len(finishes)), str(finishes.count("length"))]


def test_every_value_says_where_it_came_from(run, page):
    from omegaconf import OmegaConf

    from alignlab.provenance import leaves, read_provenance

    sources = read_provenance(run.path)["sources"]
    shown = {row[0]: row[1:] for table in page.tables if table[0] == ["key", "value", "from"] for row in table[1:]}
    config = dict(leaves(OmegaConf.to_container(OmegaConf.load(run.path / "config.yaml"))))
    assert set(shown) == set(config)
    assert {key: source for key, (_, source) in shown.items()} == sources
    asked = {"train.max_steps", "suite.samples", "suite.bootstrap", "data.path", "run_dir", "data.validation"}
    assert {key for key, source in sources.items() if source == "command line"} == asked
    assert shown["data.path"] == ["prompts", "command line"]
    assert shown["train.lr"][1] == "recipe/diffuse-tiny"
    assert shown["hardware.device"][1] == "hardware/cpu"
    assert float(shown["train.lr"][0]) == config["train.lr"]


def test_it_says_what_it_cost_and_how_to_repeat_it(run, page):
    command = "python -m alignlab " + " ".join(QUICK) + " data.path=prompts run_dir=run data.validation=0.34"
    assert any(text.strip() == command for text in page.texts)
    assert f"{sum(row['tokens'] for row in run.metrics):,}" in page.words
    assert re.search(r"Peak memory, resident\s*[\d,]+ MiB", page.words)
    stages = {row[0]: row[1] for row in page.table("stage")[1:]}
    marker = json.loads((run.path / "done/train.json").read_text())
    assert stages["train"] == f"{marker['seconds']:,.1f}"
    environment = json.loads((run.path / "environment.json").read_text())
    assert f"torch {environment['packages']['torch']}" in page.words
    assert environment["data"] in page.words


def test_a_later_command_is_told_too(run, tmp_path):
    import shutil

    shutil.copytree(run.path.parent, tmp_path / "copy")
    more = ["suite.samples=10", "data.path=prompts", "run_dir=run", "data.validation=0.34", "stages=[sample,evaluate,report]"]
    options = [option for option in QUICK if not option.startswith("suite.samples")]
    before = os.getcwd()
    os.chdir(tmp_path / "copy")
    try:
        again = alignlab.run([*options, *more])
        page = Page((again.path / "report.html").read_text())
    finally:
        os.chdir(before)
    assert "Also given to this folder:" in page.words
    assert sum("suite.samples=10" in text for text in page.texts) == 1
    assert sum("suite.samples=20" in text for text in page.texts) == 1


def test_a_method_adds_its_own_sections(tmp_path):
    """With the seam's example in docs/extending.md, word for word, in the method that stands there."""
    document = (Path(__file__).resolve().parents[2] / "docs/extending.md").read_text()
    blocks = {language: re.findall(rf"```{language}\n(.*?)```", document, re.DOTALL) for language in ("python", "text", "yaml")}
    section = "".join(f"    {line}\n" for line in blocks["text"][0].splitlines())
    imports = "from alignlab.report.document import Heading, Table\n"
    module = blocks["python"][0].replace("import numpy as np\n", f"import numpy as np\n{imports}")
    (tmp_path / "mymethods.py").write_text(f"{module}\n{section}")
    (tmp_path / "conf/method").mkdir(parents=True)
    (tmp_path / "conf/method/likeliest.yaml").write_text(blocks["yaml"][0])
    search = f"hydra.searchpath=[file://{tmp_path}/conf]"
    command = [sys.executable, "-m", "alignlab", search, "method=likeliest", "data=binomial", *QUICK, "run_dir=run"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    page = check_page((tmp_path / "run/report.html").read_text())
    titles = [title for level, title in page.headings if level == 2]
    assert titles.index("Samples") < titles.index("Accuracy") < titles.index("Data")
    rows = list(read_jsonl(tmp_path / "run/metrics.jsonl"))
    table = next(table for table in page.tables if table[0] == ["", "first step", "last step"])
    assert table[1] == ["loss", f"{rows[0]['loss']:.4f}", f"{rows[-1]['loss']:.4f}"]
    assert "## Accuracy" in (tmp_path / "run/report.md").read_text()
    shown = {row[0]: row[1:] for table in page.tables if table[0] == ["key", "value", "from"] for row in table[1:]}
    assert shown["method.scale"] == ["1.0", "method/likeliest"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_on_a_phone_and_on_a_desk_in_light_and_dark(html, page, tmp_path, width, dark):
    seen = rendered(html, tmp_path / "browser", width, dark)
    assert seen["inner"] == width
    assert seen["width"] <= width
    assert seen["images"] == len(page.all("img")) >= 5
    assert seen["broken"] == 0
    assert seen["texts"] > 200
    assert seen["contrast"][0] >= 4.5, seen["contrast"]
    assert seen["small"] >= 13
    assert seen["unreachable"] == []
    assert seen["fetched"] == []
    assert seen["console"] == []
    assert (seen["paper"] < 0.05) is dark
    assert seen["beside"] == [width > 1000] * 5


def test_what_would_be_wrong_with_a_page_is_seen(tmp_path):
    wrong = """<!doctype html><html lang=en><body style='background:#fff;color:#aaa'><pre>{}</pre><img src='data:image/png;base64,AAAA'>
        <img src='https://example.org/a.png'><div style='overflow-x:auto'><pre>{}</pre></div><script>nothing</script></body></html>"""
    seen = rendered(wrong.replace("{}", "wide " * 200), tmp_path / "browser", 390, False)
    assert seen["width"] > 390
    assert seen["broken"] == 2
    assert seen["contrast"][0] < 3
    assert seen["fetched"] == ["https://example.org/a.png"]
    assert "nothing is not defined" in seen["console"][0]


def test_what_is_folded_is_printed(html, tmp_path):
    without = re.sub(r"<details>.*?</details>", "", html, flags=re.DOTALL)
    assert printed_pages(html, tmp_path / "browser") > printed_pages(without, tmp_path / "browser") > 2
