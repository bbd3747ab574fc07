"""Runs of every method and all stages, killed at random instants, on one and two processes: what is left must be the same bytes.

python tests/soak/soak.py [--kills 200] [--seed 0] [--each 5] [--only delia-cpu2]

Each run is done once whole. Then, in turn, one of them is killed a few times at seeded instants and continued to its end, until so
many kills are done. What is made before training is made anew each time. The exit status is 1 if any run differs.
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

from small_runs import small_runs

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
    """

    def __init__(self, folder: Path, name: str, words: list[str], cached: bool) -> None:
        self.name, self._words, self._cached = name, words, cached
        self._whole, self._killed, self._cache = (folder / f"{name}-{part}" for part in ("whole", "killed", "cache"))
        with self._start(self._whole) as process:
            self._seconds = durations(process, self._whole)
            if process.returncode != 0:
                raise SystemExit(f"{name} fails by itself: {process.words()}")
        shutil.rmtree(self._cache, ignore_errors=True)

    def _start(self, run: Path) -> Group:
        cache = [f"data.cache={self._cache}"] if self._cached else []
        return Group([*self._words, *cache, f"run_dir={run}"])

    def go(self, kills: int, seed: int) -> tuple[list[str], list[str]]:
        """Kill a run so many times; when that was, and what is wrong with it at the end."""
        when = instants(self._seconds, kills, seed)
        found = interrupted(lambda: self._start(self._killed), self._killed, when, lambda _: None)
        problems = [*found.problems, *differences(self._whole, self._killed)[1]]
        problems += [f"{path}: was left behind" for path in rubbish(self._cache)]
        if not problems:
            shutil.rmtree(self._killed)
            shutil.rmtree(self._cache, ignore_errors=True)
        return found.kills, problems


def soak(kills: int, each: int, seed: int, only: list[str]) -> int:
    """Exit status: 0 if every run was left the same."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    runs = {f"{name}-{hardware}": words for name, words in small_runs(folder).items() for hardware in ("cpu", "cpu2")}
    names = only or list(runs)
    order = [names[i] for i in generator(seed, "soak").permutation(len(names))]
    soaks: dict[str, Soak] = {}
    where, done, turn, started = Counter[str](), 0, 0, time.monotonic()
    while done < kills:
        name = order[turn % len(order)]
        if name not in soaks:
            method, hardware = name.rsplit("-", 1)
            soaks[name] = Soak(folder, name, [*runs[name], f"hardware={hardware}"], method in CACHED)
        delivered, problems = soaks[name].go(min(each, kills - done), seed + turn)
        done, turn = done + len(delivered), turn + 1
        where.update(kill.removeprefix("in ").partition(",")[0] for kill in delivered)
        print(f"{time.monotonic() - started:6.0f} s  {done:4} kills  {name}: {'; '.join(delivered)}", flush=True)
        if problems:
            print("\n".join(["FAIL", *(f"  {problem}" for problem in problems), f"  in {folder}"]))
            return 1
    print(f"PASS: {done} kills of {turn} runs ({', '.join(f'{count} in {stage}' for stage, count in where.most_common())})")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all")
    parser.add_argument("--each", type=int, default=5, help="kills of a run before it goes to its end")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the instants")
    parser.add_argument("--only", nargs="*", default=[], help="runs such as diffuse-cpu or delia-cpu2; all are taken in turn")
    given = parser.parse_args()
    sys.exit(soak(given.kills, given.each, given.seed, given.only))
