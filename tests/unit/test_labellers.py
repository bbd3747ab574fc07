"""What scores texts: word lists, VADER, sequence classifiers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from alignlab.build import build_target
from alignlab.control import LABELLER
from alignlab.errors import MissingError, UserError
from alignlab.labellers.classifier import Classifier
from alignlab.labellers.lexicon import Lexicon
from alignlab.labellers.vader import Vader
from alignlab.paths import resolve

TINY = resolve("alignlab:models/tiny")


def refusal(kind: type[UserError], call: Any, *args: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert type(caught.value) is kind
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


# ---- from YAML


CLASSIFIER = "revision: null, function: auto, names: {}, batch: 8, max_tokens: null, device: cpu, trust_remote_code: false"
DETOXIFY = "checkpoint: null, base: null, url: null, cache: null, batch: 8, device: auto, trust_pickle: false"


@pytest.mark.parametrize(
    ("yaml", "classes"),
    [
        ("{_target_: alignlab.labellers.lexicon.Lexicon, words: {rude: [idiot, shut up], kind: [thanks]}}", ("rude", "kind")),
        ("{_target_: alignlab.labellers.vader.Vader}", ("pos", "neu", "neg", "compound")),
        (f"{{_target_: alignlab.labellers.classifier.Classifier, path: some/name, {CLASSIFIER}}}", None),
        (
            f"{{_target_: alignlab.labellers.detoxify.Detoxify, kind: original, {DETOXIFY}}}",
            ("toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat"),
        ),
    ],
    ids=lambda value: value.split(",")[0].rstrip("}").split(".")[-1] if isinstance(value, str) else "",
)
def test_yaml_builds_a_labeller_that_names_its_classes_before_it_is_loaded(yaml: str, classes: tuple[str, ...] | None):
    assert build_target(OmegaConf.create(yaml), "labeller", LABELLER).classes() == classes


def test_building_imports_nothing_heavy():
    modules = ("classifier.Classifier", "detoxify.Detoxify", "lexicon.Lexicon", "vader.Vader")
    program = (
        "import sys\n"
        + "".join(f"from alignlab.labellers.{m.split('.')[0]} import {m.split('.')[1]}\n" for m in modules)
        + "Vader(); Lexicon({'a': ['b']}); Classifier('x/y', None, 'auto', {}, 1, None, 'auto', False).digest()\n"
        "Detoxify('unbiased', None, None, None, None, 1, 'auto', False).digest()\n"
        "print([m for m in ('torch', 'transformers', 'vaderSentiment', 'spacy', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- word lists


@pytest.mark.parametrize(
    ("text", "rude", "kind"),
    [
        ("You IDIOT, thanks.", 1 / 3, 1 / 3),
        ("Shut up! Now shut the door up.", 2 / 7, 0),
        ("Shut, up", 1, 0),  # punctuation does not part a phrase
        ("idiots are no idiot's idiot", 1 / 5, 0),  # whole words
        ("you big idiot big idiot", 4 / 5, 0),
        ("shut up up", 2 / 3, 0),
        ("Straße STRASSE", 0, 1),
        ("", 0, 0),
        ("... !", 0, 0),
    ],
)
def test_share_of_words_in_a_list(text: str, rude: float, kind: float):
    labeller = Lexicon({"rude": ["Idiot", "shut up", "big idiot"], "kind": ["thanks", "straße"]})
    labeller.ready()
    assert labeller.scores([text]) == [{"rude": rude, "kind": kind}]
    assert labeller.digest() == ""


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({}, "words: there is no class"),
        ({"rude": []}, "words.rude: has no words"),
        ({"rude": ["idiot", "!?"]}, "words.rude: '!?' holds no word"),
    ],
)
def test_word_list_that_says_nothing(words: dict[str, list[str]], problem: str):
    with pytest.raises(ValueError, match=problem.replace("?", r"\?")):
        Lexicon(words)


# ---- VADER


def test_vader():
    labeller = Vader()
    labeller.ready()
    found = labeller.scores(["I love this!", "This is terrible.", "not good", "The table has four legs.", ""])
    assert [row["compound"] for row in found] == [0.6696, -0.4767, -0.3412, 0, 0]
    assert found[0] == {"neg": 0, "neu": 0.308, "pos": 0.692, "compound": 0.6696}
    assert found[3] == {"neg": 0, "neu": 1, "pos": 0, "compound": 0}
    assert found[4] == dict.fromkeys(labeller.classes(), 0)
    assert labeller.digest() == f"vaderSentiment {version('vaderSentiment')}"


def test_vader_without_its_package(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    for name in [m for m in sys.modules if m.startswith("vaderSentiment")]:
        monkeypatch.delitem(sys.modules, name)
    for call in (Vader().ready, lambda: Vader().scores(["a"])):
        problem = refusal(MissingError, call)
        assert "pip install 'alignlab[sentiment]'" in problem
        assert "alignlab.labellers.lexicon.Lexicon" in problem


# ---- classifiers

TEXTS = ["", "a", "the quick brown fox " * 40, *("so much the worse " * k for k in range(1, 14)), "!!!"]


def made(folder: Path, kind: str, **options: Any) -> Any:
    """A small random classifier with large weights, saved with the embedded tokenizer."""
    import transformers as t

    tokenizer = t.AutoTokenizer.from_pretrained(TINY)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = t.AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), max_position_embeddings=40, bos_token_id=1, eos_token_id=2, **sizes, **options
    )
    torch.manual_seed(1)
    model = t.AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def classifier(path: Path | str, **fields: Any) -> Classifier:
    given: dict[str, Any] = {"function": "auto", "names": {}, "batch": 4, "max_tokens": None, "device": "cpu"}
    return Classifier(str(path), None, **(given | fields), trust_remote_code=False)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("roberta")
    return folder, *made(folder, "roberta", pad_token_id=0, id2label={0: "bad", 1: "middling", 2: "good"})


def by_hand(model: Any, tokenizer: Any, text: str, limit: int) -> torch.Tensor:
    """Logits of one text, by itself."""
    with torch.no_grad():
        return model(torch.tensor([tokenizer(text)["input_ids"][:limit]])).logits[0]


def test_probabilities_are_the_models_whatever_the_batch(roberta):
    folder, model, tokenizer = roberta
    expected = torch.stack([by_hand(model, tokenizer, text, 39).softmax(-1) for text in TEXTS])  # 40 positions, one for padding
    assert (expected.amax(0) - expected.amin(0)).min() > 0.1
    for batch in (1, 5, 64):
        labeller = classifier(folder, batch=batch)
        labeller.ready()
        found = labeller.scores(TEXTS)
        assert [list(row) for row in found] == [["bad", "middling", "good"]] * len(TEXTS)
        torch.testing.assert_close(torch.tensor([list(row.values()) for row in found]), expected, rtol=0, atol=1e-6)


def test_windows_keep_the_order(roberta, monkeypatch):
    monkeypatch.setattr("alignlab.labellers.classifier.WINDOW", 3)
    folder, *_ = roberta
    whole = classifier(folder).scores(TEXTS)
    monkeypatch.undo()
    for one, other in zip(whole, classifier(folder).scores(TEXTS), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_texts_are_cut_at_max_tokens(roberta):
    folder, model, tokenizer = roberta
    row = classifier(folder, max_tokens=5).scores([TEXTS[2]])[0]
    torch.testing.assert_close(
        torch.tensor(list(row.values())), by_hand(model, tokenizer, TEXTS[2], 5).softmax(-1), rtol=0, atol=1e-6
    )


def test_decoder_without_a_pad_token(tmp_path: Path):
    model, tokenizer = made(tmp_path, "llama", num_labels=2)
    model.config.pad_token_id = tokenizer.pad_token_id
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    labeller = classifier(tmp_path)
    found = labeller.scores(TEXTS)
    assert labeller._tokenizer.pad_token == labeller._tokenizer.eos_token
    expected = torch.stack([by_hand(model, tokenizer, text, 40).softmax(-1) for text in TEXTS])
    torch.testing.assert_close(torch.tensor([list(row.values()) for row in found]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "function", "expected"),
    [
        ({"num_labels": 3}, "auto", "softmax"),
        ({"num_labels": 3}, "sigmoid", "sigmoid"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "auto", "sigmoid"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "softmax", "softmax"),
        ({"num_labels": 1}, "auto", "sigmoid"),
    ],
)
def test_function(options: dict[str, Any], function: str, expected: str, tmp_path: Path):
    model, tokenizer = made(tmp_path, "bert", **options)
    logits = by_hand(model, tokenizer, "well well", 40)
    wanted = logits.sigmoid() if expected == "sigmoid" else logits.softmax(-1)
    row = classifier(tmp_path, function=function).scores(["well well"])[0]
    assert list(row) == [f"LABEL_{i}" for i in range(options["num_labels"])]
    torch.testing.assert_close(torch.tensor(list(row.values())), wanted, rtol=0, atol=1e-6)
    if len(row) == 1:
        problem = refusal(UserError, classifier(tmp_path, function="softmax").scores, ["well"])
        assert problem.startswith("labeller.function: the softmax of a single output")


def test_classes_are_renamed(roberta):
    folder, *_ = roberta
    labeller = classifier(folder, names={"bad": "neg", "good": "pos"})
    assert labeller.classes() == ["neg", "middling", "pos"]
    assert list(labeller.scores(["a"])[0]) == ["neg", "middling", "pos"]
    problem = refusal(UserError, classifier(folder, names={"god": "pos"}).classes)
    assert problem == "labeller.names: 'god' is none of its classes (bad, middling, good). Did you mean 'good'?"
    assert "the same name" in refusal(UserError, classifier(folder, names={"bad": "good"}).classes)


def test_digest_tells_weights_and_labels(roberta, tmp_path: Path):
    folder, *_ = roberta
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    digest = classifier(folder).digest()
    assert classifier(copy).digest() == digest
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace("middling", "so-so"))
    assert classifier(copy).digest() != digest
    (copy / "config.json").write_text(config)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert classifier(copy).digest() != digest
    (copy / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert classifier(copy).digest() == digest
    for name in (
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer_config.json",
    ):
        kept = (copy / name).read_bytes() if (copy / name).exists() else None
        (copy / name).write_text("{}")
        assert classifier(copy).digest() != digest, name
        (copy / name).unlink() if kept is None else (copy / name).write_bytes(kept)
    assert classifier(copy).digest() == digest


def test_digest_of_a_name_has_the_commit_once_it_is_ready(roberta, tmp_path: Path, monkeypatch):
    from huggingface_hub import constants

    folder, *_ = roberta
    commit, cached = "c0ffee" * 6 + "c0ff", tmp_path / "models--some--name"
    shutil.copytree(folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    labeller = classifier("some/name")
    assert (labeller.digest(), labeller.classes()) == ("some/name@None", None)
    labeller.ready()
    assert (labeller.digest(), labeller.classes()) == (f"some/name@{commit}", ["bad", "middling", "good"])


@pytest.mark.parametrize(
    ("field", "value"), [("function", "tanh"), ("device", "tpu"), ("batch", 0), ("max_tokens", 0)], ids=lambda v: str(v)
)
def test_values_out_of_range(field: str, value: Any):
    with pytest.raises(ValueError, match=f"^{field}: must be"):
        classifier("some/name", **{field: value})


def test_what_holds_no_classifier(roberta, tmp_path: Path):
    folder, *_ = roberta
    absent = refusal(MissingError, classifier("some/name").ready)
    assert absent.startswith("labeller.path: some/name is neither a folder nor in the local cache")
    assert "give a folder: labeller.path=FOLDER" in absent
    assert "there is no folder" in refusal(UserError, classifier(tmp_path / "nowhere").ready)
    assert "holds no model (config.json)" in refusal(UserError, classifier(tmp_path).ready)
    pickled = Path(shutil.copytree(folder, tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "has no *.safetensors" in refusal(UserError, classifier(pickled).ready)
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"no weights")
    assert "cannot be loaded" in refusal(UserError, classifier(broken).scores, ["a"])
    assert "is no classifier: its weights lack 1 of one's, score.weight" in refusal(UserError, classifier(TINY).scores, ["a"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there(roberta):
    folder, *_ = roberta
    assert "labeller.device: there is no GPU" in refusal(MissingError, classifier(folder, device="cuda").ready)
    assert classifier(folder, device="auto").scores(["a"])
