"""DELIA: instruction tuning buffered by diverse dialogues, around new tokens (Zeng et al. 2024, arXiv 2408.10841)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from alignlab.config import at_least, finite, one_of
from alignlab.errors import UserError
from alignlab.protocols import Loss, Meaning, MethodDefaults, NewToken, Probe, Request, Row
from alignlab.records import Dialogue, Prompt, Record, read_jsonl
from alignlab.text import TextCodec
from alignlab.trees import TreeBuilder

if TYPE_CHECKING:
    import torch

    from alignlab.api import RunFolder
    from alignlab.engine.batch import Batch
    from alignlab.engine.scorer import Scorer
    from alignlab.report.document import Block

Turns = list[tuple[list[int], list[int]]]
"""of each learned turn the token ids of its context and of what is scored after it"""


@dataclass(frozen=True)
class Delia(MethodDefaults):
    """Likelihood of answers: of a few downstream ones that use the new tokens, and of many diverse ones mixed among them.

    A step's loss is minus the mean log-probability of the answer tokens of its dialogues, whatever set they come from: the authors'
    ``DSFTTrainer.py`` has no other term. What makes DELIA of it is the data: with ``data.diverse_ratio=0`` it is common instruction
    tuning.
    """

    tokens: list[Meaning]
    init: str
    init_noise: float
    token_training: str
    existing_tokens: str
    learn_eos: bool
    double_bos: bool
    too_long: str
    max_tokens: int | None
    important: list[str]
    probe_rows: int

    accepts: ClassVar[tuple[type[Record], ...]] = (Dialogue,)

    def __post_init__(self) -> None:
        one_of("init", self.init, ("random", "mean", "description"))
        one_of("token_training", self.token_training, ("auto", "rows", "embedding"))
        one_of("existing_tokens", self.existing_tokens, ("refuse", "reuse"))
        one_of("too_long", self.too_long, ("truncate", "drop"))
        finite("init_noise", self.init_noise)
        at_least("init_noise", self.init_noise, 0)
        at_least("max_tokens", self.max_tokens, 2)
        at_least("probe_rows", self.probe_rows, 1)
        twice = [token for token, count in Counter(one.token for one in self.tokens).items() if count > 1]
        if twice:
            raise ValueError(f"tokens: {twice[0]} stands there twice")
        if "" in self.important:
            raise ValueError("important: every token holds the empty text; take it out")
        bare = next((one.token for one in self.tokens if not one.meaning.strip()), None)
        if self.init == "description" and bare is not None:
            raise ValueError(f"tokens: init=description needs the instruction that {bare} stands for")

    def new_tokens(self) -> Sequence[NewToken]:
        """The tokens, each with the instruction that it stands for."""
        reuse = self.existing_tokens == "reuse"
        return [
            NewToken(one.token, self.init, self.init_noise, reuse, by=self.token_training, description=one.meaning)
            for one in self.tokens
        ]

    def rows(self, records: Iterable[Record], text: TextCodec, seed: int) -> Iterator[Row]:
        """A row per dialogue: its learned turns as one forest, in which turns share what stands before them.

        Of a turn its answer is scored, the token that ends it included, or not (``learn_eos=false``); new tokens in what is read
        before it are edges of weight 0, which are only measured. A dialogue of more than ``max_tokens`` tokens loses its end, as
        TRL's ``max_seq_length`` cuts, or is left out.

        Columns: ``weight``, how often a token is scored: 1 of an answer, 0 of a new token that is only read; ``important``, whether
        it is a new token or holds one of the texts ``important``; ``diverse``, whether the dialogue is.

        Raises:
            UserError: a dialogue cannot be put to the model, or none is left.
        """
        marks, limit = _Marks(text, self), self._limit(text)
        seen = long = found = 0
        for group, record in enumerate(records):
            assert isinstance(record, Dialogue)
            whole, seen = self._turns(record, text), seen + 1
            turns, cut = self._fitting(whole, limit), _longest(whole) > limit
            long += cut
            if turns:
                found += 1
                yield replace(_row(turns, marks, group, record.origin == "diverse"), truncated=cut)
        if not found:
            raise UserError(f"data: no dialogue of {seen} is left to train on; {long} are longer than {limit} tokens.\n{HELP}")

    def parts(self, record: Record, text: TextCodec) -> Iterator[Row]:
        """The row of a dialogue; none of one that is left out."""
        assert isinstance(record, Dialogue)
        turns = self._fitting(self._turns(record, text), self._limit(text))
        if turns:
            yield _row(turns, _Marks(text, self), 0, record.origin == "diverse")

    def _limit(self, text: TextCodec) -> int:
        return text.context if self.max_tokens is None else min(self.max_tokens, text.context)

    def _turns(self, record: Dialogue, text: TextCodec) -> Turns:
        """The learned turns of a dialogue, whole."""
        try:
            return text.turns(record.messages, record.learned, self.double_bos)
        except UserError as error:
            of_model = str(error).startswith("model.")
            raise UserError(f"{error}\nFirst met in {record.where}." if of_model else f"{record.where}: {error}") from None

    def _fitting(self, turns: Turns, limit: int) -> Turns:
        """What is trained on of a dialogue's turns; nothing of one that is left out."""
        if self.too_long == "drop" and _longest(turns) > limit:
            return []
        found = []
        for context, answer in turns:
            scored = answer[: max(0, limit - len(context))]
            if not self.learn_eos and len(scored) == len(answer):
                scored = scored[:-1]
            if scored:
                found.append((context, scored))
        return found

    def loss(self, logp: torch.Tensor, batch: Batch) -> Loss:
        """Minus the sum of log p of the answers' tokens. Logs: nats per token of either set, and of important and other tokens."""
        weight = batch.columns["weight"].to(logp.dtype)
        nll = -(weight * logp)
        diverse, important = batch.columns["diverse"] > 0, batch.columns["important"] > 0
        parts = {"downstream": ~diverse, "diverse": diverse, "important": important, "other": ~important}
        logs: dict[str, tuple[torch.Tensor | float, float]] = {
            f"nll_{name}": (nll.detach()[part].sum(), float(weight[part].sum())) for name, part in parts.items()
        }
        return Loss(nll.sum(), logs)

    def probes(self, text: TextCodec, rows: Sequence[Row], validation: Sequence[Row] | None) -> Sequence[Probe]:
        """The instruments of the paper and its program: losses of important tokens, the gradients' angle, neighbours of new tokens.

        ``important``: nats of the important tokens of validation answers, of the other ones, and of each new token where it is
        only read (the authors' ``utils.py`` means to log that, and gets no number, since prompts are masked). ``gradient``: cosine
        between the gradients of ``probe_rows`` downstream and as many diverse dialogues, the first of each. Of each new token
        ``similarity``, the cosine of its input embedding to the mean one of its meaning's tokens, ``similarity_chance``, the mean
        of that over all other tokens, and ``nearest``, the tokens whose embeddings are nearest.
        """
        from alignlab.engine.probing import cosine, gradient, likeness, mean_losses

        ids = dict(zip(text.ids([one.token for one in self.tokens]), self.tokens, strict=True))

        def groups(row: Row) -> Mapping[str, np.ndarray]:
            important, scored = row.columns["important"] > 0, row.columns["weight"] > 0
            read = {one.token: (row.target == i) & ~scored for i, one in ids.items()}
            return {"nll": important & scored, "other_nll": ~important & scored, **read}

        def like(scorer: Scorer, capacity: int, token: int, meaning: list[int]) -> dict[str, float | str]:
            similarity, chance, nearest = likeness(scorer, token, meaning or [token], NEAREST)
            words = ", ".join(f"{text.tokenizer.convert_ids_to_tokens(i) or i} {near:.2f}" for i, near in nearest)
            return ({"similarity": similarity, "similarity_chance": chance} if meaning else {}) | {"nearest": words}

        found = []
        if validation:
            found.append(Probe("important", lambda scorer, capacity: mean_losses(scorer, validation, groups, capacity)))
        halves = [list(islice((row for row in rows if row.columns["diverse"].any() == half), self.probe_rows)) for half in (0, 1)]
        if all(halves):

            def angle(scorer: Scorer, capacity: int) -> dict[str, float]:
                return {"cosine": cosine(*(gradient(scorer, half, self.loss, capacity) for half in halves))}

            found.append(Probe("gradient", angle))
        found += [Probe(one.token, partial(like, token=i, meaning=text.texts([one.meaning])[0])) for i, one in ids.items()]
        return found

    def request(self, prompt: Prompt) -> Request:
        """The prompt as a user turn after its history; with two BOS tokens where training had them."""
        return replace(super().request(prompt), twice=self.double_bos)

    def sections(self, run: RunFolder, plots: Path) -> Sequence[Block]:
        """What the probes measured, and the choices that differ from good practice."""
        from alignlab.report.choices import choices
        from alignlab.report.document import Heading
        from alignlab.report.probes import probe_blocks

        probed = probe_blocks(run.metrics, plots)
        heading = [Heading("What changed while it trained")] if probed else []
        return [
            *self._dialogues(run),
            *heading,
            *probed,
            *choices(run.config, SOUND, caption="The authors' program has all of them."),
        ]

    def _dialogues(self, run: RunFolder) -> list[Block]:
        """What the new tokens stand for, and what was trained on, with some of what the model itself had answered."""
        from alignlab.report.document import Facts, Heading, Table, cut

        files = {"records": "records.jsonl", "samples": "self_samples.jsonl"}
        counts = {"downstream": 0, "diverse": 0}
        for row in read_jsonl(run.path / files["records"]) if (run.path / files["records"]).exists() else ():
            counts[row["origin"]] += 1
        rows = [(f"{one.token} stands for", one.meaning or "(not said)") for one in self.tokens]
        rows += [(f"{origin} dialogues trained on", f"{count:,}") for origin, count in counts.items()]
        rows.append(("important tokens", f"new ones, and those that hold one of {' '.join(self.important) or 'nothing'}"))
        blocks: list[Block] = [Heading("Dialogues"), Facts(rows)]
        if counts["diverse"] and (run.path / files["samples"]).exists():
            shown = islice(read_jsonl(run.path / files["samples"]), SHOWN)
            turns = [[cut(turn["content"], LONGEST) for turn in row["messages"][-2:]] for row in shown]
            blocks.append(
                Table(["query", "what the untrained model answered"], turns, "The first of self_samples.jsonl, the diverse half.")
            )
        return blocks


SHOWN, LONGEST = 5, 300
"""self-samples in the report, and characters of each"""

NEAREST = 8
"""neighbours of a new token that are named"""

HELP = "Raise method.max_tokens, take method.too_long=truncate, or see which turns are learned (data.turns)."

SOUND: Mapping[str, tuple[Any, str]] = {
    "method.learn_eos": (True, "where an answer ends is not learned"),
    "method.double_bos": (False, "two BOS tokens stand in front of every dialogue"),
    "data.self_sampling.double_bos": (False, "two BOS tokens stood in front of what was self-sampled"),
    "data.self_sampling.skip_characters": (0, "so many characters are cut off the beginning of every self-sample"),
    "data.self_sampling.drop": (["empty", "refused", "length"], "other answers that say nothing, or have no end, are learned"),
}
"""choice -> good practice, and what the other way does; as in the authors' utils.py and build_cache.py"""


class _Marks:
    """Ids of the new tokens, and which tokens are measured apart."""

    def __init__(self, text: TextCodec, method: Delia) -> None:
        self.tokenizer, self.wanted, self.new = (
            text.tokenizer,
            method.important,
            frozenset(text.ids([one.token for one in method.tokens])),
        )
        self.important = cache(self._important)  # each is decoded once

    def _important(self, token: int) -> bool:
        written = self.tokenizer.decode([token])
        return token in self.new or any(wanted in written for wanted in self.wanted)


def _longest(turns: Turns) -> int:
    return max((len(context) + len(answer) for context, answer in turns), default=0)


def _row(turns: Turns, marks: _Marks, group: int, diverse: bool) -> Row:
    """The forest of a dialogue's turns."""
    builder, weights = TreeBuilder(), dict[int, float]()
    for context, scored in turns:
        for edge in builder.text(context, scored):
            weights[edge] = weights.get(edge, 0.0) + 1.0
        nodes = builder.path(context)
        for node, token in zip(nodes, context[1:], strict=False):
            if token in marks.new:
                weights.setdefault(builder.edge(node, token), 0.0)
    tokens, parent, source, target, order = builder.arrays()
    weight = np.zeros(len(order))
    weight[order] = [weights[edge] for edge in range(len(order))]
    columns = {
        "weight": weight,
        "important": np.array([marks.important(token) for token in target.tolist()], np.int64),
        "diverse": np.full(len(order), diverse, np.int64),
    }
    return Row(group, float(weight.sum()), tokens, parent, source, target, columns, splittable=True)
