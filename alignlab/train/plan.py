"""Which rows each step sees: a pure function of (seed, epoch, step). Nothing to save, nothing to lose."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from alignlab.data.rows import RowStore
from alignlab.protocols import Method, Row
from alignlab.seeds import generator
from alignlab.trees import pack, split

STEPS = 1000
"""of a run at most, evenly spaced, whose micro-batches are looked at for the largest"""


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    index: int
    """from 0, over the whole run"""
    epoch: int
    rows: tuple[int, ...]
    """indices into the row store"""
    mass: float
    """of all its rows: every rank knows it without communication"""
    ends_epoch: bool


@dataclass(frozen=True)
class Micro:
    """Rows of one micro-batch. ``counts`` is False for a batch that only keeps a short rank in step with the others."""

    rows: tuple[Row, ...]
    counts: bool


class Plan:
    """Shuffles groups each epoch and cuts them into steps.

    Args:
        rows: group, mass and length of each row.
        groups_per_step: groups (prompts, examples, dialogues) per optimizer step.
        epochs: passes over the data.
        max_steps: optimizer steps at most; None for as many as the epochs take.
        seed: of the order and of every variant.
    """

    def __init__(self, rows: RowStore, *, groups_per_step: int, epochs: int, max_steps: int | None, seed: int) -> None:
        self._rows, self._per_step, self.seed = rows, groups_per_step, seed
        order = np.argsort(rows.group, kind="stable")
        groups, starts = np.unique(rows.group[order], return_index=True)
        self._members = np.split(order, starts[1:])
        self.groups = len(groups)
        self.steps_per_epoch = -(-self.groups // groups_per_step)
        total = self.steps_per_epoch * epochs
        self.steps = total if max_steps is None else min(total, max_steps)

    def step(self, index: int) -> Step:
        """The step with this number."""
        epoch, within = divmod(index, self.steps_per_epoch)
        chosen = self._order(epoch)[within * self._per_step : (within + 1) * self._per_step]
        rows = np.concatenate([self._members[g] for g in chosen])
        mass = float(np.sum(self._rows.mass[rows]))
        return Step(index, epoch, tuple(rows.tolist()), mass, within + 1 == self.steps_per_epoch)

    @lru_cache(maxsize=2)  # noqa: B019 - a plan lives as long as its run
    def _order(self, epoch: int) -> np.ndarray:
        return generator(self.seed, "order", epoch).permutation(self.groups)

    def micros(self, step: Step, method: Method, *, capacity: int, rank: int = 0, world: int = 1) -> list[Micro]:
        """This rank's micro-batches of a step: as many on every rank, of at most ``capacity`` nodes each.

        The variant of a row depends on (seed, epoch, group) alone, so it is the same however rows are dealt.
        """
        rows = []
        for index in step.rows:
            row = self._rows[index]
            row = method.vary(row, generator(self.seed, "vary", step.epoch, row.group, index))
            rows.extend(split(row, _limit(row, capacity, world, len(step.rows))) if row.splittable else [row])
        bins = deal([len(row.tokens) for row in rows], capacity, world)
        micros = []
        for i in range(rank, len(bins), world):
            # a bin without rows repeats one that has some, to keep the ranks in step
            micros.append(Micro(tuple(rows[r] for r in bins[i] or bins[0]), bool(bins[i])))
        return micros

    def looked_at(self, start: int = 0) -> list[int]:
        """Numbers of steps from ``start`` on, all of them or :data:`STEPS`, evenly spaced."""
        return np.unique(np.linspace(start, self.steps - 1, min(STEPS, self.steps - start)).astype(int)).tolist()

    def loads(self, index: int, capacity: int, world: int) -> list[int]:
        """Nodes of each micro-batch of a step, on all ranks, before rows are varied or split."""
        length = self._rows.length[list(self.step(index).rows)]
        return [int(length[members].sum()) for members in deal(length.tolist(), capacity, world)]

    def worst(self, method: Method, *, capacity: int, world: int = 1, start: int = 0) -> Micro:
        """The micro-batch with the most nodes of any rank, in the steps from ``start`` on; of very many, in some of them."""
        step = self.step(max(self.looked_at(start), key=lambda index: max(self.loads(index, capacity, world))))
        every = (m for rank in range(world) for m in self.micros(step, method, capacity=capacity, rank=rank, world=world))
        return max(every, key=lambda micro: sum(len(row.tokens) for row in micro.rows))


def _limit(row: Row, capacity: int, world: int, rows: int) -> int:
    """Nodes per piece of a splittable row: where a step has fewer rows than ranks, small enough for every rank to get one."""
    if rows >= world:
        return capacity
    trunk = int(row.source.min()) + 1
    return min(capacity, trunk + -(-(len(row.tokens) - trunk) // world))


def deal(lengths: list[int], capacity: int, world: int) -> list[list[int]]:
    """Bins of items within the capacity, as many as a multiple of the ranks, as even as longest-first makes them.

    Bins may be empty where there are fewer items than ranks; the first never is. An item beyond the capacity has a bin of its own.
    """
    count = -(-len(pack(lengths, capacity)) // world) * world
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while True:
        bins: list[list[int]] = [[] for _ in range(count)]
        load = [0] * count
        for item in order:
            lightest = load.index(min(load))
            bins[lightest].append(item)
            load[lightest] += lengths[item]
        if all(used <= capacity or len(b) == 1 for used, b in zip(load, bins, strict=True)):
            return bins
        count += world
