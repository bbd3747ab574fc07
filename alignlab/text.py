"""Between text and token ids: chat templates, prompts, and the tokens of an answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from alignlab.errors import UserError
from alignlab.protocols import Request
from alignlab.records import TargetSet, at, short


@dataclass(frozen=True)
class Encoded:
    """A target set as token ids."""

    prompt: list[int]
    answers: list[list[list[int]]]
    """[targets][response prefixes] token ids of each answer"""


class TextCodec:
    """A tokenizer with its chat template.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        stop: ids of the tokens at which generation stops.
        context: positions that the model has.
        lead: text put before each answer.
        end: id of the token that ends an answer; None takes the one that the template writes.
        system: where a system turn goes: ``template``, as the template has it; ``user``, in front of the first user turn.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[int],
        context: int,
        lead: str = "",
        end: int | None = None,
        system: str = "template",
    ) -> None:
        self.tokenizer, self.stop, self.context, self.lead, self.end = tokenizer, frozenset(stop), context, lead, end
        self.system = system
        self._vocabulary: dict[str, int] | None = None

    def prompt(self, messages: Sequence[Mapping[str, str]], twice: bool = False) -> list[int]:
        """Token ids of a conversation up to where the assistant begins to write; for ``twice`` see :class:`Request`.

        Raises:
            UserError: they leave no room in the context.
        """
        ids = self._template(messages, twice, add_generation_prompt=True)
        if len(ids) >= self.context:
            asked = short(messages[-1]["content"])
            raise UserError(f"the prompt '{asked}' is {len(ids)} tokens long, the model has {self.context} positions. Shorten it.")
        return ids

    def request(self, request: Request) -> list[int]:
        """Token ids of a request, up to where the model begins to write.

        Raises:
            UserError: they leave no room in the context.
        """
        if request.text is None:
            return self.prompt(request.messages, request.twice)
        if request.alone:  # put together from ids: behind a token some tokenizers split a word otherwise
            ids = [
                *self.start,
                *self.ids(request.before),
                *self.texts([request.text])[0],
                *self.ids(request.after),
            ] or self._first()
        else:
            ids = self._encode(request.text) or self._first()
        if len(ids) >= self.context:
            asked = short(request.text)
            raise UserError(f"the prompt '{asked}' is {len(ids)} tokens long, the model has {self.context} positions. Shorten it.")
        return ids

    def continuation(self, request: Request, answer: str) -> tuple[list[int], list[int]]:
        """Token ids of a request and of an answer to it, the token that ends it included.

        A text and its answer are tokenized together and split at the count of the request's own tokens, as in the authors' program
        of CUT (``finetune_unlikelihood.py``): apart, the answer would have other tokens.

        Raises:
            UserError: the tokenizer has no token that ends a text, or see :meth:`answer`.
        """
        if request.text is None:
            prompt = self._template(request.messages, request.twice, add_generation_prompt=True)
            return prompt, self.answer(request.messages, prompt, answer, eos=True, twice=request.twice)
        if self.tokenizer.eos_token_id is None:
            raise UserError("model.tokenizer: it has no token that ends a text (eos), which an answer is trained to end with.")
        count, whole = len(self._encode(request.text)), self._encode(request.text + answer)
        return whole[:count], [*whole[count:], self.tokenizer.eos_token_id]

    def turns(
        self, messages: Sequence[Mapping[str, str]], places: Sequence[int], twice: bool = False
    ) -> list[tuple[list[int], list[int]]]:
        """Token ids of turns of the assistant: for each, what a model reads that is asked to write it, and what it shall write.

        The template renders the conversation up to the turn and with it, for each turn anew: what it writes is told from what it
        reads by its place, not by a marker. Where a template writes what is past as it wrote it before, the turns are the
        beginnings of one chain; where it does not, each has a chain of its own.

        Args:
            messages: a conversation.
            places: of the turns in it.
            twice: see :class:`Request`.

        Raises:
            UserError: see :meth:`answer`.
        """
        return [self.continuation(Request(messages[:i], twice=twice), messages[i]["content"]) for i in places]

    @cached_property
    def identity(self) -> str:
        """Digest of all that token ids and the end of a completion depend on."""
        tokenizer = self.tokenizer
        whole = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
        parts = [whole, tokenizer.chat_template, sorted(self.stop), self.context, self.lead, self.end, self.system]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @cached_property
    def start(self) -> list[int]:
        """What the tokenizer itself puts in front of a text: the BOS token of Llama's, nothing with GPT-2's."""
        whole, own = self.tokenizer.encode("a"), self.texts(["a"])[0]
        at = next((i for i in range(len(whole)) if whole[i : i + len(own)] == own), 0)
        return whole[:at]

    def _first(self) -> list[int]:
        """A token to begin with where a text has none at all."""
        found = [i for i in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if i is not None][:1]
        if not found:
            raise UserError(
                "model.tokenizer: it has neither a bos nor an eos token, so nothing can be sampled from no prompt at all."
            )
        return found

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text alone: no special token is put around it, and none that it spells out is taken for one."""
        if not texts:
            return []
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)[
            "input_ids"
        ]

    def ids(self, tokens: Sequence[str]) -> list[int]:
        """Ids of tokens by their texts.

        Raises:
            UserError: the vocabulary lacks one.
        """
        vocabulary = self.tokenizer.get_vocab() if self._vocabulary is None else self._vocabulary
        self._vocabulary = vocabulary
        lacking = [token for token in tokens if token not in vocabulary]
        if lacking:
            raise UserError(f"model.tokenizer: it has no token '{lacking[0]}'.")
        return [vocabulary[token] for token in tokens]

    @property
    def eos(self) -> int:
        """Id of the token that ends a text.

        Raises:
            UserError: there is none.
        """
        if self.tokenizer.eos_token_id is None:
            raise UserError("model.tokenizer: it has no token that ends a text (eos), which sentences are trained to end with.")
        return self.tokenizer.eos_token_id

    def _encode(self, text: str) -> list[int]:
        """Token ids of a text with the special tokens that the tokenizer puts before it, without one after it."""
        ids = self.tokenizer.encode(text)
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids

    def answer(
        self, messages: Sequence[Mapping[str, str]], prompt: list[int], text: str, eos: bool, twice: bool = False
    ) -> list[int]:
        """Token ids of the assistant's turn after the prompt.

        With ``eos`` they end with the first token at which generation stops; what a template writes after it (a newline, say) is
        dropped. Without, they are the text's own tokens, as in the authors' ``utils.py``.

        Raises:
            UserError: the template rewrites the prompt once an answer follows it, or never ends the turn, or the text does.
        """
        alone = self.tokenizer.encode(text, add_special_tokens=False)
        ending = next((token for token in alone if token in self.stop), None)
        if ending is not None:
            name = self.tokenizer.convert_ids_to_tokens(ending)
            raise UserError(f"the answer '{short(text)}' holds {name}, which ends the assistant's turn. Take it out.")
        answered = [*messages, {"role": "assistant", "content": self.lead + text}]
        full = self._template(answered, twice)
        if full[: len(prompt)] != prompt:
            raise self._changed(messages, answered, text)
        rest = full[len(prompt) :]
        if not eos:
            # a lead may become part of the first word: with it or without, the tokens are those that stand in the chat
            for own in (self.tokenizer.encode(self.lead + text, add_special_tokens=False), alone):
                if rest[: len(own)] == own:
                    return own
            raise UserError(f"the answer '{short(text)}' has other tokens alone than in the chat, so eos must be true for it.")
        for i, token in enumerate(rest):
            if token in self.stop:
                return [*rest[:i], token if self.end is None else self.end]
        raise UserError(
            "model.chat_template: the assistant's turn ends without a token at which generation stops "
            f"({', '.join(self.tokenizer.convert_ids_to_tokens(sorted(self.stop)))}).\n"
            "Set eos to false in the prompt files, or use another model.chat_template."
        )

    def encode(self, record: TargetSet) -> Encoded:
        """Prompt and answers of a target set.

        Raises:
            UserError: an answer does not fit the context, or its tokens are ambiguous.
        """
        messages = [{"role": "user", "content": record.request}]
        try:
            prompt = self.prompt(messages)
        except UserError as error:
            raise _located(error, record, "request") from None
        answers = []
        for i, target in enumerate(record.targets):
            try:
                variants = [self.answer(messages, prompt, prefix + target, record.eos) for prefix in record.responses]
            except UserError as error:
                raise _located(error, record, f"targets[{i}]") from None
            longest = len(prompt) + max(map(len, variants))
            if longest - 1 > self.context:  # the last token is predicted, not read
                raise UserError(
                    f"{_at(record, f'targets[{i}]')}: prompt and answer are {longest} tokens long and the model has {self.context} "
                    f"positions. Shorten the target '{short(target)}'."
                )
            answers.append(variants)
        _refuse_beginnings(record, answers)
        return Encoded(prompt, answers)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _template(self, messages: Sequence[Mapping[str, str]], twice: bool = False, **kwargs: Any) -> list[int]:
        """Token ids of a rendered conversation, which has a BOS token where its template writes one.

        Raises:
            UserError: the template refuses it.
        """
        ids = self._rendered(messages, tokenize=True, return_dict=False, **kwargs)
        return [*self.start, *ids] if twice else ids

    def _rendered(self, messages: Sequence[Mapping[str, str]], **kwargs: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(self._written(messages), **kwargs)
        except Exception as error:  # jinja raises what a template says
            problem = f"model.chat_template: cannot render this conversation: {str(error).rstrip('.')}."
            raise UserError(problem + self._hint(messages)) from None

    def _written(self, messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
        """The messages as the template gets them: past answers after their lead, a system turn where it goes."""
        turns = list(messages)
        for i, message in enumerate(turns):
            if message["role"] == "assistant" and not message["content"].startswith(self.lead):
                turns[i] = {**message, "content": self.lead + message["content"]}
        asked = next((i for i, message in enumerate(turns) if message["role"] == "user"), 0)
        if self.system == "user" and asked and turns[0]["role"] == "system":
            turns[asked] = {**turns[asked], "content": f"{turns[0]['content']}\n\n{turns[asked]['content']}"}
            return turns[1:]
        return turns

    def _hint(self, messages: Sequence[Mapping[str, str]]) -> str:
        """What helps where a template has no place for a system turn; nothing if there is none."""
        if self.system == "user" or not messages or messages[0]["role"] != "system":
            return ""
        return "\nWhere it has no place for a system turn, give model.system_turns=user: it goes in front of the first user turn."

    def _changed(self, messages: Sequence[Mapping[str, str]], answered: Sequence[Mapping[str, str]], text: str) -> UserError:
        """Why an answer has no tokens of its own."""
        prompt = self._rendered(messages, tokenize=False, add_generation_prompt=True)
        whole = self._rendered(answered, tokenize=False)
        problem = f"model.chat_template: the tokens of the prompt change when the answer '{short(text)}' follows it"
        if whole.startswith(prompt):
            lead = "Give model.answer_lead=\"' '\", or another model.chat_template."
            return UserError(f"{problem}, so the answer has no tokens of its own.\n{lead}")
        same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole)))
        now, then = (short(rest) for rest in (prompt[same:], whole[same:]))
        hint = self._hint(messages) or "\nGive another model.chat_template."
        return UserError(f"{problem}: it then writes {then!r} in place of {now!r}.{hint}")


def turn(tokenizer: Any, lead: str) -> tuple[str, int | None]:
    """What of ``lead`` a chat template leaves to be put before an answer, and the token with which it ends an answer.

    That is the first special token after the text; None where there is none, or where the template wants other messages.

    Raises:
        UserError: the template takes the lead away.
    """
    found = _around(tokenizer, "")
    if found is None:
        return lead, None
    before, after = found
    if before.endswith(lead):
        lead = ""
    elif not (_around(tokenizer, lead) or found)[0].endswith(lead):
        raise UserError(f"model.answer_lead: the chat template takes {lead!r} from the beginning of an answer. Leave it empty.")
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return lead, next((token for token in tokenizer.encode(after, add_special_tokens=False) if token in special), None)


def _around(tokenizer: Any, lead: str) -> tuple[str, str] | None:
    """Text before and after an answer in a rendered conversation."""
    answer = "An answer."
    messages = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": lead + answer}]
    try:
        before, _, after = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(answer)
    except Exception:  # what does not render is said of the record that needs it
        return None
    return before, after


def _at(record: TargetSet, field: str) -> str:
    return at(record.where, field) if record.where else f"{record.name}:{field}"


def _located(error: UserError, record: TargetSet, field: str) -> UserError:
    """The error with the field it is about, unless it is about the model."""
    return error if str(error).startswith("model.") else UserError(f"{_at(record, field)}: {error}")


def _refuse_beginnings(record: TargetSet, answers: Sequence[Sequence[Sequence[int]]]) -> None:
    """Refuse answers whose tokens begin those of another one; with equal beginnings they stand side by side when sorted."""
    ordered = sorted((tuple(variant), t) for t, variants in enumerate(answers) for variant in variants)
    for (shorter, s), (longer, n) in pairwise(ordered):
        if longer[: len(shorter)] == shorter:
            raise UserError(
                f"{_at(record, f'targets[{s}]')}: the tokens of '{short(record.targets[s])}' begin those of targets[{n}], "
                f"'{short(record.targets[n])}', so nothing tells them apart.\n"
                + ("Change one of them." if record.eos else "Set eos to true, or change one of them.")
            )
