"""Self-samples: what a model answers to queries before it is trained, kept as dialogues to train on.

Each answer is appended to a file as it is done, so that what a process has done is never done again. All answers stay in it: which
are left out is decided when they are read, and another choice samples nothing.

The defaults are those of DELIA's authors (Zeng et al., arXiv 2408.10841, ``build_cache.py``), but for two of their program's
habits: it takes the first two characters off each answer, and its prompts have two BOS tokens.
"""

from __future__ import annotations

import fcntl
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.config import at_least, digest, one_of
from alignlab.errors import MissingError, UserError
from alignlab.generate.hf import Decoding
from alignlab.journal import Journal
from alignlab.protocols import Request
from alignlab.records import Dialogue, write_jsonl
from alignlab.seeds import derive
from alignlab.track import Display
from alignlab.workshop import Answer, Answerer, Workshop

FORMAT = 2
"""of the file of answers; those of another are made anew"""

REASONS = ("empty", "refused", "length")
"""why an answer may be left out; the first that holds is the one that counts"""

TOO_LONG, ENDS = "too long a prompt", "holds a token that ends a turn"
"""why there is no answer, or one that nobody could train on"""


@dataclass
class SelfSampling:
    """How queries are put to the model, how it answers, and which answers are kept.

    Args:
        system: system line of the dialogue; None: none. A query's own stands in its place.
        one_shot: whether the query and its own answer stand in front of the query.
        samples: answers of each query.
        temperature: see :class:`Decoding`, as the next three.
        top_p: likewise.
        top_k: likewise.
        max_new_tokens: likewise.
        drop: which answers are left out: ``empty``, ``refused``, or ``length``, those that were cut off.
        refusals: regular expressions, regardless of case; an answer that begins with one is refused.
        skip_characters: how many are taken off the beginning of an answer; with 0 white space around it is, as most chat templates
            do themselves, and nothing else.
        double_bos: whether the rendered template is tokenized as any text is; see :class:`Request`.
    """

    system: str | None
    one_shot: bool
    samples: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    drop: list[str]
    refusals: list[str]
    skip_characters: int
    double_bos: bool

    def __post_init__(self) -> None:
        if self.system is not None and not self.system.strip():
            raise ValueError("system: must not be empty; null leaves the system turn out")
        at_least("samples", self.samples, 1)
        at_least("skip_characters", self.skip_characters, 0)
        self.decoding()
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples: at temperature 0 all answers to a query are alike; take 1, or another temperature")
        for reason in self.drop:
            one_of("drop", reason, REASONS)
        for i, pattern in enumerate(self.refusals):
            try:
                re.compile(pattern, re.IGNORECASE)
            except re.error as error:
                raise ValueError(f"refusals[{i}]: not a regular expression: {error}") from None

    def decoding(self) -> Decoding:
        """How to draw tokens."""
        return Decoding(self.temperature, self.top_p, self.top_k, self.max_new_tokens)

    def request(self, query: Dialogue) -> Request:
        """The dialogue that the model goes on with.

        Raises:
            UserError: the query's own answer shall stand in it, and it has none.
        """
        asked = query.prompt
        before, turn = list(asked.history), {"role": "user", "content": asked.request}
        if self.system is not None and not (before and before[0]["role"] == "system"):
            before = [{"role": "system", "content": self.system}, *before]
        if not self.one_shot:
            return Request([*before, turn], twice=self.double_bos)
        if not query.reference:
            raise UserError(
                f"{query.where or query.name}: has no answer, which stands in front of the query in a one-shot dialogue.\n"
                "Give it one, or take data.self_sampling.one_shot=false."
            )
        return Request([*before, turn, {"role": "assistant", "content": query.reference}, turn], twice=self.double_bos)

    def kept(self, text: str) -> str:
        """What is kept of an answer's text."""
        return text[self.skip_characters :] if self.skip_characters else text.strip()

    def faults(self, answer: Answer) -> list[str]:
        """Which of :data:`REASONS` hold for an answer."""
        text = self.kept(answer.text).strip()
        refused = any(re.match(pattern, text, re.IGNORECASE) for pattern in self.refusals)
        return [reason for reason, holds in zip(REASONS, (not text, refused, answer.finish == "length"), strict=True) if holds]


def self_sample(
    queries: Sequence[Dialogue], settings: SelfSampling, sampler: Answerer, seed: int, cache: Path, workshop: Workshop
) -> Path:
    """The folder of the self-samples; those that are not in the cache are sampled.

    ``samples.jsonl`` has a row ``{"messages": [...]}`` for each answer that is kept, in the order of the queries: the query's turns
    as they were, and the answer. ``dropped.jsonl`` has number of query and sample, reason and whole text of each that is not.

    An answer depends on the dialogue that the model reads, the seed, the sampler, the text of the query and the number of the
    sample: not on other queries (up to the rounding of the model's arithmetic).

    Args:
        queries: what is answered, with answers of their own for one-shot dialogues.
        settings: how.
        sampler: what answers.
        seed: of all answers.
        cache: a folder; answers lie in ``self-samples/`` there, by what they depend on, for any run.
        workshop: of the run.

    Raises:
        UserError: there are no queries, a query cannot be put to the model, or no answer is left.
        MissingError: the sampler lacks something, or the folder cannot be made.
        StoppedError: a signal arrived; the answers up to then are kept.
    """
    if not queries:
        raise UserError("data.queries: there are none, so there is nothing to sample. Give files of dialogues, or diverse_ratio=0.")
    samples = range(settings.samples)
    requests = [request for query in queries for request in [settings.request(query)] * settings.samples]
    seeds = [derive(seed, "self-sample", query.prompt.request, number) for query in queries for number in samples]
    texts = [[(turn["role"], turn["content"]) for turn in request.messages] for request in requests[:: settings.samples]]
    parts = FORMAT, texts, vars(settings.decoding()), settings.samples, settings.double_bos, seed, sampler.identity(workshop)
    folder = cache / "self-samples" / digest(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"{folder} cannot be made: {error.strerror}. Choose another: data.cache=FOLDER"
        raise MissingError(f"data.cache: {problem}.") from None
    journal = Journal(folder / "answers.journal", folder.name, workshop.stop, "self-samples", len(requests))
    with _alone(folder, workshop), journal:
        if len(journal.done) < len(requests):
            sampler.ready()
            _sample(requests, settings.decoding(), sampler, seeds, journal, workshop)
        return _choose(queries, settings, [Answer(*answer) for answer in journal], folder, workshop)


@contextmanager
def _alone(folder: Path, workshop: Workshop) -> Iterator[None]:
    """Inside, no other process writes there; it waits until the other one is done or gone."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            workshop.say(f"self-samples: waiting for another process that makes them ({folder})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sample(
    requests: Sequence[Request],
    decoding: Decoding,
    sampler: Answerer,
    seeds: Sequence[int],
    journal: Journal,
    workshop: Workshop,
) -> None:
    """Add the answers that lack, batch by batch as they are done.

    Raises:
        UserError: the sampler gives fewer answers than it was asked for.
        StoppedError: a signal arrived; it is looked at between batches.
    """
    total = len(requests)
    with Display("self-sample", total, len(journal.done)) as display, workshop.stop.deferred():
        for batch in sampler.answers(requests, decoding, seeds, frozenset(journal.done), workshop):
            journal.add((place, [answer.text, answer.finish]) for place, answer in batch)
            display.update(len(journal.done), "answers")
        journal.check()
    if lacking := total - len(journal.done):
        raise UserError(f"data.sampler: {type(sampler).__name__} gave no answer to {lacking} of {total} requests.")


def _choose(
    queries: Sequence[Dialogue], settings: SelfSampling, answers: Sequence[Answer], folder: Path, workshop: Workshop
) -> Path:
    """Write which answers are kept and which are not, and say how many.

    Raises:
        UserError: none is kept.
    """
    kept: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    without, although = Counter[str](), Counter[str]()
    text = workshop.text()
    endings = [text.tokenizer.convert_ids_to_tokens(i) for i in text.stop]
    for place, answer in enumerate(answers):
        number, sample = divmod(place, settings.samples)
        faults = [TOO_LONG] if answer.finish == "prompt" else settings.faults(answer)
        if any(ending in answer.text for ending in endings):
            faults.insert(0, ENDS)
        reason = next((fault for fault in faults if fault in (*settings.drop, TOO_LONG, ENDS)), None)
        if reason is not None:
            without[reason] += 1
            dropped.append({"query": number, "sample": sample, "reason": reason, "text": answer.text})
            continue
        although.update(faults)
        asked = queries[number].prompt
        turns = [*asked.history, {"role": "user", "content": asked.request}]
        turns.append({"role": "assistant", "content": settings.kept(answer.text)})
        kept.append({"messages": [{"role": turn["role"], "content": turn["content"]} for turn in turns]})
    chosen = folder / digest(kept, dropped)
    write_jsonl(chosen / "dropped.jsonl", dropped)
    words = {"length": f"cut off at {settings.max_new_tokens} tokens"}
    counts = [", ".join(f"{n} {words.get(reason, reason)}" for reason, n in some.items()) for some in (without, although)]
    if not kept:
        raise UserError(
            f"data.self_sampling: none of {len(answers)} answers is left: {counts[0]}; see {chosen / 'dropped.jsonl'}.\n"
            "Raise max_new_tokens where they are cut off, take a reason out of data.self_sampling.drop, or give other queries."
        )
    write_jsonl(chosen / "samples.jsonl", kept)
    notes = "".join(f" ({title}: {count})" for title, count in zip(("left out", "kept though"), counts, strict=True) if count)
    workshop.say(f"self-samples: {len(kept)} of {len(answers)} answers kept{notes}")
    return chosen
