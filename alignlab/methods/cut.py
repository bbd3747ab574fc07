"""CUT: contrastive unlikelihood training from judgments (Xu et al. 2024, arXiv 2312.14591)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from alignlab.config import at_least, finite, one_of
from alignlab.errors import UserError
from alignlab.numerics import log1mexp
from alignlab.protocols import Loss, MethodDefaults, Request, Row
from alignlab.records import Judged, Prompt, Record
from alignlab.template import Template, contexts, encode, gold, load_template
from alignlab.text import TextCodec
from alignlab.trees import chains

if TYPE_CHECKING:
    import torch

    from alignlab.api import RunFolder
    from alignlab.engine.batch import Batch

ALIGN_P, MISALIGN, ALIGN_N = 0, 1, 2
"""roles of an edge: of a satisfactory response; of a judged one, without the judgment and with it"""

SATURATED = 1e-5
"""what log(1 - p) takes for 1 - p where p is exactly 1, as the authors' ``modeling_llama_unlikelihood.py``"""


@dataclass(frozen=True)
class Cut(MethodDefaults):
    """Likelihood of responses in their contexts, and unlikelihood of the tokens that a judgment makes likelier.

    A token of a judged response is inappropriate where p(token | instruction, judgment) > threshold x p(token | instruction), the
    ratio not differentiated (Eq. 5). Per example, with N tokens: L1 = -1/N (sum of log p(token | instruction) over the other tokens
    + sum of weight x log(1 - p(token | instruction)) over the inappropriate ones), for judged responses (Eq. 6); L2 = -1/N sum of
    log p(token | context), the context being the instruction, with the judgment if there is one (Eq. 7). Version v1, the released
    code: (L1 + L2) / 2 for judged responses, weight = alpha. Version v4, the paper: L1 + L2,
    weight = alpha x p(token | instruction, judgment)^gamma. A satisfactory response counts L2 in both.
    """

    version: str
    threshold: float
    alpha: float
    gamma: float
    align_p: bool
    align_n: bool
    unlikelihood: bool
    detection: bool
    dynamic_weighting: bool | None
    differentiate_weight: bool
    weighting: str
    template: str
    cutoff: int

    accepts: ClassVar[tuple[type[Record], ...]] = (Judged,)

    def __post_init__(self) -> None:
        one_of("version", self.version, ("v1", "v4"))
        one_of("weighting", self.weighting, ("example", "token"))
        for name in ("threshold", "alpha", "gamma"):
            finite(name, getattr(self, name))
            at_least(name, getattr(self, name), 0)
        if not self.threshold > 0:
            raise ValueError(f"threshold: must be above 0, not {self.threshold}")
        at_least("cutoff", self.cutoff, 2)
        if not (self.align_p or self.align_n or self.unlikelihood):
            raise ValueError("unlikelihood: with align_p and align_n off too, there is nothing to train")
        load_template(self.template)

    @property
    def _template(self) -> Template:
        return load_template(self.template)

    @property
    def _weighs(self) -> bool:
        """Whether the weight of unlikelihood is dynamic."""
        return self.version == "v4" if self.dynamic_weighting is None else self.dynamic_weighting

    def rows(self, records: Iterable[Record], text: TextCodec, seed: int) -> Iterator[Row]:
        """A row per example that has a term in the loss: a judged one holds its response in both contexts.

        Columns: ``role`` of an edge; ``share``, 1 / N, or 1 with ``weighting=token``; ``pair``, how many edges on the same token
        stands in the other context, 0 where there is none; ``gold``, 1 where the token is known to be wrong, 0 where not, -1 where
        nobody knows (read by no training).

        Raises:
            UserError: no example is judged, so that nothing is contrasted.
        """
        judged, group = False, -1
        for group, record in enumerate(records):
            assert isinstance(record, Judged)
            judged |= not record.satisfactory
            roles = self._roles(record)
            if roles:
                yield self._row(record, text, group, roles)
        if group >= 0 and not judged:
            raise UserError(
                "data: no row has a judgment, so there is nothing to contrast.\n"
                "Give data.path rows with judgments, or train on the responses alone: method=sft."
            )

    def parts(self, record: Record, text: TextCodec) -> Iterator[Row]:
        """The row of an example; none for one without a response."""
        assert isinstance(record, Judged)
        if record.output:
            yield self._row(record, text, 0, [ALIGN_P] if record.satisfactory else [MISALIGN, ALIGN_N])

    def _roles(self, record: Judged) -> list[int]:
        """The contexts of an example that its loss reads."""
        if record.satisfactory:
            return [ALIGN_P] if self.align_p else []
        with_judgment = self.align_n or (self.unlikelihood and (self.detection or self._weighs))
        return [MISALIGN] * self.unlikelihood + [ALIGN_N] * with_judgment

    def _row(self, record: Judged, text: TextCodec, group: int, roles: list[int]) -> Row:
        if record.satisfactory:
            texts = [encode(record, self._template, text, self.cutoff)]
        else:
            plain, judged = contexts(record, self._template, text, self.cutoff)
            texts = [plain if role == MISALIGN else judged for role in roles]
        count = len(texts[0][1])
        marks = gold(record, texts[0][1], self._template, text)
        columns = {
            "role": np.repeat(roles, count),
            "share": np.full(count * len(roles), 1.0 / count if self.weighting == "example" else 1.0),
            "pair": np.repeat([count, -count] if len(roles) == 2 else [0], count),
            "gold": np.tile([-1] * count if marks is None else marks, len(roles)),
        }
        return Row(group, 1.0 if self.weighting == "example" else float(count), *chains(texts), columns)

    def loss(self, logp: torch.Tensor, batch: Batch) -> Loss:
        """The loss in log space; ``detected`` is the share of tokens found inappropriate, ``unlikely`` the mean of their p."""
        import torch

        role, share = batch.columns["role"], batch.columns["share"].to(logp.dtype)
        with_judgment = logp[torch.arange(len(logp), device=logp.device) + batch.columns["pair"]]
        misaligned = role == MISALIGN
        detected = misaligned & ((with_judgment - logp).detach() > math.log(self.threshold)) if self.detection else misaligned
        weight = torch.full_like(logp, self.alpha)
        if self._weighs:
            source = with_judgment if self.differentiate_weight else with_judgment.detach()
            weight = weight * torch.exp(self.gamma * torch.where(detected, source, 0.0))
        unlikely = log1mexp(torch.where(detected, logp, -1.0), SATURATED)
        nll = -share * torch.where(detected, weight * unlikely, logp)
        parts = {name: nll[role == place].sum() for name, place in ROLES.items()}
        half = 0.5 if self.version == "v1" else 1.0
        scale = {"align_p": 1.0 * self.align_p, "misalign": half * self.unlikelihood, "align_n": half * self.align_n}
        total = sum((parts[name] * factor for name, factor in scale.items() if factor), torch.zeros_like(logp.sum()))
        logs: dict[str, tuple[torch.Tensor | float, float]] = {
            name: (parts[name].detach(), float(share[role == place].sum())) for name, place in ROLES.items()
        }
        found = float(detected.sum())
        logs["detected"] = (found, float(misaligned.sum()))
        logs["unlikely"] = (torch.where(detected, logp, -math.inf).detach().double().exp().sum(), found)
        return Loss(total, logs)

    def request(self, prompt: Prompt) -> Request:
        """The instruction in the template without a judgment."""
        return self._template.request(prompt.request)

    def scored(self, run: RunFolder, records: Iterable[tuple[int, Record]], plots: Path) -> Sequence[str]:
        """The token microscope of the judged examples."""
        from alignlab.report.judged import draw_scores

        return draw_scores(run, records, self.threshold, plots)


ROLES = {"align_p": ALIGN_P, "misalign": MISALIGN, "align_n": ALIGN_N}
"""terms of the loss by role"""
