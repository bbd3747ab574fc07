"""Composing and checking a configuration: what is refused and in which words, and what every shipped option must keep to."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import alignlab
from alignlab.build import build
from alignlab.compose import CONF, compose, groups, help_text, run_name
from alignlab.config import PROTOCOLS, TYPED, Config, all_keys, check
from alignlab.errors import UserError, did_you_mean

OPTIONS = [(group, option) for group, options in groups().items() for option in options]


def checked(*overrides: str) -> Config:
    return check(compose(overrides)[0])


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        checked(*overrides)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    assert caught.value.status == 2
    for jargon in ("AnyNode", "ListConfig", "full_key", "object_type", "NoneType", "subclass"):
        assert jargon not in message
    return message


@pytest.mark.parametrize(
    ("override", "named", "near"),
    [
        ("sed=1", "sed", "seed"),
        ("+sed=1", "sed", "seed"),
        ("++sed=1", "sed", "seed"),
        ("metod=cut", "metod", "method"),
        ("trainlr=1", "trainlr", "train.lr"),
        ("train.learning=1", "train.learning", None),
        ("train.lora.rnk=1", "train.lora.rnk", "train.lora.rank"),
        ("+train.lora.rnk=1", "train.lora.rnk", "train.lora.rank"),
        ("++train.lora.rnk=1", "train.lora.rnk", "train.lora.rank"),
        ("method.gama=1", "method.gama", "method.gamma"),
        ("+method.gama=1", "method.gama", "method.gamma"),
        ("++method.gama=1", "method.gama", "method.gamma"),
        ("train.lora={rank: 1, rnk: 2}", "train.lora.rnk", "train.lora.rank"),
        ("++hardware.proceses=1", "hardware.proceses", "hardware.processes"),
        ("+data.pat=x", "data.pat", "data.path"),
        ("suite.sample=3", "suite.sample", "suite.samples"),
        ("+sampler.row=3", "sampler.row", "sampler.rows"),
        ("+tracker.mod=x", "tracker.mod", "tracker.mode"),
        ("+train._target_=os.system", "train._target_", None),
    ],
)
def test_unknown_key_is_named_with_the_nearest_one(override: str, named: str, near: str | None):
    message = refusal(override)
    assert message.startswith(f"{named}: no such key.")
    if near:
        assert f"Did you mean '{near}'?" in message


@pytest.mark.parametrize(
    ("override", "start", "words"),
    [
        ("seed=abc", "seed: must be a whole number", "'abc'"),
        ("seed=1.5", "seed: must be a whole number", "1.5"),
        ("seed=null", "seed: must be a whole number", "null"),
        ("seed=true", "seed: must be a whole number", "true"),
        ("overwrite=maybe", "overwrite: must be true or false", "'maybe'"),
        ("stages=train", "stages: must be a list of texts", "'train'"),
        ("stages=3", "stages: must be a list of texts", "3"),
        ("stages=[]", "stages: names none", "prepare"),
        ("stages=[trian]", "stages: 'trian' is not a stage", "Did you mean 'train'?"),
        ("run_dir=[1]", "run_dir: must be text or null", "[1]"),
        ("train.lr=abc", "train.lr: must be a number", "'abc'"),
        ("train.lr=null", "train.lr: must be a number", "null"),
        ("train.lr=-1", "train.lr: must be at least 0", "-1"),
        ("train.lr=nan", "train.lr: must be a finite number", "nan"),
        ("train.lr=inf", "train.lr: must be a finite number", "inf"),
        ("train.epochs=1.5", "train.epochs: must be a whole number", "1.5"),
        ("train.epochs=0", "train.epochs: must be at least 1", "0"),
        ("train.save_every_steps=0", "train.save_every_steps: must be at least 1", "0"),
        ("train.validate_every_steps=-3", "train.validate_every_steps: must be at least 1", "-3"),
        ("train.betas=[2,0]", "train.betas: must be two numbers in [0, 1)", "[2.0, 0.0]"),
        ("train.betas=[0.9]", "train.betas: must be two numbers in [0, 1)", "[0.9]"),
        ("train.betas=3", "train.betas: must be a list of numbers", "3"),
        ("train.betas=[a,b]", "train.betas: must be a list of numbers", "['a', 'b']"),
        ("train.schedule=warm", "train.schedule: must be one of", "cosine"),
        ("train.lora=3", "train.lora: must be a set of keys or null", "3"),
        ("train.lora.rank=0", "train.lora.rank: must be at least 1", "0"),
        ("train.lora.rank=x", "train.lora.rank: must be a whole number", "'x'"),
        ("train.lora.alpha=nan", "train.lora.alpha: must be a finite number", "nan"),
        ("train.lora.dropout=1", "train.lora.dropout: must be in [0, 1)", "1"),
        ("train.lora.targets=[]", "train.lora.targets: must be", "all-linear"),
        ("hardware.device=tpu", "hardware.device: must be one of auto, cpu, cuda", "'tpu'"),
        ("hardware.processes=0", "hardware.processes: must be at least 1", "0"),
        ("model.quantization=3bit", "model.quantization: must be one of 8bit, 4bit", "'3bit'"),
        ("model.answer_end=stop", "model.answer_end: must be one of turn, eos", "'stop'"),
        ("model.tokenizer_legacy=old", "model.tokenizer_legacy: must be true or false or null", "'old'"),
        ("model.dtype=float8", "model.dtype: must be one of", "bfloat16"),
        ("model.path=", "model.path: must be a folder", "hub"),
        ("model.architecture=3", "model.architecture: must be a set of keys or null", "3"),
        ("method.gamma=abc", "method.gamma: must be a number", "'abc'"),
        ("method.gamma=-1", "method.gamma: must be at least 0", "-1"),
        ("method.prefixes=all", "method.prefixes: must be one of", "draw"),
        ("data.path=null", "data.path: give a prompt file", "data.train"),
        ("data.path=", "data.path: give a prompt file", "data.train"),
        ("data.path=3", "data.path: must be text or a list of texts in square brackets", "3"),
        ("data.train=[1]", "data.train: must be text or a list of texts in square brackets", "[1]"),
        ("data.leave_out={a: 1}", "data.leave_out: must be text or a list of texts", "{'a': 1}"),
        ("suite.fields='(x'", "suite.fields: not a regular expression", "subpattern"),
        ("suite.fields=x", "suite.fields: the pattern names no field", "(?P<name>...)"),
        ("sample.model=none", "sample.model: must be one of before, after, both", "'none'"),
        ("sample.dtype=int8", "sample.dtype: must be one of", "'int8'"),
        ("sample.file=../x.jsonl", "sample.file: must be a name such as samples.jsonl", "'../x.jsonl'"),
        ("sample.file=metrics.jsonl", "sample.file: must be a name", "metrics.jsonl"),
        ("data.validation=7", "data.validation: must be a share between 0 and 1 or a path", "7"),
        ("suite.top_p=3", "suite.top_p: must be in (0, 1]", "3"),
        ("suite.samples=0", "suite.samples: must be at least 1", "0"),
        ("sampler.rows=0", "sampler.rows: must be at least 1", "0"),
        ("tracker.mode=loud", "tracker", "online or offline"),
        ("score=3", "score: must be a set of keys", "3"),
        ("score.model=now", "score.model: must be one of", "both"),
    ],
)
def test_wrong_value_is_named_in_plain_words(override: str, start: str, words: str):
    message = refusal(override)
    assert message.startswith(start)
    assert words in message


def test_random_weights_need_sizes():
    assert refusal("model.weights=random", "model.architecture=null").startswith(
        "model.weights: random needs the sizes of the model"
    )


@pytest.mark.parametrize(
    ("override", "start", "words"),
    [
        ("method=difuse", "method=difuse: no such option. Did you mean 'diffuse'?", "There are: "),
        ("data=numbrs", "data=numbrs: no such option. Did you mean 'numbers'?", "fruits"),
        ("debug=onestep", "debug=onestep: no such option. Did you mean 'one-step'?", "overfit"),
        ("recipe=none-such", "recipe=none-such: no such option.", "diffuse-tiny"),
        ("method=null", "method=null: not the name of an option.", "diffuse"),
        ("train=null", "train=null: not the name of an option.", "default"),
        ("method=[diffuse]", "method=[diffuse]: not the name of an option.", "method=OPTION"),
        ("method={a:1}", "method={a:1}: not the name of an option.", "method=OPTION"),
        ("~data", "~data: a group cannot be", "data=OPTION"),
        ("+debug=one-step", "+debug=one-step: a group cannot be", "debug=OPTION"),
        ("data@other=fruits", "data@other=fruits: a group cannot be", "data=OPTION"),
        ("+train.lr=1", "train.lr: exists already", "without the +"),
        ("seed=0,1", "seed=0,1: the comma is ambiguous", "-m seed=0,1"),
        ("data=fruits,binomial", "data=fruits,binomial: the comma is ambiguous. Choose one", "-m data=fruits,binomial"),
        ("foo", "foo: cannot be read as KEY=VALUE", "--help"),
        ("=3", "=3: cannot be read as KEY=VALUE", "no key"),
        ("a=[", "a=[: cannot be read as KEY=VALUE", "quotes"),
        ("data.path=it's", "data.path=it's: cannot be read as KEY=VALUE", "quotes"),
        ("~seed", "seed: needs a value", "seed=..."),
        ("~train.lr", "train.lr: needs a value", "train.lr=..."),
        ("model=local", "model.path: needs a value", "model.path=..."),
        ("train.lr=${no.such}", "train.lr: cannot be resolved", "no.such"),
        ("train.lr=${oc.env:NO_SUCH_VARIABLE}", "train.lr: cannot be resolved", "NO_SUCH_VARIABLE"),
    ],
)
def test_what_hydra_refuses_is_put_in_words(override: str, start: str, words: str):
    message = refusal(override)
    assert message.startswith(start)
    assert words in message


MINE = """
from dataclasses import dataclass
from typing import ClassVar

from alignlab.data.sources import PromptFiles
from alignlab.records import Prompt


class Plain:
    pass


@dataclass
class Lacking:
    path: str


@dataclass
class Other(PromptFiles):
    yields: ClassVar[type] = Prompt


@dataclass
class Odd(PromptFiles):
    number: complex
"""


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data._target_=no_such_package.Files", ["data._target_", "cannot be imported", "no_such_package"]),
        ("data._target_=alignlab.data.sorces.PromptFiles", ["data._target_", "cannot be imported", "alignlab.data.sorces"]),
        ("data._target_=alignlab.data.sources.PromptFile", ["data._target_", "Did you mean 'PromptFiles'?"]),
        ("data._target_=PromptFiles", ["data._target_", "a module and a class"]),
        ("data._target_=os.system", ["data._target_", "not a dataclass"]),
        ("data._target_=my_parts.Plain", ["data._target_", "not a dataclass"]),
        ("data._target_=my_parts.Lacking", ["data._target_", "lacks yields, training"]),
        ("data._target_=my_parts.Odd", ["data: a field of Odd", "cannot hold"]),
        ("data._target_=my_broken.Files", ["data._target_", "ZeroDivisionError"]),
        ("data._target_=null", ["data._target_: missing"]),
        ("~data._target_", ["data._target_: missing"]),
        ("method._target_=alignlab.data.sources.PromptFiles", ["method._target_", "lacks accepts"]),
    ],
)
def test_target_must_be_a_dataclass_with_the_members_of_its_seam(override, words, tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text(MINE)
    (tmp_path / "my_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = refusal(override)
    assert all(word in message for word in words), message


def test_source_must_give_what_the_method_trains_on(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert refusal("data._target_=my_parts.Other").startswith(
        "data: this source gives Prompt records, and method Diffuse trains on TargetSet."
    )


def test_interpolations_reach_other_groups():
    assert checked("data.path=${model.path}").data.path == [checked().model.path]


def test_stages_are_put_in_their_order():
    assert checked("stages=[train,prepare]").stages == ["prepare", "train"]


def test_run_dir_that_is_a_file(tmp_path: Path):
    file = tmp_path / "file"
    file.touch()
    assert refusal(f"run_dir={file}") == f"run_dir: {file} is a file, and a run needs a folder; choose another run_dir."


def test_run_raises_what_the_command_says(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for overrides in (["method.gama=1"], ["data.path=nowhere"], ["method=difuse"], ["stages=[trian]"]):
        with pytest.raises(alignlab.UserError):
            alignlab.run(overrides)
    assert not list(tmp_path.iterdir())


@dataclasses.dataclass
class Inner:
    depth: int

    def __post_init__(self) -> None:
        if self.depth > 9:
            raise ValueError("depth: too deep")
        if self.depth < 0:
            raise ValueError("dug out of the ground")


@dataclasses.dataclass
class Outer:
    inner: Inner | None
    names: list[str]
    ratio: float | None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": {"depth": 10}}, "here.inner.depth: too deep."),
        ({"inner": {"depth": -1}}, "here.inner: dug out of the ground."),
        ({"inner": {"dept": 1}}, "here.inner.dept: no such key. Did you mean 'here.inner.depth'?"),
        ({"inner": {}}, "here.inner.depth: needs a value; give here.inner.depth=..."),
        ({"inner": [1]}, "here.inner: must be a set of keys or null, not [1]."),
        ({"names": {"a": 1}}, "here.names: must be a list of texts in square brackets, not {'a': 1}."),
        ({"ratio": "x"}, "here.ratio: must be a number or null, not 'x'."),
        ({"ratio": "???"}, "here.ratio: needs a value; give here.ratio=..."),
    ],
)
def test_nested_dataclasses_are_named_by_their_whole_path(change: dict, message: str):
    values = {"inner": {"depth": 1}, "names": ["a"], "ratio": None}
    assert build(OmegaConf.create(values), Outer, "here") == Outer(Inner(1), ["a"], None)
    with pytest.raises(UserError) as caught:
        build(OmegaConf.create(values | change), Outer, "here")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("word", "known", "found"),
    [
        ("difuse", ["diffuse", "cut"], " Did you mean 'diffuse'?"),
        ("train.rnk", ["train.lora.rank", "train.lr"], " Did you mean 'train.lora.rank'?"),
        ("diffuse", ["diffuse"], ""),
        ("xyz", ["diffuse", "cut"], ""),
        ("x", [], ""),
    ],
)
def test_did_you_mean(word: str, known: list[str], found: str):
    assert did_you_mean(word, known) == found


def test_run_name_is_made_of_options_and_overrides_that_matter():
    choices = {"method": "diffuse", "data": "fruits", "model": "tiny", "hardware": "cpu"}
    name = run_name(choices, ["hardware=cpu", "train.lr=1e-3", "run_dir=x", "method=diffuse", "score.tokens=true"], 3)
    assert name == "diffuse-fruits-tiny-train.lr=1e-3-seed3"
    long = run_name(choices, [f"data.path={'x' * 300}"], 0)
    assert len(long) < 140
    assert long != run_name(choices, [f"data.path={'x' * 301}"], 0)


# ---- house rules, for every shipped option


def lacks_path(group: str, option: str) -> bool:
    """Whether the person must say where the model or the data is."""
    node = OmegaConf.load(CONF / group / f"{option}.yaml")
    return group in ("model", "data") and (OmegaConf.is_missing(node, "path") or node.get("path", "") is None)


def passing(group: str, option: str, folder: Path) -> Config:
    """The option checked, with the first method that takes it."""
    more = [f"{group}.path={folder}"] if lacks_path(group, option) else []
    refused = []
    for method in [option] if group == "method" else groups()["method"]:
        try:
            return checked(f"method={method}", f"{group}={option}", *more)
        except UserError as error:
            refused.append(f"method={method}: {error}")
    raise AssertionError("\n".join(refused))


@pytest.mark.parametrize(("group", "option"), [o for o in OPTIONS if o[0] != "recipe"])
def test_every_option_composes_and_has_the_fields_of_its_class(group: str, option: str, tmp_path: Path):
    config = passing(group, option, tmp_path)
    for name in (*TYPED, *PROTOCOLS):
        part = getattr(config, name)
        fields = dataclasses.fields(part)
        given = {key for key in config.node[name] if key != "_target_"}
        assert given == {f.name for f in fields}
        defaults = [f.name for f in fields if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING]
        assert not defaults, f"{type(part).__name__}: values stand in YAML, not in the dataclass: {defaults}"


@pytest.mark.parametrize("recipe", groups()["recipe"])
def test_every_recipe_belongs_to_a_pair_and_is_applied_with_it(recipe: str, tmp_path: Path):
    pairs = [(m, g, o) for m in groups()["method"] for g, o in OPTIONS if g in ("data", "model") and f"{m}-{o}" == recipe]
    assert len(pairs) == 1, f"{recipe} is no METHOD-DATA or METHOD-MODEL"
    method, group, option = pairs[0]
    more = [f"{group}.path={tmp_path}"] if lacks_path(group, option) else []
    node, _ = compose([f"method={method}", f"{group}={option}", *more])
    check(node)
    wanted = OmegaConf.load(CONF / "recipe" / f"{recipe}.yaml")
    for base in wanted.pop("defaults", []):
        wanted = OmegaConf.merge(OmegaConf.load(CONF / "recipe" / f"{base}.yaml"), wanted)
    leaves = [key for key in all_keys(wanted) if not OmegaConf.is_dict(OmegaConf.select(wanted, key))]
    assert leaves
    for key in leaves:
        assert OmegaConf.select(node, key) == OmegaConf.select(wanted, key), key


@pytest.mark.parametrize("recipe", sorted(f.stem for f in (CONF / "recipe/exact").glob("*.yaml")))
def test_every_exact_recipe_belongs_to_a_method_a_model_and_data(recipe: str):
    triples = [
        (m, o, d)
        for m in groups()["method"]
        for g, o in OPTIONS
        if g == "model"
        for d in groups()["data"]
        if f"{m}-{o}-{d}" == recipe
    ]
    assert len(triples) == 1, f"{recipe} is no METHOD-MODEL-DATA"
    method, model, data = triples[0]
    wanted = OmegaConf.load(CONF / "recipe/exact" / f"{recipe}.yaml")
    leaves = [key for key in all_keys(wanted) if not OmegaConf.is_dict(OmegaConf.select(wanted, key))]
    exact = compose([f"method={method}", f"model={model}", f"data={data}"])[0]
    assert [key for key in leaves if OmegaConf.select(exact, key) != OmegaConf.select(wanted, key)] == []
    other = compose([f"method={method}", "model=tiny", f"data={data}"])[0]
    assert any(OmegaConf.select(other, key) != OmegaConf.select(wanted, key) for key in leaves), (
        "it is applied with the model alone"
    )


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: file.relative_to(CONF).as_posix())
def test_every_value_has_a_comment(file: Path):
    bare, skipping = [], False
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        key = re.match(r"(\s*)([\w./@]+):(\s+\S.*)?$", line)
        if not key:
            continue
        if not key[1]:
            skipping = key[2] in ("defaults", "hydra")
        value = (key[3] or "").strip()
        if not skipping and key[2] != "_target_" and value and not value.startswith("#") and not re.search(r"\s# \S", line):
            bare.append(f"{file.name}:{number}: {line.strip()}")
    assert not bare


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_options_are_lower_case_with_hyphens_and_say_what_they_are(group: str, option: str):
    assert re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)*", option)
    text = (CONF / group / f"{option}.yaml").read_text(encoding="utf-8")
    assert any(re.match(r"# \w", line) for line in text.splitlines()[:2]), "begin with a comment that says what it is"


def test_keys_are_snake_case():
    assert [key for key in all_keys(compose([])[0]) if not re.fullmatch(r"[a-z0-9_.]+", key)] == []


def test_help_fits_a_terminal_and_lists_every_option():
    text = help_text()
    assert max(map(len, text.splitlines())) <= 80
    assert all(option in text for _, option in OPTIONS)
