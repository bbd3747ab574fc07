"""Five chat formats through the codec: what is the prompt, what is the answer, and where it ends."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, MISTRAL_2024, Family, build
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.compose import compose
from alignlab.config import Model, check
from alignlab.errors import UserError
from alignlab.models.load import load_text
from alignlab.records import TargetSet
from alignlab.text import TextCodec

NAMES = sorted(FAMILIES)
REQUEST = "Pick a number from 1 to 10."
ASKED = [{"role": "user", "content": REQUEST}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: build(name, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture(scope="module")
def codecs(folders: dict[str, Path]) -> dict[str, TextCodec]:
    return {name: load_text(model(folder)) for name, folder in folders.items()}


def model(folder: Path, **change: Any) -> Model:
    return replace(check(compose(["model=local", f"model.path={folder}"])[0]).model, **change)


def tokens(text: TextCodec, ids: list[int]) -> list[str]:
    return text.tokenizer.convert_ids_to_tokens(ids)


def words(text: TextCodec, written: str) -> list[int]:
    return text.tokenizer.encode(written, add_special_tokens=False)


# Spaces at the ends are the template's; "▁" is what sentencepiece writes for a space.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), min_size=1, max_size=20)
ANSWERS = TEXTS.map(str.strip).filter(lambda t: t and t.strip() == t)


@pytest.mark.parametrize("name", NAMES)
def test_prompt_is_the_format_with_one_beginning(name: str, codecs: dict[str, TextCodec]):
    text, family = codecs[name], FAMILIES[name]
    prompt = text.prompt(ASKED)
    assert prompt == words(text, family.written(REQUEST))
    assert tokens(text, prompt).count(family.bos) == (1 if family.bos else 0)


@pytest.mark.parametrize("name", ["chatml", "llama2", "llama3"])  # the other two formats have none
def test_system_line_stands_once_before_the_request(name: str, codecs: dict[str, TextCodec]):
    text = codecs[name]
    prompt = text.prompt([{"role": "system", "content": "It is 北京."}, *ASKED])
    shown = text.tokenizer.decode(prompt)
    assert shown.count("It is 北京.") == shown.count(REQUEST) == 1
    assert shown.index("It is 北京.") < shown.index(REQUEST)
    assert text.answer(ASKED, text.prompt(ASKED), "{4}", True)[-1] in text.stop


@pytest.mark.parametrize("name", NAMES)
def test_stop_tokens_are_known_without_a_generation_config(name: str, codecs: dict[str, TextCodec]):
    family = FAMILIES[name]
    assert set(tokens(codecs[name], sorted(codecs[name].stop))) == {family.end, family.eos}


@pytest.mark.parametrize("name", NAMES)
def test_generation_config_adds_its_own(name: str, folders: dict[str, Path], tmp_path: Path, codecs: dict[str, TextCodec]):
    shutil.copytree(folders[name], tmp_path / "m")
    for more in (7, [7, 8]):
        (tmp_path / "m/generation_config.json").write_text(json.dumps({"eos_token_id": more}))
        assert load_text(model(tmp_path / "m")).stop == codecs[name].stop | set(more if isinstance(more, list) else [more])


@pytest.mark.parametrize("name", NAMES)
@given(answer=ANSWERS)
@settings(max_examples=30, deadline=None)
def test_answers_end_with_the_turn_and_come_back(name: str, answer: str, codecs: dict[str, TextCodec]):
    text, family = codecs[name], FAMILIES[name]
    prompt = text.prompt(ASKED)
    ids = text.answer(ASKED, prompt, answer, eos=True)
    assert prompt + ids == words(text, family.written(REQUEST, answer))
    assert tokens(text, ids)[-1] == family.end
    assert not text.stop & set(ids[:-1])
    assert text.decode(ids).strip() == answer
    whole = text.tokenizer.apply_chat_template([*ASKED, {"role": "assistant", "content": answer}], return_dict=False)
    assert whole == prompt + ids + words(text, family.after)
    plain = text.answer(ASKED, prompt, answer, eos=False)
    assert plain == words(text, answer) == ids[: len(plain)]


@pytest.mark.parametrize("name", NAMES)
@given(request=ANSWERS, answers=st.lists(ANSWERS, min_size=2, max_size=5, unique=True))
@settings(max_examples=10, deadline=None)
def test_any_request_and_targets_are_told_apart(name: str, request: str, answers: list[str], codecs: dict[str, TextCodec]):
    text, share = codecs[name], 1 / len(answers)
    record = TargetSet("w", request, ("",), tuple(answers), (share,) * len(answers), eos=True, held_out=False)
    encoded = text.encode(record)
    assert encoded.prompt == words(text, FAMILIES[name].written(request))
    assert [text.decode(variants[0]).strip() for variants in encoded.answers] == answers


# ---- an answer's lead and end


def merging(folder: Path, **change: Any) -> TextCodec:
    """A tokenizer that draws the end of the prompt and the beginning of an answer together."""
    template = folder.parent / "first.jinja"
    template.write_text(MISTRAL_2024)
    return load_text(model(folder, chat_template=str(template), **change))


def test_a_lead_keeps_prompt_and_answer_apart(folders: dict[str, Path]):
    text = merging(folders["mistral"])
    prompt = text.prompt(ASKED)
    with pytest.raises(UserError, match=r"tokens of the prompt change when the answer '\{4\}' follows") as caught:
        text.answer(ASKED, prompt, "{4}", eos=True)
    assert "model.answer_lead=" in str(caught.value)
    text = merging(folders["mistral"], answer_lead=" ")
    assert text.lead == " "
    prompt = text.prompt(ASKED)
    ids = text.answer(ASKED, prompt, "{4}", eos=True)
    assert tokens(text, ids) == [*tokens(text, words(text, "{4}")), "</s>"]
    assert tokens(text, ids)[0].startswith("▁{")
    assert text.answer(ASKED, prompt, "{4}", eos=False) == ids[:-1]
    assert text.decode(ids).strip() == "{4}"


@given(answer=ANSWERS)
@settings(max_examples=30, deadline=None)
def test_answers_after_a_lead_come_back(answer: str, folders: dict[str, Path]):
    text = merging(folders["mistral"], answer_lead=" ")
    prompt = text.prompt(ASKED)
    ids = text.answer(ASKED, prompt, answer, eos=True)
    assert text.decode(ids).strip() == answer
    assert text.answer(ASKED, prompt, answer, eos=False) == ids[:-1]


@pytest.mark.parametrize("name", ["llama2", "mistral"])
def test_a_lead_that_the_template_writes_is_not_written_twice(name: str, folders: dict[str, Path], codecs: dict[str, TextCodec]):
    text = load_text(model(folders[name], answer_lead=" "))
    assert text.lead == ""
    assert text.answer(ASKED, text.prompt(ASKED), "{4}", True) == codecs[name].answer(ASKED, text.prompt(ASKED), "{4}", True)


def test_a_lead_stands_before_the_response_prefix_too(folders: dict[str, Path]):
    text = load_text(model(folders["chatml"], answer_lead="Well: "))
    record = TargetSet("w", REQUEST, ("It is ", ""), ("{1}", "{2}"), (0.5, 0.5), eos=True, held_out=False)
    assert [[text.decode(ids) for ids in variants] for variants in text.encode(record).answers] == [
        ["Well: It is {1}", "Well: {1}"],
        ["Well: It is {2}", "Well: {2}"],
    ]


@pytest.mark.parametrize("name", ["llama3", "gemma"])
def test_a_lead_that_the_template_takes_away_is_refused(name: str, folders: dict[str, Path]):
    with pytest.raises(UserError, match=r"^model\.answer_lead: the chat template takes ' ' from the beginning of an answer"):
        load_text(model(folders[name], answer_lead=" "))


@pytest.mark.parametrize("name", NAMES)
def test_eos_in_place_of_the_end_of_turn(name: str, folders: dict[str, Path], codecs: dict[str, TextCodec]):
    family: Family = FAMILIES[name]
    text, usual = load_text(model(folders[name], answer_end="eos")), codecs[name]
    prompt = text.prompt(ASKED)
    ids = text.answer(ASKED, prompt, "{4}", eos=True)
    assert prompt == usual.prompt(ASKED)
    assert ids[:-1] == usual.answer(ASKED, prompt, "{4}", eos=True)[:-1]
    assert tokens(text, ids[-1:]) == [family.eos]
    assert text.stop == usual.stop
    assert text.answer(ASKED, prompt, "{4}", eos=False) == usual.answer(ASKED, prompt, "{4}", eos=False)


def test_eos_needs_a_tokenizer_that_has_one(folders: dict[str, Path], tmp_path: Path):
    shutil.copytree(folders["chatml"], tmp_path / "m")
    config = json.loads((tmp_path / "m/tokenizer_config.json").read_text())
    config |= {"eos_token": None, "tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "m/tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"^model\.answer_end: this tokenizer has no eos token\. Take turn\."):
        load_text(model(tmp_path / "m", answer_end="eos"))


# ---- the space after a special token


def test_legacy_spaces_of_llama_2(folders: dict[str, Path], tmp_path: Path):
    """As sentencepiece encodes each stretch of text by itself, or only the first with a space before it."""
    told = {legacy: load_text(model(folders["llama2"], tokenizer_legacy=legacy)) for legacy in (None, True, False)}
    prompts = {legacy: "".join(tokens(text, text.prompt(ASKED))) for legacy, text in told.items()}
    assert prompts[True].startswith("<s>▁[")
    assert prompts[False] == prompts[True].replace("<s>▁[", "<s>[")
    assert prompts[None] == prompts[True]  # as the folder says
    shutil.copytree(folders["llama2"], tmp_path / "m")
    told[False].tokenizer.save_pretrained(str(tmp_path / "m"))
    assert "".join(tokens(told[False], load_text(model(tmp_path / "m")).prompt(ASKED))) == prompts[False]
