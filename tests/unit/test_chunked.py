"""Log-probabilities of chosen tokens: against the plain softmax, whole and in chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from alignlab.engine.chunked import chunked_logprobs, edge_logprobs, frozen_head
from alignlab.models.token_rows import use_token_rows

VOCABULARY, HIDDEN, NODES = 23, 8, 11


def draw(edges: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, nn.Linear]:
    torch.manual_seed(0)
    hidden = torch.randn(NODES, HIDDEN, dtype=dtype, requires_grad=True)
    node, target = torch.randint(0, NODES, (edges,)), torch.randint(0, VOCABULARY, (edges,))
    return hidden, node, target, nn.Linear(HIDDEN, VOCABULARY, dtype=dtype)


def plain(logits: Tensor, node: Tensor, target: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)[node, target]


def gradients(logp: Tensor, *of: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1.3, len(logp), dtype=torch.float64)
    return list(torch.autograd.grad((weights * logp.double()).sum(), of))


def test_edges_in_any_order_several_per_node_some_nodes_without() -> None:
    hidden, node, target, head = draw(40)
    node[:5], target[:5] = 3, 7  # the same edge five times
    node[node == 2] = 4
    assert (node[1:] < node[:-1]).any()
    logits = head(hidden)
    mine, theirs = edge_logprobs(logits, node, target), plain(head(hidden), node, target)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)
    for one, other in zip(gradients(mine, hidden, head.weight), gradients(theirs, hidden, head.weight), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    alone = logits.detach().requires_grad_()
    assert not torch.autograd.grad(edge_logprobs(alone, node, target).sum(), alone)[0][2].any()


def test_gradcheck() -> None:
    torch.manual_seed(1)
    logits = (3 * torch.randn(4, 6, dtype=torch.float64)).requires_grad_()
    node, target = torch.tensor([3, 0, 0, 1, 3, 3]), torch.tensor([5, 0, 2, 1, 5, 4])
    assert torch.autograd.gradcheck(lambda x: edge_logprobs(x, node, target), (logits,))


def test_a_second_derivative_is_refused_not_wrong() -> None:
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(edge_logprobs(logits, torch.tensor([0]), torch.tensor([1])).sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        first.sum().backward()


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    logp = edge_logprobs(logits, torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert logp.tolist() == [0.0, -2e4]
    assert torch.autograd.grad(logp.sum(), logits)[0].tolist() == [[-1.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("dtype", "wide", "tolerance"),
    [
        (torch.float16, torch.float32, 2e-3),
        (torch.bfloat16, torch.float32, 2e-2),
        (torch.float32, torch.float32, 1e-6),
        (torch.float64, torch.float64, 1e-14),
    ],
)
def test_result_is_at_least_fp32_and_the_gradient_in_the_logits_dtype(
    dtype: torch.dtype, wide: torch.dtype, tolerance: float
) -> None:
    _, node, target, _ = draw(20)
    logits = torch.randn(NODES, VOCABULARY, dtype=torch.float64).to(dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    logp = edge_logprobs(logits, node, target)
    assert logp.dtype == wide
    torch.testing.assert_close(logp.double(), plain(exact, node, target), rtol=0, atol=1e-6)
    (gradient,), (reference,) = gradients(logp, logits), gradients(plain(exact, node, target), exact)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient.double(), reference, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rows", [1, 2, 4, NODES - 1, NODES, 1000])
@pytest.mark.parametrize("edges", [0, 1, 60])
def test_chunks_give_the_same_and_never_exceed_the_budget(rows: int, edges: int) -> None:
    hidden, node, target, head = draw(edges)
    node = node.sort().values
    seen: list[int] = []

    def watched(part: Tensor) -> Tensor:
        seen.append(len(part))
        return head(part)

    logp = chunked_logprobs(hidden, node, target, watched, VOCABULARY, rows * VOCABULARY * 8 * 3)
    reference = plain(head(hidden), node, target)
    torch.testing.assert_close(logp, reference, rtol=0, atol=1e-13)
    mine, theirs = gradients(logp, hidden, head.weight), gradients(reference, hidden, head.weight)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    assert max(seen) == min(rows, NODES)
    assert sum(seen) == (NODES if rows >= NODES else 2 * NODES)  # recomputed, once, only where it was cut


def test_without_gradients_nothing_is_recomputed_or_kept() -> None:
    hidden, node, target, head = draw(30)
    node = node.sort().values
    with torch.no_grad():
        logp = chunked_logprobs(hidden, node, target, head, VOCABULARY, 1)
        torch.testing.assert_close(logp, plain(head(hidden), node, target), rtol=0, atol=1e-13)
    assert not logp.requires_grad


def test_between_forward_and_backward_no_logits_are_kept() -> None:
    """What the graph of a chunked head holds is a fraction of what the whole head's holds."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    def largest(budget: int) -> int:
        hidden, node, target, head = draw(30)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            chunked_logprobs(hidden, node.sort().values, target, head, VOCABULARY, budget)
        return max(tensor.numel() for tensor in kept)

    assert largest(10**9) == NODES * VOCABULARY
    assert largest(2 * VOCABULARY * 8 * 3) < NODES * HIDDEN + 1


def test_a_head_with_dropout_draws_the_same_mask_again() -> None:
    hidden, node, target, head = draw(40)
    node = node.sort().values
    dropping: Any = nn.Sequential(nn.Dropout(0.5), head)
    budget = 3 * VOCABULARY * 8 * 3
    bounds = range(0, NODES, 3)

    torch.manual_seed(3)
    logp = chunked_logprobs(hidden, node, target, dropping, VOCABULARY, budget)
    mine = gradients(logp, hidden)
    torch.manual_seed(3)
    logits = torch.cat([dropping(hidden[first : first + 3]) for first in bounds])
    torch.testing.assert_close(logp, plain(logits, node, target), rtol=0, atol=1e-13)
    torch.testing.assert_close(mine, gradients(plain(logits, node, target), hidden), rtol=0, atol=1e-13)


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_frozen_head_gives_the_same_and_keeps_no_logits(rows: int, dtype: torch.dtype) -> None:
    hidden, node, target, head = draw(40, dtype)
    node = node.sort().values
    node[node == 2] = 1
    frozen = frozen_head(head.requires_grad_(False))
    assert frozen is not None
    assert frozen.weight is head.weight
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        mine = chunked_logprobs(hidden, node, target, head, VOCABULARY, rows * VOCABULARY * 8 * 3, frozen)
    nothing = {(0,), (0, HIDDEN), (NODES, 0)}  # rows that are trained
    assert {*kept} - nothing <= {(NODES, HIDDEN), (VOCABULARY, HIDDEN), (40,)}
    theirs = plain(head(hidden), node, target)
    assert mine.dtype == theirs.dtype
    atol = {torch.float64: 1e-14, torch.float32: 2e-6}[dtype]
    torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)
    (one,), (other,) = gradients(mine, hidden), gradients(theirs, hidden)
    torch.testing.assert_close(one, other, rtol=0, atol=8 * atol)


def test_gradcheck_of_a_frozen_head() -> None:
    torch.manual_seed(1)
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    head = nn.Linear(3, 6, dtype=torch.float64).requires_grad_(False)
    node, target = torch.tensor([0, 0, 1, 3, 3, 3]), torch.tensor([5, 0, 2, 1, 5, 4])

    def logp(x: Tensor) -> Tensor:
        return chunked_logprobs(x, node, target, head, 6, 1, frozen_head(head))

    assert torch.autograd.gradcheck(logp, (hidden,))


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_a_head_that_is_frozen_but_for_some_rows(rows: int, bias: bool) -> None:
    """Against the plain softmax over a matrix that has the rows in place, in float64, targets among them and not."""
    hidden, node, target, _ = draw(60)
    node = node.sort().values
    node[node == 2] = 1
    ids = [20, 3, 7]
    target[:6] = torch.tensor([20, 3, 7, 7, 3, 4])
    head = nn.Linear(HIDDEN, VOCABULARY, bias=bias, dtype=torch.float64).requires_grad_(False)
    own = torch.randn(3, HIDDEN, dtype=torch.float64, requires_grad=True)
    layer: Any = nn.ModuleDict({"q": nn.Linear(2, 2), "lm_head": head})
    config = LoraConfig(target_modules=["q"], trainable_token_indices={"lm_head": ids})  # type: ignore[arg-type]
    wrapped: Any = get_peft_model(layer, config)
    use_token_rows(wrapped)
    whole = wrapped.base_model.model["lm_head"]
    learned = whole.token_adapter.trainable_tokens_delta["default"]
    with torch.no_grad():
        learned.copy_(own)
    frozen = frozen_head(whole)
    assert frozen is not None
    assert frozen.weight is head.weight
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        mine = chunked_logprobs(hidden, node, target, whole, VOCABULARY, rows * VOCABULARY * 8 * 3, frozen)
    allowed = {(NODES, HIDDEN), (VOCABULARY, HIDDEN), (3, HIDDEN), (NODES, 3), (60,), (3,)}
    assert {*kept} <= allowed
    theirs = plain(nn.functional.linear(hidden, head.weight.index_copy(0, torch.tensor(ids), own), head.bias), node, target)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)
    for one, other in zip(gradients(mine, hidden, learned), gradients(theirs, hidden, own), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    with wrapped.disable_adapter():
        assert not len(frozen_head(whole).ids)  # type: ignore[union-attr]


def test_only_a_plain_head_that_is_not_trained_is_taken_for_one() -> None:
    head = nn.Linear(3, 6)
    assert frozen_head(head) is None  # it is trained
    head.requires_grad_(False)
    found = frozen_head(head)
    assert found is not None
    assert found.weight is head.weight
    assert not len(found.ids)
    head.register_forward_hook(lambda *_: None)
    assert frozen_head(head) is None
    assert frozen_head(nn.Sequential(nn.Linear(3, 6)).requires_grad_(False)) is None
    assert frozen_head(nn.Linear(3, 6, dtype=torch.bfloat16).requires_grad_(False)) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert frozen_head(nn.Linear(3, 6).requires_grad_(False)) is None


@pytest.mark.parametrize("gap", [2.0, 5.0, 9.0])
def test_the_gradient_of_a_likely_token_is_as_exact_as_that_of_the_plain_way(gap: float) -> None:
    torch.manual_seed(0)
    exact = nn.Linear(64, 500, dtype=torch.float64).requires_grad_(False)
    hidden = torch.randn(3, 64, dtype=torch.float64)
    hidden += gap * exact.weight[7] / exact.weight[7].square().sum()  # 1 - p from 0.8 down to 1e-3
    node, target = torch.arange(3), torch.full((3,), 7)
    (truth,) = torch.autograd.grad(plain(exact(h := hidden.clone().requires_grad_()), node, target).sum(), h)
    head = nn.Linear(64, 500).requires_grad_(False)
    head.load_state_dict(exact.state_dict())
    errors = []
    for frozen in (frozen_head(head), None):
        h = hidden.float().requires_grad_()
        (found,) = torch.autograd.grad(chunked_logprobs(h, node, target, head, 500, 1 << 30, frozen).sum(), h)
        errors.append(float((found.double() - truth).norm() / truth.norm()))
    assert errors[0] < 1e-4
    assert errors[0] < 30 * errors[1] + 1e-6
