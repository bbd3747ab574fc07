"""verify: a configuration is run whole, and once more with kills at random instants; both must leave the same bytes."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from alignlab.errors import FAULT, OK, StoppedError, UserError, did_you_mean
from alignlab.interrupt import Group, differences, durations, instants, interrupted, rubbish
from alignlab.records import write_json
from alignlab.signals import Stop

WORDS = {"verify": "resume", "verify.kills": "5", "verify.seed": "0"}
"""what may stand on the command line beside the run's own words; what is meant without them"""

MARK = "verify.json"
"""in the folder of both runs: tells it from others"""


def verify(arguments: Sequence[str]) -> int:
    """Run a command line both ways in the folder ``run_dir``, or ``runs/verify``, and compare; returns the exit status.

    Args:
        arguments: ``verify=resume``, any of ``verify.kills`` and ``verify.seed``, and the words of the run.

    Raises:
        UserError: the words are wrong, or the folder holds something else.
        StoppedError: a signal arrived.
    """
    kills, seed, folder, words = _read(arguments)
    _clear(folder, words)
    try:
        with Stop():
            return _verify(kills, seed, folder, words)
    except StoppedError as error:
        what = str(error).partition(":")[0]
        raise StoppedError(f"{what}: nothing was compared. The same command starts anew.", error.status) from None


def _verify(kills: int, seed: int, folder: Path, words: Sequence[str]) -> int:
    whole, killed = folder / "whole", folder / "killed"
    _say(f"first the run whole, in {whole}")
    with Group([*words, _override("run_dir", whole)], shown=True) as process:
        seconds = durations(process, whole)
        if process.returncode != OK:
            print("verify: the run itself does not end well, so there is nothing to compare", file=sys.stderr)
            return process.returncode if process.returncode > 0 else FAULT
    _say(", ".join(f"{stage} {lasted:.1f} s" for stage, lasted in seconds.items()))
    _say(f"now killed at {kills} random instants, in {killed}")
    more = [_override("run_dir", killed)]
    if _has_cache(whole) and not any(word.startswith("data.cache=") for word in words):
        more.append(_override("data.cache", folder / "cache"))  # what is made before training is made anew
    found = interrupted(lambda: Group([*words, *more]), killed, instants(seconds, kills, seed), _say)
    _say("comparing both, file by file")
    count, problems = differences(whole, killed)
    problems += [f"{path}: was left behind" for path in rubbish(folder / "cache")]
    problems = [*found.problems, *problems]
    passed = not problems
    write_json(folder / MARK, {"words": list(words), "kills": found.kills, "seed": seed, "files": count, "problems": problems})
    times = f"killed {({1: 'once', 2: 'twice'}).get(len(found.kills), f'{len(found.kills)} times')}"
    if passed:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        print(f"PASS: {times}, the run left the same {count} files, byte by byte, as the\nrun that was not: {folder}")
        return OK
    print("\n".join([f"FAIL: {times}, the run differs from the one that was not ({folder}):", *(f"  {p}" for p in problems)]))
    return FAULT


def _say(message: str) -> None:
    print(textwrap.fill(f"verify: {message}", 80, subsequent_indent="  "), file=sys.stderr, flush=True)


def _read(arguments: Sequence[str]) -> tuple[int, int, Path, list[str]]:
    """Kills, seed, folder, and the words of the run; trackers are left out.

    Raises:
        UserError: a word is not known, or has a value that makes no sense.
    """
    given, words, folder = dict(WORDS), list[str](), "runs/verify"
    for word in arguments:
        key, _, value = word.partition("=")
        if key in ("-m", "--multirun"):
            raise UserError("verify: a sweep is several runs. Verify one of them, without -m.")
        if key == "run_dir":
            folder = value.strip("\"'")
        elif key.partition(".")[0] == "verify":
            if key not in WORDS:
                raise UserError(f"{key}: verify has no such key ({', '.join(WORDS)}).{did_you_mean(key, WORDS)}")
            given[key] = value
        elif key.lstrip("+~").partition(".")[0] not in ("tracker", "overwrite"):
            words.append(word)
    if given["verify"] != WORDS["verify"]:
        raise UserError(f"verify: there is only verify=resume, not '{given['verify']}'.")
    for key in ("verify.kills", "verify.seed"):
        if not given[key].isdecimal():
            raise UserError(f"{key}: must be a whole number, not '{given[key]}'.")
    return int(given["verify.kills"]), int(given["verify.seed"]), Path(folder), [*words, "tracker=none"]


def _clear(folder: Path, words: Sequence[str]) -> None:
    """Make the folder, without what an earlier verification left there.

    Raises:
        UserError: it holds something else.
    """
    if folder.exists() and not (folder / MARK).is_file() and any(folder.iterdir()):
        raise UserError(f"run_dir: {folder} is not empty and holds no verification. Choose another run_dir for the two runs.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MARK, {"words": list(words)})
    for part in ("whole", "killed", "cache"):
        shutil.rmtree(folder / part, ignore_errors=True)


def _override(key: str, path: Path) -> str:
    """A word that gives a key a path, whatever characters it has."""
    quoted = str(path).replace('"', '\\"')
    return f'{key}="{quoted}"'


def _has_cache(run: Path) -> bool:
    """Whether the data of a run keeps what it makes in a cache."""
    return "cache" in OmegaConf.load(run / "config.yaml").data
