"""Many prompts at once, least lengths, unrepeated sequences, and prompts padded on the right; the stage that asks for them."""

from __future__ import annotations

import copy
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import alignlab
from alignlab.errors import UserError
from alignlab.generate.hf import Decoding, HfSampler, stream
from alignlab.seeds import derive
from alignlab.stages import sample as stage

PROMPTS = [
    "Pick a number.",
    "Name a fruit.",
    "Tell me a short story about a king and a queen.",
    "Name a fruit.",
    "Tell me a story.",
]
LIMITS = [
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"min_tokens": 40},
    {"no_repeat_ngram_size": 3, "min_tokens": 35},
]
"""with the names of :class:`Decoding`"""


@pytest.fixture
def asked(text) -> list[list[int]]:
    return [text.prompt([{"role": "user", "content": words}]) for words in PROMPTS]


@pytest.fixture(scope="module")
def gpt2():
    """Random weights that are sensitive: a position or a masked token more changes what is likeliest."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.1}
    config = GPT2Config(**sizes, tie_word_embeddings=False, bos_token_id=59, eos_token_id=59)
    return GPT2LMHeadModel(config).eval()


def their_names(limits: dict[str, int]) -> dict[str, int]:
    return {"min_length" if name == "min_tokens" else name: value for name, value in limits.items()}


# ---- limits on what is drawn


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_greedy_under_limits_is_that_of_generate(tiny, text, asked, limits):
    stop, changed = sorted(text.stop), 0
    for prompt in asked:
        ids = torch.tensor([prompt])
        theirs = tiny.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, eos_token_id=stop, **their_names(limits)
        )[0, len(prompt) :].tolist()
        decoding = Decoding(0.0, 0.5, 3, 40, **limits)
        (ours,) = HfSampler(8, 64).sample(tiny, prompt, stop, decoding, n=1, seed=0)
        assert list(ours.tokens) == theirs
        assert list(stream(tiny, prompt, stop, decoding, 0)) == theirs
        (free,) = HfSampler(8, 64).sample(tiny, prompt, stop, Decoding(0.0, 1.0, 0, 40), n=1, seed=0)
        changed += free != ours
    assert changed


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_what_is_drawn_from_are_the_scores_of_generate(tiny, text, asked, limits):
    stop, prompt = sorted(text.stop), asked[2]
    decoding = Decoding(3.0, 0.7, 5, 30, **limits)
    torch.manual_seed(1)
    theirs = tiny.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=True,
        temperature=3.0,
        top_p=0.7,
        top_k=5,
        max_new_tokens=30,
        eos_token_id=stop,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **their_names(limits),
    )
    row = theirs.sequences[0].tolist()
    for step, (raw, scores) in enumerate(zip(theirs.logits, theirs.scores, strict=True)):
        seen = torch.tensor([row[: len(prompt) + step]])
        assert torch.equal(decoding.processors(stop, "cpu")(seen, raw), scores)
    step, n = len(theirs.scores) - 1, 2000  # a prefix that holds tokens drawn before: prompt and drawn ones count alike
    drawn = HfSampler(8, 64).sample(tiny, row[: len(prompt) + step], stop, Decoding(3.0, 0.7, 5, 1, **limits), n=n, seed=5)
    counts = np.bincount([completion.tokens[0] for completion in drawn], minlength=scores.shape[1])
    p = torch.softmax(theirs.scores[step][0].double(), -1).numpy()
    assert (np.abs(counts / n - p) <= 4.5 * np.sqrt(p * (1 - p) / n)).all()  # what has no probability is never drawn


def test_limits_hold_for_prefixes_that_samples_share(tiny, text, asked):
    decoding = Decoding(1.0, 1.0, 0, 20, min_tokens=len(asked[0]) + 6, no_repeat_ngram_size=2)
    drawn = HfSampler(16, 64).sample(tiny, asked[0], sorted(text.stop), decoding, n=100, seed=0)
    assert len({completion.tokens[:1] for completion in drawn}) < 50  # some do share
    for completion in drawn:
        assert len(completion.tokens) > 6 or completion.finish == "length"
        whole = [*asked[0], *completion.tokens]
        new = list(pairwise(whole))[len(asked[0]) - 1 :]
        old = list(pairwise(asked[0]))
        assert len({*new} - {*old}) == len(new)


@pytest.mark.parametrize("name", ["min_tokens", "no_repeat_ngram_size"])
def test_limits_are_no_less_than_nothing(name):
    with pytest.raises(ValueError, match=f"{name}: must be at least 0, not -1"):
        Decoding(1.0, 1.0, 0, 1, **{name: -1})


# ---- many prompts


@pytest.mark.parametrize("rows", [1, 2, 1024])
def test_many_prompts_get_what_each_gets_alone(tiny, text, asked, rows):
    stop, seeds = sorted(text.stop), [7, 8, 9, 10, 8]
    decoding = Decoding(1.0, 0.95, 0, 10, no_repeat_ngram_size=2)
    many = HfSampler(rows, 64).sample_many(tiny, asked, stop, decoding, n=4, seeds=seeds)
    alone = [HfSampler(1024, 64).sample(tiny, one, stop, decoding, n=4, seed=seed) for one, seed in zip(asked, seeds, strict=True)]
    assert many == alone
    assert many[1] != many[3]  # the same prompt with another seed
    assert HfSampler(rows, 64).sample_many(tiny, asked[:2], stop, decoding, n=2, seeds=seeds[:2]) == [one[:2] for one in alone[:2]]
    assert HfSampler(rows, 64).sample_many(tiny, [], stop, decoding, n=2, seeds=[]) == []


@pytest.mark.parametrize("rows", [2, 1024])
def test_prompts_of_one_length_are_computed_together_and_none_is_padded(gpt2, rows):
    seen = []
    hook = gpt2.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((tuple(kwargs["input_ids"].shape), kwargs["attention_mask"])), with_kwargs=True
    )
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8], [1, 2, 3], [9, 10, 11]]
    HfSampler(rows, 64).sample_many(gpt2, prompts, [], Decoding(1.0, 1.0, 0, 3), n=2, seeds=range(5))
    hook.remove()
    begun = [shape for shape, _ in seen if shape[1] > 1]
    assert begun == ([(1, 2), (2, 3), (1, 3)] if rows == 2 else [(1, 2), (3, 3)])  # a prompt that is asked twice is computed once
    assert max(shape[0] for shape, _ in seen) <= rows
    assert all(mask is None for _, mask in seen)


def test_completions_end_where_the_context_does(gpt2):
    prompts = [[1] * 3, [2] * 46, [3] * 40]
    drawn = HfSampler(4, 64).sample_many(gpt2, prompts, [], Decoding(1.0, 1.0, 0, 6), n=2, seeds=[0, 1, 2], context=48)
    assert [[len(completion.tokens) for completion in one] for one in drawn] == [[6, 6], [2, 2], [6, 6]]
    room = HfSampler(4, 64).sample(gpt2, prompts[1], [], Decoding(1.0, 1.0, 0, 2), n=2, seed=1)
    assert drawn[1] == room


# ---- padding on the right


def their_greedy(model, ids: list[int], length: int, stop: list[int], steps: int, limits: dict[str, int]) -> list[int]:
    """One prompt as transformers 4.2x generated after padding on the right: every step from the whole text, without a cache."""
    ids, mask, drawn = torch.tensor([ids]), torch.tensor([[1] * length + [0] * (len(ids) - length)]), []
    while len(drawn) < steps and not (drawn and drawn[-1] in stop):
        place = mask.cumsum(-1) - 1
        place[mask == 0] = 1
        with torch.no_grad():
            scores = model(input_ids=ids, attention_mask=mask, position_ids=place, use_cache=False).logits[0, -1]
        if limits.get("no_repeat_ngram_size") == 1:
            scores[ids[0]] = -torch.inf
        if ids.shape[1] < limits.get("min_tokens", 0):
            scores[stop] = -torch.inf
        drawn.append(int(scores.argmax()))
        ids = torch.cat([ids, torch.tensor([[drawn[-1]]])], 1)
        mask = torch.cat([mask, torch.ones(1, 1, dtype=torch.long)], 1)
    return drawn


@pytest.mark.parametrize("limits", [{}, {"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 1, "min_tokens": 20}], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 64])
def test_prompts_padded_on_the_right_are_continued_after_the_padding(gpt2, limits, rows):
    pad, stop, decoding = 58, [57, 59], Decoding(0.0, 1.0, 0, 20, **limits)
    prompts = [[3, 14, 15, 9, 2, 6], [5, 35], [8, 9, 7], [3, 23, 8], [4]]
    lengths = [len(prompt) for prompt in prompts]
    padded = [[*prompt, *[pad] * (6 - len(prompt))] for prompt in prompts]
    drawn = HfSampler(rows, 64).sample_many(gpt2, padded, stop, decoding, n=1, seeds=range(5), lengths=lengths)
    expected = [their_greedy(gpt2, ids, length, stop, 20, limits) for ids, length in zip(padded, lengths, strict=True)]
    assert [list(one[0].tokens) for one in drawn] == expected
    free = HfSampler(rows, 64).sample_many(gpt2, prompts, stop, decoding, n=1, seeds=range(5))
    assert drawn[0] == free[0]  # the longest has no padding
    assert all(ours != theirs for ours, theirs in zip(drawn[1:], free[1:], strict=True))


def test_the_first_token_after_padding_is_that_of_generate_at_these_positions(gpt2):
    ids, mask = torch.tensor([[5, 35, 58, 58], [3, 14, 15, 9]]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    place = torch.tensor([[0, 1, 1, 1], [0, 1, 2, 3]])
    theirs = gpt2.generate(ids, attention_mask=mask, position_ids=place, do_sample=False, max_new_tokens=1, pad_token_id=58)[:, -1]
    drawn = HfSampler(2, 64).sample_many(gpt2, ids.tolist(), [59], Decoding(0.0, 1.0, 0, 1), n=1, seeds=[0, 0], lengths=[2, 4])
    assert [one[0].tokens[0] for one in drawn] == theirs.tolist()


def test_prompts_that_padding_makes_alike_stay_apart(gpt2):
    """The padding token may also be a token of a prompt."""
    ids, decoding = [5, 35, 58], Decoding(0.0, 1.0, 0, 8)
    short, whole, again = HfSampler(8, 64).sample_many(gpt2, [ids] * 3, [], decoding, n=1, seeds=[0] * 3, lengths=[2, 3, 2])
    assert short == again != whole
    assert whole == HfSampler(8, 64).sample(gpt2, ids, [], decoding, n=1, seed=0)


# ---- the stage

MINE = """
from dataclasses import dataclass, replace
from alignlab.evaluate.distribution import Distribution

@dataclass
class Twice(Distribution):
    padding: str

    def prompts(self, source, which):
        plain = source.prompts()
        again = [replace(p, name=p.name + "|pos", request=p.request + " Be kind to me.", conditions=("pos",)) for p in plain]
        return plain if which == "after" else [p for pair in zip(plain, again) for p in pair]
"""
REQUESTS = ["Pick a number between 1 and 10.", "Name a fruit.", "Tell me a short story about a king.", "Name a colour."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with prompts, a suite that asks each of them of the untrained model under two conditions."""
    where = tmp_path_factory.mktemp("stage")
    (where / "p").mkdir()
    for number, request in enumerate(REQUESTS):
        (where / f"p/{number}.json").write_text(json.dumps({"request": request, "targets": ["{7}", "{3}"]}))
    (where / "sampled_twice.py").write_text(MINE)
    return where


@pytest.fixture
def sampled(folder, monkeypatch):
    """``sampled("a.jsonl", "key=value")``: what the stage writes there."""
    monkeypatch.syspath_prepend(folder)
    fixed = [
        *[f"data.path={folder / 'p'}", f"run_dir={folder / 'run'}", "tracker=none", "train.max_steps=1", "train.lr=0.02"],
        *["suite._target_=sampled_twice.Twice", "suite.samples=3", "suite.max_new_tokens=8", "stages=[prepare,train,sample]"],
    ]

    def call(file: str, *arguments: str) -> bytes:
        padding = [] if any("padding" in argument for argument in arguments) else ["+suite.padding=none"]
        alignlab.run([*fixed, f"sample.file={file}", *padding, *arguments])
        return (folder / "run" / file).read_bytes()

    return call


def test_the_stage_asks_each_model_its_prompts_in_their_order(sampled, folder, monkeypatch, capsys):
    written = sampled("all.jsonl")
    rows = [json.loads(line) for line in written.splitlines()]
    before = [("before", f"{number}{pos}", i) for number in range(4) for pos in ("", "|pos") for i in range(3)]
    after = [("after", f"{number}", i) for number in range(4) for i in range(3)]
    assert [(row["model"], row["prompt"], row["sample"]) for row in rows] == before + after
    shown = capsys.readouterr().err
    assert "sample 12/12 prompts" in shown
    assert "sample: 36 completions of 8 prompts (before and after training)" in shown
    together, ours = [], HfSampler.batches
    monkeypatch.setattr(
        HfSampler,
        "batches",
        lambda self, model, prompts, *rest, **more: together.append(len(prompts)) or ours(self, model, prompts, *rest, **more),
    )
    monkeypatch.setattr(stage, "TOGETHER", 9)
    assert sampled("few.jsonl", "sampler.rows=1") == written
    assert together == [3, 3, 2, 3, 1]
    monkeypatch.setattr(stage, "TOGETHER", 1)
    assert sampled("one.jsonl") == written


def test_the_stage_pads_the_prompts_of_a_condition_to_the_longest(sampled, tiny, text, monkeypatch):
    written = sampled("padded.jsonl", "+suite.padding=right", "sample.model=before")
    shown = [row["text"] for row in map(json.loads, written.splitlines())]
    for first, more in ((0, ""), (3, " Be kind to me.")):
        ids = [text.prompt([{"role": "user", "content": request + more}]) for request in REQUESTS]
        lengths = [len(one) for one in ids]
        assert len(set(lengths)) > 1
        padded = [[*one, *[text.tokenizer.pad_token_id] * (max(lengths) - len(one))] for one in ids]
        seeds = [derive(0, "sample", f"{number}{'|pos' if more else ''}") for number in range(4)]
        decoding = Decoding(1.0, 1.0, 0, 8)
        drawn = HfSampler(8, 64).sample_many(tiny, padded, sorted(text.stop), decoding, n=3, seeds=seeds, lengths=lengths)
        expected = [[text.decode(one.tokens) for one in completions] for completions in drawn]
        assert [shown[start : start + 3] for start in range(first, 24, 6)] == expected
    monkeypatch.setattr(stage, "TOGETHER", 9)
    assert sampled("few.jsonl", "+suite.padding=right", "sample.model=before") == written
    assert sampled("free.jsonl", "sample.model=before") != written


def test_the_stage_ends_completions_where_the_context_does(tiny, text, tmp_path):
    request = "word"
    while len(ids := text.prompt([{"role": "user", "content": request}])) < text.context - 3:
        request += " word" * max(1, (text.context - len(ids)) // 4)
    (tmp_path / "long.json").write_text(json.dumps({"request": request, "targets": ["a"]}))
    where = [f"data.path={tmp_path / 'long.json'}", f"run_dir={tmp_path / 'run'}", "tracker=none", "stages=[sample]"]
    rows = alignlab.run(
        [*where, "sample.model=before", "suite.samples=2", "suite.temperature=100", "suite.max_new_tokens=9"]
    ).samples
    room = Decoding(100.0, 1.0, 0, text.context - len(ids))
    drawn = HfSampler(2, 64).sample(tiny, ids, sorted(text.stop), room, n=2, seed=derive(0, "sample", "long"))
    assert [(row["text"], row["finish"]) for row in rows] == [(text.decode(one.tokens), "length") for one in drawn]


def test_a_padding_token_is_the_tokenizers_or_one_named_so_or_missed(text):
    other = copy.copy(text)
    other.tokenizer = copy.deepcopy(text.tokenizer)
    assert stage.pad_token(other) == text.tokenizer.pad_token_id
    other.tokenizer.pad_token = None
    with pytest.raises(UserError, match=r"^suite\.padding: the tokenizer has no padding token \(pad_token\), and no \[PAD\]"):
        stage.pad_token(other)
    other.tokenizer.add_tokens(["[PAD]"])
    assert stage.pad_token(other) == len(text.tokenizer)
