"""Log-probabilities of chosen tokens without a [T, V] tensor of logits."""

from __future__ import annotations

from collections.abc import Callable
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


def chunked_logprobs(
    hidden: Tensor, node: Tensor, target: Tensor, head: Callable[[Tensor], Tensor], vocabulary: int, budget_bytes: int
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
    """
    width = torch.promote_types(hidden.dtype, torch.float32).itemsize
    rows = max(1, int(budget_bytes // (vocabulary * width * 3)))
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
