"""The stage ``inspect``: what is shown of the training rows is what is trained on."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

import alignlab
from alignlab.protocols import Row
from alignlab.stages.inspect import LEGEND, beside, lines

NUMBERS = "".join(f"\n*    0.1    {n}¦}}¦</s>" for n in range(1, 11))
FIRST = f"""row 1: 38 nodes, 31 scored edges, mass 1, floor 2.303
not shown beside the tokens: at the ends: entropy (sum 2.303), floor (sum
2.303), choice; everywhere: prefixes 1
  weight
          <s><|user|>Give me a random number between 1 and 10. Answer in braces.
          <|assistant|>
*      1  {{{NUMBERS}"""


def test_the_terminal_shows_the_request_and_what_is_scored(cli, tmp_path):
    done = cli("stages=[inspect]", "inspect.rows=2", "run_dir=run")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.rstrip("\n").split("\n\n")
    assert shown[:3] == ["inspect: the first rows that Diffuse trains on", LEGEND, FIRST]
    assert shown[3].startswith("row 2: ")
    assert len(shown) == 4
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_looking_binds_the_folder_to_nothing_and_shows_anew_each_time(tmp_path, capsys):
    common = ["stages=[inspect]", "inspect.rows=1", f"run_dir={tmp_path / 'run'}", "tracker=none"]
    alignlab.run(common)
    first = capsys.readouterr().out
    alignlab.run([*common, "train.lr=0.01"])
    assert capsys.readouterr().out == first
    assert "row 1: " in first
    assert not (tmp_path / "run/done").exists()


def test_the_page_stands_alone_and_its_weights_sum_to_one(tmp_path, capsys):
    run = alignlab.run(["stages=[inspect]", "inspect.lines=4", "data=names", f"run_dir={tmp_path / 'run'}", "tracker=none"])
    page = (run.path / "inspect.html").read_text()
    assert not re.search(r"(?:src|href|url)\W|http", page)
    assert "prefers-color-scheme:dark" in page
    assert "width=device-width" in page
    row = page.split("<h2>")[1]
    tokens = re.findall(r"<span class='(.*?)' title='token (\d+)(.*?)'>(.*?)</span>", row)
    scored = [kind != "" and "scored" in kind for kind, *_ in tokens]
    prompt = [html.unescape(text) for (_, _, _, text), yes in zip(tokens, scored, strict=True) if not yes]
    assert "".join(prompt) == "<s><|user|>Give me a random first name. Answer in braces.<|assistant|>"
    assert scored == [False] * len(prompt) + [True] * (len(tokens) - len(prompt))
    assert [text for kind, _, _, text in tokens if "special" in kind][:3] == ["&lt;s&gt;", "&lt;|user|&gt;", "&lt;|assistant|&gt;"]
    ends = [float(re.search(r"weight (\S+?),", values)[1]) for _, _, values, text in tokens if text == "&lt;/s&gt;"]
    assert len(ends) == 24
    assert sum(ends) == pytest.approx(1, abs=1e-4)
    edges = int(re.match(r"row 1: \d+ nodes, (\d+) scored", row)[1])
    assert sum(scored) == edges
    out = capsys.readouterr().out.split("\n\n")[2]
    kept = [line for line in out.splitlines() if line.startswith("* ")]
    assert len(kept) == 3
    assert out.endswith(f"\n... {edges - sum(line.count('¦') + 1 for line in kept)} more scored edges are left out")


def test_variants_and_newlines_are_told(tmp_path, capsys):
    file = {"request": "Pick\none of two.", "response": ["", "Sure: "], "targets": ["red", "blue"]}
    (tmp_path / "two.json").write_text(json.dumps(file))
    alignlab.run(["stages=[inspect]", f"data.path={tmp_path / 'two.json'}", f"run_dir={tmp_path / 'run'}", "tracker=none"])
    out = capsys.readouterr().out
    assert "<s><|user|>Pick↵one of two.<|assistant|>" in out
    assert "each pass sees a variant of it" in out
    assert "↵\n" in (tmp_path / "run/inspect.html").read_text()


def test_a_chain_is_running_text_in_which_scored_stretches_stand_apart(text):
    ids = [*text.prompt([{"role": "user", "content": "Hello."}]), *text.tokenizer.encode(" red blue", add_special_tokens=False)]
    after = len(ids) - 2
    weight = np.array([1.0, 0.0, 1.0, 1.0])
    source = np.arange(after - 3, after + 1)
    row = Row(
        0,
        3.0,
        np.array(ids[:-1]),
        np.arange(-1, len(ids) - 2),
        source,
        np.array(ids)[source + 1],
        {"weight": weight, "loud": weight},
    )
    assert beside(row) == ["weight", "loud"]
    found = list(lines(row, beside(row), text.tokenizer))
    assert [line.values for line in found] == [None, ("1", "1"), ("0", "0"), ("1", "1")]
    assert {line.indent for line in found} == {0}
    assert "".join(token.text for line in found for token in line.tokens) == text.tokenizer.decode(ids, skip_special_tokens=False)
    assert [len(line.tokens) for line in found] == [len(ids) - 4, 1, 1, 2]


def test_a_character_of_several_tokens_is_shown_whole(text):
    ids = text.tokenizer.encode("é 漢!", add_special_tokens=False)
    nothing = np.array([], np.int32)
    row = Row(0, 1.0, np.array(ids), np.arange(-1, len(ids) - 1), nothing, nothing)
    (line,) = lines(row, beside(row), text.tokenizer)
    assert "".join(token.text for token in line.tokens) == "é 漢!"
    assert len(line.tokens) == len(ids) > 4


def test_rows_are_shown_for_a_users_own_method_without_columns(tmp_path, monkeypatch, capsys):
    document = (Path(__file__).resolve().parents[2] / "docs/extending.md").read_text()
    (tmp_path / "mymethods.py").write_text(re.findall(r"```python\n(.*?)```", document, re.DOTALL)[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    own = [
        "method._target_=mymethods.LikeliestTarget",
        "+method.scale=1.0",
        "~method.gamma",
        "~method.prefixes",
        "~method.early_stop",
    ]
    alignlab.run([*own, "stages=[inspect]", "inspect.rows=1", "data=binomial", f"run_dir={tmp_path / 'run'}", "tracker=none"])
    lines_shown = capsys.readouterr().out.strip().splitlines()
    assert lines_shown[-1] == "*   {¦5¦}¦</s>"
    assert ", 4 scored edges, mass 4" in "\n".join(lines_shown)
