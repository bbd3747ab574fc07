"""Runs of every method and all stages, killed at random instants, on one and two processes: what is left must be the same bytes.

python tests/soak/soak.py [--kills 200] [--seed 0] [--each 5] [--only delia-cpu2] [--forked]

Each run is done once whole. Then, in turn, one of them is killed a few times at seeded instants and continued to its end, until so
many kills are done. What is made before training is made anew each time. A run that differs is kept, and the next ones go on;
the exit status is then 1. With --forked, a run and its ranks are forks of this process in place of fresh ones, which have everything
imported: many times as fast, and of two ranks the parent alone is killed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from forked import Forked
from small_runs import small_runs
from torch.distributed.launcher import api

import alignlab
from alignlab.interrupt import Group, differences, durations, instants, interrupted, rubbish
from alignlab.seeds import generator

CACHED = ("conditioning", "delia")
"""methods whose data keeps what it makes in a cache"""


class Soak:
    """One configuration: the run that nothing disturbs, and those that are killed.

    Args:
        folder: of all of them.
        name: of the configuration.
        words: of the command.
        cached: whether the data has a cache.
        forked: whether runs are forks of this process.
    """

    def __init__(self, folder: Path, name: str, words: list[str], cached: bool, forked: bool) -> None:
        self._words, self._forked = words, forked
        self._whole, self._killed, self._said = (folder / f"{name}-{part}" for part in ("whole", "killed", "said"))
        self._cache = folder / f"{name}-cache" if cached else None
        with self._start(self._whole) as process:
            self._seconds = durations(process, self._whole)
            if process.poll() != 0:
                raise RuntimeError(f"{name} fails by itself: {process.words()}")
        self._clear()

    def _start(self, run: Path) -> Group | Forked:
        cache = [f"data.cache={self._cache}"] if self._cache else []
        words = [*self._words, *cache, f"run_dir={run}"]
        return Forked(words, self._said) if self._forked else Group(words)

    def _clear(self) -> None:
        for folder in (self._killed, self._cache):
            if folder:
                shutil.rmtree(folder, ignore_errors=True)

    def go(self, kills: int, seed: int) -> tuple[list[str], list[str]]:
        """Kill a run so many times; when that was, and what is wrong with it at the end."""
        found = interrupted(lambda: self._start(self._killed), self._killed, instants(self._seconds, kills, seed), lambda _: None)
        problems = [*found.problems, *differences(self._whole, self._killed)[1]]
        if self._cache:
            problems += [f"{path}: was left behind" for path in rubbish(self._cache)]
        if problems:  # kept, to be looked at
            kept = self._killed.with_name(f"{self._killed.name}-{seed}")
            self._killed.rename(kept)
            problems.append(f"it is kept in {kept}")
        self._clear()
        return found.kills, problems


def soak(kills: int, each: int, seed: int, only: list[str], forked: bool) -> int:
    """Exit status: 0 if every run was left the same."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    runs = {f"{name}-{hardware}": words for name, words in small_runs(folder).items() for hardware in ("cpu", "cpu2")}
    if forked:  # what is imported here, no fork need import
        alignlab.run([*runs["delia-cpu"], f"run_dir={folder / 'first'}", f"data.cache={folder / 'first'}"])
        configured = api.LaunchConfig
        api.LaunchConfig = lambda **words: configured(**words | {"start_method": "fork"})  # type: ignore[assignment,misc]
    names = only or list(runs)
    order = [names[i] for i in generator(seed, "soak").permutation(len(names))]
    soaks: dict[str, Soak] = {}
    where, failed = Counter[str](), list[str]()
    done, turn, started = 0, 0, time.monotonic()
    while done < kills:
        name = order[turn % len(order)]
        if name not in soaks:
            method, hardware = name.rsplit("-", 1)
            soaks[name] = Soak(folder, name, [*runs[name], f"hardware={hardware}"], method in CACHED, forked)
        delivered, problems = soaks[name].go(min(each, kills - done), seed + turn)
        done, turn = done + len(delivered), turn + 1
        where.update(kill.removeprefix("in ").partition(",")[0] for kill in delivered)
        print(f"{time.monotonic() - started:6.0f} s  {done:4} kills  {name}: {'; '.join(delivered)}", flush=True)
        if problems:
            failed.append("\n  ".join([f"{name}, seed {seed + turn - 1}:", *problems]))
            print(f"FAIL {failed[-1]}", flush=True)
    kind = "forks, the parent killed" if forked else "processes, all of them killed"
    sum_up = f"{done} kills of {turn} runs ({kind}; {', '.join(f'{count} in {stage}' for stage, count in where.most_common())})"
    print("\n".join([f"FAIL: {sum_up}; {len(failed)} runs differ", *failed]) if failed else f"PASS: {sum_up}", flush=True)
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all")
    parser.add_argument("--each", type=int, default=5, help="kills of a run before it goes to its end")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the instants")
    parser.add_argument("--only", nargs="*", default=[], help="runs such as diffuse-cpu or delia-cpu2; all are taken in turn")
    parser.add_argument("--forked", action="store_true", help="runs are forks of this process")
    given = parser.parse_args()
    sys.exit(soak(given.kills, given.each, given.seed, given.only, given.forked))
