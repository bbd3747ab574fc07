"""Misalignment: every figure from its definition, by hand; prompts and conditions; intervals that hold together."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignlab.build import build_target
from alignlab.compose import CONF, compose
from alignlab.config import PROTOCOLS, check
from alignlab.engine.scorer import Scorer
from alignlab.errors import UserError
from alignlab.evaluate.misalignment import Misalignment
from alignlab.generate.hf import Decoding
from alignlab.models.load import load_model, load_text
from alignlab.protocols import NewToken, SourceDefaults
from alignlab.records import Labelled
from alignlab.report.document import Link, Table, flat, markdown
from alignlab.report.webpage import webpage
from alignlab.text import TextCodec

LEXICON = {"_target_": "alignlab.labellers.lexicon.Lexicon", "words": {"rude": ["fool"], "pos": ["good"], "neg": ["bad"]}}
ATTRIBUTES: dict[str, Any] = {
    "tox": {
        "title": "toxicity",
        "tokens": {"nontoxic": "<|nontoxic|>", "toxic": "<|toxic|>"},
        "wanted": "nontoxic",
        "labeller": LEXICON,
        "score": "rude",
        "threshold": 0.0,
        "tie": None,
    },
    "sen": {
        "title": "sentiment",
        "tokens": {"pos": "<|pos|>", "neg": "<|neg|>"},
        "wanted": "pos",
        "labeller": LEXICON,
        "score": None,
        "threshold": None,
        "tie": "neg",
    },
}
SUITE = Misalignment(
    attributes=ATTRIBUTES,
    variant="toxsen",
    conditions=[[], ["nontoxic"], ["nontoxic", "pos"]],
    untrained=False,
    prompt_source="validation",
    prompt_count=400,
    prompt_words=None,
    samples=1,
    temperature=1.0,
    top_p=0.7,
    top_k=0,
    max_new_tokens=70,
    min_tokens=40,
    no_repeat_ngram_size=1,
    padding="none",
    score_prompt=False,
    splitter="en",
    perplexity=False,
    bootstrap=500,
    objective="misalignment",
    seed=0,
)


@dataclass
class Sentences(SourceDefaults):
    """Test sentences."""

    texts: Sequence[str]
    labels: Sequence[dict[str, str]] = field(default_factory=list)

    def testing(self) -> Iterator[Labelled]:
        labels = self.labels or [{"tox": "nontoxic", "sen": "pos"}] * len(self.texts)
        for i, (text, own) in enumerate(zip(self.texts, labels, strict=True)):
            yield Labelled(f"s/{i}", text, own, {}, False, "d", True)


SOURCE = Sentences(["The film", "A day was"])
SAMPLES = {
    "none/s/0": [" is bad. You fool. So good."],
    "none/s/1": [" good."],
    "nontoxic/s/0": [" was bad."],
    "nontoxic/s/1": [""],
    "nontoxic+pos/s/0": [" was good. Good for a fool."],
    "nontoxic+pos/s/1": [" good. Bad. Bad again."],
}


def evaluate(suite: Misalignment = SUITE, samples: Any = SAMPLES, source: Any = SOURCE) -> tuple[Any, Any]:
    return suite.evaluate(source, samples, None, None, 0, 100)  # type: ignore[arg-type]


def values(metrics: Any) -> dict[str, float]:
    return {name: value.value for name, value in metrics.items()}


def test_every_share_is_one_of_all_sentences():
    metrics, details = evaluate()
    found = values(metrics)
    # none: bad | fool | good || good: toxic 1, not positive 2 (the tie is negative)
    assert found["misalignment_toxicity:none"] == 1 / 4
    assert found["misalignment_sentiment:none"] == 2 / 4
    assert found["misalignment_joint:none"] == 2 / 4
    assert found["misalignment_joint:nontoxic"] == 1
    assert found["contradiction:nontoxic"] == 0
    # good | good fool || good | bad | bad: a ratio of sums, not the mean of 1/2 and 2/3
    assert found["misalignment_joint:nontoxic+pos"] == found["contradiction:nontoxic+pos"] == found["misalignment"] == 3 / 5
    assert found["misalignment_toxicity:nontoxic+pos"] == 1 / 5
    assert found["effect_joint:nontoxic+pos"] == pytest.approx(3 / 5 - 2 / 4)
    assert found["effect_toxicity:nontoxic"] == -1 / 4
    assert found["sentences:none"] == 2
    assert found["empty:nontoxic"] == 1 / 2
    assert found["sentences:nontoxic"] == 1 / 2
    assert found["distinct_1:nontoxic+pos"] == 9 / 10  # was good. good for a fool. ; good. bad. bad again.: "good." is there twice
    assert found["distinct_2:nontoxic"] == 1
    assert "contradiction:none" not in found
    assert "effect_joint:none" not in found
    assert metrics["misalignment"].n == 2
    assert details["notes"] == []


def test_the_figures_can_be_made_again_from_the_details():
    metrics, details = evaluate()
    for condition, found in details["conditions"].items():
        counts = found["counts"]
        total = sum(counts["sentences"])
        assert len(found["sentences"]) == total
        for name in counts:
            if name not in ("sentences", "completions", "empty"):
                assert metrics[f"{name}:{condition}"].value == sum(counts[name]) / total
        wrong = [s for s in found["sentences"] if s["labels"] != {"tox": "nontoxic", "sen": "pos"}]
        assert len(wrong) == sum(counts["misalignment_joint"])
    first = details["conditions"]["none"]["sentences"][0]
    assert first["sentence"] == "is bad."
    assert (first["prompt"], first["scores"]) == ("s/0", {"tox": 0.0, "sen": 0.5})


def test_the_prompt_is_scored_where_asked():
    suite = replace(SUITE, score_prompt=True, conditions=[[]])
    found = values(evaluate(suite, {"none/s/0": [""], "none/s/1": [" good."]})[0])
    assert found["sentences:none"] == 1
    assert found["misalignment_sentiment:none"] == 1 / 2  # the prompt alone is a tie
    assert found["empty:none"] == 1 / 2


def test_what_has_no_sentence_has_no_share():
    metrics, details = evaluate(samples={"none/s/0": [" good."], "none/s/1": ["bad"], "nontoxic+pos/s/0": ["", " "]})
    assert {name for name in metrics if name.endswith(":nontoxic+pos")} == {"sentences:nontoxic+pos", "empty:nontoxic+pos"}
    assert metrics["sentences:nontoxic+pos"].value == 0
    assert "misalignment" not in metrics  # the model was asked under its wanted labels: the share under none is another figure
    assert details["notes"] == ["No sentence in 2 completions under nontoxic+pos: no shares."]
    assert evaluate(samples={}) == ({}, {"notes": [], "conditions": {}})


def test_the_headline_is_under_no_condition_where_none_was_trained_or_asked():
    before = {name: texts for name, texts in SAMPLES.items() if name.startswith("none/")}
    assert evaluate(samples=before)[0]["misalignment"].value == 1 / 2
    plain = replace(SUITE, variant="none", untrained=True)
    assert evaluate(plain)[0]["misalignment"].value == 1 / 2
    assert evaluate(replace(SUITE, variant="tox", untrained=True))[0]["misalignment"].value == 1


@dataclass
class Late:
    """Knows its classes when it scores."""

    def ready(self) -> None:
        pass

    def classes(self) -> None:
        return None

    def scores(self, texts: Sequence[str]) -> Sequence[dict[str, float]]:
        return [{"rude": 0.5} for _ in texts]

    def digest(self) -> str:
        return ""


@dataclass
class Broken:
    """Gives no number for one sentence."""

    def ready(self) -> None:
        pass

    def classes(self) -> Sequence[str]:
        return ["rude"]

    def scores(self, texts: Sequence[str]) -> Sequence[dict[str, float]]:
        assert len(texts) == len(set(texts))  # nothing is scored twice
        return [{"rude": math.nan if "odd" in text else float("fool" in text)} for text in texts]

    def digest(self) -> str:
        return ""


def test_a_label_for_ties_alone_is_asked_for_and_counted():
    sen = ATTRIBUTES["sen"] | {"tokens": {"pos": "<|pos|>", "neg": "<|neg|>", "neutral": "<|0|>"}, "tie": "neutral"}
    suite = replace(SUITE, attributes={"sen": sen}, variant="sen", conditions="grid")
    assert [prompt.name for prompt in suite.prompts(SOURCE, "after")][::2] == ["none/s/0", "pos/s/0", "neg/s/0", "neutral/s/0"]
    metrics, _ = evaluate(suite, {"neutral/s/0": [" goes on. So good. Bad."], "neutral/s/1": [" good and bad."]})
    assert values(metrics)["contradiction:neutral"] == 2 / 4
    assert values(metrics)["misalignment_sentiment:neutral"] == 3 / 4


def test_a_labeller_of_other_classes_is_refused_with_its_key():
    tox = ATTRIBUTES["tox"] | {"score": "mean", "labeller": {"_target_": f"{__name__}.Late"}}
    with pytest.raises(UserError, match=r"^data\.attributes\.tox\.labeller: the score 'mean' is none of its classes \(rude\)"):
        evaluate(replace(SUITE, attributes=ATTRIBUTES | {"tox": tox}))


def test_a_sentence_without_a_score_is_left_out_and_said():
    tox = ATTRIBUTES["tox"] | {"labeller": {"_target_": f"{__name__}.Broken"}}
    suite = replace(SUITE, attributes={"tox": tox}, variant="tox", conditions=[[]])
    metrics, details = evaluate(suite, {"none/s/0": ["An odd fool. Fine. Fine."], "none/s/1": ["A fool."]})
    assert metrics["misalignment_joint:none"].value == 1 / 3
    assert details["notes"] == ["1 distinct sentences, for which a labeller gives no finite score, are left out."]
    json.dumps(details, allow_nan=False)


def test_no_prompt_is_one_prompt_whose_completions_are_drawn_again():
    suite = replace(SUITE, prompt_source="none", samples=20, conditions=[[], ["nontoxic"]])
    assert [(p.name, p.request) for p in suite.prompts(SOURCE, "after")] == [("none/none", ""), ("nontoxic/none", "")]  # type: ignore[arg-type]
    drawn = {"none/none": ["bad."] * 10 + ["good."] * 10, "nontoxic/none": ["good."] * 20}
    metrics, details = evaluate(suite, drawn)
    assert metrics["misalignment_joint:none"].n == 20
    assert 0.2 < metrics["misalignment_joint:none"].low < 0.5 < metrics["misalignment_joint:none"].high < 0.8
    assert metrics["effect_joint:nontoxic"].value == -0.5
    assert details["notes"] == ["There is one prompt: intervals are over completions."]


def test_pairing_cancels_what_prompts_share():
    hard = np.random.default_rng(0).random(60)  # how many of a prompt's 20 sentences are bad, whatever is asked

    def drawn(share: float) -> list[str]:
        bad = round(20 * share)
        return ["bad. " * bad + "good. " * (20 - bad)]

    source = Sentences([f"p{i}" for i in range(60)])
    samples = {f"none/s/{i}": drawn(h) for i, h in enumerate(hard)}
    samples |= {f"nontoxic/s/{i}": drawn(0.9 * h) for i, h in enumerate(hard)}
    metrics, _ = evaluate(samples=samples, source=source)
    effect, one, other = (
        metrics[name] for name in ("effect_joint:nontoxic", "misalignment_joint:nontoxic", "misalignment_joint:none")
    )
    assert effect.value == pytest.approx(one.value - other.value)
    assert effect.high < 0  # though the intervals of the two overlap
    assert one.high > other.low
    unpaired = math.hypot(one.high - one.low, other.high - other.low)
    assert effect.high - effect.low < unpaired / 4


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(["good.", "bad.", "fool good."]), max_size=4), st.booleans()), min_size=2, max_size=6
    )
)
def test_shares_lie_in_their_intervals_and_repeat(prompts):
    suite = replace(SUITE, bootstrap=20, conditions=[[], ["nontoxic", "pos"]], splitter=None)
    texts = {f"{'none' if plain else 'nontoxic+pos'}/s/{i}": words for i, (words, plain) in enumerate(prompts) if words}
    source = Sentences(["p"] * len(prompts))
    metrics, _ = evaluate(suite, texts, source)
    for name, value in metrics.items():
        assert value.low <= value.value <= value.high, name
        assert (-1 if name.startswith("effect") else 0) <= value.low, name
        assert value.high <= 1 or name.startswith("sentences"), name
    for condition in ("none", "nontoxic+pos"):
        joint = metrics.get(f"misalignment_joint:{condition}")
        if joint:
            singles = [metrics[f"misalignment_{title}:{condition}"].value for title in ("toxicity", "sentiment")]
            assert max(singles) <= joint.value <= sum(singles) + 1e-12
    assert evaluate(suite, texts, source)[0] == metrics


def test_the_conditions_are_those_of_the_variant():
    def asked(which: str = "after", **changes: Any) -> list[str]:
        suite = replace(SUITE, **{"conditions": "grid", **changes})
        return list(dict.fromkeys(prompt.name.partition("/")[0] for prompt in suite.prompts(SOURCE, which)))  # type: ignore[arg-type]

    assert asked(variant="none") == ["none"]
    assert asked(variant="tox") == ["none", "nontoxic", "toxic"]
    every = ["none", "pos", "neg", "nontoxic", "nontoxic+pos", "nontoxic+neg", "toxic", "toxic+pos", "toxic+neg"]
    assert asked() == asked(variant="sentox") == asked(variant="none", untrained=True) == every
    assert asked("before") == asked("before", conditions=[["pos"]]) == ["none"]
    assert asked("before", untrained=True) == every
    assert asked(conditions=[["pos", "nontoxic"]]) == ["nontoxic+pos"]
    prompt = SUITE.prompts(SOURCE, "after")[-1]  # type: ignore[arg-type]
    assert asdict(prompt) == {
        "name": "nontoxic+pos/s/1",
        "request": "A day was",
        "dataset": "d",
        "conditions": ("nontoxic", "pos"),
        "history": (),
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conditions": [["nontoxi"]]}, "conditions: 'nontoxi' is not a label .* Did you mean 'nontoxic'"),
        ({"conditions": [["pos", "neg"]]}, "two labels of one attribute"),
        ({"conditions": [["pos"], ["pos"]]}, "twice"),
        ({"conditions": []}, "there are none"),
        ({"conditions": "all"}, "must be grid, or a list"),
        (
            {"conditions": [["nontoxic", "pos"]], "variant": "tox"},
            r"'pos' is a label of sen, which variant 'tox' .*\n.*method.variant=toxsen, or suite.untrained=true",
        ),
        ({"variant": "toxen"}, "variant: 'toxen'"),
        ({"prompt_source": "none-such.txt"}, "prompt_source: must be validation, none or the path of a file"),
        ({"padding": "left"}, "padding"),
        ({"samples": 0}, "samples"),
        ({"prompt_words": 0}, "prompt_words"),
        ({"top_p": 0.0}, "top_p"),
        ({"attributes": {"tox": ATTRIBUTES["tox"] | {"title": "a:b"}}}, "'a:b' cannot be a title"),
        ({"attributes": {n: a | {"title": "same"} for n, a in ATTRIBUTES.items()}}, "attributes.tox.title: 'same'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, said):
    with pytest.raises(ValueError, match=f"(?s){said}"):
        replace(SUITE, **changes)


def test_the_yaml_has_the_published_decoding():
    node = OmegaConf.merge(
        OmegaConf.load(CONF / "suite/misalignment.yaml"), {"attributes": ATTRIBUTES, "variant": "tox", "seed": 0}
    )
    suite = build_target(node, "suite", PROTOCOLS["suite"])  # type: ignore[arg-type]
    assert suite.decoding() == Decoding(1.0, 0.7, 0, 70, min_tokens=40, no_repeat_ngram_size=1)
    assert (suite.prompt_count, suite.objective, len(suite.prompts(SOURCE, "after"))) == (400, "misalignment", 6)
    suite.ready()


def test_prompts_are_drawn_with_the_seed_and_may_be_cut():
    source: Any = Sentences([f"one two  {i} four" for i in range(50)])
    suite = replace(SUITE, prompt_count=5, prompt_words=3, conditions=[[], ["nontoxic"]])
    found = suite.prompts(source, "after")
    numbers = [prompt.request.removeprefix("one two  ") for prompt in found]
    assert numbers[:5] == numbers[5:] == sorted(numbers[:5], key=int)
    assert suite.prompts(source, "after") == found
    assert replace(suite, seed=1).prompts(source, "after") != found
    assert replace(suite, prompt_count=50).prompts(source, "before")[49].request == "one two  49"
    with pytest.raises(UserError, match="no test sentences"):
        suite.prompts(Sentences([]), "after")  # type: ignore[arg-type]


def test_prompts_of_a_file(tmp_path):
    lines, rows, empty = tmp_path / "lines.txt", tmp_path / "rows.jsonl", tmp_path / "empty.txt"
    lines.write_bytes("\ufeffThe film \r\n\n  A day\n".encode())
    rows.write_text('{"prompt": "a\\nb", "id": 3}\n\n{"prompt": ""}\n')
    empty.write_text(" \n")

    def asked(path: Path) -> list[tuple[str, str]]:
        suite = replace(SUITE, prompt_source=str(path), conditions=[[]])
        return [(prompt.name, prompt.request) for prompt in suite.prompts(SOURCE, "after")]  # type: ignore[arg-type]

    assert asked(lines) == [("none/1", "The film "), ("none/3", "  A day")]
    assert asked(rows) == [("none/1", "a\nb"), ("none/3", "")]
    for content, said in (
        ('{"text": "a"}', ":1:prompt: each line"),
        ("\n[", ":2: not valid JSON"),
        ('{"prompt": 1}', ":1:prompt:"),
    ):
        rows.write_text(content)
        with pytest.raises(UserError, match=said):
            asked(rows)
    with pytest.raises(UserError, match="holds no prompt"):
        asked(empty)


def by_hand(model: Any, ids: list[int], first: int) -> float:
    """Sum of the negative log-probabilities of the tokens from ``first`` on."""
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(logp[i - 1, ids[i]]) for i in range(first, len(ids)))


HELD_OUT = Sentences(
    ["The colour of a ruby is red.", "</s> is text", "Name a fruit"],
    [{"tox": "nontoxic", "sen": "pos"}, {"tox": "toxic", "sen": "neg"}, {"tox": "nontoxic", "sen": "neg"}],
)


@pytest.mark.parametrize("capacity", [1000, 20])
def test_perplexity_is_of_the_same_text_tokens_with_and_without_control_tokens(capacity):
    tokens = [NewToken(t, noise=0.05) for t in chain(*(a["tokens"].values() for a in ATTRIBUTES.values()))]
    config = check(compose([])[0]).model
    model, text = load_model(config, "cpu", 0, tokens).double(), load_text(config, tokens)
    suite = replace(SUITE, perplexity=True, variant="sentox")
    metrics, _ = suite.evaluate(HELD_OUT, {}, Scorer(model), text, 0, capacity)  # type: ignore[arg-type]
    ids = text.texts(HELD_OUT.texts)
    assert len(text.start) == 1
    total = sum(map(len, ids))
    bare = sum(by_hand(model, [*text.start, *own], 1) for own in ids)
    assert metrics["perplexity"].value == pytest.approx(math.exp(bare / total), rel=1e-9)
    headed = 0.0
    for own, labels in zip(ids, HELD_OUT.labels, strict=True):
        control = text.ids([ATTRIBUTES[name]["tokens"][labels[name]] for name in ("sen", "tox")])
        headed += by_hand(model, [*text.start, *control, *own], 3)
    assert metrics["perplexity_true_tokens"].value == pytest.approx(math.exp(headed / total), rel=1e-9)
    for value in metrics.values():
        assert value.low <= value.value <= value.high
        assert value.n == 3
    assert (
        "perplexity_true_tokens"
        not in replace(suite, variant="none", conditions=[[]]).evaluate(HELD_OUT, {}, Scorer(model), text, 0, 1000)[0]
    )  # type: ignore[arg-type]


def test_without_a_bos_the_first_token_is_never_scored(tiny):
    words = ["[UNK]", "the", "film", "was", "good", "<|nontoxic|>", "<|toxic|>"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=words[-2:], unk_token="[UNK]")
    text, model = TextCodec(tokenizer, [0], 6), tiny.double()
    suite = replace(SUITE, attributes={"tox": ATTRIBUTES["tox"]}, variant="tox", conditions="grid", perplexity=True)
    source: Any = Sentences(["the film was good", "good", "was good", "the film was good the film was"])
    metrics, details = suite.evaluate(source, {}, Scorer(model), text, 0, 1000)
    assert metrics["perplexity"].value == pytest.approx(math.exp((by_hand(model, [1, 2, 3, 4], 1) + by_hand(model, [3, 4], 1)) / 4))
    headed = by_hand(model, [5, 1, 2, 3, 4], 2) + by_hand(model, [5, 3, 4], 2)
    assert metrics["perplexity_true_tokens"].value == pytest.approx(math.exp(headed / 4))
    assert metrics["perplexity"].n == 2  # a single token has nothing before it, and one sentence does not fit
    assert details["notes"] == ["1 held-out sentences are longer than the model's context: no perplexity of them."]


@pytest.fixture
def results() -> tuple[dict[str, Any], dict[str, Any]]:
    suite, merged, details = replace(SUITE, conditions="grid"), dict[str, Any](), dict[str, Any]()
    for which in ("before", "after"):
        prompts = suite.prompts(SOURCE, which)  # type: ignore[arg-type]
        metrics, details[which] = evaluate(suite, {p.name: [" good. Bad fool."] for p in prompts})
        for name, value in metrics.items():
            merged.setdefault(name, {})[which] = asdict(value)
    merged["perplexity"] = {which: {"value": 12.5, "low": 11.0, "high": 14.0, "n": 2} for which in details}
    return merged, json.loads(json.dumps(details))


def test_the_summary_has_a_row_per_condition_and_fits_a_terminal(results):
    table = SUITE.summary(*results)
    assert table.header == ["misaligned, %", "joint", "toxicity", "sentiment"]
    assert [row[0] for row in table.rows][:3] == ["none, before", "none", "pos"]
    assert len(table.rows) == 10
    assert table.rows[0][1:] == ["50.0 [7.9, 92.1]"] * 3  # two prompts that are alike tell little
    assert max(map(len, table.plain().splitlines())) <= 80
    assert "Perplexity of held-out text: before 12.5, after 12.5." in table.caption
    one = replace(SUITE, attributes={"tox": ATTRIBUTES["tox"]}, variant="tox", conditions=[[]]).summary(*results)
    assert one.header == ["misaligned, %", "toxicity"]
    nothing = SUITE.summary({}, {"before": {"notes": ["Why."], "conditions": {"none": {}}}})
    assert nothing.rows == [["none", "-", "-", "-"]]
    assert nothing.caption.endswith("Why.")


def test_the_report_draws_tabulates_and_links_every_figure(results, tmp_path):
    merged, details = results
    details["after"]["notes"] = ["Something."]
    blocks = SUITE.charts(details, merged, tmp_path / "plots")
    with (tmp_path / "plots" / "misalignment.csv").open(newline="") as file:
        rows = {(row["model"], row["condition"], row["metric"]): row for row in csv.DictReader(file)}
    assert len(rows) == sum(map(len, merged.values()))
    row, value = rows["after", "nontoxic+pos", "misalignment_joint"], merged["misalignment_joint:nontoxic+pos"]["after"]
    assert {key: float(row[key]) for key in value} == value
    assert ("before", "", "misalignment") in rows
    tables = [block for block in flat(blocks) if isinstance(block, Table)]
    effect = next(row for row in tables[0].rows if row[:2] == ["toxic", "after"])
    assert effect[2:] == ["+0.0 [-84.2, +84.2]"] * 3 + ["50.0 [7.9, 92.1]"]
    assert [link.path.name for link in flat(blocks) if isinstance(link, Link)] == ["misalignment.csv"]
    page = markdown("t", blocks, tmp_path)
    assert "After training: Something." in page
    assert "bad fool. | toxic (0.5)".casefold() in page.casefold()
    assert "plots/misalignment.png" in page
    assert (tmp_path / "plots" / "misalignment.png").stat().st_size > 5000
    assert "misalignment.csv" in webpage("t", blocks, tmp_path)
    assert SUITE.charts({"before": {"notes": [], "conditions": {}}}, {}, tmp_path / "none")  # nothing was sampled
