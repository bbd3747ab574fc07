"""The plan: which rows, in which order, on which rank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.data.rows import RowStore, write_rows
from alignlab.protocols import MethodDefaults, Row
from alignlab.train.plan import Plan, deal


def _row(group: int, length: int, mass: float = 1.0, splittable: bool = False) -> Row:
    chain = np.arange(length, dtype=np.int32)
    return Row(group, mass, chain, chain - 1, chain[-1:], np.zeros(1, np.int32), {"w": np.ones(1)}, splittable)


@pytest.fixture
def rows(tmp_path) -> RowStore:
    # groups of one, two and three rows, not in order
    groups = [2, 0, 1, 2, 3, 1, 2, 4]
    write_rows(tmp_path / "rows.arrow", (_row(g, 3 + i, mass=0.5 + i) for i, g in enumerate(groups)))
    return RowStore(tmp_path / "rows.arrow")


def _plan(rows: RowStore, **kwargs) -> Plan:
    return Plan(rows, **{"groups_per_step": 2, "epochs": 3, "max_steps": None, "seed": 1} | kwargs)


def test_every_row_once_an_epoch_and_groups_whole(rows):
    plan = _plan(rows)
    assert (plan.steps_per_epoch, plan.steps) == (3, 9)
    for epoch in range(3):
        steps = [plan.step(epoch * 3 + i) for i in range(3)]
        assert sorted(r for s in steps for r in s.rows) == list(range(8))
        assert [s.ends_epoch for s in steps] == [False, False, True]
        for step in steps:
            assert step.mass == pytest.approx(sum(rows.mass[list(step.rows)]))
            chosen = {rows.group[r] for r in step.rows}
            assert {r for r in range(8) if rows.group[r] in chosen} == set(step.rows)


def test_order_is_a_function_of_seed_and_epoch(rows):
    one, again, other = _plan(rows), _plan(rows), _plan(rows, seed=2)
    orders = [[plan.step(i).rows for i in range(9)] for plan in (one, again, other)]
    assert orders[0] == orders[1] != orders[2]
    assert len({tuple(orders[0][e * 3 : e * 3 + 3]) for e in range(3)}) > 1
    assert again.step(7).rows == orders[0][7]  # without asking for the steps before


def test_max_steps_cuts(rows):
    assert _plan(rows, max_steps=4).steps == 4
    assert _plan(rows, max_steps=40).steps == 9


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), capacity=st.integers(5, 80), world=st.integers(1, 5))
@settings(deadline=None)
def test_dealing_uses_every_item_once_within_the_capacity(lengths, capacity, world):
    bins = deal(lengths, capacity, world)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert len(bins) % world == 0
    assert bins[0]
    for b in bins:
        assert sum(lengths[i] for i in b) <= capacity or len(b) == 1
    if len(lengths) >= world and max(lengths) * world <= capacity:
        assert all(bins[:world])  # nobody idles when there is enough to do


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_share_a_step(rows, world):
    plan, method = _plan(rows, groups_per_step=5), MethodDefaults()
    step = plan.step(0)
    parts = [plan.micros(step, method, capacity=12, rank=r, world=world) for r in range(world)]
    assert len({len(p) for p in parts}) == 1
    counted = [row.mass for p in parts for micro in p if micro.counts for row in micro.rows]
    assert sorted(counted) == sorted(rows.mass[list(step.rows)])
    assert all(micro.rows for p in parts for micro in p)


class _Drawn(MethodDefaults):
    def vary(self, row, random):
        return replace(row, mass=float(random.random()))


def test_the_variant_depends_on_the_epoch_and_not_on_the_ranks(rows):
    plan, method = _plan(rows), _Drawn()
    one = [row.mass for micro in plan.micros(plan.step(0), method, capacity=100) for row in micro.rows]
    two = [
        r.mass for k in (0, 1) for m in plan.micros(plan.step(0), method, capacity=5, rank=k, world=2) if m.counts for r in m.rows
    ]
    assert sorted(one) == sorted(two)
    later = [row.mass for i in (3, 4, 5) for micro in plan.micros(plan.step(i), method, capacity=100) for row in micro.rows]
    assert not set(one) & set(later)


def test_a_lone_trie_is_cut_so_that_no_rank_idles(tmp_path):
    # a trunk of 4 with 12 leaves
    parent = np.array([-1, 0, 1, 2, *[3] * 12], np.int32)
    leaves = np.arange(4, 16, dtype=np.int32)
    row = Row(0, 1.0, np.arange(16, dtype=np.int32), parent, np.r_[3, leaves].astype(np.int32), np.zeros(13, np.int32), {}, True)
    write_rows(tmp_path / "rows.arrow", [row])
    plan = Plan(RowStore(tmp_path / "rows.arrow"), groups_per_step=1, epochs=1, max_steps=None, seed=0)
    parts = [plan.micros(plan.step(0), MethodDefaults(), capacity=100, rank=r, world=3) for r in range(3)]
    assert all(len(p) == 1 and p[0].counts for p in parts)
    assert sum(len(r.source) for p in parts for m in p for r in m.rows) == 13
    assert sum(r.mass for p in parts for m in p for r in m.rows) == 1.0
