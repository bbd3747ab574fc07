"""Prompt templates as data: an instruction, and one with a judgment, as the text that a model reads."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from alignlab.errors import UserError, did_you_mean
from alignlab.paths import resolve
from alignlab.protocols import Request
from alignlab.records import Judged
from alignlab.text import TextCodec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Template:
    """How instructions and judgments are put to a model."""

    chat: bool
    """whether the texts are user turns of the model's chat template, or whole texts"""
    plain: str
    """of an instruction: holds {instruction}"""
    judged: str
    """of an instruction whose response shall match a judgment: holds {instruction} and {judgment}"""
    verdict: str
    """stands between a response and a judgment that the model itself writes"""

    def request(self, instruction: str, judgment: str | None = None) -> Request:
        """The instruction, with or without a judgment that the response shall match."""
        values = {"instruction": instruction, "judgment": judgment or ""}
        text = _PLACE.sub(lambda found: values[found[1]], self.plain if judgment is None else self.judged)
        return Request([{"role": "user", "content": text}]) if self.chat else Request(text=text)


_PLACE = re.compile(r"\{(instruction|judgment)\}")
_NEEDED = {"plain": ("{instruction}",), "judged": ("{instruction}", "{judgment}"), "verdict": ()}


@cache
def load_template(name: str) -> Template:
    """A template that ships with alignlab, or one in a YAML file.

    Raises:
        ValueError: there is none, or it lacks a key or a placeholder; the message begins ``template: ``.
    """
    from omegaconf import OmegaConf

    shipped = Path(resolve("alignlab:prompts"))
    names = sorted(path.stem for path in shipped.glob("*.yaml"))
    file = shipped / f"{name}.yaml" if name in names else Path(resolve(name))
    if not file.is_file():
        raise ValueError(f"template: {name} is neither a file nor one of {', '.join(names)}.{did_you_mean(name, names)}")
    try:
        raw = OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:  # yaml and omegaconf each raise their own
        raise ValueError(f"template: {file} is no YAML that can be read: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, dict) or set(raw) != {"chat", *_NEEDED}:
        raise ValueError(f"template: {file} must have the keys chat, {', '.join(_NEEDED)}, and no others")
    if not isinstance(raw["chat"], bool):
        raise ValueError(f"template: {file}: chat must be true or false")
    for key, places in _NEEDED.items():
        if not isinstance(raw[key], str):
            raise ValueError(f"template: {file}: {key} must be a text")
        for place in places:
            if place not in raw[key]:
                raise ValueError(f"template: {file}: {key} lacks the placeholder {place}")
    return Template(**{str(key): value for key, value in raw.items()})


Encoded = tuple[list[int], list[int]]
"""token ids of a context, and of the response after it with the token that ends it"""


def encode(
    record: Judged,
    template: Template,
    text: TextCodec,
    cutoff: int,
    *,
    judged: bool = False,
    output: str | None = None,
    field: str = "output",
) -> Encoded:
    """A record's response in one of its contexts.

    What exceeds ``cutoff`` or the model's context, the token that ends the response not counted, is cut off the context from the
    left, so that the response stays whole. A response that reaches ``cutoff`` by itself loses its beginning too, and the first
    token that is left serves as the context (``tokenize`` in the authors' ``finetune_unlikelihood.py``).

    Args:
        record: an instruction, a response and perhaps a judgment.
        template: how they are put to the model.
        text: the model's tokenizer.
        cutoff: tokens of context and response.
        judged: whether the context holds the judgment.
        output: a response in place of the record's own.
        field: what that response is called, for messages.

    Raises:
        UserError: the response is empty, or leaves no room for a context in the model; the row is named.
    """
    output = record.output if output is None else output
    if not output:
        raise UserError(f"{record.where}:{field}: is empty; give a response.")
    try:
        context, response = text.continuation(template.request(record.instruction, record.judgment if judged else None), output)
    except UserError as error:
        raise error if str(error).startswith("model.") else UserError(f"{record.where}: {error}") from None
    limit, length = min(cutoff, text.context), len(response) - 1
    if not length:
        raise UserError(
            f"{record.where}:{field}: nothing of it is left after the template. Give a response that has tokens of its own."
        )
    if length >= text.context:
        raise UserError(
            f"{record.where}:{field}: the response alone has {length} tokens, the model {text.context} positions.\n"
            "Shorten it, or let such rows be passed over with data.max_bad_rows."
        )
    if length < limit:
        return context[max(0, len(context) + length - limit) :], response
    _tell(record.where, length, limit)
    return response[-limit - 1 : -limit], response[-limit:]


@cache
def _tell(where: str, length: int, limit: int) -> None:
    log.warning("%s:output: of %d tokens the last %d are read, and nothing before them: method.cutoff.", where, length, limit)


def contexts(record: Judged, template: Template, text: TextCodec, cutoff: int) -> tuple[Encoded, Encoded]:
    """A judged record's response without and with the judgment: the same tokens after two contexts, T tokens.

    Raises:
        UserError: see :func:`encode`; or the tokens differ, so that none can be compared with its like.
    """
    plain, judged = (encode(record, template, text, cutoff, judged=with_it) for with_it in (False, True))
    if plain[1] != judged[1]:
        raise UserError(
            f"{record.where}:output: the response has other tokens after the judgment than without it: nothing can be compared.\n"
            "Take a template whose two texts end alike."
        )
    return plain, judged


def gold(record: Judged, response: list[int], template: Template, text: TextCodec) -> list[int] | None:
    """Which tokens of a record's response, [T], are known to be wrong, [T] of 0 and 1; None where nobody knows.

    Where it is known what would be right in place of a fault, that is the token at which the response first leaves the right one:
    what follows in the fault follows from it. Else it is every token that overlaps the fault. What no training reads must not stop
    one: where the right response makes no tokens, nobody knows.
    """
    if record.faults is None:
        return None
    request = template.request(record.instruction)
    whole = text.continuation(request, record.output)[1]  # of which the response may be the end alone
    marks = [0] * len(whole)
    for fault in record.faults:
        if fault.right is not None:
            try:
                other = text.continuation(request, record.output[: fault.start] + fault.right + record.output[fault.end :])[1]
            except UserError:
                return None
            differing = (i for i, (a, b) in enumerate(zip(whole, other, strict=False)) if a != b)
            if (first := next(differing, None)) is not None:
                marks[first] = 1
        else:
            for i, (start, end) in enumerate(_spans(record.output, whole[:-1], text)):
                marks[i] |= start < fault.end and end > fault.start
    return marks[-len(response) :]


def _spans(output: str, response: list[int], text: TextCodec) -> list[tuple[int, int]]:
    """Characters of a response that each of its tokens holds, first and one past the last; of a part of a letter, the letter."""
    bare = output.strip()  # as a chat template may leave it, after a lead of its own
    start = at = output.find(bare) - max(0, text.decode(response).find(bare))
    spans = []
    for i in range(len(response)):
        written = text.decode(response[: i + 1])
        end = at + len(written.rstrip("\ufffd"))  # of a letter begun, a decoder shows U+FFFD
        spans.append((start, end + written.endswith("\ufffd")))
        start = end
    return spans
