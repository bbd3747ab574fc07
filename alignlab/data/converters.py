"""From the published files of judgment data sets to judged rows.

A judged row is one response to an instruction, with what a judge said of it::

    {"id": str,              unique within the files that are converted together
     "instruction": str,
     "input": str,           always empty here
     "output": str,          the response
     "judgment": str | None, None where the response is satisfactory
     "score": float | None,  on a scale of 1 to 10
     "i_ans": str | None}    a better response

A converter takes files and a reader of files, and streams pairs of a place (``path:line``, and the field after it where a raw row
gives several responses) and one of

- a judged row, as a new dictionary;
- a text: why a rule of the source leaves this response out;
- a :class:`UserError` that names place and field, where the raw row is not as expected.

A wrong row ends nothing: the rows after it follow, and whoever reads decides how many may be wrong. What concerns whole files
(too few, not readable) is raised. A reader streams pairs of a place and a raw row, or a :class:`UserError` for a row that cannot
be read.

The rules of ``shepherd`` and ``summarization`` are those of the program of Xu et al. 2024 (arXiv 2312.14591),
``scripts/convert2alpaca.py`` of wwxu21/CUT. Where that program would stop at an assertion or an exception, there is an error here.
It differs in one thing: a judgment without any words, which it would keep, is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from alignlab.errors import UserError

Row = dict[str, Any]
Result = Row | str | UserError
Reader = Callable[[Path], Iterable[tuple[str, Any]]]
Converter = Callable[[Sequence[Path], Reader], Iterator[tuple[str, Result]]]
"""files and a reader of one file; :func:`alignlab.data.files.raw_rows` is one"""


@dataclass(frozen=True)
class _Node:
    """A value within a raw row, and the path of fields that leads to it."""

    value: Any
    place: str
    field: str = ""

    def wrong(self, problem: str) -> UserError:
        return UserError(f"{self.where}: {problem}")

    @property
    def where(self) -> str:
        return f"{self.place}:{self.field}" if self.field else self.place

    def has(self, key: str) -> bool:
        return isinstance(self.value, dict) and key in self.value

    def at(self, *keys: str) -> _Node:
        node = self
        for key in keys:
            if not isinstance(node.value, dict):
                raise node.wrong(f"must be an object, not {_kind(node.value)}.")
            below = _Node(node.value.get(key), self.place, f"{node.field}.{key}" if node.field else key)
            if not node.has(key):
                raise below.wrong("missing. Was another file meant, or another converter?")
            node = below
        return node

    def each(self) -> list[_Node]:
        if not isinstance(self.value, list):
            raise self.wrong(f"must be a list, not {_kind(self.value)}.")
        return [_Node(item, self.place, f"{self.field}[{index}]") for index, item in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.wrong(f"must be a text, not {_kind(self.value)}.")
        try:
            self.value.encode()
        except UnicodeEncodeError:
            raise self.wrong("holds half of a surrogate pair (\\ud800 to \\udfff), which is no character.") from None
        return self.value

    def text_or_none(self) -> str | None:
        return None if self.value is None else self.text()

    def judgment(self) -> str:
        if not self.text().strip():
            raise self.wrong("is a judgment without words.")
        return self.text()

    def number(self) -> float:
        """The number, also where it is written as a text."""
        try:
            number = math.nan if isinstance(self.value, bool) else float(self.value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.wrong(f"must be a number, not {_kind(self.value)}.")
        return number


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value) if len(str(value)) < 20 else "a long number"
    return next(
        (name for kind, name in ((dict, "an object"), (list, "a list"), (str, "a text")) if isinstance(value, kind)), "that"
    )


def _row(name: str, instruction: str, output: str, judgment: str | None, score: float | None, refined: str | None) -> Row:
    values = (name, instruction, "", output, judgment, score, refined)
    return dict(zip(("id", "instruction", "input", "output", "judgment", "score", "i_ans"), values, strict=True))


def _attempt(place: str, convert: Callable[..., Result], *arguments: Any) -> tuple[str, Result]:
    try:
        return place, convert(*arguments)
    except UserError as error:
        return place, error


def shepherd(files: Sequence[Path], read: Reader) -> Iterator[tuple[str, Result]]:
    """Human judgments of Shepherd (Wang et al. 2023, facebookresearch/Shepherd, 1317 rows), from two files in either order.

    ``human_data_for_model.jsonl`` gives the question, the answer and the judgment, ``human_data_raw.jsonl`` on the same line the
    better answer. Every row is judged, with score 1. The id is ``shepherd/N`` for the Nth row. Rows that one file has and the other
    lacks end the stream with one error; the authors' program passes over them where the raw file ends first.

    Raises:
        UserError: there are not two files, or one cannot be read.
    """
    if len(files) != 2:
        raise UserError(f"shepherd: takes two files, human_data_raw.jsonl and human_data_for_model.jsonl, and got {len(files)}.")
    for number, pair in enumerate(zip_longest(*map(read, files)), 1):
        if None in pair:
            place = next(row for row in pair if row is not None)[0]
            lacking = files[pair.index(None)]
            yield (
                place,
                UserError(f"{place}: {lacking} ends before its row {number}, which belongs to this one. Fetch both files again."),
            )
            return
        unread = [row for row in pair if isinstance(row[1], UserError)]
        if unread:
            yield unread[0]
            continue
        first, second = (_Node(raw, place) for place, raw in pair)
        labelled, shown = (second, first) if second.has("metadata") else (first, second)
        yield _attempt(shown.place, _annotation, f"shepherd/{number}", labelled, shown)


def _annotation(name: str, labelled: _Node, shown: _Node) -> Result:
    for theirs, ours in (("context", "question"), ("output_candidate", "answer")):
        other = labelled.at("metadata", theirs)
        if other.text() != shown.at(ours).text():
            raise shown.at(ours).wrong(f"differs from {other.where}. Both files must be of one version, row by row.")
    refined = labelled.at("metadata", "output_correct").text_or_none()
    return _row(name, shown.at("question").text(), shown.at("answer").text(), shown.at("feedback").judgment(), 1.0, refined)


def summarization(files: Sequence[Path], read: Reader) -> Iterator[tuple[str, Result]]:
    """Critiques of summaries and answers (Saunders et al. 2022, arXiv 2206.05802), from the files of their critique task.

    Each question gives one row, of its highest-ranked answer, the first of equals: the instruction is the passage, a newline and
    the question. It is left out where the labeller skipped it or the answer is empty. Without critiques it is satisfactory, and its
    rating must be 7, the best. Otherwise the judgment is the critiques' texts with a space between them, ``i_ans`` the refinement
    that the last one led to, and the score 1; it is left out where that refinement is empty. The id is ``FILE/ROW/QUESTION``,
    counted from 1.

    Raises:
        UserError: a file cannot be read, or two have the same name.
    """
    return _parts(files, read, ("data", "questions"), _question)


def _question(name: str, row: _Node, question: _Node) -> Result:
    instruction = f"{row.at('data', 'passage', 'text').text()}\n{question.at('question').text()}"
    answer = _highest(question)
    feedback = answer.at("feedback")
    if feedback.has("skip") and feedback.at("skip").value is True:
        return "skipped by the labeller"
    output = answer.at("answer").text()
    if not output:
        return "empty answer"
    critiques = feedback.at("critiques")
    if critiques.value is None or critiques.value == []:
        rating = feedback.at("rating")
        if rating.value != 7:
            raise rating.wrong(f"is {_kind(rating.value)} without critiques, where it must be 7.")
        return _row(name, instruction, output, None, None, None)
    refined = critiques.each()[-1].at("refinement").text_or_none()
    if refined == "":
        return "no refinement"
    joined = " ".join(critique.at("text").text() for critique in critiques.each()).strip()
    judgment = _Node(joined, critiques.place, critiques.field).judgment()
    return _row(name, instruction, output, judgment, 1.0, refined)


def _highest(question: _Node) -> _Node:
    answers, rankings = question.at("answers").each(), question.at("rankings").each()
    # where there is one answer only, nothing ranks it: its ranking may be null
    numbers = [ranking.number() for ranking in rankings] if len(rankings) > 1 else [0.0] * len(rankings)
    best = numbers.index(max(numbers)) if numbers else 0
    if not numbers or best >= len(answers):
        raise question.at("rankings").wrong(f"{len(rankings)} for {len(answers)} answers; there must be one for each.")
    return answers[best]


def ultrafeedback(files: Sequence[Path], read: Reader) -> Iterator[tuple[str, Result]]:
    """Completions that GPT-4 criticised and scored (UltraFeedback, Cui et al. 2024, arXiv 2310.01377).

    Each completion, four to an instruction, gives one row: the judgment is its critique, the score its ``overall_score`` (1 to 10,
    None where null), so a good completion is told by its score and not by a judgment of None. It is left out where the response is
    empty. The id is ``FILE/ROW/COMPLETION``, counted from 1. No program of others is followed here: the 1000 instructions of
    Xu et al. are published as judged rows, with judgments of their own. The system prompt that each completion was asked for with,
    and that its judge saw, is not part of the instruction.

    Raises:
        UserError: a file cannot be read, or two have the same name.
    """
    return _parts(files, read, ("completions",), _completion)


def _completion(name: str, row: _Node, completion: _Node) -> Result:
    instruction, output = row.at("instruction").text(), completion.at("response").text()
    if not output:
        return "empty answer"
    score = completion.at("overall_score")
    return _row(
        name, instruction, output, completion.at("critique").judgment(), None if score.value is None else score.number(), None
    )


def _parts(
    files: Sequence[Path], read: Reader, keys: tuple[str, ...], convert: Callable[..., Result]
) -> Iterator[tuple[str, Result]]:
    """What ``convert`` makes of each item of the list that ``keys`` lead to in each raw row."""
    names = [path.stem for path in files]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name}: several files have this name, which begins the ids of their rows. Rename one of them.")
    for file, path in zip(names, files, strict=True):
        for number, (place, raw) in enumerate(read(path), 1):
            row = _Node(raw, place)
            try:
                if isinstance(raw, UserError):
                    raise raw
                parts = row.at(*keys).each()
            except UserError as error:
                yield place, error
                continue
            if not parts:
                yield place, f"no {keys[-1]}"
            for index, part in enumerate(parts, 1):
                yield _attempt(part.where, convert, f"{file}/{number}/{index}", row, part)


CONVERTERS: Mapping[str, Converter] = {"shepherd": shepherd, "summarization": summarization, "ultrafeedback": ultrafeedback}
"""by the name of their source"""
