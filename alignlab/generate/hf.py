"""Sampling with a Hugging Face model: the prompt is computed once, and so is every prefix that samples share.

Samples that have drawn the same tokens so far have the same next-token distribution, so one row of the batch serves them all, and
each draws from it with its own random numbers. A model with few likely answers costs a few rows, however many samples are asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.config import at_least
from alignlab.seeds import derive

if TYPE_CHECKING:  # a configuration is checked without torch: each function imports what it computes with
    from torch import Tensor
    from transformers import DynamicCache, LogitsProcessorList


@dataclass(frozen=True)
class Decoding:
    """How to draw tokens."""

    temperature: float
    """0 takes the likeliest token"""
    top_p: float
    top_k: int
    """0: no limit"""
    max_new_tokens: int

    def __post_init__(self) -> None:
        at_least("temperature", self.temperature, 0)
        at_least("top_k", self.top_k, 0)
        at_least("max_new_tokens", self.max_new_tokens, 1)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: must be in (0, 1], not {self.top_p}")

    def processors(self) -> LogitsProcessorList:
        """The warpers of transformers, in the order that ``generate`` applies them."""
        from transformers import LogitsProcessorList
        from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        chosen: list[Any] = []
        if self.temperature not in (0.0, 1.0):
            chosen.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            chosen.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            chosen.append(TopPLogitsWarper(self.top_p))
        return LogitsProcessorList(chosen)


@dataclass(frozen=True)
class Completion:
    """Token ids of one sample, and why it ended: ``stop`` or ``length``."""

    tokens: tuple[int, ...]
    finish: str


@dataclass
class HfSampler:
    """Samples in the process that runs the stage.

    Args:
        rows: distinct prefixes computed at once; more memory, more speed, the same samples.
    """

    rows: int

    def __post_init__(self) -> None:
        at_least("rows", self.rows, 1)

    def sample(
        self,
        model: Any,
        prompt: Sequence[int],
        stop: Sequence[int],
        decoding: Decoding,
        *,
        n: int,
        seed: int,
        check: Callable[[], None] = lambda: None,
    ) -> list[Completion]:
        """Draw ``n`` completions of a prompt.

        Sample i depends on (seed, i) and the model alone: not on ``n``, nor on how many are computed together (up to the rounding
        of the model's arithmetic).

        Args:
            model: a causal LM in evaluation mode.
            prompt: token ids.
            stop: ids of the tokens that end a completion.
            decoding: how to draw.
            n: number of samples.
            seed: of this prompt's samples.
            check: called before each token; may raise to end the sampling.
        """
        import torch
        from transformers import DynamicCache

        steps = decoding.max_new_tokens
        uniform = np.stack([np.random.Generator(np.random.Philox(derive(seed, i))).random(steps) for i in range(n)])
        tokens = np.full((n, steps), -1, np.int64)
        with torch.no_grad():
            ids = torch.tensor([list(prompt)], device=model.device)
            cache = DynamicCache(config=model.config)
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            pending = [_Front(np.arange(n), np.zeros(n, np.int64), logits, cache, ids)]
            while pending:
                check()
                front = pending.pop()
                pending.extend(_advance(model, front, decoding, uniform, tokens, frozenset(stop), self.rows))
        ended = np.isin(tokens, list(stop))
        stopped = np.array(ended.any(1))
        lengths: np.ndarray = np.where(stopped, ended.argmax(1) + 1, steps)
        return [
            Completion(tuple(row[:length].tolist()), "stop" if done else "length")
            for row, length, done in zip(tokens, lengths.tolist(), stopped.tolist(), strict=True)
        ]


@dataclass
class _Front:
    """Prefixes that are computed together. U prefixes, S samples."""

    samples: np.ndarray
    """[S] which samples"""
    prefix: np.ndarray
    """[S] the row of each"""
    logits: Tensor
    """[U, V] of the next token"""
    cache: DynamicCache
    ids: Tensor
    """[U, T] prompt and what was drawn so far"""


def _advance(
    model: Any, front: _Front, decoding: Decoding, uniform: np.ndarray, tokens: np.ndarray, stop: frozenset[int], limit: int
) -> list[_Front]:
    """Draw the next token of every sample, then compute each new distinct prefix once. A front too wide is cut in two."""
    import torch

    position = front.ids.shape[1] - _prompt_length(tokens, front)
    drawn = _draw(front, decoding, uniform[front.samples, position])
    tokens[front.samples, position] = drawn
    alive = ~np.isin(drawn, list(stop))
    if position + 1 == tokens.shape[1] or not alive.any():
        return []
    pairs, row = np.unique(np.stack([front.prefix[alive], drawn[alive]]), axis=1, return_inverse=True)
    row, samples = row.reshape(-1), front.samples[alive]
    fronts = []
    count = pairs.shape[1]
    for first in range(0, count, limit):
        last = min(first + limit, count)
        mine = (row >= first) & (row < last)
        origin = torch.from_numpy(pairs[0, first:last]).to(front.ids.device)
        token = torch.from_numpy(pairs[1, first:last]).to(front.ids.device)
        cache = front.cache if last == count else _copy(front.cache)
        cache.batch_select_indices(origin)
        ids = torch.cat([front.ids[origin], token[:, None]], dim=1)
        past = ids.shape[1] - 1
        output = model(
            input_ids=token[:, None],
            position_ids=torch.full((len(token), 1), past, device=ids.device),
            past_key_values=cache,
            use_cache=True,
        )
        fronts.append(_Front(samples[mine], row[mine] - first, output.logits[:, -1], cache, ids))
    return fronts


def _prompt_length(tokens: np.ndarray, front: _Front) -> int:
    done = int((tokens[front.samples[0]] >= 0).sum())
    return front.ids.shape[1] - done


def _copy(cache: DynamicCache) -> DynamicCache:
    import copy

    return copy.deepcopy(cache)


def _draw(front: _Front, decoding: Decoding, uniform: np.ndarray) -> np.ndarray:
    """One token per sample, by inverting the cumulative distribution of its prefix, in float64."""
    import torch

    if decoding.temperature == 0:
        return front.logits.argmax(-1).cpu().numpy()[front.prefix]
    scores = decoding.processors()(front.ids, front.logits.float())  # type: ignore[arg-type]
    out = np.empty(len(front.prefix), np.int64)
    for first in range(0, len(scores), 64):  # float64 for a few rows at a time: vocabularies are large
        cumulative = torch.softmax(scores[first : first + 64].double(), dim=-1).cumsum(-1).cpu().numpy()
        for u in range(len(cumulative)):
            mine = np.flatnonzero(front.prefix == first + u)
            token = np.searchsorted(cumulative[u], uniform[mine] * cumulative[u, -1], side="right")
            out[mine] = np.minimum(token, cumulative.shape[1] - 1)
    return out
