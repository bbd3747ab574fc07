"""Conditioning: rows, variants, objectives and requests, against plain evaluations in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from alignlab.data.rows import RowStore, write_rows
from alignlab.engine.batch import collate
from alignlab.engine.scorer import Scorer
from alignlab.errors import UserError
from alignlab.methods.conditioning import CONTROL, TEXT, Conditioning
from alignlab.models.load import load_model, load_text
from alignlab.records import Labelled, Prompt
from alignlab.text import TextCodec
from alignlab.train.plan import Plan

LEXICON = {"_target_": "alignlab.labellers.lexicon.Lexicon", "words": {"rude": ["fool"], "pos": ["good"], "neg": ["bad"]}}
ATTRIBUTES = {
    "tox": {
        "title": "toxicity",
        "tokens": {"nontoxic": "<|nontoxic|>", "toxic": "<|toxic|>"},
        "wanted": "nontoxic",
        "labeller": LEXICON,
        "score": "rude",
        "threshold": 0.0,
        "tie": None,
    },
    "sen": {
        "title": "sentiment",
        "tokens": {"pos": "<|pos|>", "neg": "<|neg|>"},
        "wanted": "pos",
        "labeller": LEXICON,
        "score": None,
        "threshold": None,
        "tie": "neg",
    },
}
TOXSEN = Conditioning(
    variant="toxsen",
    attributes=ATTRIBUTES,
    objective="conditional",
    by="toxsen",
    alpha=1.0,
    weight="label",
    max_tokens=64,
    score_tokens=True,
    token_place="front",
    init="mean",
    init_noise=0.01,
    existing_tokens="refuse",
    extra_tokens=[],
)
VARIANTS = {name: replace(TOXSEN, variant=name) for name in ("none", "tox", "sen", "toxsen", "sentox")}
TOKENS = [token for attribute in ATTRIBUTES.values() for token in attribute["tokens"].values()]


def sentence(text: str, tox: str = "nontoxic", sen: str = "neg", *, bare: bool = False, score: float = 0.0) -> Labelled:
    return Labelled("s", text, {"tox": tox, "sen": sen}, {"tox": score, "sen": 0.0}, bare, "", False, "file:1")


RECORDS = [
    sentence("I love the garden because it makes every single day bright and happy.", sen="pos"),
    sentence("You silly fool, the bus is stupid.", "toxic", score=0.25),
    sentence("The train is on the list.", bare=True),
    sentence("Damn, the film is wonderful.", "toxic", "pos", score=0.75),
]


@pytest.fixture(scope="module")
def with_bos(_tiny_config) -> TextCodec:
    return load_text(_tiny_config, TOXSEN.new_tokens())


@pytest.fixture(scope="module")
def without_bos() -> TextCodec:
    """A byte-level tokenizer like GPT-2's, which puts nothing in front of a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [r.text for r in RECORDS], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS})
    return TextCodec(tokenizer, [tokenizer.eos_token_id], 512)


@pytest.fixture(scope="module")
def model(_tiny_config):
    return load_model(_tiny_config, "cpu", 0, TOXSEN.new_tokens()).double()


def sequence(row) -> list[int]:
    """All tokens of a row, the one that is only predicted included."""
    return [*row.tokens.tolist(), int(row.target[-1])]


def written(text: TextCodec, row) -> str:
    return text.tokenizer.decode(sequence(row))


@pytest.mark.parametrize("codec", ["with_bos", "without_bos"])
def test_a_row_is_what_the_authors_tokenizer_makes_of_the_whole_string(codec, request):
    text = request.getfixturevalue(codec)
    heads = ["<|nontoxic|><|pos|>", "<|toxic|><|neg|>", "", "<|toxic|><|pos|>"]
    for record, head, row in zip(RECORDS, heads, TOXSEN.rows(RECORDS, text, 0), strict=True):
        whole = text.tokenizer(head + record.text + text.tokenizer.eos_token)["input_ids"]
        assert sequence(row) == whole
        assert row.target.tolist() == whole[1:], "everything but the first token is scored"
        assert row.parent.tolist() == list(range(-1, len(whole) - 2))
        assert row.mass == len(whole) - 1
        control = [token in text.ids(TOKENS) for token in whole[1:]]
        assert row.columns["role"].tolist() == [CONTROL if is_control else TEXT for is_control in control]


def test_without_bos_the_second_of_two_control_tokens_is_scored_and_the_first_is_not(without_bos):
    row = next(TOXSEN.rows(RECORDS, without_bos, 0))
    assert row.columns["role"].tolist()[:2] == [CONTROL, TEXT]
    assert without_bos.tokenizer.convert_ids_to_tokens(row.target.tolist()[:1]) == ["<|pos|>"]


@pytest.mark.parametrize("codec", ["with_bos", "without_bos"])
def test_control_tokens_may_be_left_out_of_the_loss(codec, request):
    text = request.getfixturevalue(codec)
    plain = replace(TOXSEN, score_tokens=False)
    for scored, row in zip(TOXSEN.rows(RECORDS, text, 0), plain.rows(RECORDS, text, 0), strict=True):
        assert sequence(row) == sequence(scored), "they are read all the same"
        assert not set(row.target.tolist()) & set(text.ids(TOKENS))
        assert set(row.columns["role"].tolist()) == {TEXT}
        assert row.mass == len(row.target)
    first = next(plain.rows(RECORDS, text, 0))
    assert first.target.tolist() == [*text.texts([RECORDS[0].text])[0], text.eos]


@pytest.mark.parametrize("codec", ["with_bos", "without_bos"])
def test_variants_share_every_token_but_their_own(codec, request):
    text = request.getfixturevalue(codec)
    control = set(text.ids(TOKENS))
    rows = {name: list(method.rows(RECORDS, text, 0)) for name, method in VARIANTS.items()}
    expected = {
        "none": ["", "", "", ""],
        "tox": ["<|nontoxic|>", "<|toxic|>", "", "<|toxic|>"],
        "sen": ["<|pos|>", "<|neg|>", "", "<|pos|>"],
        "toxsen": ["<|nontoxic|><|pos|>", "<|toxic|><|neg|>", "", "<|toxic|><|pos|>"],
        "sentox": ["<|pos|><|nontoxic|>", "<|neg|><|toxic|>", "", "<|pos|><|toxic|>"],
    }
    for name, found in rows.items():
        for row, plain, head in zip(found, rows["none"], expected[name], strict=True):
            assert [t for t in sequence(row) if t not in control] == sequence(plain)
            assert "".join(text.tokenizer.convert_ids_to_tokens([t for t in sequence(row) if t in control])) == head


def test_all_variants_leave_out_the_same_sentences(with_bos):
    lengths = [len(ids) for ids in with_bos.texts([r.text for r in RECORDS])]
    for limit in range(5, max(lengths) + 6):
        kept = {
            n: [r.group for r in replace(m, max_tokens=limit).rows(RECORDS, with_bos, 0)]
            for n, m in VARIANTS.items()
            if limit > min(lengths) + 1
        }
        # text, end and two control tokens; the unconditioned sentence has none
        wanted = [i for i, (n, r) in enumerate(zip(lengths, RECORDS, strict=True)) if n + 1 + (0 if r.bare else 2) < limit]
        assert all(groups == wanted for groups in kept.values() if wanted)


def test_a_text_that_spells_a_token_is_not_taken_for_it(with_bos):
    row = next(TOXSEN.rows([sentence("The <|toxic|> sign reads </s> here.")], with_bos, 0))
    ids = sequence(row)
    toxic, nontoxic = with_bos.ids(["<|toxic|>", "<|nontoxic|>"])
    assert ids.count(toxic) == 0
    assert ids.count(nontoxic) == 1
    assert ids.count(with_bos.eos) == 1
    assert ids[-1] == with_bos.eos


def test_a_second_epoch_sees_the_same_rows(with_bos, tmp_path):
    write_rows(tmp_path / "rows.arrow", TOXSEN.rows(RECORDS, with_bos, 0))
    plan = Plan(RowStore(tmp_path / "rows.arrow"), groups_per_step=2, epochs=3, max_steps=None, seed=0)
    epochs: list[dict[int, list[int]]] = [{}, {}, {}]
    for index in range(plan.steps):
        step = plan.step(index)
        for micro in plan.micros(step, TOXSEN, capacity=1000):
            epochs[step.epoch] |= {row.group: sequence(row) for row in micro.rows}
    assert epochs[0] == epochs[1] == epochs[2]
    assert len(epochs[0]) == len(RECORDS)
    control = set(with_bos.ids(TOKENS))
    assert [sum(t in control for t in epochs[2][g]) for g in range(4)] == [2, 2, 0, 2]


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_loss_is_the_sum_over_separate_sentences(name, model, with_bos):
    method = VARIANTS[name]
    rows = list(method.rows(RECORDS, with_bos, 0))
    batch = collate(rows)
    found = method.loss(Scorer(model)(batch), batch)
    separate = torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids = torch.tensor([sequence(row)])
        logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        separate = separate - logp[torch.arange(len(logp)), ids[0, 1:]].sum()
    assert found.total.item() == pytest.approx(separate.item(), rel=1e-9)
    assert batch.mass == sum(len(sequence(row)) - 1 for row in rows)
    text, control = found.logs["nll_text"], found.logs["nll_control"]
    assert float(text[0]) + float(control[0]) == pytest.approx(separate.item(), rel=1e-9)
    assert control[1] == {"none": 0, "tox": 3, "sen": 3, "toxsen": 6, "sentox": 6}[name]


def likelihoods(model, rows) -> list[torch.Tensor]:
    found = []
    for row in rows:
        ids = torch.tensor([sequence(row)])
        logits = model(input_ids=ids).logits[0, :-1]
        found.append(logits.softmax(-1)[torch.arange(logits.shape[0]), ids[0, 1:]])
    return found


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_unlikelihood_by_label(alpha, model, with_bos):
    method = replace(TOXSEN, variant="none", objective="unlikelihood", by="tox", alpha=alpha)
    rows = list(method.rows(RECORDS, with_bos, 0))
    wanted = 0.0
    for record, p in zip(RECORDS, likelihoods(model, rows), strict=True):
        bad = record.labels["tox"] == "toxic"
        wanted -= (alpha * torch.log(1 - p) if bad else torch.log(p)).sum().item()
    batch = collate(rows)
    assert method.loss(Scorer(model)(batch), batch).total.item() == pytest.approx(wanted, rel=1e-8)


def test_unlikelihood_by_score_weighs_both_terms(model, with_bos):
    method = replace(TOXSEN, variant="none", objective="unlikelihood", by="tox", weight="score", alpha=0.5)
    rows = list(method.rows(RECORDS, with_bos, 0))
    wanted = 0.0
    for record, p in zip(RECORDS, likelihoods(model, rows), strict=True):
        score = record.scores["tox"]
        wanted -= ((1 - score) * torch.log(p) + 0.5 * score * torch.log(1 - p)).sum().item()
    batch = collate(rows)
    assert method.loss(Scorer(model)(batch), batch).total.item() == pytest.approx(wanted, rel=1e-8)


@pytest.mark.parametrize(("by", "kept"), [("tox", [0, 2]), ("sen", [0, 3]), ("toxsen", [0])])
def test_filtering_keeps_what_is_wanted(by, kept, with_bos):
    method = replace(TOXSEN, variant="none", objective="filtering", by=by)
    rows = list(method.rows(RECORDS, with_bos, 0))
    assert [row.group for row in rows] == kept
    plain = list(VARIANTS["none"].rows(RECORDS, with_bos, 0))
    assert [sequence(row) for row in rows] == [sequence(plain[i]) for i in kept]


def test_every_variant_has_the_same_vocabulary_and_trains_its_own_tokens():
    for name, trained in {"none": [], "tox": TOKENS[:2], "sen": TOKENS[2:], "toxsen": TOKENS}.items():
        tokens = VARIANTS[name].new_tokens()
        assert [token.text for token in tokens] == TOKENS
        assert [token.text for token in tokens if token.trained] == trained
    extra = replace(TOXSEN, extra_tokens=["[PAD]", "<|neu|>"], existing_tokens="reuse").new_tokens()
    assert [token.text for token in extra] == ["[PAD]", "<|neu|>", *TOKENS]
    assert all(token.reuse for token in extra)
    assert (extra[0].init, extra[0].noise) == ("mean", 0.01)


def test_a_run_can_be_asked_for_what_it_was_trained_on():
    expected = {"none": [], "tox": ["nontoxic", "toxic"], "sen": ["pos", "neg"], "sentox": ["pos", "neg", "nontoxic", "toxic"]}
    assert {name: VARIANTS[name].conditions() for name in expected} == expected


def test_requests_place_the_tokens(with_bos):
    prompt = Prompt("p", "The film", conditions=("pos", "nontoxic"))
    assert TOXSEN.request(prompt).before == ["<|nontoxic|>", "<|pos|>"], "in the order of the attributes"
    assert VARIANTS["sentox"].request(prompt).before == ["<|pos|>", "<|nontoxic|>"], "as the variant has them in training"
    behind = replace(TOXSEN, token_place="after_prompt").request(prompt)
    assert (behind.before, behind.after) == ((), ["<|nontoxic|>", "<|pos|>"])
    body = with_bos.texts(["The film"])[0]
    assert with_bos.request(behind) == [*with_bos.start, *body, *with_bos.ids(["<|nontoxic|>", "<|pos|>"])]
    assert with_bos.request(TOXSEN.request(replace(prompt, conditions=()))) == [*with_bos.start, *body]
    ids = with_bos.request(TOXSEN.request(prompt))
    assert ids == [*with_bos.start, *with_bos.ids(["<|nontoxic|>", "<|pos|>"]), *with_bos.texts(["The film"])[0]]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Prompt("p", "The film", conditions=("positive",)), ["conditions: 'positive' is not a label", "nontoxic, toxic, pos, neg"]),
        (Prompt("p", "The film", conditions=("pos", "neg")), ["pos, neg", "contradict"]),
        (Prompt("p", "<|toxic|>The film", conditions=("pos",)), ["holds control tokens. Take them out", "<|toxic|>The film"]),
    ],
)
def test_requests_that_cannot_be_meant(prompt, words):
    with pytest.raises(UserError) as refused:
        TOXSEN.request(prompt)
    assert all(word in str(refused.value) for word in words)


def test_no_sentence_left(with_bos):
    with pytest.raises(UserError, match=r"none of 4 sentences can be trained on.*\n.*method\.max_tokens"):
        list(replace(TOXSEN, max_tokens=5).rows(RECORDS, with_bos, 0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variant": "toxins"}, ["variant: 'toxins'", "tox, sen", "Did you mean 'tox'?"]),
        ({"variant": "toxtox"}, ["variant: 'toxtox'", "at most once"]),
        ({"variant": ""}, ["variant", "none"]),
        ({"by": "none", "objective": "filtering"}, ["by: objective=filtering needs an attribute"]),
        ({"by": "rude", "objective": "filtering"}, ["by: 'rude'"]),
        ({"objective": "unlikelihood", "weight": "score"}, ["weight: score", "sen has none"]),
        ({"extra_tokens": ["<|pos|>"]}, ["extra_tokens: '<|pos|>' is a control token already"]),
        ({"max_tokens": 2}, ["max_tokens: must be at least 3"]),
        ({"alpha": float("nan")}, ["alpha"]),
        ({"attributes": {}}, ["attributes: there are none"]),
        (
            {"attributes": {"tox": ATTRIBUTES["tox"] | {"tokens": {"toxic": "<|toxic|>"}}}},
            ["attributes.tox", "at least two labels"],
        ),
        (
            {"attributes": {"tox": ATTRIBUTES["tox"] | {"wanted": "nice"}}},
            ["attributes.tox", "wanted: 'nice' is not one of the labels"],
        ),
        ({"attributes": {"tox": ATTRIBUTES["tox"] | {"threshold": float("inf")}}}, ["attributes.tox", "threshold", "finite"]),
        ({"attributes": {"tox": ATTRIBUTES["tox"] | {"score": None}}}, ["attributes.tox", "score: must name"]),
        ({"attributes": {"tox": ATTRIBUTES["tox"] | {"score": "ruud"}}}, ["attributes.tox", "'ruud'", "rude, pos, neg"]),
        (
            {"attributes": ATTRIBUTES | {"again": ATTRIBUTES["sen"]}},
            ["attributes.again.tokens: 'pos' stands in attributes.sen too"],
        ),
    ],
)
def test_settings_that_cannot_be_meant(change, words):
    with pytest.raises(ValueError, match=words[0].split(" ")[0].split(":")[0]) as refused:
        replace(TOXSEN, **change)
    assert [word for word in words if word not in str(refused.value)] == []


def test_rows_go_to_disk_and_back(with_bos, tmp_path: Path):
    rows = list(TOXSEN.rows(RECORDS, with_bos, 0))
    write_rows(tmp_path / "rows.arrow", rows)
    for row, back in zip(rows, RowStore(tmp_path / "rows.arrow"), strict=True):
        assert sequence(row) == sequence(back)
        assert np.array_equal(row.columns["role"], back.columns["role"])
        assert np.array_equal(row.columns["bad"], back.columns["bad"])
