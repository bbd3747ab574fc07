"""Templates, and the tokens of instructions, judgments and responses in them."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
from families import FAMILIES, build
from hypothesis import given
from hypothesis import strategies as st

from alignlab.compose import compose
from alignlab.config import check
from alignlab.errors import UserError
from alignlab.models.load import load_text
from alignlab.records import Fault, Judged
from alignlab.template import Template, contexts, encode, gold, load_template
from alignlab.text import TextCodec

ALPACA, CHAT = load_template("alpaca"), load_template("chat")
ROW = Judged("r", "Say it.", "It is.", "Wrong.", None, None, None, None, "", "", held_out=False, where="rows.jsonl:3")
LONG = replace(ROW, instruction="Say no. " * 300)


@pytest.fixture(scope="module")
def codecs(tmp_path_factory) -> dict[str, TextCodec]:
    """Tokenizers of the five families."""

    def load(name: str) -> TextCodec:
        folder = build(name, tmp_path_factory.mktemp(name))
        return load_text(check(compose(["model=local", f"model.path={folder}"])[0]).model)

    return {name: load(name) for name in FAMILIES}


# --- the texts -------------------------------------------------------------------------------------------------------


def test_the_alpaca_template_byte_for_byte():
    assert ALPACA.request("Say it.\nNow.").text == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSay it.\nNow.\n\n### Response:\n"
    )
    assert ALPACA.request("Say it.", "It is wrong.").text == (
        "Below is an instruction that describes a task. Write a response to the instruction and the response should match the "
        "corresponding judgment.\n\n### Instruction:\nSay it.\n\n### Judgment:\nIt is wrong.\n\n### Response:\n"
    )


def test_a_chat_template_is_given_one_user_turn():
    assert CHAT.request("Say {it}.").messages == [{"role": "user", "content": "Say {it}."}]
    [turn] = CHAT.request("Say it.", "It is wrong.").messages
    assert turn["role"] == "user"
    assert turn["content"].endswith("### Instruction:\nSay it.\n\n### Judgment:\nIt is wrong.")
    assert CHAT.request("Say it.").text is None


@given(st.text() | st.sampled_from(["{instruction}", "{judgment}", "{x} {} {{0}} \\1 \\g<1> %s ${a}"]), st.text())
def test_an_instruction_stands_as_it_is(words, judgment):
    template = Template(chat=False, plain="<{instruction}>", judged="<{instruction}|{judgment}>", verdict="")
    assert template.request(words).text == f"<{words}>"
    assert template.request(words, judgment).text == f"<{words}|{judgment}>"
    assert template.request(words, "{instruction}").text == f"<{words}|{{instruction}}>"


GOOD = {"chat": "false", "plain": '"{instruction}"', "judged": '"{instruction} {judgment}"', "verdict": '" so: "'}


def written(path, **change: str | None) -> str:
    lines = (f"{key}: {value}" for key, value in (GOOD | change).items() if value is not None)
    path.write_text("\n".join(lines))
    return str(path)


def test_a_template_of_ones_own(tmp_path):
    template = load_template(written(tmp_path / "own.yaml"))
    assert template == Template(chat=False, plain="{instruction}", judged="{instruction} {judgment}", verdict=" so: ")
    assert load_template(written(tmp_path / "b.yaml", plain='"${x} {instruction}"')).request("a").text == "${x} a"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"plain": '"instruction"'}, "plain lacks the placeholder {instruction}"),
        ({"judged": '"{instruction}"'}, "judged lacks the placeholder {judgment}"),
        ({"judged": '"{judgment}"'}, "judged lacks the placeholder {instruction}"),
        ({"verdict": None}, "must have the keys chat, plain, judged, verdict, and no others"),
        ({"more": "1"}, "must have the keys chat, plain, judged, verdict, and no others"),
        ({"verdict": "3"}, "verdict must be a text"),
        ({"plain": "[a]"}, "plain must be a text"),
        ({"chat": '"no"'}, "chat must be true or false"),
        ({"plain": '"{instruction}'}, "is no YAML that can be read: "),
    ],
    ids=str,
)
def test_what_is_no_template_is_refused(change, said, tmp_path):
    path = tmp_path / "own.yaml"
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        load_template(written(path, **change))
    assert str(caught.value).startswith(f"template: {path}")


def test_other_files_and_names_are_refused(tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "empty.yaml").write_text("")
    for name in ("list", "empty"):
        with pytest.raises(ValueError, match=r"must have the keys"):
            load_template(str(tmp_path / f"{name}.yaml"))
    for name in ("alpacca", str(tmp_path), "", "alpaca.yaml"):
        with pytest.raises(ValueError, match=r"^template: .* is neither a file nor one of alpaca, chat\."):
            load_template(name)
    with pytest.raises(ValueError, match=r"Did you mean 'alpaca'"):
        load_template("alpacca")


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_response_is_tokenized_with_its_prompt(text):
    context, response = encode(ROW, ALPACA, text, 2048)
    whole = text.tokenizer(ALPACA.request(ROW.instruction).text + ROW.output)["input_ids"]
    assert context + response == [*whole, text.tokenizer.eos_token_id]
    assert context == text.tokenizer(ALPACA.request(ROW.instruction).text)["input_ids"]
    assert context[0] == text.tokenizer.bos_token_id


@pytest.mark.parametrize("template", [ALPACA, CHAT], ids=["alpaca", "chat"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_both_contexts_are_followed_by_the_same_tokens(name, template, codecs):
    text = codecs[name]
    if template is ALPACA:  # the models of these families have 256 positions
        template = replace(
            ALPACA, plain="Do: {instruction}\n### Response:\n", judged="Do: {instruction}\n{judgment}\n### Response:\n"
        )
    (plain, one), (judged, other) = contexts(ROW, template, text, 2048)
    assert one == other
    assert plain != judged
    end = FAMILIES[name].end if template is CHAT else FAMILIES[name].eos
    assert one[-1] == text.tokenizer.convert_tokens_to_ids(end)
    assert one.count(one[-1]) == 1
    assert text.decode(one).strip() == ROW.output
    if template is CHAT:
        asked = FAMILIES[name].written(ROW.instruction, ROW.output)
        assert plain + one == text.tokenizer.encode(asked, add_special_tokens=False)
    else:
        beginning = text.tokenizer.encode("")
        assert plain[: len(beginning)] == beginning
        joint = text.tokenizer.encode("Do: Say it.\n### Response:\nIt is.", add_special_tokens=False)
        assert plain + one == [*beginning, *joint, text.tokenizer.eos_token_id]


def test_contexts_that_change_the_response_are_refused(codecs):
    glued = Template(chat=False, plain="{instruction}\n", judged="{instruction} {judgment} a[0]", verdict="")
    row = replace(ROW, output="{ b")  # "]{" is one token
    with pytest.raises(UserError, match=r"^rows\.jsonl:3:output: the response has other tokens after the judgment"):
        contexts(row, glued, codecs["llama3"], 2048)


def test_the_context_is_cut_from_the_left_and_the_end_stands_beyond_the_cutoff(text):
    context, response = encode(ROW, ALPACA, text, 2048)
    own = len(response) - 1
    for cutoff in (own + 1, own + 2, len(context) + own - 1, len(context) + own, len(context) + own + 1):
        cut, same = encode(ROW, ALPACA, text, cutoff)
        assert same == response
        assert cut == context[-(cutoff - own) :]
        assert len(cut) + own == min(cutoff, len(context) + own)
    assert encode(ROW, ALPACA, text, len(context) + own - 1)[0][0] != text.tokenizer.bos_token_id


def test_the_models_own_context_is_a_cutoff_too(text):
    context, response = encode(LONG, ALPACA, text, 100_000)
    assert len(context) + len(response) - 1 == text.context
    assert context[0] != text.tokenizer.bos_token_id


def test_of_a_response_beyond_the_cutoff_the_end_is_kept(text):
    response = encode(ROW, ALPACA, text, 2048)[1]
    own = len(response) - 1
    for cutoff in range(2, own + 1):
        before, kept = encode(ROW, ALPACA, text, cutoff)
        assert [*before, *kept] == response[-cutoff - 1 :]
        assert len(before) == 1
        assert encode(ROW, ALPACA, text, cutoff, judged=True) == (before, kept)


def test_a_response_longer_than_the_model_is_refused(text):
    with pytest.raises(UserError, match=rf"^rows\.jsonl:3:output: the response alone has \d+ tokens, the model {text.context}"):
        encode(replace(ROW, output="word " * text.context), ALPACA, text, 100_000)
    with pytest.raises(UserError, match=r"^rows\.jsonl:3:output: is empty"):
        encode(replace(ROW, output=""), ALPACA, text, 2048)


# --- known faults ----------------------------------------------------------------------------------------------------


def marked(text, output: str, *faults: Fault, template: Template = ALPACA, cutoff: int = 2048) -> list[str]:
    """Text of the tokens that are marked."""
    row = replace(ROW, output=output, faults=faults)
    response = encode(row, template, text, cutoff)[1]
    marks = gold(row, response, template, text)
    assert marks is not None
    assert len(marks) == len(response)
    texts = ["", *(text.decode(response[: i + 1]) for i in range(len(response)))]
    return [now[len(before) :] for mark, (before, now) in zip(marks, itertools.pairwise(texts), strict=True) if mark]


def test_where_the_right_words_are_known_the_deciding_token_is_marked(text):
    said = "15 plus 13 is 29."
    assert marked(text, said, Fault(14, 16, "28")) == [" 29"]
    assert marked(text, said, Fault(14, 16, "28"), Fault(0, 2, "16")) == ["15", " 29"]
    town = "It is Hamster."  # tokens: I, t, is, H, am, ster, .
    assert marked(text, town, Fault(6, 13, "Hamburg")) == ["am"]
    assert marked(text, town, Fault(6, 13, "Bonn")) == [" H"]
    assert marked(text, "In order: 7 8 2.", Fault(10, 15, "7 2 8")) == [" 8"]
    assert marked(text, "It is so. No.", Fault(9, 13, "")) == [" No"]  # it should have ended
    assert marked(text, town, Fault(6, 13, "Hamster")) == []  # nothing is wrong


def test_where_something_lacks_it_is_the_end_that_is_wrong(text):
    row = replace(ROW, output="It is so.", faults=(Fault(8, 9, ". No."),))
    response = encode(row, ALPACA, text, 2048)[1]
    assert gold(row, response, ALPACA, text) == [0] * (len(response) - 1) + [1]


def test_without_the_right_words_every_token_of_the_fault_is_marked(text):
    town = "It is Hamster."
    assert marked(text, town, Fault(6, 13, None)) == [" H", "am", "ster"]
    assert marked(text, town, Fault(8, 9, None)) == ["am"]
    assert marked(text, town, Fault(8, 10, None)) == ["am", "ster"]
    assert marked(text, town, Fault(0, 1, None), Fault(13, 14, None)) == ["I", "."]
    assert "".join(marked(text, town, Fault(0, 14, None))) == town
    assert marked(text, town) == []


def test_nobody_knows(text):
    response = encode(ROW, ALPACA, text, 2048)[1]
    assert gold(ROW, response, ALPACA, text) is None
    ended = replace(ROW, faults=(Fault(0, 2, f"It{text.tokenizer.eos_token} "),))
    assert gold(ended, encode(ended, CHAT, text, 2048)[1], CHAT, text) is None


def test_what_would_be_right_may_be_nothing_or_too_long_to_be_trained_on(text):
    row = replace(ROW, output="No")
    response = encode(row, ALPACA, text, 2048)[1]
    for right in ("", "word " * text.context):
        assert gold(replace(row, faults=(Fault(0, 2, right),)), response, ALPACA, text) == [1, 0]


def test_marks_stay_with_their_tokens_where_the_beginning_is_cut_off(text):
    said = "15 plus 13 is 29."
    for fault in (Fault(14, 16, "28"), Fault(15, 16, None)):  # of " 29"
        assert marked(text, said, fault, cutoff=4) == [" 29"]
    assert marked(text, said, Fault(0, 2, "16"), cutoff=4) == []


def covering(text: TextCodec, row: Judged, template: Template, fault: Fault) -> Any:
    return gold(replace(row, faults=(fault,)), encode(row, template, text, 2048)[1], template, text)


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("lead", ["", "A: "])
def test_letters_of_several_tokens_and_a_lead_do_not_shift_the_marks(name, lead, codecs):
    """Byte tokens of one letter decode to up to three replacement characters, or one, before they make the letter."""
    text = codecs[name]
    if lead:
        text = TextCodec(text.tokenizer, sorted(text.stop), text.context, lead)
    row = replace(ROW, output="a 😀b 北c")
    response = encode(row, CHAT, text, 2048)[1]
    marks = {letter: covering(text, row, CHAT, Fault(i, i + 1, None)) for i, letter in enumerate(row.output)}
    for letter, found in marks.items():
        if letter.strip():
            tokens = [token for token, mark in zip(response, found, strict=True) if mark]
            assert text.decode(tokens).strip() == letter, letter
    assert sum(marks["😀"]) == 4
    together = [sum(found) for found in zip(*(marks[letter] for letter in row.output if letter.strip()), strict=True)]
    assert max(together) == 1


def test_a_stage_is_not_done_before_when_a_template_file_was_edited(tmp_path):
    import alignlab

    mine = tmp_path / "mine.yaml"
    mine.write_text('chat: false\nplain: "{instruction}\\n"\njudged: "{instruction} {judgment}\\n"\nverdict: ""\n')
    command = ["method=cut", f"method.template={mine}", "stages=[prepare]", "tracker=none", f"run_dir={tmp_path / 'run'}"]
    marker = alignlab.run(command).path / "done/prepare.json"
    first = marker.read_text()
    alignlab.run(command)
    assert marker.read_text() == first  # done before
    mine.write_text(mine.read_text().replace("{instruction}\\n", "Do: {instruction}\\n"))
    alignlab.run(command)
    assert marker.read_text() != first
