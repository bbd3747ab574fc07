"""Dialogues of a downstream task, and diverse ones that buffer what they teach: read from files, or sampled from the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar

from omegaconf import OmegaConf

from alignlab.build import build_target
from alignlab.config import at_least, finite, one_of
from alignlab.data.chat_rows import ChatRow
from alignlab.data.row_source import OWN, RawFields, RowSource
from alignlab.data.self_sampling import SelfSampling, self_sample
from alignlab.errors import UserError, did_you_mean
from alignlab.paths import cache_folder
from alignlab.protocols import Meaning
from alignlab.records import Dialogue, Prompt, write_text
from alignlab.seeds import generator
from alignlab.workshop import Answerer, Workshop

ANSWERER = ("ready", "identity", "answers")
"""what a sampler's class must have"""

SAMPLED = {"samples": "self_samples.jsonl", "dropped": "self_samples_dropped.jsonl"}
"""what self-sampling leaves, and what it is called in the run folder"""


@dataclass
class Dialogues(RowSource):
    """Chat rows of a downstream task, mixed with diverse ones.

    ``diverse_ratio`` x as many diverse dialogues as there are downstream ones to train on, rounded down as in the authors' program
    (LinesHogan/DELIA, ``utils.py``), are drawn without replacement; all of them where there are fewer. Those of a smaller ratio are
    among those of a larger one. They are ``self``-sampled: what the model itself answers to ``queries``, made by :meth:`make`; or
    ``external``: rows of files, or the queries with their own answers. ``columns``, ``files`` and ``revision`` are about the
    downstream files; diverse rows with ``"split": "test"`` are passed over.
    """

    yields: ClassVar[type] = Dialogue
    what: ClassVar[str] = "chat rows"
    reader: ClassVar[type[RawFields]] = ChatRow

    path: Any
    test: Any
    validation: Any
    files: str | None
    revision: str | None
    columns: dict[str, Any]
    turns: str
    test_rows: int
    tokens: list[Meaning]
    forms: dict[str, Any]
    diverse_ratio: float
    diverse_source: str
    queries: Any
    external: Any
    self_sampling: SelfSampling
    sampler: dict[str, Any]
    max_bad_rows: int
    cache: str | None
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._seen: set[str] = set()
        self._texts("queries", "external")
        one_of("turns", self.turns, ("all", "last"))
        one_of("diverse_source", self.diverse_source, ("self", "external"))
        finite("diverse_ratio", self.diverse_ratio)
        at_least("diverse_ratio", self.diverse_ratio, 0)
        for name, form in self.forms.items():
            if not isinstance(form, Mapping):
                raise ValueError(
                    f"forms: '{name}' must be a set of keys, {{pattern: ...}} or {{keys: ..., answer: ...}}, not {form!r}"
                )
        try:
            self._answerer: Answerer = build_target(OmegaConf.create(self.sampler), "data.sampler", ANSWERER)
        except UserError as error:
            raise ValueError(str(error).removeprefix("data.")) from None
        key = "queries" if self.diverse_source == "self" else "external"
        if self.diverse_ratio and not (self.queries or getattr(self, key)):
            what = {"queries": "of chat rows whose user turns the model answers", "external": "of diverse chat rows"}[key]
            asked = f"diverse_ratio is {self.diverse_ratio:g}, and there is nothing diverse"
            raise ValueError(f"{key}: {asked}. Give data.{key}=FILE {what}, or data.diverse_ratio=0")

    @property
    def _diverse(self) -> str | None:
        """Key of the files with diverse rows; None where none are asked for."""
        if not self.diverse_ratio:
            return None
        return "samples" if self.diverse_source == "self" else "external" if self.external else "queries"

    @property
    def _keys(self) -> Sequence[str]:
        more = "queries" if self._diverse == "samples" else self._diverse
        return (*OWN, more) if more else OWN

    def make(self, workshop: Workshop) -> Sequence[str]:
        """Have the model answer the queries, where self-samples are asked for; what it answered before is in the cache.

        Of a query with several turns the last of the user's is answered, after all that stand before it.

        Raises:
            UserError: no answer could be kept; see :func:`self_sample`.
        """
        if self._diverse != "samples":
            return ()
        queries = [query for _, query in self._trainable("queries")]
        made = self_sample(queries, self.self_sampling, self._answerer, self.seed, cache_folder(self.cache), workshop)
        for part, name in SAMPLED.items():
            write_text(workshop.folder / name, (made / f"{part}.jsonl").read_text(encoding="utf-8"))
        self._found["samples"] = [workshop.folder / SAMPLED["samples"]]
        vars(self).pop("_drawn", None)
        return list(SAMPLED.values())

    def unmade(self) -> Sequence[str]:
        """Let the queries with their own answers, where they must have some, stand in for the self-samples, else nothing."""
        if self._diverse != "samples":
            return ()
        asked = sum(1 for _ in self._trainable("queries")) * self.self_sampling.samples
        self._found["samples"] = self._files("queries") if self.self_sampling.one_shot else []
        counted = "the queries' own answers stand in for them" if self.self_sampling.one_shot else "nothing diverse is counted"
        return [f"{asked} answers of at most {self.self_sampling.max_new_tokens} tokens are not asked of the model; {counted}"]

    def training(self) -> Iterator[Dialogue]:
        """Downstream dialogues without the validation share, then diverse ones.

        Raises:
            UserError: there are self-samples to come, and :meth:`make` was not asked for them.
        """
        return self._kept(chain(self._downstream(), self._mixed_in()))

    def _downstream(self) -> Iterator[Dialogue]:
        return (record for n, record in self._trainable("path") if n not in self._held)

    def _mixed_in(self) -> Iterator[Dialogue]:
        if self._diverse:
            chosen = self._drawn[0]
            yield from (record for n, (_, record) in enumerate(self._trainable(self._diverse)) if n in chosen)

    @cached_property
    def _drawn(self) -> tuple[frozenset[int], int]:
        """Which diverse dialogues are trained on, and how many there are."""
        assert self._diverse is not None
        if self._diverse == "samples" and "samples" not in self._found:
            raise UserError(
                "data.diverse_source: self-samples are made by the stage prepare, which did not run before in this process.\n"
                "Take those of a run, data.diverse_source=external data.external=RUN/self_samples.jsonl, or data.diverse_ratio=0."
            )
        known = sum(1 for _ in self._trainable(self._diverse))
        asked = int(self.diverse_ratio * sum(1 for _ in self._downstream()) + 1e-9)  # 0.29 x 100 is 28.99... in binary
        order = generator(self.seed, "diverse").permutation(known)
        return frozenset(order[:asked].tolist()), known

    def prompts(self) -> Sequence[Prompt]:
        """A prompt for each test row: all up to its last user turn."""
        return [record.prompt for record in self._tested]

    def digest(self) -> str:
        """Digest of names and contents of all the files, whose rows are checked on the way: a run begins with it.

        Raises:
            UserError: there are none, one cannot be read, rows are wrong, or a column that was given is nowhere.
        """
        found = super().digest()
        for field, column in self.columns.items():
            if column not in (None, field) and column not in self._seen:
                raise UserError(f"data.columns.{field}: no row has '{column}'.{did_you_mean(column, self._seen)}")
        return found

    def notes(self) -> Sequence[str]:
        """What the mixture is; warnings, such as of rows that are trained on and measured, stand last."""
        measured = {"test": list(self.testing()), "validation": self.validation_records()}
        if any(not record.held_out for record in measured["test"]):  # the first rows of path
            measured["test"] = []
            known = ['warning: what is evaluated is trained on, too; give data.test=FILE, or rows with "split": "test"']
        else:
            known = []
        wanted = {_asked(record.prompt) for records in measured.values() for record in records}
        count, trained = Counter[str](), dict[Turns, str]()
        lacking = {one.token for one in self.tokens}
        for record in self.training():
            count[record.origin] += 1
            if record.origin == "downstream":
                lacking -= {token for token in lacking if any(token in turn["content"] for turn in record.messages)}
            for place in record.learned:
                before = _turns(record.messages[:place])
                if before in wanted:
                    trained.setdefault(before, record.where)
        for kind, records in measured.items():
            pairs = [(record.where, trained[_asked(record.prompt)]) for record in records if _asked(record.prompt) in trained]
            if pairs:
                which = f"{len(pairs)} of {len(records)} {kind} rows ask what a training row asks, word for word"
                known.append(f"warning: {which}: {pairs[0][0]} and {pairs[0][1]}")
        known += [f"warning: {token} stands in none of the {count['downstream']} downstream dialogues" for token in sorted(lacking)]
        for token in (one.token for one in self.tokens if one.token.strip().isalpha()):
            known.append(
                f"warning: {token!r} is a word of letters: wherever they stand, in other words too, they become the new token"
            )
        if self.queries and not self.diverse_ratio:
            known.append("data.diverse_ratio is 0: no query is answered, and nothing diverse is trained on")
        return [*self._mixture(count["downstream"], count["diverse"]), *known]

    def _mixture(self, downstream: int, diverse: int) -> Iterator[str]:
        if not self._diverse:
            yield f"{downstream} downstream dialogues, none diverse"
            return
        known, reached = self._drawn[1], diverse / max(downstream, 1)
        of = "self-samples" if self._diverse == "samples" else "diverse ones"
        yield f"{downstream} downstream dialogues, and {diverse} of {known} {of}"
        if diverse == known and reached < self.diverse_ratio:
            yield f"data.diverse_ratio is {self.diverse_ratio:g}, and all that there is makes {reached:.3g}"

    def _record(self, row: ChatRow, name: str, key: str) -> Dialogue:
        turns = row.turns(empty=key == "samples")
        held_out = row.held_out() or key == "test"
        learned = row.learned(turns, "last" if key == "samples" else self.turns)
        if key in OWN:
            self._seen.update(row.keys)
        asked = key == "queries" and self.diverse_source == "self"
        if asked and self.self_sampling.one_shot and turns[-1]["role"] == "user" and not held_out:
            problem = "has no answer, which the one-shot dialogue shows to the model"
            raise row.wrong("messages", f"{problem}. Give it, or data.self_sampling.one_shot=false")
        if not asked and (key == "validation" or not held_out):
            row.refuse_unlearned(turns, learned)
        return Dialogue(
            name=name if key in OWN else f"diverse:{name}",
            messages=tuple(turns),
            learned=learned,
            origin="downstream" if key in OWN else "diverse",
            kind=row.text("kind") or "test",
            dataset=row.text("dataset") or "",
            held_out=held_out,
            where=row.place,
        )


Turns = tuple[tuple[str, str], ...]
"""roles and contents"""


def _turns(messages: Iterable[Mapping[str, str]]) -> Turns:
    return tuple((turn["role"], turn["content"]) for turn in messages)


def _asked(prompt: Prompt) -> Turns:
    """All turns that a prompt is made of."""
    return (*_turns(prompt.history), ("user", prompt.request))
