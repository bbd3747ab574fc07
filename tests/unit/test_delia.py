"""DELIA: rows, what is cut, and losses, against plain evaluations in float64."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, build
from omegaconf import OmegaConf

from alignlab.api import RunFolder
from alignlab.compose import compose
from alignlab.config import Model, check
from alignlab.data.rows import RowStore, write_rows
from alignlab.engine.batch import collate
from alignlab.engine.scorer import Scorer
from alignlab.errors import UserError
from alignlab.methods.delia import Delia
from alignlab.models.load import load_model, load_text
from alignlab.protocols import Meaning, NewToken, Row
from alignlab.records import Dialogue, Prompt
from alignlab.report.document import Heading, Table, Text
from alignlab.text import TextCodec
from alignlab.trees import depths, split

NAMES = sorted(FAMILIES)
DELIA = Delia(
    tokens=[Meaning("<sep>", "Answer in braces.")],
    init="random",
    init_noise=0.0,
    token_training="auto",
    existing_tokens="refuse",
    learn_eos=True,
    double_bos=False,
    too_long="truncate",
    max_tokens=None,
    important=["'"],
    probe_rows=4,
)
AUTHORS = replace(DELIA, learn_eos=False, double_bos=True)


def dialogue(*turns: str, learned: tuple[int, ...] | None = None, origin: str = "downstream", system: str = "") -> Dialogue:
    """A conversation of user and assistant in turn; all of the assistant's are learned unless said otherwise."""
    roles = ("user", "assistant")
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    places = tuple(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return Dialogue("d", tuple(messages), places if learned is None else learned, origin, "test", "", False, "chat.jsonl:7")


RECORDS = [
    dialogue("Pick a number. <sep>", "{4}"),
    dialogue("Pick <sep> a number, <sep>.", "It's {4}.", "Another one, <sep>?", "{7}", "A fruit?", "fig"),
    dialogue("Pick a number.", "It's {1}.", "Another one?", "{2} <sep>", "Another <sep>?", "{3}", learned=(5,)),
    dialogue("Café?", "北京 isn't one.", origin="diverse"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Model]:
    def model(name: str) -> Model:
        folder = build(name, tmp_path_factory.mktemp(name))
        return replace(check(compose(["model=local", f"model.path={folder}"])[0]).model, dtype="float64")

    return {name: model(name) for name in NAMES}


@pytest.fixture(scope="module")
def codecs(models: dict[str, Model]) -> dict[str, TextCodec]:
    return {name: load_text(model, DELIA.new_tokens()) for name, model in models.items()}


@pytest.fixture
def chatml(codecs: dict[str, TextCodec]) -> TextCodec:
    return codecs["chatml"]


def templated(text: TextCodec, model: Model, template: str, tmp_path: Path) -> TextCodec:
    (tmp_path / "t.jinja").write_text(template)
    return load_text(replace(model, chat_template=str(tmp_path / "t.jinja")), DELIA.new_tokens())


def only(method: Delia, record: Dialogue, text: TextCodec) -> Row:
    [row] = method.parts(record, text)
    return row


def scored(row: Row, text: TextCodec) -> list[str]:
    """Names of the tokens that are scored, in the order of the row's edges."""
    return text.tokenizer.convert_ids_to_tokens(row.target[row.columns["weight"] > 0].tolist())


def read(row: Row, text: TextCodec) -> list[str]:
    """Names of the tokens that are only measured."""
    return text.tokenizer.convert_ids_to_tokens(row.target[row.columns["weight"] == 0].tolist())


# ---- what is scored


def mask(record: Dialogue, name: str, text: TextCodec) -> tuple[list[int], list[bool]]:
    """All tokens of a conversation, and which of them a learned answer or its end is; by the family's text in Python."""
    family, ids, learned = FAMILIES[name], list[int](), list[bool]()
    written = ""
    for place in range(0, len(record.messages), 2):
        asked, answered = (record.messages[i]["content"] for i in (place, place + 1))
        prompt = family.written(asked)
        written += prompt if name == "llama2" or not written else prompt.removeprefix(family.bos or "")
        for part, is_learned in (
            (written, False),
            (written + family.answer.replace("A", answered, 1), place + 1 in record.learned),
        ):
            more = text.tokenizer.encode(part, add_special_tokens=False)
            assert more[: len(ids)] == ids
            learned += [is_learned] * (len(more) - len(ids))
            ids, written = more, part
        written += family.after
    return ids, learned


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("record", RECORDS, ids=["one", "three", "last", "diverse"])
def test_answers_and_their_ends_are_scored_and_nothing_else(name: str, record: Dialogue, codecs: dict[str, TextCodec]):
    text = codecs[name]
    ids, learned = mask(record, name, text)
    row, [sep] = only(DELIA, record, text), text.ids(["<sep>"])
    assert row.tokens.tolist() == ids[:-1]
    assert row.parent.tolist() == list(range(-1, len(ids) - 2)), "turns are the beginnings of one chain"
    weights = {place + 1: weight for place, weight in zip(row.source.tolist(), row.columns["weight"].tolist(), strict=True)}
    expected = {i: 1.0 for i, is_learned in enumerate(learned) if is_learned}
    expected |= {i: 0.0 for i, token in enumerate(ids) if token == sep and not learned[i]}
    assert weights == expected
    assert row.target.tolist() == [ids[i] for i in weights]
    assert row.mass == sum(learned)
    for i, important in zip(weights, row.columns["important"].tolist(), strict=True):
        assert bool(important) == (ids[i] == sep or "'" in text.tokenizer.decode([ids[i]]))
    assert set(row.columns["diverse"].tolist()) == {int(record.origin == "diverse")}


def test_only_what_is_learned_is_scored(chatml: TextCodec):
    first, both, last, none = (only_turns(RECORDS[1], chatml, *turns) for turns in ((1,), (1, 5), (5,), ()))
    assert "".join(scored(first[0], chatml)) == "It'sĠ{4}.<|im_end|>"
    assert "".join(scored(both[0], chatml)) == "It'sĠ{4}.<|im_end|>fig<|im_end|>"
    assert "".join(scored(last[0], chatml)) == "fig<|im_end|>"
    assert read(first[0], chatml) == ["<sep>"] * 2, "what stands behind the last learned turn is not read at all"
    assert read(last[0], chatml) == read(both[0], chatml) == ["<sep>"] * 3
    assert none == []


def only_turns(record: Dialogue, text: TextCodec, *turns: int) -> list[Row]:
    return list(DELIA.parts(replace(record, learned=turns), text))


@pytest.mark.parametrize("name", NAMES)
def test_the_authors_learn_no_end(name: str, codecs: dict[str, TextCodec]):
    text, family = codecs[name], FAMILIES[name]
    for record in RECORDS:
        row, without = only(DELIA, record, text), only(replace(DELIA, learn_eos=False), record, text)
        ends = row.target == text.ids([family.end])[0]
        assert without.target.tolist() == row.target[~ends].tolist()
        assert without.source.tolist() == row.source[~ends].tolist()
        assert without.mass == row.mass - len(record.learned)
        assert family.end not in scored(without, text)


def test_two_bos_tokens_as_the_authors_have_it(codecs: dict[str, TextCodec]):
    text = codecs["llama3"]
    for record in RECORDS:
        once, twice = only(DELIA, record, text), only(AUTHORS, record, text)
        bos = text.tokenizer.bos_token_id
        assert twice.tokens.tolist()[:2] == [bos, bos]
        assert (twice.source - 1).tolist() == only(replace(DELIA, learn_eos=False), record, text).source.tolist()
        assert once.tokens.tolist()[:2] != [bos, bos]
    prompt = Prompt("p", "And <sep>?", history=({"role": "system", "content": "Be brief."},))
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "And <sep>?"}]
    assert list(DELIA.request(prompt).messages) == list(AUTHORS.request(prompt).messages) == asked
    ids = text.request(AUTHORS.request(prompt))
    assert ids == [bos, *text.request(DELIA.request(prompt))]


# ---- new tokens


def test_a_new_token_in_an_answer_is_scored_and_where_it_is_read_only_measured(chatml: TextCodec):
    record = dialogue("Say <sep>.", "<sep>", "Again?", "<sep> it is", learned=(1, 3))
    row = only(DELIA, record, chatml)
    [sep] = chatml.ids(["<sep>"])
    assert row.columns["weight"][row.target == sep].tolist() == [0.0, 1.0, 1.0], "what is read again was scored: one edge"
    assert len({*zip(row.source.tolist(), row.target.tolist(), strict=True)}) == len(row.source)
    assert row.columns["important"][row.target == sep].tolist() == [1, 1, 1]
    row = only(DELIA, replace(record, learned=(3,)), chatml)
    assert row.columns["weight"][row.target == sep].tolist() == [0.0, 0.0, 1.0]


def test_a_new_token_with_nothing_before_it_has_no_edge(chatml: TextCodec, models: dict[str, Model], tmp_path: Path):
    template = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
    text = templated(chatml, models["chatml"], template, tmp_path)
    row = only(DELIA, dialogue("<sep>", "{4}"), text)
    assert row.tokens[0] == text.ids(["<sep>"])[0]
    assert (row.columns["weight"] == 1).all()
    assert read(only(DELIA, dialogue("<sep><sep>", "{4}"), text), text) == ["<sep>"]


def test_new_tokens_are_added_as_the_fields_say(chatml: TextCodec):
    assert DELIA.new_tokens() == [NewToken("<sep>", "random", 0.0, False, True, "auto", "Answer in braces.")]
    two = replace(
        DELIA, tokens=[Meaning("<a>", "One."), Meaning("<b>", "Two.")], init="description", init_noise=0.1, token_training="rows"
    )
    assert replace(two, existing_tokens="reuse").new_tokens() == [
        NewToken("<a>", "description", 0.1, True, True, "rows", "One."),
        NewToken("<b>", "description", 0.1, True, True, "rows", "Two."),
    ]
    assert replace(DELIA, tokens=[]).new_tokens() == []
    plain = only(replace(DELIA, tokens=[], important=[]), RECORDS[1], chatml)
    assert plain.columns["weight"].all()
    assert not plain.columns["important"].any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"init": "zero"}, "init: must be one of random, mean, description, not 'zero'"),
        ({"token_training": "all"}, "token_training: must be one of auto, rows, embedding, not 'all'"),
        ({"existing_tokens": "keep"}, "existing_tokens: must be one of refuse, reuse, not 'keep'"),
        ({"too_long": "split"}, "too_long: must be one of truncate, drop, not 'split'"),
        ({"max_tokens": 1}, "max_tokens: must be at least 2, not 1"),
        ({"probe_rows": 0}, "probe_rows: must be at least 1, not 0"),
        ({"init_noise": -1.0}, "init_noise: must be at least 0, not -1.0"),
        ({"tokens": [Meaning("<a>", "x"), Meaning("<a>", "y")]}, "tokens: <a> stands there twice"),
        ({"important": ["'", ""]}, "important: every token holds the empty text; take it out"),
        (
            {"tokens": [Meaning("<sep>", " ")], "init": "description"},
            "tokens: init=description needs the instruction that <sep> stands for",
        ),
    ],
)
def test_wrong_fields(change: dict[str, Any], words: str):
    with pytest.raises(ValueError, match="^" + re.escape(words) + "$"):
        replace(DELIA, **change)


# ---- what is too long


@pytest.mark.parametrize("learn_eos", [True, False])
@pytest.mark.parametrize("record", RECORDS[:3], ids=["one", "three", "last"])
def test_truncation_keeps_the_first_tokens_and_the_edges_among_them(record: Dialogue, learn_eos: bool, chatml: TextCodec):
    method = replace(DELIA, learn_eos=learn_eos)
    whole = only(method, record, chatml)
    length = len(only(DELIA, record, chatml).tokens) + 1
    for limit in range(2, length + 3):
        rows = list(replace(method, max_tokens=limit).parts(record, chatml))
        keep = whole.source + 1 < limit
        if not whole.columns["weight"][keep].any():
            assert rows == []
            continue
        [row] = rows
        last = whole.source[keep & (whole.columns["weight"] > 0)].max()  # new tokens behind it are read for nothing
        keep &= whole.source <= last
        assert row.tokens.tolist() == whole.tokens[: last + 1].tolist()
        for name in ("source", "target"):
            assert getattr(row, name).tolist() == getattr(whole, name)[keep].tolist()
        assert row.columns["weight"].tolist() == whole.columns["weight"][keep].tolist()
        assert row.mass == whole.columns["weight"][keep].sum()
        dropped = list(replace(method, max_tokens=limit, too_long="drop").parts(record, chatml))
        assert len(dropped) == (limit >= length)


def test_dialogues_beyond_the_context_are_cut_or_left_out(chatml: TextCodec):
    short, long, mute = RECORDS[0], dialogue("Pick a number. " * 90, "{4}"), replace(RECORDS[0], learned=())
    cut = dialogue("Pick a number.", "{4} " * 100)
    records = [short, long, mute, cut, short, long]
    rows = list(DELIA.rows(records, chatml, 0))
    assert [(row.group, row.truncated) for row in rows] == [(0, False), (3, True), (4, False)], "a dialogue keeps its number"
    assert len(rows[1].tokens) + 1 == chatml.context == 256
    assert [row.group for row in replace(DELIA, too_long="drop").rows(records[1:], chatml, 0)] == [3]


def test_nothing_left_to_train_on(chatml: TextCodec):
    for records, count in (([], 0), ([RECORDS[0]] * 2, 2)):
        with pytest.raises(UserError) as caught:
            list(replace(DELIA, too_long="drop", max_tokens=9).rows(records, chatml, 0))
        words = f"data: no dialogue of {count} is left to train on; {count} are longer than 9 tokens.\nRaise method.max_tokens"
        assert str(caught.value).startswith(words)


def test_a_wrong_dialogue_is_named(chatml: TextCodec, models: dict[str, Model], tmp_path: Path):
    with pytest.raises(UserError) as caught:
        list(DELIA.rows([RECORDS[0], dialogue("A", "b<|im_end|>c")], chatml, 0))
    message = "chat.jsonl:7: the answer 'b<|im_end|>c' holds <|im_end|>, which ends the assistant's turn. Take it out."
    assert str(caught.value) == message
    strict = templated(chatml, models["chatml"], "{{ raise_exception('No.') }}", tmp_path)
    with pytest.raises(UserError) as caught:
        list(DELIA.parts(RECORDS[0], strict))
    assert str(caught.value) == "model.chat_template: cannot render this conversation: No.\nFirst met in chat.jsonl:7."


# ---- losses


def direct(record: Dialogue, text: TextCodec, model: torch.nn.Module, method: Delia) -> float:
    """Minus the log-probability of the learned answers, each in a forward pass of its own over the rendered chat."""
    tokenizer, total = text.tokenizer, 0.0
    for place in record.learned:
        asked, answered = record.messages[:place], record.messages[: place + 1]
        before = tokenizer.apply_chat_template(list(asked), tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(list(answered), tokenize=False)
        ids, count = (tokenizer.encode(t, add_special_tokens=method.double_bos) for t in (whole, before))
        end = next(i for i in range(len(count), len(ids)) if ids[i] in text.stop)
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        chosen = range(len(count), end + method.learn_eos)
        total -= sum(float(logp[i - 1, ids[i]]) for i in chosen)
    return total


@pytest.mark.parametrize("method", [DELIA, AUTHORS], ids=["sound", "authors"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_loss_is_a_direct_evaluation(
    name: str, method: Delia, models: dict[str, Model], codecs: dict[str, TextCodec], tmp_path: Path
):
    text, model = codecs[name], load_model(models[name], "cpu", 0, DELIA.new_tokens())
    expected = [direct(record, text, model, method) for record in RECORDS]
    write_rows(tmp_path / "rows.arrow", method.rows(RECORDS, text, 0))
    rows = list(RowStore(tmp_path / "rows.arrow"))
    scorer = Scorer(model)
    batch = collate(rows)
    loss = method.loss(scorer(batch), batch)
    assert float(loss.total) == pytest.approx(sum(expected), rel=1e-9)
    for row, each in zip(rows, expected, strict=True):
        alone = collate([row])
        assert float(method.loss(scorer(alone), alone).total) == pytest.approx(each, rel=1e-9)


FORGETS = """{%- for turn in messages -%}
    {%- set text = turn['content'].split(':')[-1] if turn['role'] == 'assistant' and not loop.last else turn['content'] -%}
    {{- '<|im_start|>' + turn['role'] + '\\n' + text + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
"""leaves the thoughts of past answers out"""


@pytest.mark.parametrize("rewrites", [False, True])
@torch.no_grad()
def test_a_forest_is_its_chains(rewrites: bool, chatml: TextCodec, models: dict[str, Model], tmp_path: Path):
    text = templated(chatml, models["chatml"], FORGETS, tmp_path) if rewrites else chatml
    model = load_model(models["chatml"], "cpu", 0, DELIA.new_tokens())
    scorer = Scorer(model)
    record = dialogue("One <sep>?", "It's said:{1}", "And?", "So I'd say:{2} {3}", "Last <sep>?", "Then:fig")
    row = only(DELIA, record, text)
    single = [only(DELIA, replace(record, learned=(place,)), text) for place in record.learned]
    assert row.mass == sum(one.mass for one in single)
    longest = max(len(one.tokens) for one in single)
    assert longest < len(row.tokens) < sum(len(one.tokens) for one in single) if rewrites else len(row.tokens) == longest
    found: dict[tuple[int, ...], float] = {}
    for one in single:
        for path, logp, weight in edges(one, scorer):
            if weight:
                found[path] = logp
    merged = [(path, logp) for path, logp, weight in edges(row, scorer) if weight]
    assert len(merged) == len(found) == row.mass
    for path, logp in merged:
        assert logp == pytest.approx(found[path], rel=1e-9)
    total = sum(direct(replace(record, learned=(place,)), text, model, DELIA) for place in record.learned)
    assert -sum(logp for _, logp in merged) == pytest.approx(total, rel=1e-9)
    pieces = split(row, longest)
    assert (len(pieces) > 1) == rewrites
    batches = [collate([piece]) for piece in pieces]
    assert sum(float(DELIA.loss(scorer(batch), batch).total) for batch in batches) == pytest.approx(total, rel=1e-9)
    assert sum(piece.mass for piece in pieces) == row.mass


def test_the_same_answer_twice_in_one_context_counts_twice(chatml: TextCodec, models: dict[str, Model], tmp_path: Path):
    last = "{%- set messages = messages[-2:] if messages[-1]['role'] == 'assistant' else messages[-1:] -%}"
    text = templated(chatml, models["chatml"], last + FAMILIES["chatml"].template, tmp_path)
    once, twice = only(DELIA, dialogue("A?", "{4}"), text), only(DELIA, dialogue("A?", "{4}", "A?", "{4}"), text)
    assert twice.tokens.tolist() == once.tokens.tolist()
    assert twice.columns["weight"].tolist() == (2 * once.columns["weight"]).tolist()
    assert twice.mass == 2 * once.mass


def edges(row: Row, scorer: Scorer) -> list[tuple[tuple[int, ...], float, float]]:
    """Of each edge all tokens up to it, its log-probability and its weight."""
    found, logps = [], scorer(collate([row])).tolist()
    for source, target, logp, weight in zip(row.source, row.target, logps, row.columns["weight"], strict=True):
        path, node = [int(target)], int(source)
        while node >= 0:
            path.append(int(row.tokens[node]))
            node = int(row.parent[node])
        assert len(path) == depths(row.parent)[source] + 2
        found.append((tuple(path[::-1]), logp, float(weight)))
    return found


def test_logs_and_gradients_of_a_step(chatml: TextCodec):
    rows = list(DELIA.rows(RECORDS, chatml, 0))
    batch = collate(rows)
    logp = torch.from_numpy(-np.random.default_rng(0).exponential(size=len(batch.source))).requires_grad_()
    loss = DELIA.loss(logp, batch)
    loss.total.backward()
    weight, nll = np.concatenate([row.columns["weight"] for row in rows]), -logp.detach().numpy()
    assert logp.grad is not None
    assert logp.grad.tolist() == (-weight).tolist()
    assert loss.total.item() == pytest.approx((weight * nll).sum(), rel=1e-12)
    assert batch.mass == weight.sum()
    diverse = np.concatenate([row.columns["diverse"] for row in rows]) > 0
    important = np.concatenate([row.columns["important"] for row in rows]) > 0
    parts = {"downstream": ~diverse, "diverse": diverse, "important": important, "other": ~important}
    assert set(loss.logs) == {f"nll_{name}" for name in parts}
    for name, part in parts.items():
        total, count = loss.logs[f"nll_{name}"]
        assert count == (part & (weight > 0)).sum() > 0
        assert float(total) == pytest.approx(nll[part & (weight > 0)].sum(), rel=1e-12)


# ---- the report


def test_the_report_names_the_authors_choices(tmp_path: Path):
    config = {
        "method": {"learn_eos": True, "double_bos": False},
        "data": {"path": "a.jsonl", "self_sampling": {"skip_characters": 0}},
    }
    for folder in ("sound", "authors"):
        (tmp_path / folder).mkdir()
        OmegaConf.save(config, tmp_path / folder / "config.yaml")
        config = {
            "method": {"learn_eos": False, "double_bos": True},
            "data": {"self_sampling": {"skip_characters": 2, "drop": ["length", "empty"], "double_bos": True}},
        }
    heading = Heading("Choices that differ from good practice")
    assert DELIA.sections(RunFolder(tmp_path / "sound"), tmp_path)[-2:] == [heading, Text("None.")]
    first, table = DELIA.sections(RunFolder(tmp_path / "authors"), tmp_path)[-2:]
    assert first == heading
    assert isinstance(table, Table)
    assert [row[:3] for row in table.rows] == [
        ["method.learn_eos", "False", "True"],
        ["method.double_bos", "True", "False"],
        ["data.self_sampling.double_bos", "True", "False"],
        ["data.self_sampling.skip_characters", "2", "0"],
        ["data.self_sampling.drop", "['length', 'empty']", "['empty', 'refused', 'length']"],
    ]
