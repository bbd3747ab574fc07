"""Between text and token ids: chat templates, prompts, and the tokens of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignlab.errors import UserError
from alignlab.records import TargetSet


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
    """

    def __init__(self, tokenizer: Any, stop: Sequence[int], context: int) -> None:
        self.tokenizer, self.stop, self.context = tokenizer, frozenset(stop), context

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation up to where the assistant begins to write."""
        return self._template(messages, add_generation_prompt=True)

    def answer(self, messages: Sequence[Mapping[str, str]], prompt: list[int], text: str, eos: bool) -> list[int]:
        """Token ids of the assistant's turn after the prompt.

        With ``eos`` they end with the first token at which generation stops; what a template writes after it (a newline, say) is
        dropped. Without, they are the text's own tokens, as in the authors' ``utils.py``.

        Raises:
            UserError: the template rewrites the prompt once an answer follows it, or never ends the turn.
        """
        full = self._template([*messages, {"role": "assistant", "content": text}])
        if full[: len(prompt)] != prompt:
            raise UserError(
                f"model.chat_template: the tokens of the prompt change when the answer {text!r} follows it, so the answer has no "
                "tokens of its own.\nUse another model.chat_template."
            )
        if not eos:
            alone = self.tokenizer.encode(text, add_special_tokens=False)
            if full[len(prompt) : len(prompt) + len(alone)] != alone:
                raise UserError(f"the answer {text!r} has other tokens alone than in the chat; eos=false cannot be used with it.")
            return alone
        rest = full[len(prompt) :]
        for i, token in enumerate(rest):
            if token in self.stop:
                return rest[: i + 1]
        raise UserError(
            "model.chat_template: the assistant's turn ends without a token at which generation stops "
            f"({self.tokenizer.convert_ids_to_tokens(sorted(self.stop))}); set eos=false in the prompt files, or another template."
        )

    def encode(self, record: TargetSet) -> Encoded:
        """Prompt and answers of a target set.

        Raises:
            UserError: an answer does not fit the context, or its tokens are ambiguous.
        """
        messages = [{"role": "user", "content": record.request}]
        prompt = self.prompt(messages)
        if len(prompt) >= self.context:
            raise UserError(
                f"{record.name}:request: the prompt is {len(prompt)} tokens long and the model has {self.context} positions. Shorten it."
            )
        answers = []
        for i, target in enumerate(record.targets):
            variants = [self.answer(messages, prompt, prefix + target, record.eos) for prefix in record.responses]
            for variant in variants:
                if len(prompt) + len(variant) - 1 > self.context:
                    raise UserError(
                        f"{record.name}:targets[{i}]: prompt and answer are {len(prompt) + len(variant)} tokens long and the model "
                        f"has {self.context} positions. Shorten the target '{_short(target)}'."
                    )
            answers.append(variants)
        return Encoded(prompt, answers)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _template(self, messages: Sequence[Mapping[str, str]], **kwargs: Any) -> list[int]:
        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=False, **kwargs)
        except Exception as error:  # jinja raises what a template says
            raise UserError(f"model.chat_template: cannot render this conversation: {error}.") from None


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
