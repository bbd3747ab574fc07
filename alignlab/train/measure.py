"""What is measured between steps: the loss of held-out rows, and a method's probes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

import torch
from accelerate import Accelerator

from alignlab.data.rows import RowStore
from alignlab.engine.batch import Batch, collate
from alignlab.engine.scorer import Scorer
from alignlab.protocols import Loss, Method, Probe
from alignlab.trees import pack, within


class Sums:
    """Sums and counts of a step's logs, over micro-batches and ranks."""

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {}

    def add(self, loss: Loss, batch: Batch, counts: bool) -> None:
        """Add a micro-batch; one that does not count only names its logs, so that every rank sends the same vector."""
        entries: dict[str, tuple[torch.Tensor | float, float]] = {
            "loss": (loss.total, batch.mass),
            "tokens": (float(len(batch)), 1.0),
            **loss.logs,
        }
        for name, (total, count) in entries.items():
            value = total.detach().double() if isinstance(total, torch.Tensor) else total
            cell = self._values.setdefault(name, [0.0, 0.0])
            if counts:
                cell[0], cell[1] = cell[0] + value, cell[1] + count

    def reduce(self, accelerator: Accelerator, extra: int = 0) -> tuple[dict[str, tuple[float, float]], int]:
        """Global (sum, count) by name, and the largest ``extra`` of any rank: one collective."""
        names = sorted(self._values)
        device = accelerator.device
        flat = [torch.as_tensor(v, dtype=torch.float64, device=device) for name in names for v in self._values[name]]
        vector = torch.stack([*flat, torch.tensor(float(extra), dtype=torch.float64, device=device)])
        if accelerator.num_processes > 1:
            gathered = accelerator.gather(vector[None])
            vector, largest = gathered.sum(0), int(gathered[:, -1].max())
        else:
            largest = extra
        values = vector.tolist()
        return {name: (values[2 * i], values[2 * i + 1]) for i, name in enumerate(names)}, largest


@torch.no_grad()
def mean_loss(model: torch.nn.Module, method: Method, rows: RowStore, capacity: int, accelerator: Accelerator) -> float:
    """Loss per unit of mass over all rows, without dropout, dealt over ranks; ``capacity`` nodes are computed at a time."""
    scorer = accelerator.unwrap_model(model)
    training = scorer.training
    scorer.eval()
    sums = Sums()
    bins = pack(rows.length.tolist(), capacity)
    mine = bins[accelerator.process_index :: accelerator.num_processes]
    pieces = [
        (i < len(mine), piece) for i, rows_ in enumerate(mine or bins[:1]) for piece in within([rows[r] for r in rows_], capacity)
    ]
    # where ranks have shares of the weights, each of them takes part in every forward pass
    rounds = int(accelerator.gather(torch.tensor([len(pieces)], device=accelerator.device)).max())
    for counts, piece in chain(pieces, repeat((False, pieces[0][1]), rounds - len(pieces))):
        batch = collate(piece).to(accelerator.device)
        with accelerator.autocast():
            sums.add(method.loss(scorer(batch), batch), batch, counts)
    scorer.train(training)
    total, mass = sums.reduce(accelerator)[0]["loss"]
    return total / mass


def probe_figures(scorer: Scorer, probes: Sequence[Probe], capacity: int) -> dict[str, float | str]:
    """Figures of every probe; each rank computes them all, so that none waits."""
    scorer.eval()
    figures = {f"{probe.name}/{name}": value for probe in probes for name, value in probe.measure(scorer, capacity).items()}
    scorer.train()
    return figures
