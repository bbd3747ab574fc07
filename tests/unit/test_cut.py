"""CUT: rows, loss and gradients against the formulas written out token by token, and its corner cases."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from alignlab.compose import compose
from alignlab.config import check
from alignlab.engine.batch import Batch, collate
from alignlab.engine.scorer import Scorer
from alignlab.errors import UserError
from alignlab.methods.cut import ALIGN_N, ALIGN_P, MISALIGN, SATURATED, Cut
from alignlab.models.load import load_model
from alignlab.numerics import log1mexp
from alignlab.protocols import Row
from alignlab.records import Fault, Judged

CUT: Cut = check(compose(["method=cut"])[0]).method

PLAIN = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n"
)
JUDGED = (
    "Below is an instruction that describes a task. Write a response to the instruction and the response should match the "
    "corresponding judgment.\n\n### Instruction:\n{}\n\n### Judgment:\n{}\n\n### Response:\n"
)


def record(instruction: str, output: str, judgment: str | None = None, **more: Any) -> Judged:
    fields = {"score": None, "refined": None, "reference": None, "faults": None, "task": "", "dataset": "", "held_out": False}
    return Judged("r", instruction, output, judgment, **fields | {"where": "rows.jsonl:1"} | more)


WRONG = [
    record("Give me the capital of Thailand.", "The capital of Thailand is Hanoi.", "There is a mistake in the capital."),
    record("How much is 15 plus 13?", "15 plus 13 is 29.", "You gave a wrong sum."),
    record("What colour has a rose?\nIt is red.", "Purple {x}", "There is a mistake in the colour."),
]
RIGHT = [record("Name the opposite of full.", "The opposite of full is empty."), record("How much is 1 plus 1?", "1 plus 1 is 2.")]
MIXED = [WRONG[0], RIGHT[0], WRONG[1], WRONG[2], RIGHT[1]]


@pytest.fixture(scope="module")
def exact(_tiny_config):
    """The tiny model in float64 throughout, where its norms compute in fp32 else, and less sure, so that 1 - p keeps its digits."""

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    model = load_model(_tiny_config, "cpu", 0).double()
    with torch.no_grad():
        model.model.norm.weight.mul_(0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaRMSNorm, "forward", forward)
        yield model


# --- the plain algorithm ---------------------------------------------------------------------------------------------


def tokens_of(tokenizer, prompt: str, response: str, limit: int) -> tuple[tuple[int, ...], int]:
    """Context and response, and how many of the tokens are the response's, the end of text among them."""
    whole = tokenizer(prompt + response)["input_ids"]
    own = len(whole) - len(tokenizer(prompt)["input_ids"])
    while len(whole) > limit:
        del whole[0]
    return (*whole, tokenizer.eos_token_id), own + 1


@cache
def probabilities(model, ids: tuple[int, ...], count: int) -> list[torch.Tensor]:
    p = model(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1)
    return [p[place - 1, ids[place]] for place in range(len(ids) - count, len(ids))]


def plain_loss(model, tokenizer, row: Judged, cut: Cut) -> torch.Tensor:
    """Loss of one example, by the published formulas."""
    limit = min(cut.cutoff, model.config.max_position_embeddings)
    x = probabilities(model, *tokens_of(tokenizer, PLAIN.format(row.instruction), row.output, limit))
    n, total = len(x) if cut.weighting == "example" else 1, torch.zeros((), dtype=torch.float64)
    if row.judgment is None:
        for p in x if cut.align_p else []:
            total = total - torch.log(p) / n
        return total
    j = probabilities(model, *tokens_of(tokenizer, JUDGED.format(row.instruction, row.judgment), row.output, limit))
    dynamic = cut.version == "v4" if cut.dynamic_weighting is None else cut.dynamic_weighting
    for p, q in zip(x, j, strict=True):
        if cut.unlikelihood:
            if not cut.detection or q.item() > cut.threshold * p.item():
                weight = cut.alpha * (q if cut.differentiate_weight else q.detach()) ** cut.gamma if dynamic else cut.alpha
                total = total - weight * torch.log(1 - p) / n
            else:
                total = total - torch.log(p) / n
        if cut.align_n:
            total = total - torch.log(q) / n
    return total / 2 if cut.version == "v1" else total


@cache
def scorer(model) -> Scorer:
    return Scorer(model)


def our_loss(model, cut: Cut, rows: list[Row]):
    batch = collate(rows)
    return cut.loss(scorer(model)(batch), batch)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"threshold": 1.0},
    {"threshold": 1.1, "alpha": 2.0},
    {"threshold": 1e-9},
    {"threshold": 1e9},
    {"align_p": False},
    {"align_n": False},
    {"unlikelihood": False},
    {"detection": False},
    {"detection": False, "align_n": False, "dynamic_weighting": False},
    {"dynamic_weighting": True, "gamma": 0.5},
    {"dynamic_weighting": False},
    {"dynamic_weighting": True, "gamma": 2.0, "align_n": False},
    {"differentiate_weight": True, "dynamic_weighting": True, "detection": False, "align_n": False},
    {"differentiate_weight": True, "gamma": 0.0},
    {"weighting": "token"},
    {"alpha": 0.0},
    {"cutoff": 40},
]


@pytest.mark.parametrize("version", ["v1", "v4"])
@pytest.mark.parametrize("change", SETTINGS, ids=str)
def test_loss_and_gradients_are_those_of_the_formulas(change, version, exact, text):
    cut = replace(CUT, version=version, **change)
    rows = list(cut.rows(MIXED, text, 0))
    loss = our_loss(exact, cut, rows)
    parameters = list(exact.parameters())
    ours = torch.autograd.grad(loss.total, parameters)
    by_example = [plain_loss(exact, text.tokenizer, row, cut) for row in MIXED]
    theirs = torch.autograd.grad(sum(by_example), parameters, retain_graph=True)
    assert loss.total.item() == pytest.approx(sum(by_example).item(), rel=1e-9)
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).norm()) <= 1e-8 * float(other.norm()) + 1e-14
    apart = [our_loss(exact, cut, [row]).total.item() for row in rows]
    assert apart == pytest.approx([one.item() for one in by_example if one.item()], rel=1e-9)
    scored = [our_loss(exact, cut, list(cut.parts(row, text))).total for row in MIXED]
    assert [one.item() for one in scored] == pytest.approx([one.item() for one in by_example], rel=1e-9)
    assert [row.mass for row in rows] == [1.0 if cut.weighting == "example" else len(row.source) / trees(row) for row in rows]


def trees(row: Row) -> int:
    return int((row.parent < 0).sum())


def test_the_settings_of_these_tests_detect_some_tokens_and_not_others(exact, text):
    for threshold, all_or_none in ((1.0, False), (1.2, False), (1.1, False), (1e-9, True), (1e9, True)):
        cut = replace(CUT, threshold=threshold)
        found, of = our_loss(exact, cut, list(cut.rows(MIXED, text, 0))).logs["detected"]
        assert (found in (0.0, of)) == all_or_none


def test_the_logs_are_the_terms_and_what_was_detected(exact, text):
    loss = our_loss(exact, CUT, list(CUT.rows(MIXED, text, 0)))
    alone = {
        "align_p": replace(CUT, unlikelihood=False, align_n=False),
        "misalign": replace(CUT, version="v4", dynamic_weighting=False, align_p=False, align_n=False),
        "align_n": replace(CUT, version="v4", align_p=False, unlikelihood=False),
    }
    for name, cut in alone.items():
        expected = sum(plain_loss(exact, text.tokenizer, row, cut).item() for row in MIXED)
        value, count = loss.logs[name]
        assert float(value) == pytest.approx(expected, rel=1e-9)
        assert count == pytest.approx(len(RIGHT) if name == "align_p" else len(WRONG))
    p_found = []
    for row in WRONG:
        x = probabilities(exact, *tokens_of(text.tokenizer, PLAIN.format(row.instruction), row.output, 512))
        j = probabilities(exact, *tokens_of(text.tokenizer, JUDGED.format(row.instruction, row.judgment), row.output, 512))
        p_found += [p.item() for p, q in zip(x, j, strict=True) if q.item() > 1.2 * p.item()]
    assert loss.logs["detected"][0] == len(p_found)
    total, count = loss.logs["unlikely"]
    assert (float(total), count) == (pytest.approx(sum(p_found), rel=1e-9), len(p_found))


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_row_holds_the_response_once_per_context_that_the_loss_reads(text):
    def roles(**change: Any) -> list[list[int]]:
        return [sorted(set(row.columns["role"].tolist())) for row in replace(CUT, **change).rows(MIXED[:2], text, 0)]

    both = [MISALIGN, ALIGN_N]
    assert roles() == [both, [ALIGN_P]]
    assert roles(align_p=False) == [both]
    assert roles(align_n=False) == [both, [ALIGN_P]]
    assert roles(align_n=False, detection=False) == [[MISALIGN], [ALIGN_P]]
    assert roles(align_n=False, detection=False, version="v4") == [both, [ALIGN_P]]
    assert roles(unlikelihood=False) == [[ALIGN_N], [ALIGN_P]]
    assert roles(unlikelihood=False, align_n=False) == [[ALIGN_P]]


def test_pairs_join_the_same_token_in_the_two_contexts(text):
    row = next(CUT.rows(WRONG, text, 0))
    half = len(row.source) // 2
    assert row.columns["pair"].tolist() == [half] * half + [-half] * half
    assert row.target[:half].tolist() == row.target[half:].tolist()
    assert row.target[half - 1] == text.tokenizer.eos_token_id
    assert trees(row) == 2
    assert [row.group for row in replace(CUT, align_p=False).rows(MIXED, text, 0)] == [0, 2, 3]  # the examples' numbers


def test_without_a_judgment_there_is_nothing_to_contrast(text):
    with pytest.raises(UserError, match=r"no row has a judgment.*\n.*method=sft"):
        list(CUT.rows(RIGHT, text, 0))
    assert len(list(CUT.rows(WRONG, text, 0))) == len(WRONG)


def test_only_judged_or_only_satisfactory_rows_in_a_batch(exact, text):
    rows = list(CUT.rows(MIXED, text, 0))
    for kept, records in (([0, 2, 3], WRONG), ([1, 4], RIGHT)):
        expected = sum(plain_loss(exact, text.tokenizer, row, CUT).item() for row in records)
        loss = our_loss(exact, CUT, [rows[i] for i in kept])
        assert loss.total.item() == pytest.approx(expected, rel=1e-9)
    assert loss.logs["detected"] == (0.0, 0.0)
    assert loss.logs["misalign"][1] == 0.0


@pytest.mark.parametrize("change", [{}, {"align_p": False}, {"align_n": False}], ids=str)
def test_a_response_of_one_token_and_a_truncated_context(change, exact, text):
    short = record("Say no. " * 200, "No", "It is a mistake.")
    cut = replace(CUT, **change)
    row = next(cut.rows([short], text, 0))
    ids, count = tokens_of(text.tokenizer, PLAIN.format(short.instruction), short.output, 512)
    assert (len(row.source), len(ids), count) == (4, 513, 2)
    assert our_loss(exact, cut, [row]).total.item() == pytest.approx(plain_loss(exact, text.tokenizer, short, cut).item(), rel=1e-9)


def test_training_never_reads_what_is_known_to_be_wrong(exact, text):
    known = [replace(row, faults=(Fault(0, 3, None),), reference="x", refined="y") for row in WRONG]
    outcomes = []
    for records in (WRONG, known):
        rows = list(CUT.rows(records, text, 0))
        loss = our_loss(exact, CUT, rows).total
        outcomes.append((float(loss), *torch.autograd.grad(loss, list(exact.parameters()))))
    assert rows[0].columns["gold"].max() == 1
    assert outcomes[0][0] == outcomes[1][0]
    for one, other in zip(outcomes[0][1:], outcomes[1][1:], strict=True):
        assert torch.equal(one, other)


# --- the loss alone --------------------------------------------------------------------------------------------------


def batch_of(*examples: tuple[list[float], list[float] | None]) -> tuple[torch.Tensor, Batch]:
    """Log-probabilities, without and with the judgment (None: satisfactory), and the batch that they belong to."""
    rows, logp = [], []
    for plain, judged in examples:
        n, copies = len(plain), 1 if judged is None else 2
        roles = [ALIGN_P] if judged is None else [MISALIGN, ALIGN_N]
        columns = {
            "role": np.repeat(roles, n),
            "share": np.full(n * copies, 1 / n),
            "pair": np.repeat([n, -n] if judged else [0], n),
            "gold": np.full(n * copies, -1),
        }
        nodes = np.arange(n * copies, dtype=np.int32)
        rows.append(Row(0, 1.0, nodes, nodes - 1, nodes, nodes, columns))
        logp += plain + (judged or [])
    return torch.tensor(logp, dtype=torch.float64, requires_grad=True), collate(rows)


def in_decimals(cut: Cut, plain: list[float], judged: list[float]) -> float:
    """The loss of a judged example, from log-probabilities, in scalars."""
    total, dynamic = 0.0, cut.version == "v4"
    for p, q in zip(plain, judged, strict=True):
        weight = cut.alpha * (math.exp(q * cut.gamma) if dynamic else 1.0)
        one = math.log(-math.expm1(p)) if p > -0.7 else math.log1p(-math.exp(p))
        total -= (weight * one if q - p > math.log(cut.threshold) else p) + q
    return total / len(plain) / (2 if cut.version == "v1" else 1)


RATIOS = st.floats(-5, 5).filter(lambda r: abs(r - math.log(1.2)) > 1e-6)
TOKENS = st.lists(st.tuples(st.floats(-900, -1e-12), RATIOS).filter(lambda t: t[0] + t[1] <= 0), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(TOKENS, min_size=1, max_size=4), st.sampled_from(["v1", "v4"]), st.floats(0, 3), st.floats(0, 3))
def test_loss_of_any_probabilities(examples, version, alpha, gamma):
    cut = replace(CUT, version=version, alpha=alpha, gamma=gamma)
    pairs = [([p for p, _ in tokens], [p + r for p, r in tokens]) for tokens in examples]
    logp, batch = batch_of(*pairs)
    loss = cut.loss(logp, batch)
    assert loss.total.item() == pytest.approx(sum(in_decimals(cut, *pair) for pair in pairs), rel=1e-9, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss.total, logp)
    assert gradient.isfinite().all()


def test_a_probability_that_underflows_is_detected_by_its_logarithm():
    logp, batch = batch_of(([-800.0, -800.0, -900.0], [-799.0, -799.9, -800.0]))
    loss = replace(CUT, version="v4").loss(logp, batch)
    assert loss.logs["detected"] == (2.0, 3.0)
    assert loss.total.item() == pytest.approx((800 + 799 + 799.9 + 800) / 3)
    (gradient,) = torch.autograd.grad(loss.total, logp)
    assert gradient.tolist() == pytest.approx([0, -1 / 3, 0, -1 / 3, -1 / 3, -1 / 3])


def test_where_p_is_one_the_authors_constant_stands_and_no_gradient_flows():
    cut = replace(CUT, detection=False, align_n=False)
    logp, batch = batch_of(([0.0, -1.0], [0.0, -1.0]))
    loss = cut.loss(logp, batch)
    assert SATURATED == 1e-5
    assert loss.total.item() == pytest.approx(-0.5 * 0.5 / 2 * (math.log(1e-5) + math.log(1 - math.exp(-1))))
    (gradient,) = torch.autograd.grad(loss.total, logp)
    assert gradient.tolist()[0] == 0
    assert gradient.tolist()[1] == pytest.approx(0.5 * 0.5 / 2 / (math.e - 1))


def test_equal_contexts_detect_nothing_at_threshold_one():
    values = [-1e-9, -0.5, -30.0, 0.0]
    logp, batch = batch_of((values, values))
    assert replace(CUT, threshold=1.0).loss(logp, batch).logs["detected"] == (0.0, 4.0)
    barely, batch = batch_of((values[1:3], [v + 1e-9 for v in values[1:3]]))
    assert replace(CUT, threshold=1.0).loss(barely, batch).logs["detected"] == (2.0, 2.0)


def test_detection_and_weight_are_detached_unless_asked():
    example = ([-2.0], [-1.0])
    gradients = {}
    for differentiate in (False, True):
        cut = replace(CUT, version="v4", align_n=False, gamma=2.0, alpha=0.5, differentiate_weight=differentiate)
        logp, batch = batch_of(example)
        (gradients[differentiate],) = torch.autograd.grad(cut.loss(logp, batch).total, logp)
    weight, p = 0.5 * math.exp(-2.0), math.exp(-2.0)
    direct = weight * p / (1 - p)
    assert gradients[False].tolist() == pytest.approx([direct, 0.0])
    assert gradients[True].tolist() == pytest.approx([direct, -2.0 * weight * math.log1p(-p)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("version", ["v1", "v4"])
def test_extreme_probabilities_give_finite_losses_and_gradients(version, dtype):
    extremes = [0.0, -1e-17, -1e-9, -1e-3, -0.7, -40.0, -800.0]
    pairs = [(p, q) for p in extremes for q in extremes]
    for change in ({}, {"detection": False}, {"differentiate_weight": True}, {"threshold": 1.0, "gamma": 0.0}):
        cut = replace(CUT, version=version, **change)
        values, batch = batch_of(([p for p, _ in pairs], [q for _, q in pairs]), (extremes, None))
        logp = values.detach().to(dtype).requires_grad_()
        loss = cut.loss(logp, batch)
        (gradient,) = torch.autograd.grad(loss.total, logp)
        assert loss.total.isfinite()
        assert gradient.isfinite().all()
        assert loss.total.dtype == dtype


# --- log(1 - p) ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logp", [-1e-300, -1e-17, -1e-9, -1e-3, -0.5, -0.69, -0.7, -1.0, -20.0, -40.0, -700.0, -800.0])
def test_log1mexp_keeps_every_digit(logp):
    reference = math.log(-math.expm1(logp)) if logp > -0.5 else math.log1p(-math.exp(logp))
    assert float(log1mexp(torch.tensor(logp, dtype=torch.float64), SATURATED)) == pytest.approx(reference, rel=1e-14, abs=0)


def test_gradient_of_log1mexp():
    logp = torch.tensor([-1e-3, -0.1, -math.log(2), -0.7, -3.0, -40.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: log1mexp(x, SATURATED), logp, eps=1e-9, atol=1e-6, rtol=1e-5)
    (gradient,) = torch.autograd.grad(log1mexp(logp, SATURATED).sum(), logp)
    assert gradient.tolist() == pytest.approx([-math.exp(v) / -math.expm1(v) for v in logp.tolist()], rel=1e-12)


# --- values that make no sense ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "v2"}, "version: "),
        ({"weighting": "row"}, "weighting: "),
        ({"threshold": 0.0}, "threshold: "),
        ({"threshold": math.inf}, "threshold: "),
        ({"alpha": -0.1}, "alpha: "),
        ({"gamma": math.nan}, "gamma: "),
        ({"cutoff": 1}, "cutoff: "),
        ({"align_p": False, "align_n": False, "unlikelihood": False}, "unlikelihood: .*nothing to train"),
        ({"template": "alpacca"}, "template: .*alpaca"),
    ],
    ids=str,
)
def test_values_are_refused_by_name(change, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        replace(CUT, **change)
