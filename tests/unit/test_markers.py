"""What a change of one key makes again, and what it leaves as it is."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from alignlab.compose import compose
from alignlab.config import check
from alignlab.errors import UserError
from alignlab.generate.hf import HfSampler
from alignlab.launch import World
from alignlab.pipeline import Run, open_folder
from alignlab.records import write_json
from alignlab.signals import Stop

STAGES = ("prepare", "score", "train", "sample", "evaluate", "report", "export")
"""those that leave a marker, in their order"""

SAMPLED = ("sample", "evaluate", "report")
MEASURED = ("evaluate", "report")

BASES = {
    "diffuse": [],
    "delia": ["method=delia", "data.diverse_ratio=1"],
    "conditioning": ["method=conditioning", "data.sentences=20", "data.test.balanced=false", "suite.prompt_source=validation"],
}

NEUTRAL = (
    "hardware=cpu2 hardware.processes=4 hardware.tokens_per_micro=64 hardware.logits_mib=1 hardware.backend=padded "
    "hardware.gradient_checkpointing=true tracker=tensorboard tracker.samples=3 sampler.rows=3 sampler.batch=3 inspect.rows=1 "
    "train.save_every_steps=3 train.keep_checkpoints=1 debug.traceback=true stages=[sample]"
)

RERUN = [
    ("diffuse", NEUTRAL, ()),
    ("diffuse", "tracker=none", ()),
    ("diffuse", "suite.samples=10", SAMPLED),
    ("diffuse", "suite.temperature=0.5", SAMPLED),
    ("diffuse", "suite.bootstrap=10", MEASURED),
    ("diffuse", "suite.fields='(?P<name>.*)'", MEASURED),
    ("diffuse", "suite.objective=mass", ("report",)),
    ("diffuse", "sampler._target_=test_markers.Another", SAMPLED),
    *[("diffuse", f"sample.{change}", SAMPLED) for change in ("dtype=bfloat16", "file=a.jsonl", "alpaca_eval=true", "step=4")],
    ("diffuse", "sample.model=after", SAMPLED),
    ("diffuse", "score.tokens=true", ("score",)),
    ("diffuse", "score.model=both", ("score",)),
    ("delia", "data.cache=elsewhere data.sampler.batch=7 data.sampler.rows=7", ()),
    ("delia", "suite.max_new_tokens=3", SAMPLED),
    ("delia", "suite.retention=[]", MEASURED),
    ("conditioning", "suite.prompt_count=7", SAMPLED),
    ("conditioning", "suite.padding=right", SAMPLED),
    ("conditioning", "suite.score_prompt=true", MEASURED),
]

REFUSED = [
    *[("diffuse", change) for change in ("train.lr=0.1", "seed=1", "model.dtype=float64", "data=fruits")],
    *[("delia", f"data.{change}") for change in ("self_sampling.drop=[]", "sampler._target_=test_markers.Another")],
]


@dataclass
class Another(HfSampler):
    """Another sampler."""


def opened(folder: Path, *words: str) -> Run:
    """The run with these words in the folder."""
    config = check(compose([*words, f"run_dir={folder}"])[0])
    open_folder(folder, config, overwrite=False)
    return Run(folder, config, Stop(), World(0, 1))


def rerun(run: Run) -> tuple[str, ...]:
    """Stages that are not done before, of all; each leaves its marker."""
    anew = tuple(stage for stage in STAGES if not (run.is_done(stage) or _mark(run, stage)))
    assert all(run.is_done(stage) for stage in STAGES)
    return anew


def _mark(run: Run, stage: str) -> None:
    write_json(run.path("done", f"{stage}.json"), {"digest": run.digest(stage), "files": []})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Folders of runs that are done, by name."""
    folders = {}
    for name, words in BASES.items():
        folders[name] = tmp_path_factory.mktemp("done") / name
        assert rerun(opened(folders[name], *words)) == STAGES
    return folders


@pytest.fixture
def folder(done, tmp_path, request):
    """A copy of one of them."""
    return shutil.copytree(done[request.getfixturevalue("base")], tmp_path / "run")


@pytest.mark.parametrize("base", BASES)
def test_the_same_command_makes_nothing_again(base, folder):
    assert rerun(opened(folder, *BASES[base])) == ()


@pytest.mark.parametrize(("base", "change", "stages"), RERUN, ids=lambda value: value if isinstance(value, str) else "")
def test_a_change_makes_again_what_depends_on_it(base, change, stages, folder):
    assert rerun(opened(folder, *BASES[base], *change.split())) == stages


@pytest.mark.parametrize(("base", "change"), REFUSED)
def test_what_changes_the_training_is_refused(base, change, folder):
    with pytest.raises(UserError, match="holds a run with another configuration: "):
        opened(folder, *BASES[base], change)


def test_before_anything_is_done_any_change_is_taken(tmp_path):
    opened(tmp_path / "run", *BASES["delia"])
    opened(tmp_path / "run", *BASES["delia"], "data.self_sampling.temperature=0.1")
