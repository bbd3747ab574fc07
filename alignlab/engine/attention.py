"""Who sees whom: one meaning, several speeds.

``padded``    every root-to-leaf path a line of its own, right-padded, the model's own attention: the plain way, works everywhere.
``masked``    the packed forest in one line under an additive ancestor mask.
``segments``  the packed forest in one line, attention computed tree by tree (chains causally, without a mask).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alignlab.engine.batch import Batch

NAME = "alignlab_segments"

_packed: ContextVar[bool] = ContextVar("packed", default=False)


def ancestor_mask(end: Tensor, depth: Tensor, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """Additive mask [T, 1, W, W]: 0 where node q may see node k (k is q or an ancestor of q), ``finfo.min`` elsewhere.

    Additive and finite on purpose: eager attention adds a boolean mask as 0 and 1, and ``-inf`` turns a fully masked row into NaN.

    Args:
        end: [T, W] one past the last descendant of each node, counted from the start of its line; 0 hides a node from all.
        depth: [T, W] position of each node on its path.
        dtype: dtype of the model's attention scores.
        window: sliding window in tokens, counted along the path.
    """
    index = torch.arange(end.shape[1], device=end.device)
    sees = (index[:, None] >= index) & (index[:, None] < end[:, None, :])
    if window is not None:
        sees &= depth[:, :, None] - depth[:, None, :] < window
    mask = torch.zeros(sees.shape, dtype=dtype, device=end.device)
    return mask.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def model_masks(config: PretrainedConfig, batch: Batch, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """The mask in the form the architecture takes: one tensor, or one per kind of layer where its layers differ.

    A mask made by hand switches the model's own sliding window off, so the window is part of it.
    """
    end, depth = batch.end[None], batch.depth[None]
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if kinds and any(kind != "full_attention" for kind in kinds):
        full = ancestor_mask(end, depth, dtype)
        return {"full_attention": full, "sliding_attention": ancestor_mask(end, depth, dtype, window)}
    if kinds or getattr(config, "use_sliding_window", True) is False:
        window = None
    return ancestor_mask(end, depth, dtype, window)


_WINDOWED = re.compile(r"window|block_size|attention_chunk|attn_chunk|local_attention|index_")
_KNOWN = ("sliding_window", "use_sliding_window", "max_window_layers")


def unknown_window(config: PretrainedConfig) -> str | None:
    """A setting by which the architecture limits attention in a way of its own, which a short trial would not show; or None."""
    settings = [name for name, value in vars(config).items() if isinstance(value, int) and value]
    return next((n for n in settings if _WINDOWED.search(n) and n not in _KNOWN and not n.endswith("_pattern")), None)


@contextmanager
def short_windows(model: torch.nn.Module, config: PretrainedConfig, length: int) -> Iterator[None]:
    """Cut every sliding window to ``length``, so that a short trial shows whether a backend keeps to them."""
    holders: list[Any] = [config, *model.modules()]
    windows = {id(h): h.sliding_window for h in holders if isinstance(getattr(h, "sliding_window", None), int)}
    cut = [holder for holder in holders if id(holder) in windows]
    try:
        for holder in cut:
            holder.sliding_window = min(length, windows[id(holder)])
        yield
    finally:
        for holder in cut:
            holder.sliding_window = windows[id(holder)]


@contextmanager
def packed() -> Iterator[None]:
    """Within it the model makes no mask: :func:`segments_attention` knows who sees whom."""
    token = _packed.set(True)
    try:
        yield
    finally:
        _packed.reset(token)


def _no_mask_if_packed(*args: Any, **kwargs: Any) -> Tensor | None:
    return None if _packed.get() else sdpa_mask(*args, **kwargs)


@dataclass(frozen=True)
class _Group:
    """T trees of like size, one call of the kernel; W nodes in the largest."""

    trees: int
    nodes: slice | Tensor
    """the trees' nodes, [T * W]; a smaller tree repeats its last one"""
    kept: slice | Tensor
    """which of these [T * W] places hold a node of their own"""
    chain: bool
    end: Tensor
    """[T, W] counted from the start of the tree, 0 for a repeated node"""
    depth: Tensor
    """[T, W]"""


class Forest:
    """What attention must know of a packed batch; keeps the masks for all layers."""

    def __init__(self, batch: Batch) -> None:
        order = sorted(batch.trees, key=lambda tree: (not tree[2], tree[1] - tree[0]))
        groups: list[list[tuple[int, int, bool]]] = []
        for tree in order:
            size, first = tree[1] - tree[0], groups[-1][0] if groups else None
            # A kernel call costs as much as some tokens do; longer trees would pay more for padding than they save.
            if first and tree[2] == first[2] and size <= 1.25 * (first[1] - first[0]) + 4:
                groups[-1].append(tree)
            else:
                groups.append([tree])
        self.groups = [self._group(batch, trees) for trees in groups]
        places = torch.cat([torch.arange(start, stop) for group in groups for start, stop, _ in group])
        ordered = bool((places[1:] > places[:-1]).all())
        self.place = None if ordered else torch.argsort(places).to(batch.end.device)
        """[N] where each node stands among the nodes of all groups; None where in the same place"""
        self._masks: dict[tuple[int, torch.dtype, int | None], Tensor] = {}

    @staticmethod
    def _group(batch: Batch, trees: list[tuple[int, int, bool]]) -> _Group:
        chain = trees[0][2]
        if len(trees) == 1:
            start, stop, _ = trees[0]
            nodes = slice(start, stop)
            return _Group(1, nodes, slice(None), chain, batch.end[None, nodes] - start, batch.depth[None, nodes])
        device = batch.end.device
        start, size = torch.tensor([[start, stop - start] for start, stop, _ in trees]).T[:, :, None]
        within = torch.arange(int(size.max()))
        index, real = (start + within.minimum(size - 1)).to(device), (within < size).to(device)
        end = torch.where(real, batch.end[index] - start.to(device), 0)
        return _Group(len(trees), index.flatten(), real.flatten().nonzero()[:, 0], chain, end, batch.depth[index])

    def mask(self, index: int, dtype: torch.dtype, window: int | None) -> Tensor | None:
        """Mask [T, 1, W, W] of a group, or None where plain causal attention is the same."""
        group = self.groups[index]
        if window is not None and window >= group.end.shape[1]:
            window = None
        if group.chain and window is None:
            return None
        key = (index, dtype, window)
        if key not in self._masks:
            self._masks[key] = ancestor_mask(group.end, group.depth, dtype, window)
        return self._masks[key]


def segments_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    forest: Forest | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over a packed forest, tree by tree, in transformers' attention interface; without a forest, the plain sdpa.

    ``query`` [1, heads, N, D], ``key`` and ``value`` [1, key heads, N, D]; gives [1, N, heads, D].

    Raises:
        NotImplementedError: the architecture asks for soft-capped scores, attention sinks or a mask of its own.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None or (forest and attention_mask is not None):
        raise NotImplementedError("soft-capped scores, attention sinks or a mask of the model's own")
    if forest is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    outputs = []
    for index, group in enumerate(forest.groups):
        mask = forest.mask(index, query.dtype, sliding_window)
        # [1, heads, N, D] -> [T, heads, W, D]
        q, k, v = (x[0][:, group.nodes].unflatten(1, (group.trees, -1)).transpose(0, 1) for x in (query, key, value))
        out, _ = sdpa_attention_forward(module, q, k, v, mask, is_causal=mask is None, **kwargs)
        outputs.append(out.flatten(0, 1)[group.kept])
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return (joined if forest.place is None else joined[forest.place])[None], None


AttentionInterface.register(NAME, segments_attention)
AttentionMaskInterface.register(NAME, _no_mask_if_packed)
