"""What passes between stages as JSON lines: target sets, prompts, samples. Errors name file, line and field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from alignlab.errors import UserError, did_you_mean
from alignlab.files import replacing


class Record:
    """Base of everything a data source can yield."""


@dataclass(frozen=True)
class Prompt(Record):
    """A request to sample from."""

    name: str
    request: str
    dataset: str = ""
    """where the request comes from, if known"""
    conditions: tuple[str, ...] = ()
    """labels that the completion shall have, as control tokens say them"""
    history: tuple[Mapping[str, str], ...] = ()
    """chat messages before the request: a system line, earlier turns"""


@dataclass(frozen=True)
class TargetSet(Record):
    """A request and the distribution that the answers to it shall follow."""

    name: str
    """unique within a source"""
    request: str
    """user turn"""
    responses: tuple[str, ...]
    """texts put before each target in the assistant turn; one is drawn per target at each pass"""
    targets: tuple[str, ...]
    """answers; empty for a prompt that is sampled only"""
    weights: tuple[float, ...]
    """probability of each target, summing to 1"""
    eos: bool
    """whether the token that ends the turn belongs to the target"""
    held_out: bool
    """whether no training ever reads it"""
    where: str = field(default="", compare=False, metadata={"written": False})
    """file it was read from, for messages"""

    @property
    def task(self) -> str:
        """The first folder in the name; empty where there is none."""
        return self.name.partition("/")[0] if "/" in self.name else ""

    def entropy(self) -> float:
        """Entropy of the weights in nats: the floor of the loss."""
        return -math.fsum(w * math.log(w) for w in self.weights if w > 0)

    def answers(self) -> frozenset[str]:
        """Every text that counts as one of the targets, response prefix included."""
        return frozenset(prefix + target for prefix in self.responses for target in self.targets)


@dataclass(frozen=True)
class Sample(Record):
    """One completion of a prompt."""

    model: str
    prompt: str
    sample: int
    text: str
    finish: str


@dataclass(frozen=True)
class Fault:
    """Characters ``start`` to ``end`` of a response that are known to be wrong, and what would be right there, if known."""

    start: int
    end: int
    right: str | None


@dataclass(frozen=True)
class Judged(Record):
    """A response to an instruction, and a judgment of it in words."""

    name: str
    """unique within a source"""
    instruction: str
    """with the row's ``input``, if any, on a line after it"""
    output: str
    """the response; empty in a row that is sampled only"""
    judgment: str | None
    """None: the response is satisfactory"""
    score: float | None
    """of the response, where there is one"""
    refined: str | None
    """a better response (``i_ans`` of the authors' files), where there is one"""
    reference: str | None
    """the right response, where one is known: for evaluation, read by no training"""
    faults: tuple[Fault, ...] | None
    """what is wrong in the response, where known: for evaluation, read by no training"""
    task: str
    """what results are averaged by"""
    dataset: str
    """where the instruction comes from"""
    held_out: bool
    """whether no training ever reads it"""
    where: str = field(default="", compare=False, metadata={"written": False})
    """file and row it was read from, for messages"""

    @property
    def satisfactory(self) -> bool:
        """Whether nothing was found wrong."""
        return self.judgment is None


@dataclass(frozen=True)
class Labelled(Record):
    """A sentence and its labels."""

    name: str
    """unique within a source"""
    text: str
    labels: dict[str, str]
    """attribute -> label"""
    scores: dict[str, float]
    """attribute -> what its label was made of, where there is a score"""
    bare: bool
    """whether no control tokens ever head it"""
    dataset: str
    """where it comes from, if known"""
    held_out: bool
    """whether no training ever reads it"""
    where: str = field(default="", compare=False, metadata={"written": False})
    """file and row it was read from, for messages"""


@dataclass(frozen=True)
class Dialogue(Record):
    """A conversation."""

    name: str
    """unique within a source"""
    messages: tuple[Mapping[str, str], ...]
    """``role`` (system, user or assistant) and ``content`` of each turn"""
    learned: tuple[int, ...]
    """places of the assistant's turns that are trained on"""
    origin: str
    """``downstream`` or ``diverse``"""
    kind: str
    """what results are grouped by"""
    dataset: str
    """where it comes from, if known"""
    held_out: bool
    """whether no training ever reads it"""
    where: str = field(default="", compare=False, metadata={"written": False})
    """file and row it was read from, for messages"""

    @property
    def reference(self) -> str:
        """The last turn, where it is the assistant's; else empty."""
        return self.messages[-1]["content"] if self.messages[-1]["role"] == "assistant" else ""

    @property
    def prompt(self) -> Prompt:
        """What a model is asked to answer: all up to the last user turn."""
        asked = self.messages[:-1] if self.reference else self.messages
        return Prompt(self.name, asked[-1]["content"], self.dataset, history=tuple(asked[:-1]))


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        UserError: it cannot be read or parsed (with line and column), or gives a field twice.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=lambda pairs: _once(pairs, path))
    except json.JSONDecodeError as error:
        lines = (
            "\nJSON lines are not read here: give one file per prompt, or choose a method that reads rows."
            if error.msg == "Extra data"
            else ""
        )
        raise UserError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}.{lines}") from None
    except RecursionError:
        raise UserError(f"{path}: not a prompt file: brackets are nested too deeply.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path}: not valid JSON: {str(error).split(';')[0]}.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None


def _once(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for key, value in pairs:
        if key in known:
            raise UserError(f"{at(path, key)}: given twice; keep one.")
        known[key] = value
    return known


def at(path: Path | str, field: str) -> str:
    """``file:line:field`` of a field of a JSON file, or ``file:field`` where no line can be told."""
    key = re.compile(rf'"{re.escape(field.split("[")[0])}"\s*:')
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return f"{path}:{field}"
    lines = [number for number, line in enumerate(text.splitlines(), 1) if key.search(line)]
    return f"{path}:{lines[0]}:{field}" if lines else f"{path}:{field}"


_FIELDS = {
    "request": "the user turn, a string",
    "response": "text before each target, a string or a list of strings",
    "targets": "a list of strings",
    "weights": "a list of numbers, one per target",
    "eos": "true or false",
    "split": '"train", "test" or "both"',
}


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def parse_target_set(raw: Any, name: str, where: str) -> TargetSet:
    """A prompt file's content as a :class:`TargetSet`.

    Args:
        raw: the parsed JSON.
        name: the prompt's name.
        where: the file, for messages.

    Raises:
        UserError: a field is missing, unknown, mistyped or contradicts another.
    """

    def wrong(field: str, problem: str) -> UserError:
        return UserError(f"{at(where, field)}: {problem}")

    if not isinstance(raw, dict):
        kind = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(raw), "a number")
        raise UserError(
            f"{where}: holds {kind}, not a prompt file, which is one JSON object with 'request', 'response' and 'targets'.\n"
            "Choose a method that reads this kind of data, or another data.path."
        )
    for key in raw:
        if key not in _FIELDS:
            raise wrong(key, f"not a field of a prompt file ({', '.join(_FIELDS)}).{did_you_mean(key, _FIELDS)}")
    request = raw.get("request")
    if "request" not in raw:
        raise wrong("request", f"missing: {_FIELDS['request']}.")
    if not isinstance(request, str) or not request:
        raise wrong("request", f"must be {_FIELDS['request']} that is not empty.")
    response = raw.get("response", "")
    responses = [response] if isinstance(response, str) else response
    if not _strings(responses) or not responses:
        raise wrong("response", f"must be {_FIELDS['response']}.")
    targets = [] if raw.get("targets") is None else raw["targets"]
    if not _strings(targets):
        raise wrong("targets", f"must be {_FIELDS['targets']}.")
    eos = raw.get("eos", True)
    if not isinstance(eos, bool):
        raise wrong("eos", f"must be {_FIELDS['eos']}.")
    split = "both" if raw.get("split") is None else raw["split"]
    if split not in ("train", "test", "both"):
        raise wrong("split", f"must be {_FIELDS['split']}.")
    for place, texts in (("request", [request]), ("response", responses), ("targets", targets)):
        _refuse_halves(place, texts, wrong)
    weights = _weights([] if raw.get("weights") is None else raw["weights"], len(targets), wrong)
    _refuse_repeats(responses, targets, wrong)
    if not eos:
        _refuse_beginnings(responses, targets, wrong)
    return TargetSet(name, request, tuple(responses), tuple(targets), weights, eos, held_out=split == "test", where=where)


def _weights(weights: Any, n: int, wrong: Any) -> tuple[float, ...]:
    """Normalised weights; uniform when none are given."""
    if not isinstance(weights, list) or any(isinstance(w, bool) or not isinstance(w, int | float) for w in weights):
        raise wrong("weights", f"must be {_FIELDS['weights']}.")
    if not weights:
        return (1.0 / n,) * n if n else ()
    if len(weights) != n:
        raise wrong("weights", f"{len(weights)} weights for {n} targets; give one per target, or none for equal ones.")
    for index, weight in enumerate(weights):
        if not 0 <= weight <= 1e300:  # so that neither one of them nor their sum overflows
            raise wrong(f"weights[{index}]", f"{short(str(weight))} is not a weight; give a finite number that is not negative.")
    total = math.fsum(weights)
    if total <= 0:
        raise wrong("weights", "sum to 0; at least one must be positive.")
    return tuple(weight / total for weight in weights)


def _refuse_halves(field: str, texts: list[str], wrong: Any) -> None:
    for index, text in enumerate(texts):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            place = field if len(texts) == 1 else f"{field}[{index}]"
            raise wrong(place, "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character. Correct it.")


def _refuse_repeats(responses: list[str], targets: list[str], wrong: Any) -> None:
    seen: dict[str, int] = {}
    for index, target in enumerate(targets):
        if target in seen:
            raise wrong(f"targets[{index}]", f"repeats targets[{seen[target]}], '{short(target)}'; give it once, with its weight.")
        seen[target] = index
    whole: dict[str, tuple[int, int]] = {}
    for r, prefix in enumerate(responses):
        for t, target in enumerate(targets):
            k, other = whole.setdefault(prefix + target, (r, t))
            if k != r:
                raise wrong(
                    f"response[{r}]",
                    f"with targets[{t}] it makes the same text as response[{k}] with targets[{other}], "
                    f"'{short(prefix + target)}'. Change one of them.",
                )


def _refuse_beginnings(responses: list[str], targets: list[str], wrong: Any) -> None:
    ordered = sorted((prefix + target, t) for prefix in responses for t, target in enumerate(targets))
    for (shorter, s), (longer, n) in pairwise(ordered):
        if longer.startswith(shorter):
            raise wrong(
                f"targets[{s}]",
                f"'{short(shorter)}' begins '{short(longer)}' (targets[{n}]), and with eos=false nothing tells them apart.\n"
                "Set eos to true, or add text that ends each target.",
            )
    if ordered and not ordered[0][0]:
        raise wrong(f"targets[{ordered[0][1]}]", "is empty, and with eos=false nothing would be learnt. Set eos to true.")


def short(text: str) -> str:
    """A text as a message shows it: its beginning."""
    return text if len(text) <= 40 else text[:37] + "..."


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file.

    Raises:
        UserError: a line cannot be parsed (with line and column).
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}:{number}:{error.colno}: not valid JSON: {error.msg}.") from None


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write dataclasses or mappings as JSON lines, as a stream, atomically. Returns how many."""
    count = 0
    with replacing(path) as file:
        for row in rows:
            value = row if isinstance(row, dict) else _plain(row)
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
            count += 1
    return count


def _plain(row: Any) -> dict[str, Any]:
    unwritten = {f.name for f in fields(row) if not f.metadata.get("written", True)}
    return {name: value for name, value in asdict(row).items() if name not in unwritten}
