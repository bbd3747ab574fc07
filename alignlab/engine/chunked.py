"""Log-probabilities of chosen tokens without a [T, V] tensor of logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


class _EdgeLogProb(torch.autograd.Function):
    """log softmax(logits)[node, target] per edge; the backward pass makes one [n, V] tensor where autograd's own makes three."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, node: Tensor, target: Tensor) -> Tensor:
        lse = torch.logsumexp(logits, dim=-1)
        ctx.save_for_backward(logits, lse, node, target)
        return logits[node, target] - lse[node]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, lse, node, target = ctx.saved_tensors
        grad = grads[0]
        per_node = torch.zeros_like(lse).index_add_(0, node, grad)
        out = torch.sub(logits, lse[:, None]).exp_().mul_(per_node.neg_()[:, None])
        out.index_put_((node, target), grad, accumulate=True)
        return out, None, None


def edge_logprobs(logits: Tensor, node: Tensor, target: Tensor) -> Tensor:
    """Log-probability of each edge, [E], in the larger of fp32 and the dtype of the logits.

    Args:
        logits: [n, V].
        node: [E] row of ``logits`` that each edge reads.
        target: [E] token scored.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return _EdgeLogProb.apply(wide, node, target)


class _FrozenHeadLogProb(torch.autograd.Function):
    """:class:`_EdgeLogProb` of ``head(hidden)``, a linear map that is not trained: the gradient is made together with the value.

    That of log p(target) by the hidden state is weight[target] - sum over v of p(v) weight[v], [H]. Its second part is kept,
    [n, H], in place of the logits, [n, V]: nothing is stored that grows with the vocabulary, and nothing is computed twice.
    Where the rows of k tokens are trained, p of these, [n, k], is kept, too: the gradient by the row of v is ([v is the target]
    - p(v)) hidden.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        ids: Tensor,
        own: Tensor,
        node: Tensor,
        target: Tensor,
        head: Callable[[Tensor], Tensor],
        rows: int,
    ) -> Tensor:
        bounds = torch.searchsorted(node, torch.arange(0, len(hidden) + rows, rows, device=node.device)).tolist()
        mean, few, out = torch.empty_like(hidden), hidden.new_empty(len(hidden), len(ids)), []
        for i, first in enumerate(range(0, len(hidden), rows)):
            edges, nodes = slice(bounds[i], bounds[i + 1]), slice(first, first + rows)
            logits = head(hidden[nodes])
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            lse = torch.logsumexp(wide, dim=-1)
            at = node[edges] - first
            out.append(wide[at, target[edges]] - lse[at])
            share = wide.sub_(lse[:, None]).exp_()  # in place: of 16 bits it is a copy already, of more it is used up
            few[nodes] = share[:, ids]
            share.index_fill_(1, ids, 0.0)
            mean[nodes] = share.to(weight.dtype) @ weight
        if len(ids):
            mean.addmm_(few, own)
        ctx.save_for_backward(mean, weight, ids, own, node, target, few, hidden if len(ids) else None)
        return torch.cat(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        mean, weight, ids, own, node, target, few, hidden = ctx.saved_tensors
        grad = grads[0].to(mean.dtype)
        per_node = torch.zeros(len(mean), dtype=mean.dtype, device=mean.device).index_add_(0, node, grad)
        out = mean.mul(-per_node[:, None])
        edge, which = (target[:, None] == ids).nonzero(as_tuple=True)
        out.index_add_(0, node, weight[target].to(mean.dtype).index_copy_(0, edge, own[which]).mul_(grad[:, None]))
        few = few.mul(-per_node[:, None]).index_put_((node[edge], which), grad[edge], accumulate=True)
        by_rows = few.T @ hidden if len(ids) else None
        return out, None, None, by_rows, None, None, None, None


CACHED = 2**25
"""bytes of logits at a time on a CPU: more is no faster"""


@dataclass(frozen=True)
class FrozenHead:
    """A linear head that is not trained, but for the rows of k tokens."""

    weight: Tensor
    """[V, H] as stored"""
    ids: Tensor
    """[k] tokens whose rows are trained"""
    rows: Tensor
    """[k, H] these"""


def frozen_head(head: Any) -> FrozenHead | None:
    """What is computed with in a head that is frozen and computes in 32 bits or more; None of any other head.

    With fewer bits the gradient of a likely token, a small difference of two sums, would be lost in their rounding.
    """
    apart = getattr(getattr(head, "token_adapter", None), "apart", None)  # see models/token_rows.py
    base, ids, rows = apart() if apart else (head, (), None)
    plain = type(base) is torch.nn.Linear and not any(m._forward_hooks or m._forward_pre_hooks for m in (head, base))
    if not plain or any(p.requires_grad for p in base.parameters()) or base.weight.dtype.itemsize < 4:
        return None
    weight = base.weight
    if torch.is_autocast_enabled(weight.device.type):
        return None
    places = torch.tensor(ids, dtype=torch.int64, device=weight.device)
    return FrozenHead(weight, places, weight[:0] if rows is None else rows.to(weight.dtype))


def chunked_logprobs(
    hidden: Tensor,
    node: Tensor,
    target: Tensor,
    head: Callable[[Tensor], Tensor],
    vocabulary: int,
    budget_bytes: int,
    frozen: FrozenHead | None = None,
) -> Tensor:
    """:func:`edge_logprobs` of ``head(hidden)`` in chunks of nodes, recomputed in the backward pass.

    At no time do more than ``budget_bytes`` of logits exist (counting the fp32 copy and its gradient), or one node's.

    Args:
        hidden: [n, H] last hidden states of the scored nodes.
        node: [E], sorted: the edges of a node stand together.
        target: [E].
        head: the output embedding, called as a module: [m, H] -> [m, V].
        vocabulary: V.
        budget_bytes: memory for logits.
        frozen: the head, where it is linear (a bias may be added) and not trained but for some rows.
    """
    width = torch.promote_types(hidden.dtype, torch.float32).itemsize
    rows = max(1, int(budget_bytes // (vocabulary * width * 3)))
    if frozen is not None and hidden.requires_grad and torch.is_grad_enabled():
        if hidden.device.type == "cpu":
            rows = min(rows, max(1, CACHED // (vocabulary * width)))
        return _FrozenHeadLogProb.apply(hidden, frozen.weight, frozen.ids, frozen.rows, node, target, head, rows)
    if rows >= len(hidden):
        return edge_logprobs(head(hidden), node, target)

    def piece(part: Tensor, where: Tensor, what: Tensor) -> Tensor:
        return edge_logprobs(head(part), where, what)

    bounds = torch.searchsorted(node, torch.arange(0, len(hidden) + rows, rows, device=node.device)).tolist()
    out = []
    for i, first in enumerate(range(0, len(hidden), rows)):
        edges = slice(bounds[i], bounds[i + 1])
        arguments = (hidden[first : first + rows], node[edges] - first, target[edges])
        # preserve_rng_state: a head with dropout must draw the same mask again
        out.append(checkpoint(piece, *arguments, use_reentrant=False) if torch.is_grad_enabled() else piece(*arguments))
    return torch.cat(out)
