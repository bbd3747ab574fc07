"""The file that work in progress is kept in: what is in it is right, and only what lacks is made."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from alignlab.errors import StoppedError
from alignlab.journal import Journal
from alignlab.signals import Stop

BATCHES = [[(3, "d\n\u20ac\ud800"), (0, ["a", 0.1])], [(1, None)], [(4, float("-inf")), (2, {"c": 2 / 3})]]
PIECES = [["a", 0.1], None, {"c": 2 / 3}, "d\n\u20ac\ud800", float("-inf")]


def journal(folder: Path, key: str = "key", stop: Stop | None = None, total: int | None = None) -> Journal:
    return Journal(folder / "below" / "a.partial", key, stop or Stop(), "pieces", total)


def filled(folder: Path) -> bytes:
    """The bytes of a journal with all batches."""
    with journal(folder) as kept:
        for batch in BATCHES:
            kept.add(batch)
    return (folder / "below/a.partial").read_bytes()


def go_on(folder: Path) -> tuple[set[int], bytes]:
    """What is found to be done; the bytes once the rest is made."""
    with journal(folder) as kept:
        done = set(kept.done)
        for batch in BATCHES:
            kept.add(batch)
        assert list(kept) == PIECES
    return done, (folder / "below/a.partial").read_bytes()


def test_pieces_come_in_the_order_of_their_places(tmp_path):
    filled(tmp_path)
    with journal(tmp_path) as kept:
        assert kept.done == {0, 1, 2, 3, 4}
        assert list(kept) == list(kept) == PIECES
        kept.add([(0, "another"), (6, "g")])
        assert kept.done == {0, 1, 2, 3, 4, 6}
        assert list(kept) == PIECES  # the sixth lacks
        kept.add([(5, "f")])
        assert list(kept) == [*PIECES, "f", "g"]


def test_another_key_starts_anew(tmp_path):
    filled(tmp_path)
    with journal(tmp_path, "other") as kept:
        assert not kept.done
        assert list(kept) == []
    assert go_on(tmp_path)[0] == set()


def test_cut_off_at_any_byte_it_goes_on_to_the_same_bytes(tmp_path):
    whole = filled(tmp_path)
    ends = [end for end in range(len(whole)) if whole[end : end + 1] == b"\n"]
    places = [set(), {0, 3}, {0, 1, 3}, {0, 1, 2, 3, 4}]
    assert len(ends) == len(places)
    for size in range(len(whole) + 1):
        (tmp_path / "below/a.partial").write_bytes(whole[:size])
        expected = next((found for end, found in reversed(list(zip(ends, places, strict=True))) if size > end), set())
        assert go_on(tmp_path) == (expected, whole)


def test_a_byte_that_changed_is_never_believed(tmp_path):
    whole = filled(tmp_path)
    for at in range(len(whole)):
        for bit in (1, 32):
            damaged = bytearray(whole)
            damaged[at] ^= bit
            (tmp_path / "below/a.partial").write_bytes(damaged)
            done, again = go_on(tmp_path)
            assert len(done) < 5
            assert again == whole


def squares(asked: list[Sequence[int]]):
    def make(batch: Sequence[int]) -> list[int]:
        asked.append(batch)
        return [item * item for item in batch]

    return make


def test_only_batches_of_which_a_piece_lacks_are_made(tmp_path):
    asked: list[Sequence[int]] = []
    with journal(tmp_path) as kept:
        through = kept.through([[0, 1, 2], [3, 4, 5], [6]], squares(asked))
        assert [next(through) for _ in range(4)] == [0, 1, 4, 9]
    with journal(tmp_path) as kept:  # in batches of another size
        found = kept.through([[0, 1], [2, 3], [4, 5], [6, 7], [8]], squares(asked))
        assert list(found) == [item * item for item in range(9)]
    assert asked == [[0, 1, 2], [3, 4, 5], [6, 7], [8]]


def test_a_second_pass_goes_on_where_the_first_ended(tmp_path):
    asked: list[Sequence[int]] = []
    for expected in ([[0, 1], [2], [10]], []):
        with journal(tmp_path) as kept:
            assert list(kept.through([[0, 1], [2]], squares(asked))) == [0, 1, 4]
            assert list(kept.through([[10]], squares(asked))) == [100]
        assert asked == expected
        asked.clear()


@pytest.mark.parametrize(("total", "said"), [(4, "2 of 4 pieces are kept"), (None, "2 pieces are kept")])
def test_a_signal_ends_it_once_the_batch_is_kept(tmp_path, total, said):
    def make(batch: Sequence[int]) -> list[int]:
        signal.raise_signal(signal.SIGUSR1)
        return list(batch)

    with Stop() as stop, journal(tmp_path, stop=stop, total=total) as kept:
        with pytest.raises(StoppedError) as caught:
            next(kept.through([[0, 1], [2, 3]], make))
        assert str(caught.value) == f"stopped by SIGUSR1: {said}. The same command continues from there."
        assert caught.value.status == 143
    with journal(tmp_path) as kept:
        assert list(kept) == [0, 1]
