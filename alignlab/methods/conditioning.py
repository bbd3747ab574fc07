"""Conditioning on control tokens (Korbak et al. 2023, arXiv 2302.08582; for two preferences, UCL COMP0087 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from alignlab.config import at_least, finite, one_of
from alignlab.control import Attribute, all_tokens, attribute_of, head, read_attributes, variant
from alignlab.errors import UserError
from alignlab.numerics import log1mexp
from alignlab.protocols import Loss, MethodDefaults, NewToken, Request, Row
from alignlab.records import Labelled, Prompt, Record, short
from alignlab.text import TextCodec
from alignlab.trees import chains

if TYPE_CHECKING:
    import torch

    from alignlab.api import RunFolder
    from alignlab.engine.batch import Batch
    from alignlab.report.document import Block

TEXT, CONTROL = 0, 1
"""roles of an edge: it scores a token of the text (or its end), or a control token"""

TOGETHER = 1024
"""sentences that are tokenized at a time"""

SATURATED = 1e-20
"""what log(1 - p) takes for 1 - p where p is exactly 1, as the ancestor's ``apo/objectives.py``"""


@dataclass(frozen=True)
class Conditioning(MethodDefaults):
    """Likelihood of sentences headed by control tokens that say what they are like.

    With ``objective=conditional`` a step's loss is minus the mean log-probability of its scored tokens (Korbak et al., Eq. 5).
    ``variant`` names the attributes whose tokens head a sentence, and ``none`` is plain language modelling. ``filtering`` leaves
    out sentences with an unwanted label of the attributes ``by``; ``unlikelihood`` takes alpha x log(1 - p) in place of log p for
    their tokens (Eq. 6).
    """

    variant: str
    attributes: dict[str, Any]
    objective: str
    by: str
    alpha: float
    weight: str
    max_tokens: int
    score_tokens: bool
    token_place: str
    init: str
    init_noise: float
    existing_tokens: str
    extra_tokens: list[str]

    accepts: ClassVar[tuple[type[Record], ...]] = (Labelled,)

    def __post_init__(self) -> None:
        one_of("objective", self.objective, ("conditional", "filtering", "unlikelihood"))
        one_of("weight", self.weight, ("label", "score"))
        one_of("token_place", self.token_place, ("front", "after_prompt"))
        one_of("init", self.init, ("mean", "random"))
        one_of("existing_tokens", self.existing_tokens, ("refuse", "reuse"))
        for name in ("alpha", "init_noise"):
            finite(name, getattr(self, name))
            at_least(name, getattr(self, name), 0)
        at_least("max_tokens", self.max_tokens, 3)
        assert self._chosen is not None
        if self.objective != "conditional" and not self._against:
            raise ValueError(f"by: objective={self.objective} needs an attribute that says which sentences are unwanted")
        if self.objective == "unlikelihood" and self.weight == "score":
            for name in self._against:
                if self._attributes[name].threshold is None:
                    raise ValueError(f"weight: score needs attributes with a threshold, and {name} has none; take label")
        taken = [token for token in self.extra_tokens if token in all_tokens(self._attributes)]
        if taken:
            raise ValueError(f"extra_tokens: '{taken[0]}' is a control token already")

    @cached_property
    def _attributes(self) -> Mapping[str, Attribute]:
        return read_attributes(self.attributes)

    @cached_property
    def _chosen(self) -> tuple[str, ...]:
        """The attributes whose tokens head a sentence."""
        return variant(self.variant, self._attributes)

    @cached_property
    def _against(self) -> tuple[str, ...]:
        """The attributes by which sentences are filtered out or unlearned."""
        try:
            return variant(self.by, self._attributes)
        except ValueError as error:
            raise ValueError(str(error).replace("variant", "by", 1)) from None

    def new_tokens(self) -> Sequence[NewToken]:
        """The extra tokens, then every control token, in all variants alike; those of other variants stay as they begin."""
        trained = {token for name in self._chosen for token in self._attributes[name].tokens.values()}
        reuse = self.existing_tokens == "reuse"
        texts = [*self.extra_tokens, *all_tokens(self._attributes)]
        return [NewToken(text, self.init, self.init_noise, reuse, text in trained) for text in texts]

    def rows(self, records: Iterable[Record], text: TextCodec, seed: int) -> Iterator[Row]:
        """A row per sentence: what the tokenizer puts in front, control tokens, the text, the token that ends it.

        The first token of a row is only read, so a model without a BOS token never learns how a sentence begins, and of two control
        tokens scores the second, as in the authors' program; with ``score_tokens=false`` no control token is scored. Sentences of
        ``max_tokens`` tokens or more are left out, the end and a token per attribute counted in every variant alike, so that all
        variants see the same ones. Columns: ``role``; ``bad``, how much of the sentence is unwanted, from 0 to 1.

        Raises:
            UserError: no sentence is left.
        """
        stream, group, found = iter(records), 0, False
        while block := list(islice(stream, TOGETHER)):
            for record, ids in zip(block, text.texts([record.text for record in block]), strict=True):  # type: ignore[attr-defined]
                assert isinstance(record, Labelled)
                row = self._row(record, ids, text, group)
                group += 1
                if row is not None:
                    found = True
                    yield row
        if group and not found:
            raise UserError(
                f"data: none of {group} sentences can be trained on: {self.max_tokens} tokens or more, or filtered out.\n"
                "Raise method.max_tokens, or take another method.objective."
            )

    def parts(self, record: Record, text: TextCodec) -> Iterator[Row]:
        """The row of a sentence; none of one that is left out."""
        assert isinstance(record, Labelled)
        row = self._row(record, text.texts([record.text])[0], text, 0)
        if row is not None:
            yield row

    def _row(self, record: Labelled, ids: Sequence[int], text: TextCodec, group: int) -> Row | None:
        """The row of a sentence; None where it is left out."""
        counted = len(ids) + 1 + (0 if record.bare else len(self._attributes))
        bad = self._bad(record)
        if (
            not ids
            or counted >= self.max_tokens
            or counted + len(text.start) > text.context
            or (self.objective == "filtering" and bad)
        ):
            return None
        control = [] if record.bare else text.ids(head(record.labels, self._attributes, self._chosen))
        start, body = text.start, [*ids, text.eos]
        context = [*start, *control] if not self.score_tokens else start
        scored = body if not self.score_tokens else [*control, *body]
        if not context:
            context, scored = scored[:1], scored[1:]
        roles = np.zeros(len(scored), np.int64)
        roles[: max(0, len(scored) - len(body))] = CONTROL
        columns = {"role": roles, "bad": np.full(len(scored), bad)}
        return Row(group, float(len(scored)), *chains([(context, scored)]), columns)

    def _bad(self, record: Labelled) -> float:
        """How much of a sentence is unwanted, by label or by score."""
        if self.objective == "conditional":
            return 0.0
        if self.objective == "unlikelihood" and self.weight == "score":
            found = [record.scores.get(name, math.nan) for name in self._against]
            if not all(0 <= score <= 1 for score in found):
                problem = f"method.weight=score needs scores from 0 to 1 of {', '.join(self._against)}, and there is {found}"
                raise UserError(f"{record.where}: {problem}. Take method.weight=label.")
            return max(found)
        return float(any(record.labels[name] != self._attributes[name].wanted for name in self._against))

    def loss(self, logp: torch.Tensor, batch: Batch) -> Loss:
        """Minus the sum of log p; of unwanted tokens alpha x log(1 - p). Logs: nats per token of the text and per control token."""
        import torch

        total = -logp.sum()
        if self.objective == "unlikelihood":
            bad = batch.columns["bad"].to(logp.dtype)
            unlikely = log1mexp(torch.where(bad > 0, logp, -1.0), SATURATED)
            total = -((1 - bad) * logp + self.alpha * bad * unlikely).sum()
        control = batch.columns["role"] == CONTROL
        of_control, count = -logp[control].detach().sum(), float(control.sum())
        of_text = -logp.detach().sum() - of_control
        return Loss(total, {"nll_text": (of_text, len(logp) - count), "nll_control": (of_control, count)})

    def conditions(self) -> Sequence[str]:
        """The labels of the attributes whose tokens are trained."""
        return [label for name in self._chosen for label in self._attributes[name].labels]

    def request(self, prompt: Prompt) -> Request:
        """The prompt as a text of its own, its conditions as control tokens before it or behind it.

        Raises:
            UserError: a condition is no label, an attribute has two of them, or the prompt holds control tokens already.
        """
        try:
            labels = {attribute_of(label, self._attributes): label for label in prompt.conditions}
        except ValueError as error:
            raise UserError(f"conditions: {error}") from None
        if len(labels) < len(prompt.conditions):
            raise UserError(f"conditions: {', '.join(prompt.conditions)}: two labels of one attribute contradict each other.")
        if any(token in prompt.request for token in all_tokens(self._attributes)):
            raise UserError(f"the prompt '{short(prompt.request)}' holds control tokens. Take them out, and ask by conditions.")
        order = dict.fromkeys([*self._chosen, *self._attributes])  # as in training
        tokens = head(labels, self._attributes, [name for name in order if name in labels])
        front = self.token_place == "front"
        return Request(text=prompt.request, alone=True, before=tokens if front else (), after=() if front else tokens)

    def sections(self, run: RunFolder, plots: Path) -> Sequence[Block]:
        """The choices that differ from good practice."""
        from alignlab.report.choices import choices

        ties = []
        for name, attribute in self._attributes.items():
            if attribute.tie is not None and attribute.tie in (attribute.scorer.classes() or ()):
                why = "what the labeller cannot tell counts as this"
                ties.append([f"data.attributes.{name}.tie", attribute.tie, "a label for ties alone", why])
        return choices(run.config, SOUND, ties, "The authors' program has all of them.")


SOUND: Mapping[str, tuple[Any, str]] = {
    "model.weights": ("pretrained", "the model begins with random weights"),
    "method.token_place": ("front", "control tokens stand where training never had them"),
    "suite.score_prompt": (False, "the prompt's own sentence is scored, too"),
    "suite.padding": ("none", "completions begin at a position of padding"),
    "suite.untrained": (False, "the model is also asked under tokens that it was never trained on"),
    "data.label_suffix": ("", "the labeller reads this behind the last word"),
}
"""choice -> good practice, and what the other way does; as in the authors' scripts/train.py, Experiment2.py, dataset_builder.py"""
