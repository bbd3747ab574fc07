"""Sampling with a Hugging Face model: the prompt is computed once, and so is every prefix that samples share.

Samples that have drawn the same tokens so far have the same next-token distribution, so one row of the batch serves them all, and
each draws from it with its own random numbers. A model with few likely answers costs a few rows, however many samples are asked.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.config import at_least
from alignlab.seeds import derive
from alignlab.workshop import Answer

if TYPE_CHECKING:  # a configuration is checked without torch: each function imports what it computes with
    from torch import Tensor
    from transformers import DynamicCache, LogitsProcessorList

    from alignlab.protocols import Request
    from alignlab.workshop import Workshop


@dataclass(frozen=True)
class Decoding:
    """How to draw tokens."""

    temperature: float
    """0 takes the likeliest token"""
    top_p: float
    top_k: int
    """0: no limit"""
    max_new_tokens: int
    min_tokens: int = 0
    """no stop token is drawn before prompt and completion have as many tokens together; 0: no limit"""
    no_repeat_ngram_size: int = 0
    """no sequence of as many tokens stands twice in prompt and completion together; 0: no limit"""

    def __post_init__(self) -> None:
        at_least("temperature", self.temperature, 0)
        for name in ("top_k", "min_tokens", "no_repeat_ngram_size"):
            at_least(name, getattr(self, name), 0)
        at_least("max_new_tokens", self.max_new_tokens, 1)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: must be in (0, 1], not {self.top_p}")

    def processors(self, stop: Sequence[int], device: Any) -> LogitsProcessorList:
        """The processors of transformers, in the order that ``generate`` applies them; warpers only where tokens are drawn."""
        from transformers import LogitsProcessorList
        from transformers.generation.logits_process import (
            MinLengthLogitsProcessor,
            NoRepeatNGramLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        chosen: list[Any] = []
        if self.no_repeat_ngram_size:
            chosen.append(NoRepeatNGramLogitsProcessor(self.no_repeat_ngram_size))
        if self.min_tokens and stop:
            chosen.append(MinLengthLogitsProcessor(self.min_tokens, list(stop), device))
        if self.temperature not in (0.0, 1.0):
            chosen.append(TemperatureLogitsWarper(self.temperature))
        if self.temperature and self.top_k:
            chosen.append(TopKLogitsWarper(self.top_k))
        if self.temperature and self.top_p < 1.0:
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
        batch: requests that :meth:`answers` answers at once; as much of both, and as many answers are lost where it is cut off.
    """

    rows: int
    batch: int

    def __post_init__(self) -> None:
        at_least("rows", self.rows, 1)
        at_least("batch", self.batch, 1)

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
        """Draw ``n`` completions of a prompt; see :meth:`sample_many`."""
        return self.sample_many(model, [prompt], stop, decoding, n=n, seeds=[seed])[0]

    def sample_many(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        stop: Sequence[int],
        decoding: Decoding,
        *,
        n: int,
        seeds: Sequence[int],
        context: int | None = None,
        lengths: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """Draw ``n`` completions of each prompt; see :meth:`batches`."""
        drawn: list[list[Completion]] = [[] for _ in prompts]
        for batch in self.batches(model, prompts, stop, decoding, n=n, seeds=seeds, context=context, lengths=lengths):
            for place, completions in batch:
                drawn[place] = completions
        return drawn

    def batches(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        stop: Sequence[int],
        decoding: Decoding,
        *,
        n: int,
        seeds: Sequence[int],
        context: int | None = None,
        lengths: Sequence[int] | None = None,
        done: Collection[int] = (),
    ) -> Iterator[Sequence[tuple[int, list[Completion]]]]:
        """``n`` completions of each prompt by its place, batch by batch as they are drawn.

        Prompts of as many tokens are computed together, so that nothing is padded. How they are put into batches does not depend on
        ``done``: a batch of which all are done is passed over, any other is drawn as a whole.

        Sample i of a prompt depends on (seed, i), the prompt and the model alone: not on ``n`` or on other prompts, nor on how many
        are computed together (up to the rounding of the model's arithmetic).

        Args:
            model: a causal LM in evaluation mode.
            prompts: token ids of each, never empty.
            stop: ids of the tokens that end a completion.
            decoding: how to draw.
            n: number of samples of each prompt.
            seeds: of the samples of each prompt.
            context: most tokens of prompt and completion together; None: no limit but ``decoding.max_new_tokens``.
            lengths: tokens of each prompt before the padding that ends it; None: there is none. Padding is masked and generation
                goes on after it, so that what a padded prompt is followed by is predicted at a padding token; ``min_tokens`` and
                ``no_repeat_ngram_size`` see it. As transformers of 2023 does it for inputs padded on the right: positions count the
                tokens that are not masked, and a padding token has position 1 (``prepare_inputs_for_generation`` of GPT-2).
            done: places of prompts that need no completions.
        """
        known, limit = frozenset(done), sys.maxsize if context is None else context
        for batch in _alike(prompts, lengths, self.rows):
            if not all(known.issuperset(same) for same in batch.places):
                yield list(_drawn(model, batch, stop, decoding, n, seeds, limit, self.rows))

    def ready(self) -> None:
        """Nothing is needed but the model."""

    def identity(self, workshop: Workshop) -> Sequence[str]:
        """The run's untrained model and its tokenizer."""
        return ["hf", *workshop.identity, workshop.text().identity]

    def answers(
        self, requests: Sequence[Request], decoding: Decoding, seeds: Sequence[int], done: Collection[int], workshop: Workshop
    ) -> Iterator[Sequence[tuple[int, Answer]]]:
        """Answers of the run's untrained model; see :class:`alignlab.workshop.Answerer`.

        Requests of about one length are answered together, padded on the left under a mask, which changes nothing but rounding. The
        longest come first, so that memory that does not suffice is known soon.

        Raises:
            ValueError: the decoding counts tokens of the prompt, padding among them.
            UserError: the chat template refuses a request.
        """
        if decoding.min_tokens or decoding.no_repeat_ngram_size:
            raise ValueError("min_tokens, no_repeat_ngram_size: answers are drawn without them")
        text, known = copy.copy(workshop.text()), frozenset(done)
        context, text.context = text.context, sys.maxsize  # what does not fit is no error here
        prompts = [text.request(request) for request in requests]
        long = [place for place, ids in enumerate(prompts) if len(ids) >= context]
        if not known.issuperset(long):
            yield [(place, Answer("", "prompt")) for place in long]
        fitting = [place for place, ids in enumerate(prompts) if len(ids) < context]
        model = None
        for batch in _padded(prompts, fitting, self.batch, self.rows):
            if not all(known.issuperset(same) for same in batch.places):
                model = workshop.model() if model is None else model
                drawn = _drawn(model, batch, sorted(text.stop), decoding, 1, seeds, context, self.rows)
                yield [(place, Answer(text.decode(one.tokens), one.finish)) for place, (one,) in drawn]


@dataclass(frozen=True)
class _Batch:
    """Prompts to be computed together. U prompts of T ids, padding included."""

    ids: Sequence[Sequence[int]]
    """[U, T]"""
    mask: Sequence[Sequence[int]] | None
    """[U, T] 0 where they are padding, else 1; None: nothing is"""
    lengths: Sequence[int]
    """[U] how many of the context's positions each takes"""
    places: Sequence[Sequence[int]]
    """[U] of the requests that it is the prompt of"""


def _alike(prompts: Sequence[Sequence[int]], lengths: Sequence[int] | None, rows: int) -> Iterator[_Batch]:
    """Distinct prompts with as many ids, at most ``rows`` at a time; those beyond their lengths are padding on the right."""
    found: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for place, prompt in enumerate(prompts):
        found.setdefault((tuple(prompt), len(prompt) if lengths is None else lengths[place]), []).append(place)
    distinct = sorted(((ids, real, places) for (ids, real), places in found.items()), key=lambda one: len(one[0]))
    for size, group in groupby(distinct, key=lambda one: len(one[0])):
        alike = list(group)
        for first in range(0, len(alike), rows):
            ids, reals, places = zip(*alike[first : first + rows], strict=True)
            mask = None if lengths is None else [[1] * real + [0] * (size - real) for real in reals]
            yield _Batch(ids, mask, [size] * len(ids), places)


def _padded(prompts: Sequence[Sequence[int]], places: Sequence[int], most: int, rows: int) -> Iterator[_Batch]:
    """The prompts of at most ``most`` places, at most ``rows`` of them distinct, from the longest on; padded on the left."""
    waiting = sorted(places, key=lambda place: (-len(prompts[place]), tuple(prompts[place])))
    while waiting:
        found: dict[tuple[int, ...], list[int]] = {}
        for place in waiting[:most]:
            ids = tuple(prompts[place])
            if len(found) == rows and ids not in found:
                break
            found.setdefault(ids, []).append(place)
        waiting = waiting[sum(map(len, found.values())) :]
        lengths = [len(ids) for ids in found]
        pad = [max(lengths) - length for length in lengths]
        mask = [[0] * fill + [1] * length for fill, length in zip(pad, lengths, strict=True)] if any(pad) else None
        yield _Batch([[0] * fill + list(ids) for fill, ids in zip(pad, found, strict=True)], mask, lengths, list(found.values()))


def _drawn(
    model: Any, batch: _Batch, stop: Sequence[int], decoding: Decoding, n: int, seeds: Sequence[int], context: int, rows: int
) -> Iterator[tuple[int, list[Completion]]]:
    """``n`` completions of the prompt of each place, of at most ``context`` tokens together with it."""
    import torch
    from transformers import DynamicCache

    places = [place for same in batch.places for place in same]
    prefix = np.repeat(np.arange(len(batch.ids)), [len(same) * n for same in batch.places])
    room = np.minimum(decoding.max_new_tokens, context - np.array(batch.lengths))[prefix]
    random = [np.random.Generator(np.random.Philox(derive(seeds[place], i))) for place in places for i in range(n)]
    uniform = np.stack([generator.random(room.max()) for generator in random])
    ids = torch.tensor(batch.ids, device=model.device)
    mask = None if batch.mask is None else torch.tensor(batch.mask, device=model.device)
    start = _Front(np.arange(len(prefix)), prefix, 0, ids, mask, DynamicCache(config=model.config), None, 0)
    completions = _complete(model, start, stop, decoding, uniform, room, rows)
    for first, place in enumerate(places):
        yield place, completions[first * n : (first + 1) * n]


def _complete(
    model: Any, start: _Front, stop: Sequence[int], decoding: Decoding, uniform: np.ndarray, room: np.ndarray, rows: int
) -> list[Completion]:
    """A completion of each of the front's S samples from its random numbers, ``uniform`` [S, tokens], with ``room`` [S] at most."""
    import torch

    tokens = np.full(uniform.shape, -1, np.int64)
    pending = [start]
    while pending:  # depth first: few fronts, and so few caches, wait at a time
        front = pending.pop()
        with torch.no_grad():
            logits = _logits(model, front)
        drawn = _draw(front, logits, stop, decoding, uniform[front.samples, front.position])
        tokens[front.samples, front.position] = drawn
        ended = np.isin(drawn, list(stop)) | (front.position + 1 == room[front.samples])
        pending.extend(_continue(front, drawn, ended, rows))
    ended = np.isin(tokens, list(stop))
    stopped = np.array(ended.any(1))
    lengths: np.ndarray = np.where(stopped, ended.argmax(1) + 1, room)
    return [
        Completion(tuple(row[:length].tolist()), "stop" if done else "length")
        for row, length, done in zip(tokens, lengths.tolist(), stopped.tolist(), strict=True)
    ]


def stream(model: Any, prompt: Sequence[int], stop: Sequence[int], decoding: Decoding, seed: int) -> Iterator[int]:
    """The tokens of one completion as they are drawn, the one that ends it included; likeliest ones as the sampler takes them."""
    import torch
    from transformers import DynamicCache

    ids, one = torch.tensor([list(prompt)], device=model.device), np.zeros(1, np.int64)
    front = _Front(one, one, 0, ids, None, DynamicCache(config=model.config), None, 0)
    for number in np.random.Generator(np.random.Philox(seed)).random(decoding.max_new_tokens):
        with torch.no_grad():
            drawn = _draw(front, _logits(model, front), stop, decoding, np.array([number]))
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
    mask: Tensor | None
    """[U, T] 0 where they are padding, else 1; None: nothing is"""
    cache: DynamicCache
    """of the prefixes that these continue by a token; shared with other fronts, never changed"""
    origin: Tensor | None
    """[U] the row of the cache that each continues; None for the prompt, of which nothing is computed yet"""
    width: int
    """rows of the cache"""


def _logits(model: Any, front: _Front) -> Tensor:
    """Next-token logits of each prefix, [U, V]; the front's cache becomes its own."""
    import torch

    new = front.ids.shape[1]
    if front.origin is not None:
        new, cache = 1, copy.copy(front.cache)
        cache.layers = [copy.copy(layer) for layer in front.cache.layers]
        if not torch.equal(
            front.origin, torch.arange(front.width, device=front.origin.device)
        ):  # once no two samples share anything, there is nothing to pick
            cache.batch_select_indices(front.origin)
        front.cache = cache
    if front.mask is None:
        place = torch.arange(front.ids.shape[1], device=front.ids.device).expand_as(front.ids)
    else:
        place = (front.mask.cumsum(-1) - 1).masked_fill(front.mask == 0, 1)
    return model(
        input_ids=front.ids[:, -new:],
        attention_mask=front.mask,
        position_ids=place[:, -new:],
        past_key_values=front.cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]


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
        mask = None if front.mask is None else torch.cat([front.mask[origin], torch.ones_like(token)[:, None]], dim=1)
        fronts.append(_Front(samples[mine], row[mine] - first, front.position + 1, ids, mask, front.cache, origin, len(front.ids)))
    return fronts


def _draw(front: _Front, logits: Tensor, stop: Sequence[int], decoding: Decoding, uniform: np.ndarray) -> np.ndarray:
    """One token per sample, by inverting the cumulative distribution of its prefix, in float64."""
    import torch

    scores = decoding.processors(stop, logits.device)(front.ids, logits.float())  # type: ignore[arg-type]
    if decoding.temperature == 0:
        return scores.argmax(-1).cpu().numpy()[front.prefix]
    out = np.empty(len(front.prefix), np.int64)
    for first in range(0, len(scores), 64):  # float64 for a few rows at a time: vocabularies are large
        cumulative = torch.softmax(scores[first : first + 64].double(), dim=-1).cumsum(-1).cpu().numpy()
        for u in range(len(cumulative)):
            mine = np.flatnonzero(front.prefix == first + u)
            token = np.searchsorted(cumulative[u], uniform[mine] * cumulative[u, -1], side="right")
            out[mine] = np.minimum(token, cumulative.shape[1] - 1)
    return out
