"""Likelihood of responses given their instructions: supervised fine-tuning, and imitation of refined responses (ILF-MLE)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from alignlab.config import at_least, one_of
from alignlab.errors import UserError
from alignlab.protocols import Loss, MethodDefaults, Request, Row
from alignlab.records import Judged, Prompt, Record
from alignlab.template import encode, load_template
from alignlab.text import TextCodec
from alignlab.trees import chains

if TYPE_CHECKING:
    import torch

    from alignlab.engine.batch import Batch


@dataclass(frozen=True)
class Sft(MethodDefaults):
    """Minus the mean log-probability of the tokens of a response given its instruction.

    With ``responses=satisfactory`` those that no judgment found wrong, with ``all`` every one, with ``refined`` the better ones
    that were written after a judgment: ILF-MLE (Eq. 3 of CUT).
    """

    responses: str
    weighting: str
    template: str
    cutoff: int

    accepts: ClassVar[tuple[type[Record], ...]] = (Judged,)

    def __post_init__(self) -> None:
        one_of("responses", self.responses, ("satisfactory", "all", "refined"))
        one_of("weighting", self.weighting, ("example", "token"))
        at_least("cutoff", self.cutoff, 2)
        load_template(self.template)

    def rows(self, records: Iterable[Record], text: TextCodec, seed: int) -> Iterator[Row]:
        """A row per response that is trained on. Column: ``share``, 1 / N, or 1 with ``weighting=token``.

        Raises:
            UserError: there is none.
        """
        found = False
        for group, record in enumerate(records):
            for row in self.parts(record, text):
                found = True
                yield replace(row, group=group)
        if not found:
            raise UserError(f"data: no row has a response to train on with method.responses={self.responses}.")

    def parts(self, record: Record, text: TextCodec) -> Iterator[Row]:
        """The row of a record, if it has such a response."""
        assert isinstance(record, Judged)
        output, field = (record.refined, "i_ans") if self.responses == "refined" else (record.output, "output")
        if not output or (self.responses == "satisfactory" and not record.satisfactory):
            return
        context, response = encode(record, load_template(self.template), text, self.cutoff, output=output, field=field)
        count = len(response)
        by_example = self.weighting == "example"
        columns = {"share": np.full(count, 1.0 / count if by_example else 1.0)}
        yield Row(0, 1.0 if by_example else float(count), *chains([(context, response)]), columns)

    def loss(self, logp: torch.Tensor, batch: Batch) -> Loss:
        """Minus the log-probabilities, by their shares."""
        return Loss(-(batch.columns["share"].to(logp.dtype) * logp).sum())

    def request(self, prompt: Prompt) -> Request:
        """The instruction in the template."""
        return load_template(self.template).request(prompt.request)
