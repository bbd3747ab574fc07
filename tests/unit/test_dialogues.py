"""Dialogues as a source: who is trained on, tested and held out, the mixture with diverse ones, and what it is answered with."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.compose import compose
from alignlab.config import check
from alignlab.data.dialogues import Dialogues
from alignlab.data.self_sampling import SelfSampling
from alignlab.errors import UserError
from alignlab.generate.hf import Decoding
from alignlab.models.load import load_text
from alignlab.protocols import Meaning, Request
from alignlab.records import Dialogue
from alignlab.signals import Stop
from alignlab.workshop import Answer, Workshop

SAMPLING = SelfSampling("Be helpful.", True, 1, 0.7, 0.95, 0, 64, ["empty", "refused", "length"], ["I'm sorry"], 0, False)


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def chat(*texts: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]} | fields


def many(path: Path, what: str, count: int) -> str:
    return write(path, *(chat(f"{what} {n}?", f"{n}.") for n in range(count)))


@dataclass
class Echo:
    """Answers with the last thing that it was told, or with ``says``; a request with a word of ``silent`` not at all."""

    says: str | None
    silent: str

    def ready(self) -> None:
        """Nothing is needed."""

    def identity(self, workshop: Workshop) -> Sequence[str]:
        return ["echo", str(self.says), *workshop.identity]

    def answers(
        self, requests: Sequence[Request], decoding: Decoding, seeds: Sequence[int], done: Collection[int], workshop: Workshop
    ) -> Iterator[list[tuple[int, Answer]]]:
        for place in sorted(set(range(len(requests))) - set(done)):
            told = [turn["content"] for turn in requests[place].messages]
            workshop.say(f"asked: {' | '.join(told)}")
            if not self.silent or self.silent not in told[-1]:
                yield [(place, Answer(f"You said {told[-1]}" if self.says is None else self.says, "stop"))]


ECHO = {"_target_": f"{__name__}.Echo", "says": None, "silent": ""}


def source(path: Any, **fields: Any) -> Dialogues:
    values: dict[str, Any] = dict.fromkeys(("test", "validation", "files", "revision", "queries", "external", "cache"))
    values |= {"columns": {}, "turns": "all", "test_rows": 200, "tokens": [], "forms": {}, "diverse_ratio": 0.0, "max_bad_rows": 0}
    values |= {"diverse_source": "external", "self_sampling": SAMPLING, "sampler": ECHO, "seed": 0}
    return Dialogues(**({"path": path if isinstance(path, list) else str(path)} | values | fields))


def workshop(folder: Path, said: list[str] | None = None) -> Workshop:
    def refuse() -> Any:
        raise AssertionError("no model is needed")

    folder.mkdir(exist_ok=True)
    return Workshop(
        folder,
        ["a model"],
        lambda: load_text(check(compose([])[0]).model),
        refuse,
        Stop(),
        [].append if said is None else said.append,
    )


def asked(records: Any) -> list[str]:
    return [record.messages[0]["content"] for record in records]


def diverse(data: Dialogues) -> list[str]:
    return asked(record for record in data.training() if record.origin == "diverse")


def names(records: Any) -> list[str]:
    return [record.name for record in records]


# ---- downstream rows


def test_held_out_rows_and_those_of_test_are_never_trained_on(tmp_path: Path):
    rows = [chat("a", "b"), chat("b", "c", split="test", kind="odd"), chat("c", "d", split="train"), chat("d", split="test")]
    file = write(tmp_path / "rows.jsonl", *rows)
    test = write(tmp_path / "test.jsonl", chat("t", "u", split="train"), chat("v"))
    data = source(file, test=test)
    assert asked(data.training()) == ["a", "c"]
    assert [(r.name, r.kind, r.held_out) for r in data.testing()] == [
        ("rows-1", "odd", True),
        ("rows-3", "test", True),
        ("test-0", "test", True),
        ("test-1", "test", True),
    ]
    assert [(p.name, p.request) for p in data.prompts()] == [("rows-1", "b"), ("rows-3", "d"), ("test-0", "t"), ("test-1", "v")]
    assert [number for number, _ in data.scoring()] == [0, 1, 2, 3, 4, 5]


def test_first_rows_are_tested_where_none_is_held_out(tmp_path: Path):
    data = source(many(tmp_path / "rows.jsonl", "What", 5), test_rows=2)
    assert asked(data.testing()) == ["What 0?", "What 1?"]
    assert [(r.kind, r.held_out) for r in data.testing()] == [("test", False)] * 2
    assert len(list(data.training())) == 5


def test_validation_is_a_fixed_share_or_a_path(tmp_path: Path):
    file = many(tmp_path / "rows.jsonl", "What", 30)
    data = source(file, validation=0.2)
    held = asked(data.validation_records())
    assert len(held) == 6
    assert sorted(held + asked(data.training())) == sorted(asked(source(file).training()))
    assert asked(source(file, validation=0.2, seed=5).validation_records()) == held
    apart = source(file, validation=write(tmp_path / "v.jsonl", chat("v", "w", split="test"), chat("x", "y")))
    assert asked(apart.validation_records()) == ["v", "x"]
    assert len(list(apart.training())) == 30
    with pytest.raises(UserError) as caught:
        source(file, validation=write(tmp_path / "w.jsonl", chat("v", split="test"))).digest()
    assert str(caught.value).startswith(f"{tmp_path / 'w.jsonl'}:1:messages: ends with a user turn")


def test_scoring_numbers_downstream_rows_alone_with_the_bad_ones_counted(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", chat("a", "b"), chat("c"), chat("d", "e"))
    test, more = write(tmp_path / "test.jsonl", chat("t")), many(tmp_path / "more.jsonl", "Why", 9)
    data = source(file, test=test, external=more, diverse_ratio=2.0, max_bad_rows=1)
    assert [(n, r.name) for n, r in data.scoring()] == [(0, "rows-0"), (2, "rows-2"), (3, "test-0")]
    assert list(data.rejected) == [f"{file}:2"]


# ---- the mixture


def test_external_rows_are_drawn_and_follow_the_downstream_ones(tmp_path: Path):
    file = many(tmp_path / "rows.jsonl", "What", 4)
    more = write(tmp_path / "more.jsonl", *(chat(f"Why {n}?", "b", "c?", "d", dataset="d", id=f"x{n}") for n in range(20)))
    data = source(file, external=more, diverse_ratio=2.0, turns="last")
    records = list(data.training())
    assert [record.origin for record in records] == ["downstream"] * 4 + ["diverse"] * 8
    assert list(data.training()) == records
    drawn = [int(record.messages[0]["content"][4:-1]) for record in records[4:]]
    assert drawn == sorted(set(drawn))
    assert names(records[4:]) == [f"diverse:x{n}" for n in drawn]
    assert {(r.learned, r.dataset, r.held_out, r.where.rpartition(":")[0]) for r in records[4:]} == {((3,), "d", False, more)}
    assert data.make(workshop(tmp_path / "run")) == ()
    assert data.notes()[0] == "4 downstream dialogues, and 8 of 20 diverse ones"


@settings(max_examples=60, deadline=None)
@given(
    downstream=st.integers(1, 12),
    known=st.integers(1, 30),
    ratios=st.tuples(st.floats(0, 4), st.floats(0, 4)).map(sorted),
    seed=st.integers(0, 2**31),
)
def test_draws_of_a_smaller_ratio_are_among_those_of_a_larger_one(tmp_path_factory, downstream, known, ratios, seed):
    folder = tmp_path_factory.mktemp("mixture")
    more = many(folder / "more.jsonl", "Why", known)
    one, other = many(folder / "one.jsonl", "What", downstream), many(folder / "other.jsonl", "Who", downstream)
    sets = [diverse(source(one, external=more, diverse_ratio=ratio, seed=seed)) for ratio in ratios]
    assert [len(drawn) for drawn in sets] == [min(known, int(ratio * downstream + 1e-9)) for ratio in ratios]
    assert set(sets[0]) <= set(sets[1])
    assert diverse(source(other, external=more, diverse_ratio=ratios[1], seed=seed)) == sets[1], (
        "their count tells, not their words"
    )


def test_draws_follow_the_seed(tmp_path: Path):
    file, more = many(tmp_path / "rows.jsonl", "What", 10), many(tmp_path / "more.jsonl", "Why", 60)
    drawn = {tuple(diverse(source(file, external=more, diverse_ratio=1.5, seed=seed))) for seed in range(6)}
    assert len(drawn) == 6
    assert {len(one) for one in drawn} == {15}


def test_a_ratio_is_rounded_down_without_noise_and_counts_what_validation_leaves(tmp_path: Path):
    file, more = many(tmp_path / "rows.jsonl", "What", 100), many(tmp_path / "more.jsonl", "Why", 60)
    assert len(diverse(source(file, external=more, diverse_ratio=0.29))) == 29
    assert len(diverse(source(file, external=more, diverse_ratio=0.299))) == 29
    assert len(diverse(source(file, external=more, diverse_ratio=0.5, validation=0.2))) == 40


def test_fewer_than_asked_are_all_there_is_and_a_note(tmp_path: Path):
    file, more = many(tmp_path / "rows.jsonl", "What", 4), many(tmp_path / "more.jsonl", "Why", 9)
    data = source(file, external=more, diverse_ratio=260.0, test=write(tmp_path / "test.jsonl", chat("t", "u")))
    assert diverse(data) == [f"Why {n}?" for n in range(9)]
    assert data.notes() == [
        "4 downstream dialogues, and 9 of 9 diverse ones",
        "data.diverse_ratio is 260, and all that there is makes 2.25",
    ]


def test_queries_with_their_own_answers_are_external_where_no_other_file_is_given(tmp_path: Path):
    file = many(tmp_path / "rows.jsonl", "What", 2)
    queries = write(tmp_path / "queries.jsonl", chat("q", "own"), chat("kept out", "x", split="test"), chat("r", "own"))
    data = source(file, queries=queries, diverse_ratio=5.0)
    assert [r.reference for r in data.training()] == ["0.", "1.", "own", "own"]
    bare = write(tmp_path / "bare.jsonl", chat("q", "a"), chat("r"))
    with pytest.raises(UserError, match="bare.jsonl:2:messages: ends with a user turn"):
        source(file, queries=bare, diverse_ratio=1.0).digest()


def test_without_a_ratio_nothing_diverse_is_read(tmp_path: Path):
    file = many(tmp_path / "rows.jsonl", "What", 3)
    data = source(file, queries="nowhere.jsonl", external="nowhere.jsonl", test=write(tmp_path / "test.jsonl", chat("t")))
    assert data.digest() == source(file, test=str(tmp_path / "test.jsonl")).digest()
    assert {record.origin for record in data.training()} == {"downstream"}
    told = "data.diverse_ratio is 0: no query is answered, and nothing diverse is trained on"
    assert data.notes() == ["3 downstream dialogues, none diverse", told]


def test_new_tokens_that_stand_nowhere_or_everywhere_are_said(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", chat("Say <a>.", "a"), chat("Say it.", "b"))
    tokens = [Meaning("<a>", "x"), Meaning("<b>", "y"), Meaning("Say", "z")]
    assert source(file, tokens=tokens).notes()[1:] == [
        'warning: what is evaluated is trained on, too; give data.test=FILE, or rows with "split": "test"',
        "warning: <b> stands in none of the 2 downstream dialogues",
        "warning: 'Say' is a word of letters: wherever they stand, in other words too, they become the new token",
    ]


def test_columns_and_files_are_about_downstream_files_alone(tmp_path: Path):
    row = chat("a", "b")
    write(tmp_path / "rows" / "yes.jsonl", {"dialog": row["messages"]})
    write(tmp_path / "rows" / "no.jsonl", {"else": 1})
    write(tmp_path / "more" / "cache.jsonl", chat("q", "r"))
    data = source(tmp_path / "rows", files="y*", columns={"messages": "dialog"}, external=str(tmp_path / "more"), diverse_ratio=1.0)
    data.digest()
    assert asked(data.training()) == ["a", "q"]


# ---- self-samples


def sampled(tmp_path: Path, queries: str, **fields: Any) -> Dialogues:
    file = str(tmp_path / "rows.jsonl")
    if not Path(file).exists():
        many(Path(file), "What", 3)
    return source(
        file, **({"diverse_source": "self", "queries": queries, "diverse_ratio": 9.0, "cache": str(tmp_path / "cache")} | fields)
    )


def test_self_samples_are_made_once_copied_and_trained_on(tmp_path: Path):
    queries = write(tmp_path / "queries.jsonl", chat("q", "own"), chat("r", "own"), chat("held out", "x", split="test"))
    data, said = sampled(tmp_path, queries), list[str]()
    assert data.make(workshop(tmp_path / "run", said)) == ["self_samples.jsonl", "self_samples_dropped.jsonl"]
    assert said[:2] == ["asked: Be helpful. | q | own | q", "asked: Be helpful. | r | own | r"]
    made = [json.loads(line) for line in (tmp_path / "run" / "self_samples.jsonl").read_text().splitlines()]
    assert made == [chat("q", "You said q"), chat("r", "You said r")], "the authors' format"
    assert (tmp_path / "run" / "self_samples_dropped.jsonl").read_text() == ""
    records = list(data.training())
    assert [record.reference for record in records] == ["0.", "1.", "2.", "You said q", "You said r"]
    assert [(r.name, r.origin, r.learned) for r in records[3:]] == [
        ("diverse:0", "diverse", (1,)),
        ("diverse:1", "diverse", (1,)),
    ]
    assert records[4].where == f"{tmp_path / 'run' / 'self_samples.jsonl'}:2"
    assert data.notes()[0] == "3 downstream dialogues, and 2 of 2 self-samples"
    again, said = sampled(tmp_path, queries), []
    again.make(workshop(tmp_path / "other", said))
    assert list(again.training()) == records
    assert not [line for line in said if line.startswith("asked")], "nothing is sampled twice"
    other = sampled(tmp_path, str(tmp_path / "run" / "self_samples.jsonl"), diverse_source="external")
    assert [record.reference for record in other.training()] == [record.reference for record in records], (
        "caches are interchangeable"
    )


def test_another_make_is_what_is_read_then(tmp_path: Path):
    data = sampled(tmp_path, write(tmp_path / "queries.jsonl", chat("q", "own"), chat("r", "own")))
    data.make(workshop(tmp_path / "run"))
    assert diverse(data) == ["q", "r"]
    write(tmp_path / "queries.jsonl", chat("s", "own"), chat("t", "own"), chat("u", "own"))
    data.make(workshop(tmp_path / "run"))
    assert diverse(data) == ["s", "t", "u"]


def test_self_samples_that_were_not_made(tmp_path: Path):
    data = sampled(tmp_path, write(tmp_path / "queries.jsonl", chat("q", "own")))
    rows = data.training()
    assert asked(islice(rows, 3)) == ["What 0?", "What 1?", "What 2?"]
    with pytest.raises(UserError) as caught:
        next(rows)
    assert str(caught.value) == (
        "data.diverse_source: self-samples are made by the stage prepare, which did not run before in this process.\n"
        "Take those of a run, data.diverse_source=external data.external=RUN/self_samples.jsonl, or data.diverse_ratio=0."
    )


def test_last_user_turn_of_a_query_is_answered_after_all_before_it(tmp_path: Path):
    query = {"messages": [{"role": "system", "content": "Be brief."}, *chat("a", "b", "c", "d")["messages"]]}
    data, said = sampled(tmp_path, write(tmp_path / "queries.jsonl", query)), list[str]()
    data.make(workshop(tmp_path / "run", said))
    assert said[0] == "asked: Be brief. | a | b | c | d | c"
    record = list(data.training())[-1]
    assert [turn["content"] for turn in record.messages] == ["Be brief.", "a", "b", "c", "You said c"]
    assert record.learned == (4,), "the model's own answer, and no other"


def test_queries_without_answers(tmp_path: Path):
    queries = write(tmp_path / "queries.jsonl", chat("q", "own"), chat("x", split="test"), chat("r"))
    with pytest.raises(UserError) as caught:
        sampled(tmp_path, queries).digest()
    assert str(caught.value) == (
        f"{queries}:3:messages: has no answer, which the one-shot dialogue shows to the model. "
        "Give it, or data.self_sampling.one_shot=false."
    )
    lenient = sampled(tmp_path, queries, max_bad_rows=1)
    lenient.make(workshop(tmp_path / "run"))
    assert diverse(lenient) == ["q"]
    bare = sampled(tmp_path, queries, self_sampling=replace(SAMPLING, one_shot=False))
    bare.digest()
    bare.make(workshop(tmp_path / "run"))
    assert diverse(bare) == ["q", "r"]


@pytest.mark.parametrize(("source_of", "key"), [("self", "queries"), ("external", "external"), ("external", "queries")])
def test_wrong_diverse_rows_are_found_before_the_run(source_of: str, key: str, tmp_path: Path):
    more = write(tmp_path / "more.jsonl", chat("q", "own"), {"prompt": "x"})
    file = many(tmp_path / "rows.jsonl", "What", 3)
    with pytest.raises(UserError) as caught:
        source(file, diverse_source=source_of, diverse_ratio=1.0, **{key: more}).digest()
    assert str(caught.value).startswith(f"{more}:2:messages: missing")


@pytest.mark.parametrize(("says", "drop", "kept"), [("", ["empty"], None), ("", [], ""), ("I'm sorry, no.", ["refused"], None)])
def test_answers_that_are_no_use(says: str, drop: list[str], kept: str | None, tmp_path: Path):
    queries = write(tmp_path / "queries.jsonl", chat("q", "own"))
    data = sampled(tmp_path, queries, sampler=ECHO | {"says": says}, self_sampling=replace(SAMPLING, drop=drop))
    if kept is None:
        with pytest.raises(UserError, match="none of 1 answers is left"):
            data.make(workshop(tmp_path / "run"))
    else:
        data.make(workshop(tmp_path / "run"))
        assert [record.reference for record in data.training()][3:] == [kept], "who drops nothing gets everything"


def test_a_sampler_that_returns_nothing(tmp_path: Path):
    data = sampled(tmp_path, write(tmp_path / "queries.jsonl", chat("q", "own")), sampler=ECHO | {"silent": "q"})
    with pytest.raises(UserError, match="data.sampler: Echo gave no answer to 1 of 1 requests"):
        data.make(workshop(tmp_path / "run"))


# ---- what is said


def test_rows_that_are_trained_on_and_measured_are_warned_of(tmp_path: Path):
    rows = write(tmp_path / "rows.jsonl", chat("a", "b"), chat("c", "d", "e", "f"), chat("g", "h", split="test"))
    test = write(tmp_path / "test.jsonl", chat("c", "other"), chat("c", "x", "e", "f"), chat("c", "d", "e"), chat("q", "z"))
    validation, more = write(tmp_path / "v.jsonl", chat("a", "b")), write(tmp_path / "more.jsonl", chat("q", "r"))
    data = source(rows, test=test, validation=validation, external=more, diverse_ratio=1.0)
    assert data.notes() == [
        "2 downstream dialogues, and 1 of 1 diverse ones",
        "data.diverse_ratio is 1, and all that there is makes 0.5",
        f"warning: 3 of 5 test rows ask what a training row asks, word for word: {test}:1 and {rows}:2",
        f"warning: 1 of 1 validation rows ask what a training row asks, word for word: {validation}:1 and {rows}:1",
    ]
    alone = source(rows, test=test, turns="last")
    assert alone.notes()[1:] == [f"warning: 1 of 5 test rows ask what a training row asks, word for word: {test}:3 and {rows}:2"], (
        "what a turn that is not learned is asked is no training row"
    )
    first = source(many(tmp_path / "plain.jsonl", "What", 3))
    assert first.notes() == [
        "3 downstream dialogues, none diverse",
        'warning: what is evaluated is trained on, too; give data.test=FILE, or rows with "split": "test"',
    ]


def test_rows_found_out_late_go_and_nothing_else_changes(tmp_path: Path):
    file, more = many(tmp_path / "rows.jsonl", "What", 6), many(tmp_path / "more.jsonl", "Why", 30)
    data = source(file, external=more, diverse_ratio=2.0, max_bad_rows=2)
    before = list(data.training())
    for record in (before[1], before[8]):
        data.reject(record, UserError("too long"))
    assert list(data.training()) == [record for record in before if record not in (before[1], before[8])]
    with pytest.raises(UserError, match="data.max_bad_rows is 2, and more rows are wrong"):
        data.reject(before[2], UserError("too long"))


def test_digest_follows_all_files_that_are_read(tmp_path: Path):
    file = many(tmp_path / "rows.jsonl", "What", 3)
    test, validation = write(tmp_path / "t.jsonl", chat("t")), write(tmp_path / "v.jsonl", chat("v", "w"))
    queries, external = many(tmp_path / "q.jsonl", "Why", 2), many(tmp_path / "e.jsonl", "Who", 2)

    def digests() -> list[str]:
        whole: dict[str, Any] = {"test": test, "validation": validation, "queries": queries, "external": external}
        kinds = [{"diverse_source": "self", "diverse_ratio": 1.0}, {"diverse_ratio": 1.0}, {}]
        return [source(file, **whole, **kind).digest() for kind in kinds]

    before = digests()
    assert digests() == before
    for changed, expected in (
        (queries, [True, False, False]),
        (external, [False, True, False]),
        (test, [True] * 3),
        (validation, [True] * 3),
        (file, [True] * 3),
    ):
        write(Path(changed), chat("new", "answer"), chat("and", "another"))
        after = digests()
        assert [one != other for one, other in zip(before, after, strict=True)] == expected, changed
        before = after


# ---- the configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": []}, "path: give a file of chat rows, a folder of them or the name of a data set on the hub"),
        ({"queries": 3}, "queries: must be text or a list of texts in square brackets, not 3"),
        ({"external": [""]}, "external: must be text or a list of texts in square brackets, not ['']"),
        ({"columns": {"mesages": "x"}}, "columns: 'mesages' is not a field of a row (messages, id, kind, split, dataset). Did you mean"),
        ({"columns": {"messages": None}}, "columns: 'messages' must be given the name of a column, not null"),
        ({"validation": 1.5}, "validation: must be a share between 0 and 1 or a path, not 1.5"),
        ({"turns": "first"}, "turns: must be one of all, last, not 'first'"),
        ({"diverse_source": "own"}, "diverse_source: must be one of self, external, not 'own'"),
        ({"diverse_ratio": -1.0}, "diverse_ratio: must be at least 0, not -1.0"),
        ({"diverse_ratio": float("inf")}, "diverse_ratio: must be a finite number, not inf"),
        ({"diverse_ratio": float("nan")}, "diverse_ratio: must be a finite number, not nan"),
        ({"max_bad_rows": -1}, "max_bad_rows: must be at least 0, not -1"),
        ({"forms": {"dict": "x"}}, "forms: 'dict' must be a set of keys, {pattern: ...} or {keys: ..., answer: ...}, not 'x'"),
        (
            {"diverse_ratio": 2.0, "diverse_source": "self", "external": "x"},
            "queries: diverse_ratio is 2, and there is nothing diverse. Give data.queries=FILE of chat rows whose user turns the model "
            "answers, or data.diverse_ratio=0",
        ),
        (
            {"diverse_ratio": 0.5},
            "external: diverse_ratio is 0.5, and there is nothing diverse. Give data.external=FILE of diverse chat rows, or "
            "data.diverse_ratio=0",
        ),
        ({"sampler": {"says": 1}}, "sampler._target_: missing"),
        ({"sampler": ECHO | {"sayz": 1}}, "sampler.sayz: no such key. Did you mean 'data.sampler.says'?"),
        ({"sampler": ECHO | {"_target_": "alignlab.records.Sample"}}, "sampler._target_: alignlab.records.Sample lacks ready, identity"),
    ],
)  # fmt: skip
def test_wrong_values(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        source(**({"path": "rows.jsonl"} | fields))


def test_the_option_of_the_command_line_is_this_source(tmp_path: Path):
    file = many(tmp_path / "rows.jsonl", "What", 3)
    config = check(compose(["method=delia", "data=chat", f"data.path={file}", "seed=5", "data.sampler.batch=7"])[0])
    data = config.data
    assert isinstance(data, Dialogues)
    assert (data.seed, data.diverse_ratio, data.sampler["batch"], config.sampler.batch) == (5, 0, 7, 64)
    assert [type(record) for record in data.training()] == [Dialogue] * 3
    with pytest.raises(UserError, match="^data.path: give a file of chat rows"):
        check(compose(["method=delia", "data=chat"])[0])
