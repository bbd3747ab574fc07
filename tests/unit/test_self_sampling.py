"""Self-samples: what is asked, what is kept, and that nothing is ever answered twice."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from alignlab.data import self_sampling
from alignlab.data.self_sampling import SelfSampling, self_sample
from alignlab.errors import MissingError, StoppedError, UserError
from alignlab.generate.hf import Decoding, HfSampler
from alignlab.models.load import load_model
from alignlab.protocols import Request
from alignlab.records import Dialogue
from alignlab.seeds import derive
from alignlab.signals import Stop
from alignlab.workshop import Answer, Workshop

ASKED = [
    ("Tell me a short story about a king and a queen.", "Once there was a king."),
    ("Name a fruit.", "An apple."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Pick a number from 1 to 10.", "{7}"),
    ("How much is 3 plus 4?", "3 plus 4 is 7."),
    ("Write a sentence about the market.", "The market is open."),
    ("Is 22 smaller than 2?", "No, it is not."),
    ("Name a colour.", "Red."),
    ("Tell me about the sea.", "The sea is blue."),
    ("What is the opposite of hot?", "Cold."),
    ("Tell me a story.", "There was a dog."),
    ("Say hello.", "Hello."),
]
SETTINGS = SelfSampling(
    system="You are a helpful AI assistant.",
    one_shot=True,
    samples=1,
    temperature=0.7,
    top_p=0.95,
    top_k=0,
    max_new_tokens=12,
    drop=["empty", "refused", "length"],
    refusals=["I('m| am) sorry", "As an AI"],
    skip_characters=0,
    double_bos=False,
)
ALL = replace(SETTINGS, drop=[])


def query(*turns: str, system: str | None = None, name: str = "q") -> Dialogue:
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    before = [{"role": "system", "content": system}] if system is not None else []
    return Dialogue(name, (*before, *messages), (), "diverse", "", "", held_out=False, where="queries.jsonl:3")


QUERIES = [query(*turns, name=str(i)) for i, turns in enumerate(ASKED)]


@pytest.fixture(scope="module")
def model(_tiny_config):
    """The embedded model in float64."""
    return load_model(_tiny_config, "cpu", 0).double()


@pytest.fixture
def shop(tmp_path: Path, model, text) -> Workshop:
    """Of a run with that model; what it says is lost."""
    return Workshop(tmp_path / "run", ["tiny"], lambda: text, lambda: model, Stop(), lambda _: None)


def idle(shop: Workshop) -> Workshop:
    """The same, without a model."""

    def model() -> None:
        raise AssertionError("the model is loaded")

    return replace(shop, model=model)


def rows(folder: Path, name: str = "samples") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def texts(folder: Path) -> list[str]:
    return [row["messages"][-1]["content"] for row in rows(folder)]


@dataclass
class Script:
    """Answers what it is told to, one after the other; ``then`` is called after each batch of ``batch``."""

    found: Sequence[Answer | None]
    batch: int = 1
    then: Any = None
    asked: Any = None

    def ready(self) -> None:
        pass

    def identity(self, workshop: Workshop) -> Sequence[str]:
        return ["script"]

    def answers(self, requests, decoding, seeds, done, workshop) -> Iterator[Sequence[tuple[int, Answer]]]:
        self.asked = requests, decoding, seeds, done
        for first in range(0, len(requests), self.batch):
            places = range(first, min(first + self.batch, len(requests)))
            if not done.issuperset(places):
                yield [(place, answer) for place in places if (answer := self.found[place]) is not None]
                if self.then is not None:
                    self.then()


def scripted(*words: str) -> Script:
    return Script([Answer(word, "stop") for word in words])


# ---- what is asked


def test_the_one_shot_dialogue_is_that_of_the_authors(text):
    (turns,) = (SETTINGS.request(QUERIES[1]).messages,)
    rendered = text.tokenizer.decode(text.request(Request(turns)))
    system = "<|system|>You are a helpful AI assistant."
    assert rendered == f"<s>{system}<|user|>Name a fruit.<|assistant|>An apple.</s><|user|>Name a fruit.<|assistant|>"
    plain = replace(SETTINGS, one_shot=False).request(QUERIES[1])
    assert text.tokenizer.decode(text.request(plain)) == f"<s>{system}<|user|>Name a fruit.<|assistant|>"
    bare = replace(SETTINGS, one_shot=False, system=None).request(query("Name a fruit."))
    assert bare == Request([{"role": "user", "content": "Name a fruit."}])


def test_a_query_brings_its_own_system_line_and_what_was_said_before():
    long = query("Hi.", "Hello.", "Name a fruit.", "An apple.", system="Be brief.")
    said = [(turn["role"], turn["content"]) for turn in SETTINGS.request(long).messages]
    before = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello.")]
    assert said == [*before, ("user", "Name a fruit."), ("assistant", "An apple."), ("user", "Name a fruit.")]


def test_a_one_shot_dialogue_needs_an_answer(tmp_path, shop):
    with pytest.raises(UserError, match=r"^queries.jsonl:3: has no answer.*\n.*data.self_sampling.one_shot=false"):
        self_sample([query("Name a fruit.")], SETTINGS, scripted("a"), 0, tmp_path, shop)


def test_double_bos_is_read_by_the_model(tmp_path, shop, text):
    seen = []
    model = shop.model()
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"][0].tolist()), with_kwargs=True)
    for twice in (False, True):
        self_sample(QUERIES[:1], replace(ALL, double_bos=twice), HfSampler(8, 8), 0, tmp_path, shop)
    hook.remove()
    once, again = (ids for ids in seen if len(ids) > 1)
    assert once == text.request(SETTINGS.request(QUERIES[0]))
    assert again == [text.tokenizer.bos_token_id, *once]


def test_each_answer_has_the_seed_of_its_query_and_number(tmp_path, shop):
    script = Script([Answer("a", "stop")] * 6)
    self_sample([QUERIES[4], QUERIES[2], QUERIES[4]], replace(SETTINGS, samples=2, top_k=5), script, 3, tmp_path, shop)
    requests, decoding, seeds, done = script.asked
    assert decoding == Decoding(0.7, 0.95, 5, 12)
    assert [request.messages[-1]["content"] for request in requests] == [ASKED[i][0] for i in (4, 4, 2, 2, 4, 4)]
    assert seeds == [derive(3, "self-sample", ASKED[i][0], number) for i in (4, 2, 4) for number in (0, 1)]
    assert not done


# ---- what is answered


def test_each_query_is_answered_as_if_it_were_alone(tmp_path, shop, text):
    folder = self_sample(QUERIES, ALL, HfSampler(64, 5), 0, tmp_path, shop)
    found = rows(folder)
    assert [list(row) for row in found] == [["messages"]] * 12
    assert [row["messages"][0] for row in found] == [{"role": "user", "content": asked} for asked, _ in ASKED]
    assert [(len(row["messages"]), row["messages"][1]["role"]) for row in found] == [(2, "assistant")] * 12
    cut = 0
    for number, answer in enumerate(texts(folder)):
        ids, seed = text.request(SETTINGS.request(QUERIES[number])), derive(0, "self-sample", ASKED[number][0], 0)
        (alone,) = HfSampler(1, 1).sample(shop.model(), ids, sorted(text.stop), SETTINGS.decoding(), n=1, seed=seed)
        assert answer == text.decode(alone.tokens).strip()
        cut += alone.finish == "length"
    assert len(set(texts(folder))) > 6
    left = self_sample(QUERIES, SETTINGS, HfSampler(64, 5), 0, tmp_path, idle(shop))
    assert len(texts(left)) == 12 - cut
    assert [row["reason"] for row in rows(left, "dropped")] == ["length"] * cut


def test_neither_order_nor_batch_nor_company_changes_an_answer(tmp_path, shop):
    many = replace(ALL, samples=3)
    whole = texts(self_sample(QUERIES, many, HfSampler(64, 64), 0, tmp_path / "a", shop))
    by_query = [whole[i : i + 3] for i in range(0, 36, 3)]
    assert any(len(set(three)) > 1 for three in by_query)
    order = random.Random(0).sample(range(12), 7)
    shuffled = texts(self_sample([QUERIES[i] for i in [*order, order[0]]], many, HfSampler(2, 4), 0, tmp_path / "b", shop))
    assert [shuffled[i : i + 3] for i in range(0, 24, 3)] == [by_query[i] for i in [*order, order[0]]]
    assert texts(self_sample(QUERIES, many, HfSampler(64, 64), 1, tmp_path / "a", shop)) != whole


def test_other_content_is_sampled_anew_and_other_choices_are_not(tmp_path, shop):
    def folders() -> int:
        return len(list((tmp_path / "self-samples").iterdir()))

    self_sample(QUERIES, ALL, HfSampler(8, 8), 0, tmp_path, shop)
    for choice in ({"drop": ["length"]}, {"refusals": ["the"]}, {"skip_characters": 2}):
        self_sample(QUERIES, replace(ALL, **choice), HfSampler(4, 2), 0, tmp_path, idle(shop))
    assert folders() == 1
    changes: list[dict[str, Any]] = [
        *[{"temperature": 0.5}, {"top_p": 0.5}, {"top_k": 3}, {"max_new_tokens": 3}, {"samples": 2}],
        *[{"system": None}, {"one_shot": False}, {"double_bos": True}],
    ]
    for number, change in enumerate(changes):
        with pytest.raises(AssertionError, match="the model is loaded"):
            self_sample(QUERIES, replace(ALL, **change), HfSampler(8, 8), 0, tmp_path, idle(shop))
        assert folders() == number + 2
    for queries, seed, identity in ((QUERIES, 1, "tiny"), (QUERIES[1:], 0, "tiny"), (QUERIES, 0, "other")):
        with pytest.raises(AssertionError, match="the model is loaded"):
            self_sample(queries, ALL, HfSampler(8, 8), seed, tmp_path, replace(idle(shop), identity=[identity]))
    assert folders() == len(changes) + 4


# ---- what is kept


ANSWERS = [
    Answer("  Fine. \n", "stop"),
    Answer(" \n", "stop"),
    Answer("\ni'm SORRY, no.", "stop"),
    Answer("She said: I'm sorry.", "stop"),
    Answer("As an AI, and on and", "length"),
    Answer("on and on", "length"),
    Answer("", "prompt"),
    Answer("ok", "stop"),
]


def test_what_is_kept_out_is_counted_with_its_reason(tmp_path, shop):
    said: list[str] = []
    folder = self_sample(QUERIES[:8], SETTINGS, Script(ANSWERS), 0, tmp_path, replace(shop, say=said.append))
    assert texts(folder) == ["Fine.", "She said: I'm sorry.", "ok"]
    assert rows(folder, "dropped") == [
        {"query": 1, "sample": 0, "reason": "empty", "text": " \n"},
        {"query": 2, "sample": 0, "reason": "refused", "text": "\ni'm SORRY, no."},
        {"query": 4, "sample": 0, "reason": "refused", "text": "As an AI, and on and"},
        {"query": 5, "sample": 0, "reason": "length", "text": "on and on"},
        {"query": 6, "sample": 0, "reason": "too long a prompt", "text": ""},
    ]
    left_out = "1 empty, 2 refused, 1 cut off at 12 tokens, 1 too long a prompt"
    assert said == [f"self-samples: 3 of 8 answers kept (left out: {left_out})"]


def test_reasons_that_drop_does_not_name_are_counted_though(tmp_path, shop):
    said: list[str] = []
    folder = self_sample(
        QUERIES[:8], replace(SETTINGS, drop=["length"]), Script(ANSWERS), 0, tmp_path, replace(shop, say=said.append)
    )
    assert texts(folder) == ["Fine.", "", "i'm SORRY, no.", "She said: I'm sorry.", "ok"]
    assert [row["reason"] for row in rows(folder, "dropped")] == ["length", "length", "too long a prompt"]
    left_out = "2 cut off at 12 tokens, 1 too long a prompt"
    assert said == [f"self-samples: 5 of 8 answers kept (left out: {left_out}) (kept though: 1 empty, 1 refused)"]


def test_the_authors_way_takes_off_two_characters_and_nothing_else(tmp_path, shop):
    authors = replace(SETTINGS, skip_characters=2, drop=["empty"], samples=2)
    folder = self_sample(QUERIES[:2], authors, scripted("  Sure. ", " I'm sorry", "ab", "\u00e9\u20ac "), 0, tmp_path, shop)
    assert texts(folder) == ["Sure. ", "'m sorry"]
    assert rows(folder, "dropped") == [
        {"query": 1, "sample": 0, "reason": "empty", "text": "ab"},
        {"query": 1, "sample": 1, "reason": "empty", "text": "\u00e9\u20ac "},
    ]


def test_a_prompt_that_the_model_has_no_room_for_is_dropped(tmp_path, shop, text):
    long = query("word " * text.context, "Yes.")
    folder = self_sample([QUERIES[0], long, QUERIES[1]], ALL, HfSampler(8, 1), 0, tmp_path, shop)
    assert [row["messages"][0]["content"] for row in rows(folder)] == [ASKED[0][0], ASKED[1][0]]
    assert rows(folder, "dropped") == [{"query": 1, "sample": 0, "reason": "too long a prompt", "text": ""}]


def test_nothing_is_left(tmp_path, shop):
    script = Script([Answer("", "stop"), Answer("", "stop"), Answer("As an AI", "stop"), Answer("x", "length")])
    with pytest.raises(UserError) as error:
        self_sample(QUERIES[:4], SETTINGS, script, 0, tmp_path, shop)
    first, second = str(error.value).splitlines()
    assert first.startswith("data.self_sampling: none of 4 answers is left: 2 empty, 1 refused, 1 cut off at 12 tokens; see ")
    assert len(Path(first.rpartition("see ")[2].removesuffix(".")).read_text().splitlines()) == 4
    assert second == (
        "Raise max_new_tokens where they are cut off, take a reason out of data.self_sampling.drop, or give other queries."
    )


def test_no_queries_or_too_few_answers(tmp_path, shop):
    with pytest.raises(UserError, match=r"^data.queries: there are none"):
        self_sample([], SETTINGS, scripted(), 0, tmp_path, shop)
    with pytest.raises(UserError, match=r"^data.sampler: Script gave no answer to 2 of 3 requests\.$"):
        self_sample(QUERIES[:3], SETTINGS, Script([None, Answer("a", "stop"), None]), 0, tmp_path, shop)
    (tmp_path / "file").touch()
    with pytest.raises(MissingError, match=r"^data.cache: .*cannot be made: Not a directory. Choose another: data.cache=FOLDER\.$"):
        self_sample(QUERIES[:1], SETTINGS, scripted("a"), 0, tmp_path / "file", shop)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"system": " "}, "^system: must not be empty; null"),
        ({"samples": 0}, "^samples: must be at least 1, not 0"),
        ({"samples": 2, "temperature": 0.0}, "^samples: at temperature 0 all answers to a query are alike"),
        ({"temperature": -1.0}, "^temperature: must be at least 0"),
        ({"top_p": 0.0}, r"^top_p: must be in \(0, 1\]"),
        ({"max_new_tokens": 0}, "^max_new_tokens: must be at least 1"),
        ({"skip_characters": -1}, "^skip_characters: must be at least 0"),
        ({"drop": ["empty", "short"]}, "^drop: must be one of empty, refused, length, not 'short'"),
        ({"refusals": ["a", "(b"]}, r"^refusals\[1\]: not a regular expression: missing \)"),
    ],
)
def test_settings_that_make_no_sense(change, said):
    with pytest.raises(ValueError, match=said):
        replace(SETTINGS, **change)


# ---- what is kept of a run that was cut off


def files(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("samples.jsonl", "dropped.jsonl", "../answers.journal")]


@dataclass
class Told(HfSampler):
    """Asks through a pipe, when a batch is done, whether to go on."""

    pipe: Any

    def answers(self, *arguments: Any) -> Iterator[Sequence[tuple[int, Answer]]]:
        for batch in super().answers(*arguments):
            self.pipe.send(len(batch))
            self.pipe.recv()
            yield batch


@pytest.mark.parametrize("_", range(3))
def test_every_completed_answer_survives_a_kill(tmp_path, shop, _):
    whole = self_sample(QUERIES, ALL, HfSampler(64, 1), 0, tmp_path / "whole", shop)
    expected = files(whole)
    partial = tmp_path / "cut" / whole.parent.relative_to(tmp_path / "whole") / "answers.journal"
    told, fork = random.randrange(1, 12), multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    process = fork.Process(target=self_sample, args=(QUERIES, ALL, Told(64, 1, there), 0, tmp_path / "cut", shop))
    process.start()
    there.close()
    for _ in range(told):
        here.recv()
        here.send(None)  # after the last one it is writing that answer, or at the next one
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = partial.read_bytes()
    done = left.count(b"\n") - 1  # below the key
    assert told - 1 <= done <= told
    drawn = []
    hook = shop.model().register_forward_pre_hook(lambda _, args, kwargs: drawn.append(kwargs["input_ids"].shape), with_kwargs=True)
    again = self_sample(QUERIES, ALL, HfSampler(64, 1), 0, tmp_path / "cut", shop)
    hook.remove()
    assert files(again) == expected
    assert sum(shape[1] > 1 for shape in drawn) == 12 - done  # those that lacked, and no other


@pytest.mark.parametrize("cut", [0, 1, 0.3, 0.5, 0.9, -1])
def test_a_torn_last_line_is_cut_off(tmp_path, shop, cut):
    words = Script([Answer(f"answer {i} \u20ac", "stop") for i in range(12)], batch=5)
    folder = self_sample(QUERIES, SETTINGS, words, 0, tmp_path, shop)
    expected, partial = files(folder), folder.parent / "answers.journal"
    content = expected[2]
    partial.write_bytes(content[: int(cut * len(content)) if isinstance(cut, float) else cut])
    lines = max(0, partial.read_bytes().count(b"\n") - 1)  # below the key
    assert lines < 3
    asked = Script(words.found, batch=5)
    assert files(self_sample(QUERIES, SETTINGS, asked, 0, tmp_path, shop)) == expected
    assert asked.asked[3] == frozenset(range(5 * lines))


@pytest.mark.parametrize("damage", [b"\x00" * 9 + b"\n", b'{"a": 1}\n', b"[[1, 2]]\n", b"\xff\n", b"7\n"])
def test_a_damaged_line_and_what_follows_are_made_again(tmp_path, shop, damage):
    words = Script([Answer(f"answer {i}", "stop") for i in range(12)], batch=4)
    folder = self_sample(QUERIES, SETTINGS, words, 0, tmp_path, shop)
    expected, partial = files(folder), folder.parent / "answers.journal"
    key, first, _, last = expected[2].splitlines(keepends=True)
    partial.write_bytes(key + first + damage + last)
    asked = Script(words.found, batch=4)
    assert files(self_sample(QUERIES, SETTINGS, asked, 0, tmp_path, shop)) == expected
    assert asked.asked[3] == frozenset(range(4))


def test_what_is_known_is_kept_where_a_batch_is_answered_again(tmp_path, shop):
    cut = Script([Answer(f"old {i}", "stop") for i in range(5)] + [None] * 7, batch=5)
    with pytest.raises(UserError):
        self_sample(QUERIES, SETTINGS, cut, 0, tmp_path, shop)
    new = Script([Answer(f"new {i}", "stop") for i in range(12)], batch=4)
    folder = self_sample(QUERIES, SETTINGS, new, 0, tmp_path, shop)
    assert texts(folder) == [f"old {i}" for i in range(5)] + [f"new {i}" for i in range(5, 12)]


def test_a_signal_ends_it_between_batches(tmp_path, shop):
    stop = Stop()

    def arrive() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    words = Script([Answer(f"a{i}", "stop") for i in range(12)], batch=4, then=arrive)
    with stop, pytest.raises(StoppedError) as caught:
        self_sample(QUERIES, SETTINGS, words, 0, tmp_path, replace(shop, stop=stop))
    saved = "8 of 12 self-samples are kept"
    assert str(caught.value) == f"stopped by SIGTERM: {saved}. The same command continues from there."
    assert caught.value.status == 143
    go_on = Script(words.found, batch=4)
    folder = self_sample(QUERIES, SETTINGS, go_on, 0, tmp_path, shop)
    assert go_on.asked[3] == frozenset(range(8))
    assert texts(folder) == [f"a{i}" for i in range(12)]


def test_a_second_process_waits_for_the_first(tmp_path, shop):
    folder = self_sample(QUERIES[:2], SETTINGS, scripted("a", "b"), 0, tmp_path, shop)
    expected, waits = files(folder), threading.Event()
    found: list[Path] = []

    def second() -> None:
        said = replace(shop, say=lambda line: waits.set() if line.startswith("self-samples: waiting for another process") else None)
        found.append(self_sample(QUERIES[:2], SETTINGS, Script([None, None]), 0, tmp_path, said))

    thread = threading.Thread(target=second)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder.parent / "answers.journal").write_bytes(expected[2][:3])  # as if the first were writing
        thread.start()
        assert waits.wait(60)
        thread.join(0.2)
        assert thread.is_alive()
        (folder.parent / "answers.journal").write_bytes(expected[2])
    thread.join(60)
    assert found == [folder]
    assert files(folder) == expected


def test_progress_is_shown(tmp_path, shop, capsys):
    self_sample(QUERIES, SETTINGS, Script([Answer("a", "stop")] * 12, batch=4), 0, tmp_path, shop)
    assert "self-sample 12/12 answers" in capsys.readouterr().err


def test_a_sampler_that_is_not_ready_is_asked_only_where_something_lacks(tmp_path, shop, monkeypatch):
    def refuse(_: Any) -> None:
        raise MissingError("there is no server")

    self_sample(QUERIES[:2], SETTINGS, scripted("a", "b"), 0, tmp_path, shop)
    monkeypatch.setattr(Script, "ready", refuse)
    self_sample(QUERIES[:2], SETTINGS, scripted("a", "b"), 0, tmp_path, shop)
    with pytest.raises(MissingError, match="there is no server"):
        self_sample(QUERIES[:3], SETTINGS, scripted("a", "b", "c"), 0, tmp_path, shop)


def test_the_format_of_the_answers_is_part_of_their_name(tmp_path, shop, monkeypatch):
    first = self_sample(QUERIES[:1], SETTINGS, scripted("a"), 0, tmp_path, shop)
    monkeypatch.setattr(self_sampling, "FORMAT", -1)
    assert self_sample(QUERIES[:1], SETTINGS, scripted("a"), 0, tmp_path, shop).parent != first.parent


# ---- the sampler's answers


@pytest.fixture(scope="module")
def gpt2():
    """Random weights that are sensitive to positions, with a context of 48."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 3072, "n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
    return GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False)).eval().double()


def requests_of(*lengths: int, text) -> list[Request]:
    """Texts of so many tokens."""
    before = len(text.request(Request(text=" the"))) - 1
    made = [Request(text=" the" * (length - before)) for length in lengths]
    assert [len(text.request(request)) for request in made] == list(lengths)
    return made


@pytest.mark.parametrize("batch", [2, 5, 64])
def test_prompts_padded_together_are_answered_as_alone_up_to_the_end_of_the_context(shop, text, gpt2, batch, monkeypatch):
    asked = requests_of(3, 47, 9, 30, 48, 3, 44, 12, 60, text=text)
    monkeypatch.setattr(text, "context", 48)
    decoding, seeds = Decoding(1.0, 0.95, 0, 10), [*range(5), 0, *range(6, 9)]
    small, widths = replace(shop, model=lambda: gpt2), []
    hook = gpt2.register_forward_pre_hook(lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[0]), with_kwargs=True)
    batches = list(HfSampler(64, batch).answers(asked, decoding, seeds, (), small))
    hook.remove()
    assert max(widths) <= batch
    found = {place: answer for part in batches for place, answer in part}
    assert sorted(found) == list(range(9))
    assert [place for place, answer in found.items() if answer == Answer("", "prompt")] == [4, 8]
    for place in (0, 1, 2, 3, 5, 6, 7):
        ids = text.request(asked[place])
        ((alone,),) = HfSampler(1, 1).sample_many(gpt2, [ids], sorted(text.stop), decoding, n=1, seeds=[seeds[place]], context=48)
        assert found[place] == Answer(text.decode(alone.tokens), alone.finish)
        assert len(alone.tokens) <= min(10, 48 - len(ids))
    assert found[0] == found[5]


def test_batches_do_not_depend_on_what_is_done(shop, text):
    asked = [SETTINGS.request(one) for one in QUERIES]
    sampler, decoding, seeds = HfSampler(64, 5), SETTINGS.decoding(), range(12)
    whole = [list(batch) for batch in sampler.answers(asked, decoding, seeds, (), shop)]
    assert [len(batch) for batch in whole] == [5, 5, 2]
    lengths = [len(text.request(asked[place])) for batch in whole for place, _ in batch]
    assert lengths == sorted(lengths, reverse=True)
    first = [place for place, _ in whole[0]]
    assert [list(batch) for batch in sampler.answers(asked, decoding, seeds, first, shop)] == whole[1:]
    assert [list(batch) for batch in sampler.answers(asked, decoding, seeds, [*first[1:], whole[1][0][0]], shop)] == whole
    assert list(sampler.answers(asked, decoding, seeds, range(12), idle(shop))) == []


def test_no_more_distinct_prompts_than_rows_are_computed_at_once(shop):
    asked = [SETTINGS.request(one) for one in [QUERIES[0]] * 6 + QUERIES[1:5]]
    batches = list(HfSampler(2, 7).answers(asked, SETTINGS.decoding(), range(10), (), shop))
    assert [len(batch) for batch in batches] == [7, 2, 1]
    assert {place for place, _ in batches[0]} > set(range(6))  # the longest, asked six times, is computed once


def test_limits_that_would_see_the_padding_are_refused(shop):
    for limit in ({"min_tokens": 3}, {"no_repeat_ngram_size": 2}):
        with pytest.raises(ValueError, match="^min_tokens, no_repeat_ngram_size: "):
            next(HfSampler(2, 2).answers([], Decoding(1.0, 1.0, 0, 3, **limit), [], (), shop))


def test_a_batch_is_at_least_one():
    with pytest.raises(ValueError, match="^batch: must be at least 1, not 0"):
        HfSampler(1, 0)
