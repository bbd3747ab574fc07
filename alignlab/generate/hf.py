"""Sampling with a Hugging Face model: the prompt is computed once, and so is every prefix that samples share.

Samples that have drawn the same tokens so far have the same next-token distribution, so one row of the batch serves them all, and
each draws from it with its own random numbers. A model with few likely answers costs a few rows, however many samples are asked.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
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
        """
        import torch
        from transformers import DynamicCache

        steps = decoding.max_new_tokens
        uniform = np.stack([np.random.Generator(np.random.Philox(derive(seed, i))).random(steps) for i in range(n)])
        tokens = np.full((n, steps), -1, np.int64)
        ids = torch.tensor([list(prompt)], device=model.device)
        start = _Front(np.arange(n), np.zeros(n, np.int64), 0, ids, DynamicCache(config=model.config), None, 0)
        pending = [start]
        while pending:  # depth first: few fronts, and so few caches, wait at a time
            front = pending.pop()
            with torch.no_grad():
                logits = _logits(model, front)
            drawn = _draw(front, logits, decoding, uniform[front.samples, front.position])
            tokens[front.samples, front.position] = drawn
            if front.position + 1 < steps:
                pending.extend(_continue(front, drawn, np.isin(drawn, list(stop)), self.rows))
        ended = np.isin(tokens, list(stop))
        stopped = np.array(ended.any(1))
        lengths: np.ndarray = np.where(stopped, ended.argmax(1) + 1, steps)
        return [
            Completion(tuple(row[:length].tolist()), "stop" if done else "length")
            for row, length, done in zip(tokens, lengths.tolist(), stopped.tolist(), strict=True)
        ]


def stream(model: Any, prompt: Sequence[int], stop: Sequence[int], decoding: Decoding, seed: int) -> Iterator[int]:
    """The tokens of one completion as they are drawn, the one that ends it included; likeliest ones as the sampler takes them."""
    import torch
    from transformers import DynamicCache

    ids, one = torch.tensor([list(prompt)], device=model.device), np.zeros(1, np.int64)
    front = _Front(one, one, 0, ids, DynamicCache(config=model.config), None, 0)
    for number in np.random.Generator(np.random.Philox(seed)).random(decoding.max_new_tokens):
        with torch.no_grad():
            drawn = _draw(front, _logits(model, front), decoding, np.array([number]))
        yield int(drawn[0])
        if drawn[0] in stop:
            return
        (front,) = _continue(front, drawn, np.zeros(1, bool), 1)


@dataclass
class _Front:
    """Distinct prefixes of one length, to be computed together. U prefixes, S samples."""

    samples: np.ndarray
    """[S] which samples"""
    prefix: np.ndarray
    """[S] the row of each"""
    position: int
    """of the token to draw, from 0"""
    ids: Tensor
    """[U, T] prompt and what was drawn so far"""
    cache: DynamicCache
    """of the prefixes that these continue by a token; shared with other fronts, never changed"""
    origin: Tensor | None
    """[U] the row of the cache that each continues; None for the prompt, of which nothing is computed yet"""
    width: int
    """rows of the cache"""


def _logits(model: Any, front: _Front) -> Tensor:
    """Next-token logits of each prefix, [U, V]; the front's cache becomes its own."""
    import torch

    if front.origin is None:
        return model(input_ids=front.ids, past_key_values=front.cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    cache = copy.copy(front.cache)
    cache.layers = [copy.copy(layer) for layer in front.cache.layers]
    if not torch.equal(
        front.origin, torch.arange(front.width, device=front.origin.device)
    ):  # once no two samples share anything, there is nothing to pick
        cache.batch_select_indices(front.origin)
    front.cache = cache
    past = front.ids.shape[1] - 1
    place = torch.full((len(front.ids), 1), past, device=front.ids.device)
    return model(input_ids=front.ids[:, -1:], position_ids=place, past_key_values=cache, use_cache=True).logits[:, -1]


def _continue(front: _Front, drawn: np.ndarray, ended: np.ndarray, limit: int) -> list[_Front]:
    """The new distinct prefixes, at most ``limit`` in a front."""
    import torch

    if ended.all():
        return []
    pairs, row = np.unique(np.stack([front.prefix[~ended], drawn[~ended]]), axis=1, return_inverse=True)
    row, samples, fronts = row.reshape(-1), front.samples[~ended], []
    for first in range(0, pairs.shape[1], limit):
        mine = (row >= first) & (row < first + limit)
        origin, token = torch.from_numpy(pairs[:, first : first + limit]).to(front.ids.device)
        ids = torch.cat([front.ids[origin], token[:, None]], dim=1)
        fronts.append(_Front(samples[mine], row[mine] - first, front.position + 1, ids, front.cache, origin, len(front.ids)))
    return fronts


def _draw(front: _Front, logits: Tensor, decoding: Decoding, uniform: np.ndarray) -> np.ndarray:
    """One token per sample, by inverting the cumulative distribution of its prefix, in float64."""
    import torch

    if decoding.temperature == 0:
        return logits.argmax(-1).cpu().numpy()[front.prefix]
    scores = decoding.processors()(front.ids, logits.float())  # type: ignore[arg-type]
    out = np.empty(len(front.prefix), np.int64)
    for first in range(0, len(scores), 64):  # float64 for a few rows at a time: vocabularies are large
        cumulative = torch.softmax(scores[first : first + 64].double(), dim=-1).cumsum(-1).cpu().numpy()
        for u in range(len(cumulative)):
            mine = np.flatnonzero(front.prefix == first + u)
            token = np.searchsorted(cumulative[u], uniform[mine] * cumulative[u, -1], side="right")
            out[mine] = np.minimum(token, cumulative.shape[1] - 1)
    return out
