"""Prompts and answers as tokens: what fits, what ends a turn, and what cannot be told apart."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from tokenizers.normalizers import Lowercase

from alignlab.errors import UserError
from alignlab.records import TargetSet
from alignlab.text import TextCodec

RECORD = TargetSet("w", "Pick a number.", ("",), ("1", "2"), (0.5, 0.5), eos=True, held_out=False)


def refusal(text: TextCodec, record: TargetSet) -> str:
    with pytest.raises(UserError) as caught:
        text.encode(record)
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


def with_template(text: TextCodec, template: str) -> TextCodec:
    tokenizer = copy.deepcopy(text.tokenizer)
    tokenizer.chat_template = template
    return TextCodec(tokenizer, sorted(text.stop), text.context)


def test_answers_end_with_the_stop_token_or_not(text: TextCodec):
    with_eos, without = text.encode(RECORD), text.encode(replace(RECORD, eos=False))
    assert with_eos.prompt == without.prompt == text.prompt([{"role": "user", "content": RECORD.request}])
    for [ending], [plain] in zip(with_eos.answers, without.answers, strict=True):
        assert ending[:-1] == plain
        assert ending[-1] in text.stop
        assert text.decode(ending) == text.decode(plain)


def test_every_response_prefix_makes_an_answer(text: TextCodec):
    answers = text.encode(replace(RECORD, responses=("It is ", ""))).answers
    assert [[text.decode(variant) for variant in variants] for variants in answers] == [["It is 1", "1"], ["It is 2", "2"]]


def test_prompt_longer_than_the_context(text: TextCodec):
    long = "word " * text.context
    assert refusal(text, replace(RECORD, request=long)).startswith("w:request: the prompt 'word word")
    with pytest.raises(UserError, match=rf"tokens long, the model has {text.context} positions"):
        text.prompt([{"role": "user", "content": long}])


def test_target_longer_than_the_context(text: TextCodec):
    message = refusal(text, replace(RECORD, targets=("1", "word " * text.context)))
    assert message.startswith("w:targets[1]: prompt and answer are ")
    assert f"the model has {text.context} positions" in message


def test_an_answer_may_fill_the_context_to_its_last_place(text: TextCodec):
    whole = text.encode(RECORD)
    exact = len(whole.prompt) + len(whole.answers[0][0]) - 1  # the last token is predicted, not read
    assert TextCodec(text.tokenizer, sorted(text.stop), exact).encode(RECORD) == whole
    assert "positions" in refusal(TextCodec(text.tokenizer, sorted(text.stop), exact - 1), RECORD)


def test_tokens_of_one_target_that_begin_those_of_another(text: TextCodec):
    """No string begins the other, but this tokenizer does not tell capitals from small letters."""
    tokenizer = copy.deepcopy(text.tokenizer)
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    blind = TextCodec(tokenizer, sorted(text.stop), text.context)
    record = replace(RECORD, targets=("Yes", "No way", "no"), weights=(0.2, 0.3, 0.5), eos=False)
    message = refusal(blind, record)
    assert message.startswith("w:targets[2]: the tokens of 'no' begin those of targets[1], 'No way'")
    assert message.endswith("Set eos to true, or change one of them.")
    assert len(blind.encode(replace(record, eos=True)).answers) == 3
    assert len(text.encode(record).answers) == 3


def test_targets_with_equal_tokens(text: TextCodec):
    trimming = with_template(text, text.tokenizer.chat_template.replace("message['content']", "(message['content'] | trim)"))
    message = refusal(trimming, replace(RECORD, targets=("1", " 1")))
    assert "begin those of targets" in message
    assert message.endswith("Change one of them.")


def test_target_that_ends_the_turn_itself(text: TextCodec):
    name = text.tokenizer.convert_ids_to_tokens(sorted(text.stop)[0])
    for eos in (True, False):
        message = refusal(text, replace(RECORD, targets=("1", f"a{name}b"), eos=eos))
        assert message == f"w:targets[1]: the answer 'a{name}b' holds {name}, which ends the assistant's turn. Take it out."


def test_messages_name_file_and_line(text: TextCodec, tmp_path):
    file = tmp_path / "w.json"
    file.write_text('{"request": "a",\n "targets": ["b"]}')
    name = text.tokenizer.convert_ids_to_tokens(sorted(text.stop)[0])
    assert refusal(text, replace(RECORD, targets=(name,), where=str(file))).startswith(f"{file}:2:targets[0]: ")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('only one turn') }}", "cannot render this conversation: only one turn"),
        ("{{ messages[0]['content'", "cannot render this conversation"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "ends without a token at which generation stops (</s>)"),
        ("{{ messages | length }}{{ messages[-1]['content'] }}", "the tokens of the prompt change when the answer '1' follows"),
    ],
)
def test_chat_template_that_does_not_serve(template: str, words: str, text: TextCodec):
    message = refusal(with_template(text, template), RECORD)
    assert message.startswith("model.chat_template: ")
    assert words in message
