"""Forward prediction: a response given its instruction, then the judgment of it (Weston 2016; Eq. 1 of CUT, arXiv 2312.14591)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from alignlab.config import at_least
from alignlab.protocols import Loss, MethodDefaults, Request, Row
from alignlab.records import Judged, Prompt, Record
from alignlab.template import encode, load_template
from alignlab.text import TextCodec
from alignlab.trees import TreeBuilder

if TYPE_CHECKING:
    import torch

    from alignlab.engine.batch import Batch


@dataclass(frozen=True)
class ForwardPrediction(MethodDefaults):
    """Minus the mean log-probability of a response's tokens, and minus that of its judgment's, which the model writes after it.

    A satisfactory response has the first term alone. What stands between the two is the template's ``verdict``; the paper does not
    publish its own.
    """

    template: str
    cutoff: int

    accepts: ClassVar[tuple[type[Record], ...]] = (Judged,)

    def __post_init__(self) -> None:
        at_least("cutoff", self.cutoff, 2)
        load_template(self.template)

    def rows(self, records: Iterable[Record], text: TextCodec, seed: int) -> Iterator[Row]:
        """A row per example: one text whose response and judgment are scored, each with the token that ends it.

        Columns: ``share``, 1 / N on the response's edges and 1 / Q on the judgment's; ``judgment``, 1 on the latter, else 0.
        """
        for group, record in enumerate(records):
            for row in self.parts(record, text):
                yield replace(row, group=group)

    def parts(self, record: Record, text: TextCodec) -> Iterator[Row]:
        """The row of an example; none for one without a response."""
        assert isinstance(record, Judged)
        if record.output:
            yield self._row(record, text)

    def _row(self, record: Judged, text: TextCodec) -> Row:
        template, builder = load_template(self.template), TreeBuilder()
        texts = [encode(record, template, text, self.cutoff)]
        if record.judgment is not None:
            before = record.output + template.verdict
            context, told = encode(record, template, text, self.cutoff, output=before + record.judgment)
            request = template.request(record.instruction)
            written, whole = (len(text.continuation(request, words)[1]) for words in (before, before + record.judgment))
            count = whole - written + 1  # of the judgment's tokens; the one that ends a text is in both
            texts.append(([*context, *told[:-count]], told[-count:]))
        edges, share, told_by = [], [], []
        for place, (context, scored) in enumerate(texts):
            edges += builder.text(context, scored)
            share += [1.0 / len(scored)] * len(scored)
            told_by += [place] * len(scored)
        tokens, parent, source, target, order = builder.arrays()
        columns = {name: np.empty_like(values) for name, values in (("share", np.array(share)), ("judgment", np.array(told_by)))}
        columns["share"][order[edges]], columns["judgment"][order[edges]] = share, told_by
        return Row(0, 1.0, tokens, parent, source, target, columns)

    def loss(self, logp: torch.Tensor, batch: Batch) -> Loss:
        """The two means; ``response`` and ``judgment`` log them apart."""
        share, told = batch.columns["share"].to(logp.dtype), batch.columns["judgment"] == 1
        nll = -share * logp
        logs = {
            name: (nll[which].sum().detach(), float(share[which].sum()))
            for name, which in (("response", ~told), ("judgment", told))
        }
        return Loss(nll.sum(), {**logs})

    def request(self, prompt: Prompt) -> Request:
        """The instruction in the template."""
        return load_template(self.template).request(prompt.request)
