"""DPO: direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290), the baseline of CUT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from alignlab.config import at_least, finite, one_of
from alignlab.errors import UserError
from alignlab.protocols import Loss, MethodDefaults, Request, Row
from alignlab.records import Judged, Prompt, Record
from alignlab.template import encode, load_template
from alignlab.text import TextCodec
from alignlab.trees import TreeBuilder

if TYPE_CHECKING:
    import torch

    from alignlab.engine.batch import Batch


@dataclass(frozen=True)
class Dpo(MethodDefaults):
    """Minus log sigmoid of beta x how much more than the untrained model it prefers the better of two responses (Eq. 7).

    With ``pairs=refined`` the better one is the refined response and the other the judged one (ILF-DPO of CUT); with
    ``pairs=score`` every two responses to one instruction whose scores differ make a pair, as in CUT's comparison with rewards
    (section 5.3).
    """

    beta: float
    pairs: str
    template: str
    cutoff: int

    accepts: ClassVar[tuple[type[Record], ...]] = (Judged,)
    reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        finite("beta", self.beta)
        at_least("beta", self.beta, 0)
        one_of("pairs", self.pairs, ("refined", "score"))
        at_least("cutoff", self.cutoff, 2)
        load_template(self.template)

    def rows(self, records: Iterable[Record], text: TextCodec, seed: int) -> Iterator[Row]:
        """A row per pair: both responses in one tree. Column: ``sign``, 1 on the better one, -1 on the other, 0 on what they share.

        Raises:
            UserError: there is no pair.
        """
        group = -1
        for group, (better, worse) in enumerate(self._pairs(records)):
            yield self._row(better, worse, text, group)
        if group < 0:
            wanted = (
                "a judgment and a refined response (i_ans)" if self.pairs == "refined" else "an instruction with unequal scores"
            )
            raise UserError(f"data: no rows make a pair: method.pairs={self.pairs} needs {wanted}.")

    def parts(self, record: Record, text: TextCodec) -> Iterator[Row]:
        """The pair of a record; none where a pair takes two records, each of which must be fit for one."""
        assert isinstance(record, Judged)
        if self.pairs == "score" and record.score is not None and record.output:
            encode(record, load_template(self.template), text, self.cutoff)
        for better, worse in self._pairs([record]):
            yield self._row(better, worse, text, 0)

    def _pairs(self, records: Iterable[Record]) -> Iterator[tuple[Judged, Judged]]:
        """The better and the worse response to an instruction, whose records may lie apart."""
        seen: dict[str, list[Judged]] = {}
        for record in records:
            assert isinstance(record, Judged)
            if not record.output:
                continue
            if self.pairs == "refined" and record.refined and not record.satisfactory and record.refined != record.output:
                yield replace(record, output=record.refined), record
            elif self.pairs == "score" and record.score is not None:
                seen.setdefault(record.instruction, []).append(record)
        for found in seen.values():
            for one, other in combinations(found, 2):
                worse, better = sorted((one, other), key=lambda record: record.score or 0.0)
                if worse.score != better.score and worse.output != better.output:
                    yield better, worse

    def _row(self, better: Judged, worse: Judged, text: TextCodec, group: int) -> Row:
        builder, signs = TreeBuilder(), dict[int, float]()
        for record, preferred in ((better, 1.0), (worse, -1.0)):
            for edge in builder.text(*encode(record, load_template(self.template), text, self.cutoff)):
                signs[edge] = signs.get(edge, 0.0) + preferred
        tokens, parent, source, target, order = builder.arrays()
        sign = np.zeros(len(order))
        sign[order[list(signs)]] = list(signs.values())
        return Row(group, 1.0, tokens, parent, source, target, {"sign": sign})

    def loss(self, logp: torch.Tensor, batch: Batch) -> Loss:
        """Of each pair; ``margin`` is what stands inside the sigmoid, ``accuracy`` the share of pairs where it is positive."""
        import torch

        more = batch.columns["sign"].to(logp.dtype) * (logp - batch.columns["reference"].to(logp.dtype))
        margin = self.beta * torch.zeros_like(batch.row_mass, dtype=logp.dtype).index_add(0, batch.row, more)
        right = (margin > 0).to(logp.dtype).detach()
        logs = {"margin": (margin.detach().sum(), batch.mass), "accuracy": (right.sum(), batch.mass)}
        return Loss(-torch.nn.functional.logsigmoid(margin).sum(), {**logs})

    def request(self, prompt: Prompt) -> Request:
        """The instruction in the template."""
        return load_template(self.template).request(prompt.request)
