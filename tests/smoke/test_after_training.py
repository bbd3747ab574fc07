"""What a trained run is used for: completions for AlpacaEval, and talking with it in a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import alignlab
from alignlab.__main__ import command

REQUESTS = {
    "fruit": "Name a fruit.",
    "king": "Who was the first king?",
    "number": "Give me a random number between 1 and 10. Answer in braces.",
}
SOURCE = """
from dataclasses import dataclass, replace
from alignlab.data.sources import PromptFiles
from alignlab.methods.diffuse import Diffuse
@dataclass
class Named(PromptFiles):
    def prompts(self):
        return [replace(prompt, dataset="mine") for prompt in super().prompts()]
class Steered(Diffuse):
    def conditions(self):
        return ["short", "long", "kind"]
    def request(self, prompt):
        return super().request(replace(prompt, request=" ".join([*prompt.conditions, prompt.request])))
"""
QUICK = ["tracker=none", "train.max_steps=1", "train.lr=0.02", "suite.samples=2", "suite.temperature=0", "suite.max_new_tokens=12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a short run of the real command; its method writes conditions before a request."""
    where = tmp_path_factory.mktemp("after")
    (where / "p").mkdir()
    (where / "mine.py").write_text(SOURCE)
    for name, request in REQUESTS.items():
        targets = {"targets": ["{7}", "{3}"]} if name == "number" else {"split": "test"}
        (where / f"p/{name}.json").write_text(json.dumps({"request": request} | targets))
    done = call(
        where,
        "data.path=p",
        "data._target_=mine.Named",
        "method._target_=mine.Steered",
        "sample.alpaca_eval=true",
        *QUICK,
        "stages=[prepare,train,sample]",
        "run_dir=run",
    )
    assert done.returncode == 0, done.stderr
    return where


def call(where: Path, *arguments: str, typed: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alignlab", *arguments]
    return subprocess.run(
        command, cwd=where, env=os.environ | env, input=typed, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture
def piped(folder, monkeypatch, capsys):
    """``piped("chat=run", typed="...")``: the command in this process, which spares its start; status, output, errors."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)

    def talk(*arguments: str, typed: str = "") -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
        status = command(arguments)
        return status, *capsys.readouterr()

    return talk


def greedy(folder: Path, model: str) -> dict[str, str]:
    """Request -> what the stage ``sample`` wrote."""
    samples = alignlab.RunFolder(folder / "run").samples
    return {REQUESTS[s["prompt"]]: s["text"] for s in samples if s["model"] == model and s["sample"] == 0}


# ---- AlpacaEval


def test_first_completions_are_written_as_alpaca_eval_reads_them(folder):
    for model, name, generator in (("after", "alpaca_eval", "run"), ("before", "alpaca_eval-before", "run-before")):
        expected = [
            {"instruction": request, "output": output, "generator": generator, "dataset": "mine"}
            for request, output in greedy(folder, model).items()
        ]
        assert len(expected) == 3
        assert json.loads((folder / f"run/{name}.json").read_text()) == expected
    files = json.loads((folder / "run/done/sample.json").read_text())["files"]
    assert sorted(files) == ["alpaca_eval-before.json", "alpaca_eval.json", "samples.jsonl"]


def test_the_only_model_sampled_has_the_plain_name(tmp_path):
    (tmp_path / "king.json").write_text(json.dumps({"request": REQUESTS["king"], "targets": ["a"]}))
    where = [f"data.path={tmp_path / 'king.json'}", f"run_dir={tmp_path / 'run'}"]
    alignlab.run([*where, "sample.alpaca_eval=true", "sample.model=before", *QUICK, "stages=[sample]"])
    row = {"instruction": REQUESTS["king"], "output": "A king, two king.", "generator": "run", "dataset": ""}
    assert json.loads((tmp_path / "run/alpaca_eval.json").read_text()) == [row]
    assert not (tmp_path / "run/alpaca_eval-before.json").exists()


# ---- chat


def test_a_piped_conversation_gives_the_answers_of_the_sample_stage(folder):
    before, after = greedy(folder, "before"), greedy(folder, "after")
    assert before != after
    first, second = REQUESTS["king"], REQUESTS["number"]
    log = (folder / "run/log.txt").read_text()
    done = call(folder, "chat=run", typed=f"{first}\n\n{second}\n/before\n{first}\n/after\n{first}\n/quit\n{second}\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"{answer}\n" for answer in (after[first], after[second], before[first], after[first]))
    assert "alignlab: " not in done.stderr
    assert (folder / "run/log.txt").read_text() == log


def test_the_words_after_chat_change_how_answers_are_drawn(piped):
    asked = f"{REQUESTS['fruit']}\n" * 2
    assert piped("chat=run", "max_new_tokens=2", "model=before", typed=asked)[:2] == (0, "apple,\napple,\n")
    drawn = [piped("chat=run", "temperature=5", f"seed={seed}", typed=asked)[1] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    first, second = drawn[0].splitlines()[:2]
    assert first != second  # each line has random numbers of its own


def test_conditions_stand_in_every_request_until_they_are_changed(piped):
    greedy, asked = ("chat=run", "model=before", "temperature=0"), REQUESTS["fruit"]
    spelled = [f"{words}{asked}" for words in ("long kind ", "", "short ")]
    plain = piped(*greedy, typed="\n".join([*spelled, spelled[0]]))[1].splitlines()
    assert len(set(plain)) == 3
    typed = f"{asked}\n/conditions\n{asked}\n/conditions short\n{asked}\n/conditions long, kind\n{asked}\n"
    assert piped(*greedy, "conditions=long,kind", typed=typed)[1].splitlines() == plain


def test_limits_of_the_sampler_are_words_of_chat(piped):
    def answer(*words: str) -> str:
        return piped("chat=run", "model=before", "temperature=0", "max_new_tokens=40", *words, typed=f"{REQUESTS['king']}\n")[1]

    assert answer() == "A king, two king.\n"
    assert "king" not in answer("no_repeat_ngram_size=1")  # it stands in the request
    assert len(answer("min_tokens=50")) > 40


def test_characters_of_several_tokens_are_streamed_whole(text):
    from alignlab.chat import pieces

    for written in ("日本語 🙂 é", "a 🙂🙂 b"):
        ids = text.tokenizer.encode(written, add_special_tokens=False)
        shown = list(pieces(text.decode, [*ids, text.tokenizer.eos_token_id]))
        assert "".join(shown) == written
        assert not any("\ufffd" in piece for piece in shown)
        assert len([piece for piece in shown if piece]) > len(written) // 2
    cut = text.tokenizer.encode("🙂", add_special_tokens=False)[:-1]
    assert "".join(pieces(text.decode, cut)) == text.decode(cut)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat=ru"], ["chat: there is no folder ru.", "'run'"]),
        (["chat=p"], ["chat: p is no run of alignlab"]),
        (["chat="], ["chat=RUN_FOLDER"]),
        (["chat=run", "temprature=0"], ["temprature: chat has no such key", "'temperature'"]),
        (["chat=run", "train.lr=1"], ["train.lr: chat has no such key"]),
        (["chat=run", "temperature"], ["temperature: ", "KEY=VALUE"]),
        (["chat=run", "temperature=-1"], ["temperature: must be at least 0"]),
        (["chat=run", "temperature=nan"], ["temperature: must be at least 0"]),
        (["chat=run", "top_k=1.5"], ["top_k: must be a whole number, not '1.5'"]),
        (["chat=run", "min_tokens=-1"], ["min_tokens: must be at least 0"]),
        (["chat=run", "no_repeat_ngram_size=x"], ["no_repeat_ngram_size: must be a whole number"]),
        (["chat=run", "conditions=loud"], ["conditions: 'loud' is not a label"]),
        (["chat=run", "model=best"], ["model: must be one of before, after, not 'best'"]),
    ],
    ids=" ".join,
)
def test_a_command_line_that_is_wrong(piped, arguments, words):
    said(piped(*arguments), *words)


def said(found: tuple[int, str, str], *words: str) -> None:
    status, shown, errors = found
    assert (status, shown) == (2, ""), errors
    message = errors[errors.index("alignlab: ") :]
    assert len(message.splitlines()) <= 3
    for word in words:
        assert word in message


def test_a_run_without_a_trained_model_answers_with_the_untrained(piped, monkeypatch, tmp_path):
    alignlab.run(["stages=[prepare]", f"run_dir={tmp_path / 'new'}", "tracker=none"])
    monkeypatch.chdir(tmp_path)
    said(piped("chat=new", "model=after"), "model=after: new holds no trained model", "model=before")
    said(piped("chat=new", "conditions=short"), "conditions: the method of new has no control tokens")
    assert piped("chat=new", "temperature=0", typed="Who was the first king?\n")[:2] == (0, "A king, two king.\n")


def test_a_line_that_cannot_be_answered_ends_a_pipe(piped):
    said(piped("chat=run", typed="/befor\n"), "/befor: no such command", "'/before'")
    said(piped("chat=run", typed="/conditions loud\n"), "conditions: 'loud' is not a label")
    said(piped("chat=run", typed="word " * 600 + "\n"), "the model has 512 positions. Shorten it.")


def test_chat_is_refused_before_torch_is_loaded_and_under_a_launcher(folder):
    done = call(folder, "chat=run", "top_p=7", PYTHONPROFILEIMPORTTIME="1")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "alignlab.generate.hf" in loaded  # which chat imports
    assert not loaded & {"torch", "transformers", "peft"}
    done = call(folder, "chat=run", RANK="1", WORLD_SIZE="2")
    said((done.returncode, done.stdout, done.stderr), "chat is one process")


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, where: Path, *arguments: str) -> None:
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.chdir(where)
            os.execv(sys.executable, [sys.executable, "-m", "alignlab", *arguments])

    def until(self, end: str, least: int = 0) -> str:
        """What is shown up to ``end``, once there are ``least`` characters."""
        shown = b""
        while len(shown) < least or end.encode() not in shown:
            assert select.select([self.file], [], [], 60)[0], shown
            shown += os.read(self.file, 4096)
        return shown.decode(errors="replace")

    def type(self, keys: str) -> None:
        os.write(self.file, keys.encode())

    def leave(self) -> int:
        """Ctrl-C until it ends; its status. Python's input() misses one that comes after the prompt and before the wait for a key."""
        with suppress(OSError):  # nobody is left to read from
            while True:
                self.type("\x03")
                while select.select([self.file], [], [], 5)[0]:
                    os.read(self.file, 4096)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal_is_greeted_and_ctrl_c_stops_the_answer_then_the_chat(folder):
    screen = Terminal(folder, "chat=run", "temperature=100", "max_new_tokens=400")
    greeting = screen.until("after> ").splitlines()[-2]
    assert greeting == "run: the model after training; /help explains, Ctrl-D leaves"
    screen.type("Hello\n")
    screen.until("Hello", least=60)  # under way: at this temperature 400 of 3072 tokens are hardly ever the one that ends it
    screen.type("\x03")
    assert "(stopped)" in screen.until("after> ")
    screen.type("Hello\n")
    assert "\r\n(cut off: max_new_tokens=400)\r\n" in screen.until("\nafter> ")
    screen.type("/befor\n")
    assert "Did you mean '/before'?" in screen.until("\nafter> ")
    screen.type("/conditions long kind\n")
    screen.until("\nafter long kind> ")
    screen.type("/conditions loud\n")
    assert "'loud' is not a label" in screen.until("\nafter long kind> ")
    screen.type("/conditions\n")
    screen.until("\nafter> ")
    screen.type("/before\n")
    screen.until("\nbefore> ")
    screen.type("/help\n")
    assert max(map(len, screen.until("\r\nbefore> ").splitlines())) <= 80
    assert screen.leave() == 0
