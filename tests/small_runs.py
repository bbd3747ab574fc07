"""Runs of every method on a few rows of the shipped data, each a matter of seconds."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from alignlab.paths import resolve

ALL = "stages=[prepare,score,train,sample,evaluate,report,export]"


def small_runs(folder: Path) -> dict[str, list[str]]:
    """Words of a command by method; its data are written to the folder. Neither run_dir nor data.cache is among them."""
    judged = _first(folder, "judged/train.jsonl", 24)
    tested = _first(folder, "judged/test.jsonl", 4)
    chats, asked, queries = (_first(folder, f"named-formats/{name}.jsonl", 24) for name in ("train", "test", "queries"))
    numbers = [resolve(f"alignlab:shipped/numbers-1-10/{name}.json") for name in ("w01", "w02", "w07")]
    steps = [ALL, "tracker=none", "train.max_steps=12", "train.save_every_steps=2", "train.epochs=100", "suite.bootstrap=20"]
    small = [*steps, "train.groups_per_step=4", "suite.max_new_tokens=6"]
    on_judged = [*small, f"data.path={judged}", f"data.test={tested}"]
    answers = ["data.self_sampling.max_new_tokens=6", "data.self_sampling.drop=[]", "data.diverse_ratio=1", "data.sampler.batch=4"]
    return {
        "diffuse": [*steps, f"data.path=[{','.join(numbers)}]", "train.lora.dropout=0.1", "suite.samples=600", "score.tokens=true"],
        "cut": [*on_judged, "method=cut", "score.tokens=true"],
        "sft": [*on_judged, "method=sft", "method.responses=all"],
        "dpo": [*on_judged, "method=dpo"],
        "conditioning": [*small, "method=conditioning", "data.sentences=40", "data.test.balanced=false", "suite.prompt_count=20"],
        "delia": [*small, "method=delia", f"data.path={chats}", f"data.test={asked}", f"data.queries={queries}", *answers],
    }


def _first(folder: Path, name: str, count: int) -> Path:
    """The first rows of a shipped file, as a file of their own."""
    path = folder / name.replace("/", "-")
    with Path(resolve(f"alignlab:shipped/{name}")).open(encoding="utf-8") as file:
        path.write_text("".join(islice(file, count)), encoding="utf-8")
    return path
