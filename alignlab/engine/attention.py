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
BLOCK = 256
"""queries of a large trie that are computed together: of 128, 256 and 512 the fastest on a CPU"""

_packed: ContextVar[bool] = ContextVar("packed", default=False)


Places = slice | Tensor


def ancestor_mask(
    end: Tensor,
    depth: Tensor,
    dtype: torch.dtype,
    window: int | None = None,
    *,
    queries: Places = slice(None),
    keys: Places = slice(None),
) -> Tensor:
    """Additive mask [T, 1, Q, K]: 0 where node q may see node k (k is q or an ancestor of q), ``finfo.min`` elsewhere.

    Additive and finite on purpose: eager attention adds a boolean mask as 0 and 1, and ``-inf`` turns a fully masked row into NaN.

    Args:
        end: [T, W] one past the last descendant of each node, counted from the start of its line.
        depth: [T, W] position of each node on its path.
        dtype: dtype of the model's attention scores.
        window: sliding window in tokens, counted along the path.
        queries: which Q of the W places look.
        keys: which K of the W places are looked at.
    """
    index = torch.arange(end.shape[1], device=end.device)
    looks = index[queries][:, None]
    sees = (looks >= index[keys]) & (looks < end[:, None, keys])
    if window is not None:
        sees &= depth[:, queries, None] - depth[:, None, keys] < window
    mask = torch.zeros(sees.shape, dtype=dtype, device=end.device)
    return mask.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def score_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype of attention scores: autocast's where it is on. The least number of a wider one would become ``-inf`` in it."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


def model_masks(config: PretrainedConfig, batch: Batch, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """The mask in the form the architecture takes: one tensor, or one per kind of layer where its layers differ.

    A mask made by hand switches the model's own sliding window off, so the window is part of it.
    """
    end, depth = batch.end[None], batch.depth[None]
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if kinds and any(kind != "full_attention" for kind in kinds):
        full = ancestor_mask(end, depth, dtype)
        return {"full_attention": full, "sliding_attention": ancestor_mask(end, depth, dtype, window)}
    return ancestor_mask(end, depth, dtype, None if kinds else window)


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
    """T trees of like size, filled up to the W nodes of the largest."""

    chain: bool
    nodes: Tensor
    """[T, W]; a smaller tree repeats its last one, at places that come after all its own and so are seen by none of them"""
    own: Tensor
    """[T, W] False where a node is repeated"""
    end: Tensor
    """[T, W] counted from the start of the tree"""
    depth: Tensor
    """[T, W]"""
    blocks: tuple[tuple[Places, Places], ...]
    """(queries, keys) among the W places: a large trie is cut, since most of its nodes do not see one another"""


class Forest:
    """What attention must know of a packed batch: its trees in groups of like size. Keeps the masks for all layers."""

    def __init__(self, batch: Batch) -> None:
        groups: list[list[tuple[int, int, bool]]] = []
        for tree in sorted(batch.trees, key=lambda tree: (not tree[2], tree[1] - tree[0])):
            size, first = tree[1] - tree[0], groups[-1][0] if groups else None
            # A kernel call costs as much as some tokens do; longer trees would pay more for filling up than they save.
            if first and tree[2] == first[2] and size <= 1.25 * (first[1] - first[0]) + 4 and (tree[2] or size <= 2 * BLOCK):
                groups[-1].append(tree)
            else:
                groups.append([tree])
        self.groups = [_group(batch, trees) for trees in groups]
        self.order = torch.cat([group.nodes.flatten() for group in self.groups])
        """[P] the node at each place of all groups"""
        own = torch.cat([group.own.flatten() for group in self.groups]).nonzero()[:, 0]
        self.place = torch.empty_like(batch.end)
        """[N] the place of each node"""
        self.place[self.order[own]] = own
        self._masks: dict[tuple[int, int, torch.dtype, int | None], Tensor] = {}

    def mask(self, index: int, block: int, dtype: torch.dtype, window: int | None) -> Tensor | None:
        """Mask [T, 1, Q, K] of a block of a group, or None where plain causal attention is the same."""
        group = self.groups[index]
        if window is not None and window >= group.end.shape[1]:
            window = None
        if group.chain and window is None:
            return None
        key = (index, block, dtype, window)
        if key not in self._masks:
            queries, keys = group.blocks[block]
            self._masks[key] = ancestor_mask(group.end, group.depth, dtype, window, queries=queries, keys=keys)
        return self._masks[key]


def _group(batch: Batch, trees: list[tuple[int, int, bool]]) -> _Group:
    chain = trees[0][2]
    start, size = torch.tensor([[start, stop - start] for start, stop, _ in trees], device=batch.end.device).T[:, :, None]
    width = max(stop - start for start, stop, _ in trees)
    within = torch.arange(width, device=batch.end.device)
    nodes = start + within.minimum(size - 1)
    end = batch.end[nodes] - start
    blocks: list[tuple[Places, Places]] = [(slice(None), slice(None))]
    if not chain and width > 2 * BLOCK:
        blocks = []
        for first in range(0, width, BLOCK):
            last = min(first + BLOCK, width)
            blocks.append((slice(first, last), (end[0, :last] > first).nonzero()[:, 0]))
    return _Group(chain, nodes, within < size, end, batch.depth[nodes], tuple(blocks))


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
    sizes, dtype = [group.nodes.numel() for group in forest.groups], score_dtype(query.device, query.dtype)
    outputs = []
    for index, parts in enumerate(zip(*(x[0][:, forest.order].split(sizes, 1) for x in (query, key, value)), strict=True)):
        group = forest.groups[index]
        q, k, v = (x.unflatten(1, group.nodes.shape).transpose(0, 1) for x in parts)  # [T, heads, W, D]
        for block, (queries, keys) in enumerate(group.blocks):
            mask = forest.mask(index, block, dtype, sliding_window)
            out, _ = sdpa_attention_forward(
                module, q[:, :, queries], k[:, :, keys], v[:, :, keys], mask, is_causal=mask is None, **kwargs
            )
            outputs.append(out.flatten(0, 1))  # [T * Q, heads, D]
    return torch.cat(outputs)[forest.place][None], None


AttentionInterface.register(NAME, segments_attention)
AttentionMaskInterface.register(NAME, _no_mask_if_packed)
