"""chat: talking with the model of a run in a terminal, or through a pipe; each line is a request of its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alignlab.config import check, one_of
from alignlab.errors import OK, UserError, did_you_mean
from alignlab.generate.hf import Decoding, stream
from alignlab.launch import World
from alignlab.pipeline import FIRST_LINE, Run
from alignlab.records import Prompt
from alignlab.seeds import derive
from alignlab.signals import Stop


def _labels(words: str) -> tuple[str, ...]:
    return tuple(words.replace(",", " ").split())


DECODING: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "max_new_tokens": int,
    "min_tokens": int,
    "no_repeat_ngram_size": int,
}
WORDS: dict[str, Callable[[str], Any]] = {"chat": str, "model": str, "seed": int, "conditions": _labels, **DECODING}
"""what may stand on the command line, and what reads it"""

HELP = """Each line is a request of its own: the model is asked as its method asks it, and
remembers nothing of the lines before.
  /before, /after  ask the model before or after training
  /conditions A B  ask for answers with these labels, such as nontoxic; of a
                   model trained with control tokens. Alone: with none
  /help            this text
  /quit            leave, as Ctrl-D does
Ctrl-C stops an answer; where none is under way, it leaves."""
COMMANDS = ("/help", "/before", "/after", "/conditions", "/quit")


def chat(arguments: Sequence[str]) -> int:
    """Answer line by line until the input ends; returns the exit status.

    Args:
        arguments: ``chat=FOLDER``, and any of ``model=before|after``, ``seed``, ``conditions=LABEL,LABEL`` and the fields of
            :class:`Decoding`, which replace the run's own.

    Raises:
        UserError: the words are wrong, the folder holds no run or not the model that is asked for; where the input is no
            terminal, also what is wrong with a line.
    """
    given = _read(arguments)
    run = open_run(Path(given["chat"]))
    which = given.get("model", run.models()[-1])
    try:
        one_of("model", which, ("before", "after"))
        decoding = replace(run.config.suite.decoding(), **{key: given[key] for key in DECODING if key in given})
    except ValueError as error:
        raise UserError(str(error)) from None
    talk = Talk(run, decoding, given.get("seed", run.config.seed))
    talk.choose(which)
    talk.condition(given.get("conditions", ()))
    if not run.trained and "model" not in given:
        print(f"chat: {run.folder} holds no trained model; the one before training answers", file=sys.stderr)
    for end in (sys.stdin, sys.stdout):
        end.reconfigure(errors="replace")  # type: ignore[union-attr]
    if sys.stdin.isatty() and sys.stdout.isatty():
        _terminal(talk)
    else:
        for line in sys.stdin:
            if not talk.turn(line.strip(), _write):
                break
    return OK


def _read(words: Iterable[str]) -> dict[str, Any]:
    """The command line as a mapping.

    Raises:
        UserError: a word is not KEY=VALUE, not known, or not of its type.
    """
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise UserError(f"{word}: with chat, words are written KEY=VALUE: chat=RUN_FOLDER temperature=0, say.")
        if key not in WORDS:
            raise UserError(f"{key}: chat has no such key ({', '.join(WORDS)}).{did_you_mean(key, WORDS)}")
        try:
            given[key] = WORDS[key](value)
        except ValueError:
            kind = "a whole number" if WORDS[key] is int else "a number"
            raise UserError(f"{key}: must be {kind}, not '{value}'.") from None
    return given


def open_run(folder: Path) -> Run:
    """A run by its folder, with the configuration that is frozen there.

    Raises:
        UserError: there is none.
    """
    if not folder.is_dir():
        near = [other.name for other in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"chat: there is no folder {folder}.{did_you_mean(folder.name, near)}")
    frozen = folder / "config.yaml"
    if not frozen.is_file() or not frozen.read_text(encoding="utf-8", errors="replace").startswith(FIRST_LINE):
        raise UserError(f"chat: {folder} is no run of alignlab. Give the run_dir of one: the folder with its config.yaml.")
    return Run(folder, check(OmegaConf.load(frozen)), Stop(), World(0, 1))  # type: ignore[arg-type]


class Talk:
    """A run's models, one of them loaded at a time, answering requests.

    Args:
        run: the run.
        decoding: how to draw tokens.
        seed: of the answers; the same lines get the same ones.
    """

    def __init__(self, run: Run, decoding: Decoding, seed: int) -> None:
        self.run, self.decoding, self.seed = run, decoding, seed
        self.which, self.lines = "", 0
        self.conditions: tuple[str, ...] = ()
        self.cut = False
        """whether the last answer was as long as it may be"""
        self._model: Any = None

    def choose(self, which: str) -> None:
        """Take the model ``before`` or ``after`` training.

        Raises:
            UserError: there is none.
        """
        if which not in self.run.models():
            raise UserError(f"model=after: {self.run.folder} holds no trained model. Run its stage train, or take model=before.")
        if which != self.which:
            self.which, self._model = which, None

    def condition(self, labels: Sequence[str]) -> None:
        """Ask for answers with these labels from now on.

        Raises:
            UserError: the run's method has no control tokens, or none for these.
        """
        method, conditions = self.run.config.method, tuple(labels)
        if conditions:
            known = method.conditions()
            if not known:
                raise UserError(
                    f"conditions: the method of {self.run.folder} has no control tokens that were trained; ask without."
                )
            lacking = next((label for label in conditions if label not in known), None)
            if lacking is not None:
                near = did_you_mean(lacking, known)
                raise UserError(f"conditions: '{lacking}' is not a label of this run ({', '.join(known)}).{near}")
            method.request(Prompt("chat", "", conditions=conditions))
        self.conditions = conditions

    def load(self) -> Any:
        """The chosen model, in the dtype in which it is sampled."""
        if self._model is None:
            self._model = self.run.load(self.which, self.run.config.sample.dtype)
        return self._model

    def turn(self, line: str, write: Callable[[str], None]) -> bool:
        """Do what a line asks, and write it bit by bit; returns whether to go on.

        Raises:
            UserError: there is no such command, or the model cannot be asked this.
        """
        command, _, rest = line.partition(" ")
        if re.fullmatch(r"/\w+", line) or command == "/conditions":
            if command not in COMMANDS:
                raise UserError(f"{line}: no such command ({', '.join(COMMANDS)}).{did_you_mean(line, COMMANDS)}")
            if command == "/help":
                write(HELP + "\n")
            elif command == "/conditions":
                self.condition(_labels(rest))
            elif command != "/quit":
                self.choose(command[1:])
            return command != "/quit"
        if line:
            for piece in self.answer(line):
                write(piece)
            write("\n")
        return True

    def answer(self, line: str) -> Iterator[str]:
        """The answer to a request as pieces of text that make whole characters.

        Raises:
            UserError: the request does not fit the model.
        """
        text = self.run.text
        if self.conditions and self.which == "before" and self.run.config.method.new_tokens() and not self.run.config.model.adapter:
            raise UserError("conditions: the model before training never saw control tokens. Ask it without, or ask the one after.")
        ids = text.request(self.run.config.method.request(Prompt("chat", line, conditions=self.conditions)))
        self.lines += 1
        limited = replace(self.decoding, max_new_tokens=min(self.decoding.max_new_tokens, text.context - len(ids)))
        drawn = stream(self.load(), ids, sorted(text.stop), limited, derive(self.seed, "chat", self.lines))
        return pieces(text.decode, self._noted(drawn))

    def _noted(self, drawn: Iterable[int]) -> Iterator[int]:
        for token in drawn:
            self.cut = token not in self.run.text.stop
            yield token


def pieces(decode: Callable[[Sequence[int]], str], drawn: Iterable[int]) -> Iterator[str]:
    """The text of tokens as soon as it is sure: a character may take several, and what one adds depends on those before it."""
    seen: list[int] = []
    shown = 0
    for token in drawn:
        seen.append(token)
        text = decode(seen)
        if not text.endswith("\ufffd") and len(text) > shown:
            yield text[shown:]
            shown = len(text)
    yield decode(seen)[shown:]


def _write(piece: str) -> None:
    print(piece, end="", flush=True)


def _visible(piece: str) -> None:
    """Write without what a model could do to the terminal."""
    _write("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in piece))


def _terminal(talk: Talk) -> None:
    """Ask, answer, and say what is wrong, until the person leaves."""
    with suppress(ImportError):
        import readline  # noqa: F401  (the arrow keys, in input())
    name = talk.run.folder.resolve().name
    rest = f": the model {talk.which} training; /help explains, Ctrl-D leaves"
    room = 80 - len(rest)
    print((name if len(name) <= room else f"{name[: room - 3]}...") + rest, flush=True)
    talk.load()
    while True:
        try:
            line = input(f"{' '.join((talk.which, *talk.conditions))}> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        talk.cut = False
        try:
            if not talk.turn(line, _visible):
                return
            if talk.cut:
                print(f"(cut off: max_new_tokens={talk.decoding.max_new_tokens})")
        except UserError as error:
            print(error)
        except KeyboardInterrupt:
            print(" (stopped)")
