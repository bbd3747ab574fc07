"""The baselines of CUT: each against its formula, written out on whole texts."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import permutations
from typing import Any

import pytest
import torch

from alignlab.compose import compose
from alignlab.config import check
from alignlab.engine.batch import collate
from alignlab.engine.scorer import Scorer, edge_logprobs_of
from alignlab.errors import UserError
from alignlab.methods.cut import Cut
from alignlab.models.load import load_model
from alignlab.protocols import Row
from alignlab.records import Judged

HEAD = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
PROMPT = HEAD + "### Instruction:\n{}\n\n### Response:\n"
VERDICT = "\n\n### Judgment:\n"


def of(*overrides: str) -> Any:
    """The method of a configuration."""
    return check(compose(list(overrides))[0]).method


def record(instruction: str, output: str, judgment: str | None = None, **more: Any) -> Judged:
    fields = {"score": None, "refined": None, "reference": None, "faults": None, "task": "", "dataset": "", "held_out": False}
    return Judged("r", instruction, output, judgment, **fields | {"where": "rows.jsonl:1"} | more)


CAPITAL = "Give me the capital of Thailand."
WRONG = record(CAPITAL, "The capital of Thailand is Hanoi.", "There is a mistake.", refined="The capital of Thailand is Bangkok.")
SUM = record("How much is 15 plus 13?", "15 plus 13 is 29.", "You gave a wrong sum.")
RIGHT = record("Name the opposite of full.", "The opposite of full is empty.")
MIXED = [WRONG, RIGHT, SUM]


@pytest.fixture(scope="module")
def model(_tiny_config):
    return load_model(_tiny_config, "cpu", 0).double()


@cache
def scorer(model) -> Scorer:
    return Scorer(model)


@torch.no_grad()
def loss(method, model, rows: list[Row]):
    batch = collate(rows)
    return method.loss(scorer(model)(batch), batch)


@torch.no_grad()
def log_probabilities(model, text, before: str, after: str, limit: int = 512) -> list[float]:
    """Of the tokens of a text after its first part, the end of text among them."""
    tokenizer = text.tokenizer
    ids = tokenizer(before + after)["input_ids"]
    count = len(ids) - len(tokenizer(before)["input_ids"]) + 1
    ids = [*ids[-limit:], tokenizer.eos_token_id]
    logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(logp[i - 1, ids[i]]) for i in range(max(1, len(ids) - count), len(ids))]


def nll(model, text, before: str, after: str) -> float:
    values = log_probabilities(model, text, before, after)
    return -sum(values) / len(values)


# --- likelihood ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("responses", "trained"),
    [
        ("satisfactory", [RIGHT]),
        ("all", [WRONG, RIGHT, SUM]),
        ("refined", [replace(WRONG, output=WRONG.refined)]),
    ],
)
def test_sft_is_the_mean_log_probability_of_the_chosen_responses(responses, trained, model, text):
    sft = of("method=sft", f"method.responses={responses}")
    rows = list(sft.rows(MIXED, text, 0))
    expected = [nll(model, text, PROMPT.format(r.instruction), r.output) for r in trained]
    assert float(loss(sft, model, rows).total) == pytest.approx(sum(expected), rel=1e-9)
    assert [row.mass for row in rows] == [1.0] * len(trained)
    assert len({row.group for row in rows}) == len(rows)
    by_token = list(replace(sft, weighting="token").rows(MIXED, text, 0))
    counts = [len(row.source) for row in by_token]
    assert [row.mass for row in by_token] == counts
    weighted = sum(n * one for n, one in zip(counts, expected, strict=True))
    assert float(loss(sft, model, by_token).total) == pytest.approx(weighted, rel=1e-9)


def test_sft_without_such_a_response_is_refused(text):
    for responses, records in (("satisfactory", [WRONG, SUM]), ("refined", [RIGHT, SUM]), ("all", [])):
        with pytest.raises(UserError, match=f"method.responses={responses}"):
            list(of("method=sft", f"method.responses={responses}").rows(records, text, 0))


def test_hindsight_and_unlikelihood_are_cut_with_one_switch_off():
    cut = of("method=cut")
    assert isinstance(cut, Cut)
    assert of("method=hindsight") == replace(cut, unlikelihood=False, version="v4")
    assert of("method=unlikelihood") == replace(cut, detection=False)
    for method in ("hindsight", "unlikelihood", "sft", "forward-prediction", "dpo"):
        mine, cuts = (compose([f"method={name}", "model=gpt2"])[0].train for name in (method, "cut"))
        assert mine == cuts, method


def test_hindsight_is_likelihood_given_the_judgment(model, text):
    hindsight = of("method=hindsight")
    judged = (
        "Below is an instruction that describes a task. Write a response to the instruction and the response should match the "
        "corresponding judgment.\n\n### Instruction:\n{}\n\n### Judgment:\n{}\n\n### Response:\n"
    )
    expected = [nll(model, text, judged.format(r.instruction, r.judgment), r.output) for r in (WRONG, SUM)]
    expected.insert(1, nll(model, text, PROMPT.format(RIGHT.instruction), RIGHT.output))
    rows = list(hindsight.rows(MIXED, text, 0))
    assert [float(loss(hindsight, model, [row]).total) for row in rows] == pytest.approx(expected, rel=1e-9)
    released = replace(hindsight, version="v1")
    expected = [expected[0] / 2, expected[1], expected[2] / 2]
    assert [float(loss(released, model, [row]).total) for row in rows] == pytest.approx(expected, rel=1e-9)


# --- forward prediction ----------------------------------------------------------------------------------------------


def test_forward_prediction_is_the_response_and_then_its_judgment(model, text):
    method = of("method=forward-prediction")
    rows = list(method.rows(MIXED, text, 0))
    assert [row.group for row in rows] == [0, 1, 2]
    responses = [nll(model, text, PROMPT.format(r.instruction), r.output) for r in MIXED]
    judgments = [
        nll(model, text, PROMPT.format(r.instruction) + r.output + VERDICT, r.judgment) if r.judgment else 0.0 for r in MIXED
    ]
    for row, response, judgment in zip(rows, responses, judgments, strict=True):
        found = loss(method, model, [row])
        assert float(found.total) == pytest.approx(response + judgment, rel=1e-9)
        assert float(found.logs["response"][0]) == pytest.approx(response, rel=1e-9)
        assert float(found.logs["judgment"][0]) == pytest.approx(judgment, rel=1e-9)
    together = loss(method, model, rows)
    assert float(together.total) == pytest.approx(sum(responses) + sum(judgments), rel=1e-9)
    assert together.logs["response"][1] == pytest.approx(3)
    assert together.logs["judgment"][1] == pytest.approx(2)


def test_forward_prediction_reads_the_response_once(text):
    row = next(of("method=forward-prediction").rows([WRONG], text, 0))
    ids = text.tokenizer(PROMPT.format(WRONG.instruction) + WRONG.output + VERDICT + WRONG.judgment)["input_ids"]
    assert row.tokens.tolist() == ids
    ends = row.source[row.target == text.tokenizer.eos_token_id].tolist()
    assert sorted(ends) == [len(text.tokenizer(PROMPT.format(WRONG.instruction) + WRONG.output)["input_ids"]) - 1, len(ids) - 1]


@pytest.mark.parametrize("cutoff", [60, 40, 30, 12, 4])
def test_forward_prediction_keeps_the_end_where_the_cutoff_is_short(cutoff, model, text):
    method = replace(of("method=forward-prediction"), cutoff=cutoff)
    [row] = method.rows([WRONG], text, 0)
    prompt = PROMPT.format(WRONG.instruction)
    expected = 0.0
    for before, after in ((prompt, WRONG.output), (prompt + WRONG.output + VERDICT, WRONG.judgment)):
        values = log_probabilities(model, text, before, after, cutoff)
        expected -= sum(values) / len(values)
    assert float(loss(method, model, [row]).total) == pytest.approx(expected, rel=1e-9)


# --- preferences -----------------------------------------------------------------------------------------------------


def margin(model, text, beta: float, better: Judged, worse: Judged, reference=None) -> float:
    """beta x (log-ratio of the better response - that of the other)."""

    def total(of, row: Judged) -> float:
        return sum(log_probabilities(of, text, PROMPT.format(row.instruction), row.output))

    gain = [total(model, row) - (total(reference, row) if reference else 0.0) for row in (better, worse)]
    return beta * (gain[0] - gain[1])


def with_reference(model, rows: list[Row]) -> list[Row]:
    found = edge_logprobs_of(scorer(model), rows, 1 << 20)
    return [replace(r, columns={**r.columns, "reference": p.numpy()}) for r, p in zip(rows, found, strict=True)]


@pytest.fixture(scope="module")
def moved(_tiny_config):
    """The model after some training, as it were."""
    other = load_model(_tiny_config, "cpu", 0).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.02 * parameter.std() * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return other


PAIRS = [
    WRONG,
    record("Say it.", "It is. No.", "Wrong.", refined="It is."),  # one is the beginning of the other
    record("Say it.", "No", "Wrong.", refined="Yes, it is so."),  # nothing shared
]


def test_dpo_is_the_logistic_loss_of_how_much_more_is_preferred(model, moved, text):
    dpo = of("method=dpo", "method.beta=0.3")
    rows = with_reference(model, list(dpo.rows(PAIRS, text, 0)))
    margins = [margin(moved, text, 0.3, replace(r, output=r.refined), r, model) for r in PAIRS]
    losses = [math.log1p(math.exp(-m)) for m in margins]
    assert min(abs(m) for m in margins) > 1e-3
    assert [float(loss(dpo, moved, [row]).total) for row in rows] == pytest.approx(losses, rel=1e-8)
    together = loss(dpo, moved, rows)
    assert float(together.total) == pytest.approx(sum(losses), rel=1e-8)
    assert float(together.logs["margin"][0]) == pytest.approx(sum(margins), rel=1e-7)
    assert float(together.logs["accuracy"][0]) == sum(m > 0 for m in margins)
    assert together.logs["accuracy"][1] == 3.0


def test_dpo_begins_at_the_logarithm_of_two(model, text):
    dpo = of("method=dpo")
    rows = with_reference(model, list(dpo.rows(PAIRS, text, 0)))
    assert [float(loss(dpo, model, [row]).total) for row in rows] == pytest.approx([math.log(2)] * 3, rel=1e-9)


def test_what_two_responses_share_is_read_once_and_does_not_count(text):
    [row] = of("method=dpo").rows([WRONG], text, 0)
    prompt, ids = (
        PROMPT.format(CAPITAL),
        [text.tokenizer(PROMPT.format(CAPITAL) + o)["input_ids"] for o in (WRONG.refined, WRONG.output)],
    )
    shared = next(i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
    assert len(row.tokens) == len(ids[0]) + len(ids[1]) - shared
    signs = dict(zip(zip(row.source.tolist(), row.target.tolist(), strict=True), row.columns["sign"].tolist(), strict=True))
    common = range(len(text.tokenizer(prompt)["input_ids"]) - 1, shared - 1)
    assert len(common) > 3
    assert all(signs[node, ids[0][node + 1]] == 0 for node in common)
    assert sorted(s for s in signs.values() if s) == [-1.0] * (len(ids[1]) - shared + 1) + [1.0] * (len(ids[0]) - shared + 1)


def test_dpo_where_the_contexts_are_cut_at_different_places(model, moved, text):
    cutoff = 30
    dpo = replace(of("method=dpo"), cutoff=cutoff)
    row = record("Say it.", "No", "Wrong.", refined="Yes, it is so, and so it is.")
    [tree] = with_reference(model, list(dpo.rows([row], text, 0)))
    assert len(tree.tokens) == 2 * cutoff
    gain = []
    for output in (row.refined, row.output):
        now, then = (sum(log_probabilities(m, text, PROMPT.format(row.instruction), output, cutoff)) for m in (moved, model))
        gain.append(now - then)
    expected = math.log1p(math.exp(-0.1 * (gain[0] - gain[1])))
    assert float(loss(dpo, moved, [tree]).total) == pytest.approx(expected, rel=1e-9)


SCORED = [record("Name a fruit.", answer, score=score) for answer, score in (("apple", 3.0), ("pear", 0.0), ("stone", -2.5))]
SCORED += [record("Name a fruit.", "fig", score=3.0), record("Name a fruit.", "plum"), record("Say it.", "It is.", score=9.0)]


def test_scores_pair_every_two_unequal_responses_to_an_instruction_in_any_order(text):
    dpo = of("method=dpo", "method.pairs=score")
    wanted = {("apple", "pear"), ("apple", "stone"), ("pear", "stone"), ("fig", "pear"), ("fig", "stone")}
    for order in list(permutations(range(6)))[::97]:
        rows = list(dpo.rows([SCORED[i] for i in order], text, 0))
        assert {(ending(text, row, 1.0), ending(text, row, -1.0)) for row in rows} == wanted
        assert [row.group for row in rows] == list(range(5))


def ending(text, row: Row, sign: float) -> str:
    return text.decode(row.target[row.columns["sign"] == sign].tolist())


def test_pairs_that_are_none(text):
    refined, score = of("method=dpo"), of("method=dpo", "method.pairs=score")
    for rows in (
        [RIGHT],
        [SUM],
        [replace(WRONG, refined=WRONG.output)],
        [replace(WRONG, judgment=None)],
        [replace(WRONG, output="")],
    ):
        assert not [part for row in rows for part in refined.parts(row, text)]
        with pytest.raises(UserError, match=r"no rows make a pair: method\.pairs=refined needs a judgment and a refined"):
            list(refined.rows(rows, text, 0))
    for rows in ([SCORED[0], SCORED[3]], [SCORED[0], SCORED[5]], [SCORED[0], replace(SCORED[0], score=1.0)], [WRONG]):
        with pytest.raises(UserError, match=r"method\.pairs=score needs an instruction with unequal scores"):
            list(score.rows(rows, text, 0))


def test_a_response_that_fits_no_pair_is_said_of_its_own_row(text):
    """So that data.max_bad_rows can pass over it, and the message names the row."""
    long = record("Name a fruit.", "word " * 600, score=8.0, where="rows.jsonl:7")
    dpo = of("method=dpo", "method.pairs=score")
    for tried in (lambda: dpo.parts(long, text), lambda: dpo.rows([SCORED[0], long], text, 0)):
        with pytest.raises(UserError, match=r"^rows\.jsonl:7:output: the response alone has"):
            list(tried())
    assert not list(dpo.parts(SCORED[0], text))


@pytest.mark.parametrize(
    ("method", "change", "said"),
    [
        ("dpo", {"beta": -1.0}, "beta: "),
        ("dpo", {"beta": math.inf}, "beta: "),
        ("dpo", {"pairs": "all"}, "pairs: "),
        ("dpo", {"cutoff": 1}, "cutoff: "),
        ("sft", {"responses": "some"}, "responses: "),
        ("sft", {"weighting": "row"}, "weighting: "),
        ("sft", {"template": "none"}, "template: "),
        ("forward-prediction", {"cutoff": 0}, "cutoff: "),
    ],
)
def test_values_are_refused_by_name(method, change, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        replace(of(f"method={method}"), **change)
