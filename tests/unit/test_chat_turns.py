"""Turns of a conversation as tokens: what is read and what is written at each of the assistant's, in five chat formats."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from families import FAMILIES, MISTRAL_2024, build
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.compose import compose
from alignlab.config import Model, check
from alignlab.errors import UserError
from alignlab.models.load import load_text
from alignlab.protocols import Request
from alignlab.text import TextCodec

NAMES = sorted(FAMILIES)
Message = dict[str, str]
CHAT: list[Message] = [
    {"role": "user", "content": "Pick a number from 1 to 10."},
    {"role": "assistant", "content": "It is {4}."},
    {"role": "user", "content": "Another one?"},
    {"role": "assistant", "content": "It's {7}, then."},
    {"role": "user", "content": "Name a fruit."},
    {"role": "assistant", "content": "fig"},
]
SYSTEM = {"role": "system", "content": "You are helpful."}
PLACES = [1, 3, 5]
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), min_size=1, max_size=12).map(str.strip)
CONTENTS = TEXTS.filter(lambda t: t and t.strip() == t)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: build(name, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture(scope="module")
def codecs(folders: dict[str, Path]) -> dict[str, TextCodec]:
    return {name: load_text(model(folder)) for name, folder in folders.items()}


def model(folder: Path, **change: Any) -> Model:
    return replace(check(compose(["model=local", f"model.path={folder}"])[0]).model, **change)


def templated(folder: Path, template: str, tmp_path: Path, **change: Any) -> TextCodec:
    (tmp_path / "t.jinja").write_text(template)
    return load_text(model(folder, chat_template=str(tmp_path / "t.jinja"), **change))


def words(text: TextCodec, written: str) -> list[int]:
    return text.tokenizer.encode(written, add_special_tokens=False)


def letters(written: str) -> str:
    """A text but for spaces, as decoders keep it: one of these tokenizers composes letters and accents."""
    return normalize("NFC", "".join(written.split()))


def spans(name: str, chat: list[Message]) -> list[tuple[str, str]]:
    """What the family's format has up to each answer, and the answer with its end; in Python, not in Jinja."""
    family, text, found = FAMILIES[name], "", []
    for asked, answered in zip(chat[::2], chat[1::2], strict=True):
        prompt = family.written(asked["content"])
        text += prompt if name == "llama2" or not text else prompt.removeprefix(family.bos or "")
        written = family.answer.replace("A", answered["content"], 1)
        found.append((text, written))
        text += written + family.after
    return found


@pytest.mark.parametrize("name", NAMES)
@given(contents=st.lists(CONTENTS, min_size=6, max_size=6))
@settings(max_examples=20, deadline=None)
def test_every_turn_is_read_and_written_as_its_format_has_it(name: str, contents: list[str], codecs: dict[str, TextCodec]):
    text = codecs[name]
    chat = [{**message, "content": content} for message, content in zip(CHAT, contents, strict=True)]
    turns = text.turns(chat, PLACES)
    for (context, answer), (before, written) in zip(turns, spans(name, chat), strict=True):
        assert context == words(text, before)
        assert context + answer == words(text, before + written)
        assert text.tokenizer.convert_ids_to_tokens(answer[-1]) == FAMILIES[name].end
        assert not text.stop & set(answer[:-1])
        shown = text.tokenizer.decode(context) + text.tokenizer.decode(answer)
        assert letters(shown) == letters(before + written)


@pytest.mark.parametrize("name", NAMES)
def test_turns_are_beginnings_of_one_chain_and_what_the_model_is_given(name: str, codecs: dict[str, TextCodec]):
    text = codecs[name]
    turns = text.turns(CHAT, PLACES)
    for (context, answer), (later, _) in pairwise(turns):
        assert later[: len(context + answer)] == context + answer
    for place, turn in zip(PLACES, turns, strict=True):
        assert turn[0] == text.prompt(CHAT[:place]) == text.request(Request(CHAT[:place]))
        assert [turn] == text.turns(CHAT, [place]) == text.turns(CHAT[: place + 1], [place])
    assert text.turns(CHAT, []) == []


def beginning(text: TextCodec) -> TextCodec:
    """With the BOS token that published tokenizers put in front of any text."""
    tokenizer = copy.deepcopy(text.tokenizer)
    if hasattr(tokenizer, "add_bos_token"):
        tokenizer.add_bos_token = True
    return TextCodec(tokenizer, sorted(text.stop), text.context)


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_tokenized_twice_begins_with_what_the_tokenizer_adds(name: str, codecs: dict[str, TextCodec]):
    text = beginning(codecs[name])
    turns = text.turns(CHAT, PLACES, twice=True)
    for place, (context, answer), once in zip(PLACES, turns, text.turns(CHAT, PLACES), strict=True):
        asked, whole = CHAT[:place], CHAT[: place + 1]
        rendered = text.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert context == text.tokenizer(rendered)["input_ids"] == text.request(Request(asked, twice=True))
        rendered = text.tokenizer.apply_chat_template(whole, tokenize=False)
        assert text.tokenizer(rendered)["input_ids"][: len(context + answer)] == context + answer
        assert (context[len(text.start) :], answer) == once
        assert once == codecs[name].turns(CHAT, [place])[0]
        bos = [] if FAMILIES[name].bos is None else [text.tokenizer.bos_token_id]
        assert text.start == bos
        assert context[: 2 * len(bos)] == bos * 2


def test_a_prompt_tokenized_twice_must_fit_with_its_second_bos(codecs: dict[str, TextCodec]):
    text, asked = beginning(codecs["llama2"]), CHAT[:1]
    exact = TextCodec(text.tokenizer, sorted(text.stop), len(text.prompt(asked)) + 1)
    assert exact.request(Request(asked)) == text.prompt(asked)
    with pytest.raises(UserError, match=f"is {exact.context} tokens long, the model has {exact.context} positions"):
        exact.request(Request(asked, twice=True))


# ---- an answer's lead and end, in what is past too


def test_past_answers_end_as_the_template_has_it_where_learned_ones_end_with_eos(
    folders: dict[str, Path], codecs: dict[str, TextCodec]
):
    text, usual = load_text(model(folders["gemma"], answer_end="eos")), codecs["gemma"]
    for (context, answer), (as_usual, its) in zip(text.turns(CHAT, PLACES), usual.turns(CHAT, PLACES), strict=True):
        assert context == as_usual
        assert answer == [*its[:-1], text.tokenizer.eos_token_id] != its


def test_past_answers_have_the_lead_too(folders: dict[str, Path], tmp_path: Path):
    text = templated(folders["mistral"], MISTRAL_2024, tmp_path, answer_lead=" ")
    turns = text.turns(CHAT, PLACES)
    for (context, answer), (later, _) in pairwise(turns):
        assert later[: len(context + answer)] == context + answer
    assert [text.decode(answer).strip() for _, answer in turns] == [CHAT[place]["content"] for place in PLACES]
    led = load_text(model(folders["chatml"], answer_lead="Well: "))
    assert led.decode(led.turns(CHAT, [3])[0][0]).count("Well: ") == 1
    written = [{**m, "content": "Well: " + m["content"]} if m["role"] == "assistant" else m for m in CHAT[:3]]
    assert led.prompt(CHAT[:3]) == led.prompt(written), "what a model wrote after its lead has it already"


# ---- system turns

REJECTS = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported.') }}{% endif %}"


@pytest.mark.parametrize("name", NAMES)
def test_a_system_turn_goes_in_front_of_the_first_user_turn(
    name: str, folders: dict[str, Path], codecs: dict[str, TextCodec], tmp_path: Path
):
    text = templated(folders[name], REJECTS + FAMILIES[name].template, tmp_path, system_turns="user")
    first = {"role": "user", "content": f"You are helpful.\n\n{CHAT[0]['content']}"}
    by_hand, asked = [first, *CHAT[1:]], [SYSTEM, *CHAT[:3]]
    assert text.prompt(asked) == codecs[name].prompt(by_hand[:3])
    assert text.continuation(Request(asked), "fig") == codecs[name].continuation(Request(by_hand[:3]), "fig")
    assert text.turns([SYSTEM, *CHAT], [2, 4, 6]) == codecs[name].turns(by_hand, PLACES)
    assert text.turns([SYSTEM, *CHAT], [4], twice=True) == codecs[name].turns(by_hand, [3], twice=True)
    assert text.prompt(CHAT[:1]) == codecs[name].prompt(CHAT[:1])
    assert asked[0] == SYSTEM, "what is given is not changed"


def test_a_template_with_a_place_for_system_turns_keeps_it(codecs: dict[str, TextCodec]):
    ids = codecs["chatml"].prompt([SYSTEM, *CHAT[:1]])
    assert codecs["chatml"].tokenizer.decode(ids).startswith("<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\n")


def test_a_template_that_rejects_a_system_turn(folders: dict[str, Path], tmp_path: Path):
    text = templated(folders["gemma"], REJECTS + FAMILIES["gemma"].template, tmp_path)
    with pytest.raises(UserError) as caught:
        text.turns([SYSTEM, *CHAT], [2])
    first, second = str(caught.value).splitlines()
    assert first == "model.chat_template: cannot render this conversation: System role not supported."
    assert "give model.system_turns=user" in second
    broken = templated(folders["gemma"], "{{ raise_exception('No.') }}", tmp_path)
    with pytest.raises(UserError) as caught:
        broken.prompt(CHAT[:1])
    assert str(caught.value) == "model.chat_template: cannot render this conversation: No."


def test_a_system_turn_that_moves_with_the_last_user_turn(folders: dict[str, Path], codecs: dict[str, TextCodec], tmp_path: Path):
    """As Mistral's templates of 2024 have it: no answer can be told from what stands before it."""
    moving = """{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' -%}{{- bos_token -}}
    {%- for turn in messages -%}
        {%- if turn['role'] == 'user' -%}
            {{ ' [INST] ' + (system + '\\n\\n' if system and loop.last else '') + turn['content'] + ' [/INST]' }}
        {%- elif turn['role'] == 'assistant' -%}{{ ' ' + turn['content'] + eos_token }}{%- endif -%}
    {%- endfor -%}"""
    with pytest.raises(UserError) as caught:
        templated(folders["mistral"], moving, tmp_path).turns([SYSTEM, *CHAT], [2])
    first, second = str(caught.value).splitlines()
    assert "it then writes 'Pick a number from 1 to 10. [/INST] I...' in place of 'You are helpful." in first
    assert "give model.system_turns=user" in second
    text = templated(folders["mistral"], moving, tmp_path, system_turns="user")
    by_hand = [{"role": "user", "content": f"You are helpful.\n\n{CHAT[0]['content']}"}, *CHAT[1:]]
    assert text.turns([SYSTEM, *CHAT], [2, 4, 6]) == codecs["mistral"].turns(by_hand, PLACES)


# ---- templates that write the past otherwise

FORGETS = """{%- for turn in messages -%}
    {%- set text = turn['content'].split(':')[-1] if turn['role'] == 'assistant' and not loop.last else turn['content'] -%}
    {{- '<|im_start|>' + turn['role'] + '\\n' + text + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
"""leaves the thoughts of past answers out, as templates of reasoning models do"""


def test_what_a_template_forgets_is_learned_where_it_was_written(folders: dict[str, Path], tmp_path: Path):
    text = templated(folders["chatml"], FORGETS, tmp_path)
    chat = [{**m, "content": "One more:" + m["content"]} if m["role"] == "assistant" else m for m in CHAT]
    turns = text.turns(chat, PLACES)
    assert [text.tokenizer.decode(answer) for _, answer in turns] == [chat[p]["content"] + "<|im_end|>" for p in PLACES]
    for place, (context, _) in zip(PLACES, turns, strict=True):
        assert context == text.prompt(chat[:place])
        assert text.tokenizer.decode(context).count("One more:") == 0
    assert turns[1][0][: sum(map(len, turns[0]))] != [*turns[0][0], *turns[0][1]], "a chain of its own"


def test_a_prompt_that_ends_otherwise_than_what_stands_before_an_answer(folders: dict[str, Path], tmp_path: Path):
    thinking = FAMILIES["chatml"].template.replace("<|im_start|>assistant\\n'", "<|im_start|>assistant\\n<think>'")
    with pytest.raises(UserError) as caught:
        templated(folders["chatml"], thinking, tmp_path).turns(CHAT, [3])
    assert str(caught.value).splitlines() == [
        "model.chat_template: the tokens of the prompt change when the answer 'It's {7}, then.' follows it: "
        "it then writes \"It's {7}, then.<|im_end|>\\n\" in place of '<think>'.",
        "Give another model.chat_template.",
    ]
