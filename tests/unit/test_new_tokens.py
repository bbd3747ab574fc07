"""New tokens: one id each, rows of known values, trained alone, and the same after every way of saving them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, tokenizer
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignlab.compose import compose
from alignlab.config import Lora, Model, check
from alignlab.engine.batch import collate
from alignlab.engine.scorer import Scorer
from alignlab.errors import UserError
from alignlab.models.load import TINY, adapted, add_lora, load_model, load_text, load_tokenizer
from alignlab.models.new_tokens import add_rows, add_tokens
from alignlab.paths import resolve
from alignlab.protocols import NewToken, Row
from alignlab.seeds import derive
from alignlab.text import TextCodec

POS, TOX, SEP = (NewToken(text, noise=0.01) for text in ("<|pos|>", "<|toxic|>", "<sep>"))
IDS = [3072, 3073, 3074]
"""of the three in the embedded tokenizer"""
WORDS = "Name a fruit: apple"
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 3072, "initializer_range": 0.3}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "intermediate_size": 32, "tie_word_embeddings": False, **SIZES},
    "llama-tied": {"model_type": "llama", "intermediate_size": 32, "tie_word_embeddings": True, **SIZES},
    "gpt2": {"model_type": "gpt2", **SIZES},
    "gemma": {"model_type": "gemma", "intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8, **SIZES},
    "phi": {"model_type": "phi", "intermediate_size": 32, **SIZES},  # its head has a bias
    "padded": {"model_type": "qwen2", "intermediate_size": 32, "num_key_value_heads": 2, **SIZES, "vocab_size": 3200},
}
TARGETS = {"gpt2": ["c_attn"], "phi": ["q_proj", "fc1"]}


def model(name: str = "llama", **change: Any) -> Model:
    """A model of random weights with the embedded tokenizer."""
    made = check(compose([])[0]).model
    return replace(made, weights="random", architecture=ARCHITECTURES[name], tokenizer=TINY, **change)


def with_lora(config: Model, name: str = "llama", tokens: tuple[NewToken, ...] = (POS, TOX)) -> Any:
    """The model with a LoRA adapter and token rows, all of which have been changed."""
    ids = load_text(config, tokens).ids([token.text for token in tokens])
    made = add_lora(load_model(config, "cpu", 0, tokens), Lora(2, 4.0, 0.0, TARGETS.get(name, ["q_proj", "down_proj"])), 0, ids)
    torch.manual_seed(1)
    for weight in made.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    return made


def heads(made: Any) -> list[Tensor]:
    """The weights of the input embedding, and of the output embedding where it is another."""
    found = [made.get_input_embeddings().weight, made.get_output_embeddings().weight]
    return found[:1] if found[0] is found[1] else found


@torch.no_grad()
def logits(made: Any) -> Tensor:
    """After each of some tokens, new ones among them."""
    return made.eval()(input_ids=torch.tensor([[5, 3072, 3073, 77, 3072, 900]])).logits


# ---- tokenizer


@pytest.mark.parametrize("name", [*FAMILIES, "tiny"])
def test_each_token_is_one_id_whatever_stands_beside_it(name: str, tmp_path: Path):
    made = AutoTokenizer.from_pretrained(resolve(TINY)) if name == "tiny" else tokenizer(name)
    size, alone = len(made), made.encode(WORDS, add_special_tokens=False)
    texts = [POS.text, TOX.text, SEP.text]
    ids = add_tokens(made, [POS, TOX, SEP], name)
    largest = max(i for text, i in made.get_vocab().items() if text not in texts)
    assert ids == [largest + 1, largest + 2, largest + 3]
    made.save_pretrained(str(tmp_path))
    for each in (made, AutoTokenizer.from_pretrained(str(tmp_path))):
        assert len(each) == size + 3
        assert [each.encode(text, add_special_tokens=False) for text in texts] == [[i] for i in ids]
        assert each.encode("".join(texts * 2), add_special_tokens=False) == ids * 2
        assert each.encode(WORDS, add_special_tokens=False) == alone
        after = each.encode(POS.text + WORDS, add_special_tokens=False)
        if name == "mistral":  # a space stands before the first word of a text alone, and of no other
            assert each.convert_ids_to_tokens(after)[:2] == [POS.text, "N"]
            assert each.convert_ids_to_tokens(alone)[0] == "▁N"
        else:
            assert after == [ids[0], *alone]
        assert each.decode(after, skip_special_tokens=True).strip() == WORDS
        assert each.decode([ids[0]]) == POS.text


def test_ids_follow_the_order_given():
    orders = ([POS, TOX], [TOX, POS])
    found = [load_text(model(), tokens).ids([POS.text, TOX.text]) for tokens in orders]
    assert found == [[3072, 3073], [3073, 3072]]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (
            [NewToken("</s>")],
            r"method: the token '</s>' is in the vocabulary of \S+ already \(id 2\)\.\nChoose another text, or take",
        ),
        ([NewToken("Tiger")], r"method: the token 'Tiger' is in the vocabulary of \S+ already \(id \d+\)"),
        ([NewToken(" gold", reuse=True)], r"method: ' gold' is the token 'Ġgold' of \S+ already; choose a text that is none"),
        ([POS, POS], r"cannot hold <\|pos\|>, <\|pos\|> as one token each"),
        ([NewToken("<sep>", init="description")], "method: the token '<sep>' is to begin as its description, and that is empty"),
        ([NewToken("<|a|>"), NewToken("<|a|><|b|>"), NewToken("<|b|>")], "as one token each; choose other texts"),
    ],
)
def test_text_that_cannot_become_a_token(tokens: list[NewToken], words: str):
    for load in (lambda: load_text(model(), tokens), lambda: load_model(model(), "cpu", 0, tokens)):
        with pytest.raises(UserError, match=words):
            load()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_token_that_is_one_of_a_chat_model_s_special_tokens(name: str):
    made = tokenizer(name)
    made.add_special_tokens({"sep_token": "<sep>"})
    there = made.get_vocab()
    with pytest.raises(
        UserError, match=rf"method: the token '<sep>' is in the vocabulary of m already \(id {made.sep_token_id}\)\.\nCh"
    ):
        add_tokens(made, [SEP], "m")
    assert add_tokens(made, [replace(SEP, reuse=True), POS], "m") == [there["<sep>"], len(there)]
    assert made.sep_token == "<sep>"
    assert made.get_vocab() == there | {POS.text: len(there)}


@pytest.mark.parametrize("name", FAMILIES)
def test_tokenizer_that_is_saved_reads_as_before(name: str, tmp_path: Path):
    tokenizer(name).save_pretrained(str(tmp_path / "a"))
    made = load_tokenizer(replace(model(), tokenizer=str(tmp_path / "a")), [SEP])
    made.save_pretrained(str(tmp_path / "b"))
    text = f"{made.eos_token}{WORDS}{SEP.text}{WORDS} {SEP.text} {WORDS}"
    assert AutoTokenizer.from_pretrained(tmp_path / "b").encode(text) == made.encode(text)


def test_number_that_another_token_has(tmp_path: Path):
    """A vocabulary with a gap gives a new token the number of an old one."""
    shutil.copytree(resolve(TINY), tmp_path / "t")
    content = json.loads((tmp_path / "t/tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last] = 3072
    (tmp_path / "t/tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot hold"):
        add_tokens(AutoTokenizer.from_pretrained(str(tmp_path / "t")), [POS], "m")


# ---- rows


def expected(matrix: Tensor, draw: torch.Generator, noise: float) -> Tensor:
    return (matrix[:3072].double().mean(0) + noise * torch.randn(16, generator=draw)).to(matrix.dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", [*ARCHITECTURES])
def test_new_rows_are_the_mean_of_the_old_ones_and_noise(name: str, dtype: str):
    plain, made = (load_model(model(name, dtype=dtype), "cpu", 3, tokens) for tokens in ((), (POS, TOX)))
    old, new = heads(plain), heads(made)
    height = 3200 if name == "padded" else 3074
    assert len(new) == len(old) == (1 if name in ("llama-tied", "gpt2", "gemma") else 2)
    assert made.config.vocab_size == height
    draws = [torch.Generator().manual_seed(derive(3, "new token", token.text)) for token in (POS, TOX)]
    for before, after in zip(old, new, strict=True):
        assert after.shape == (height, 16)
        assert after.dtype == getattr(torch, dtype)
        assert torch.equal(after[:3072], before[:3072])
        assert torch.equal(after[3074:], before[3074:])
        for i, draw in zip((3072, 3073), draws, strict=True):
            torch.testing.assert_close(after[i], expected(before, draw, 0.01), rtol=0, atol=1e-7 if dtype != "bfloat16" else 2e-4)
    assert logits(made).shape == (1, 6, height)
    others = dict(plain.named_parameters())
    assert all(torch.equal(p, others[n]) for n, p in made.named_parameters() if p.shape == others[n].shape and p.shape[0] < 3072)


def test_bias_of_a_new_token_is_the_mean_or_zero():
    made = load_model(model("phi"), "cpu", 0)
    torch.nn.init.normal_(made.lm_head.bias)
    mean = made.lm_head.bias.double().mean().float()
    add_rows(made, load_tokenizer(model()), [POS, NewToken("<|r|>", init="random")], 0, "m")
    assert torch.allclose(made.lm_head.bias[3072:], torch.stack([mean, torch.zeros(())]), rtol=0, atol=1e-7)


def test_random_rows_have_the_width_of_the_architecture():
    made = load_model(model(), "cpu", 0, [NewToken(f"<|{i}|>", init="random") for i in range(200)])
    for weight in heads(made):
        assert weight[3072:].std().item() == pytest.approx(0.3, rel=0.05)
        assert abs(weight[3072:].mean().item()) < 0.02


@pytest.mark.parametrize("name", ["llama", "llama-tied", "phi"])
def test_rows_may_begin_as_the_description(name: str):
    """Each of its tokens as often as it stands there; what it says of the token itself is read as any text."""
    words = "Answer with <sep>, then <sep>."
    of = load_tokenizer(model()).encode(words, add_special_tokens=False)
    assert max(of) < 3072 > len(of) > len({*of})
    plain = load_model(model(name), "cpu", 0)
    if name == "phi":
        torch.nn.init.normal_(plain.lm_head.bias)
    old = [weight.detach().clone() for weight in heads(plain)]
    token = NewToken("<sep>", init="description", noise=0.5, description=words)
    add_rows(plain, load_tokenizer(model()), [token], 0, "m")
    draw = torch.Generator().manual_seed(derive(0, "new token", "<sep>"))
    for before, after in zip(old, heads(plain), strict=True):
        begin = before[of].double().mean(0) + 0.5 * torch.randn(16, generator=draw)
        torch.testing.assert_close(after[3072], begin.float(), rtol=0, atol=1e-6)
    if name == "phi":
        bias = plain.lm_head.bias
        torch.testing.assert_close(bias[3072], bias[of].double().mean().float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*ARCHITECTURES])
def test_matrices_are_filled_up_with_rows_that_are_never_likely(name: str):
    """The mean of the old ones, whatever the seed: at most as likely as the average old token."""
    plain, made = load_model(model(name), "cpu", 0), load_model(model(name), "cpu", 0)
    if name == "phi":
        for each in (plain, made):
            torch.nn.init.normal_(each.lm_head.bias, generator=torch.Generator().manual_seed(0))
    add_rows(made, load_tokenizer(model()), [POS], 5, "m", 64)
    rows = 3200 if name == "padded" else 3136
    assert {made.config.vocab_size, *map(len, heads(made))} == {rows}
    assert all(torch.equal(after[:3072], before[:3072]) for before, after in zip(heads(plain), heads(made), strict=True))
    share = made(input_ids=torch.randint(0, rows, (4, 50), generator=torch.Generator().manual_seed(0))).logits.softmax(-1)
    if name != "padded":  # its spare rows are the model's own
        assert all((after[3073:] == after[3073]).all() for after in heads(made))
        assert (share[..., 3073:] <= share[..., :3072].mean(-1, keepdim=True) * 1.001).all()


@pytest.mark.parametrize(
    ("name", "tokens", "multiple", "rows"),
    [
        ("llama", (POS,), None, 3073),
        ("llama", (POS,), 3073, 3073),
        ("llama", (POS, TOX), 3073, 6146),
        ("llama", (NewToken("Tiger", reuse=True),), 1000, 3072),  # nothing is added
        ("llama", (), 1000, 3072),
        ("padded", (POS,), 64, 3200),
        ("padded", (POS,), 1000, 4000),
    ],
)
def test_number_of_rows_is_the_next_multiple_where_tokens_are_added(
    name: str, tokens: tuple[NewToken, ...], multiple: int | None, rows: int
):
    assert load_model(model(name, pad_vocabulary_to=multiple), "cpu", 0, tokens).config.vocab_size == rows


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_that_is_no_token_is_decoded_to_nothing(name: str):
    made = tokenizer(name)
    ids = made.encode(WORDS, add_special_tokens=False)
    text = TextCodec(made, [], 99)
    assert text.decode([*ids[:2], len(made) + 3, *ids[2:], len(made)]) == text.decode(ids)


def test_rows_depend_on_the_seed_and_the_text_and_nothing_else():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    rows = {key: load_model(model(), "cpu", 7, tokens) for key, tokens in enumerate([(POS, TOX), (TOX, POS), (POS, TOX)])}
    assert torch.equal(torch.random.get_rng_state(), state)
    one, other, again = ([weight[3072:] for weight in heads(made)] for made in rows.values())
    assert all(map(torch.equal, one, again))
    assert all(torch.equal(a, b.flip(0)) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0][0], one[0][1])
    made = load_model(model(), "cpu", 7)
    add_rows(made, load_tokenizer(model()), [POS, TOX], 8, "m")
    assert not torch.equal(heads(made)[0][3072:], one[0])


def test_a_reused_token_keeps_its_row_and_becomes_one_id_everywhere():
    tokens = [NewToken("Tiger", reuse=True), POS]
    plain, made = load_model(model(), "cpu", 0), load_model(model(), "cpu", 0, tokens)
    assert [len(weight) for weight in heads(made)] == [3073, 3073]
    assert all(torch.equal(a, b[:3072]) for a, b in zip(heads(plain), heads(made), strict=True))
    text = load_text(model(), tokens)
    [tiger, pos] = text.ids(["Tiger", POS.text])
    assert text.tokenizer.encode(f"{POS.text}TigerTiger", add_special_tokens=False) == [pos, tiger, tiger]
    assert len(heads(load_model(model(), "cpu", 0, tokens[:1]))[0]) == 3072


def test_a_token_of_the_tokenizer_without_a_row_gets_one():
    """As where a pad token was added to a tokenizer and not to the model: it is reused here, and its row made."""
    small = ARCHITECTURES["llama"] | {"vocab_size": 3071}
    last = next(t for t, i in load_tokenizer(model()).get_vocab().items() if i == 3071)
    plain = load_model(replace(model(), architecture=small), "cpu", 0)
    made = load_model(replace(model(), architecture=small), "cpu", 0, [NewToken(last, reuse=True)])
    more = [load_model(replace(model(), architecture=small), "cpu", 0, [POS]) for _ in range(2)]
    assert all(map(torch.equal, *map(heads, more)))  # row 3071 of that token is there, and always the same
    for before, after in zip(heads(plain), heads(made), strict=True):
        torch.testing.assert_close(after[3071], before.double().mean(0).float(), rtol=0, atol=1e-7)


def test_a_head_of_its_own_stays_so_where_the_config_says_otherwise(tmp_path: Path):
    """transformers keeps such a head, and would lose it when it resizes."""
    load_model(model(), "cpu", 0).save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    there = replace(model(), weights="pretrained", architecture=None, path=str(tmp_path))
    plain, made = load_model(there, "cpu", 0), load_model(there, "cpu", 0, [POS, TOX])
    assert len(heads(plain)) == len(heads(made)) == 2
    assert all(torch.equal(a, b[:3072]) for a, b in zip(heads(plain), heads(made), strict=True))
    adapter = with_lora(there)
    before = logits(adapter)
    torch.testing.assert_close(logits(adapter.merge_and_unload()), before, rtol=0, atol=1e-4)


# ---- LoRA


@pytest.mark.parametrize("name", [*ARCHITECTURES])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_the_adapter_and_the_new_rows_are_trained_in_fp32(name: str, dtype: str):
    made = with_lora(model(name, dtype=dtype), name)
    learning = {n: p for n, p in made.named_parameters() if p.requires_grad}
    rows = {n: p for n, p in learning.items() if "lora_" not in n}
    assert len(rows) == len(heads(load_model(model(name), "cpu", 0)))
    assert all(n.endswith("token_adapter.trainable_tokens_delta.default") for n in rows)
    assert {tuple(p.shape) for p in rows.values()} == {(2, 16)}
    assert {p.dtype for p in learning.values()} == {torch.float32}


@pytest.mark.parametrize("name", [*ARCHITECTURES])
def test_adapter_of_a_few_kilobytes_gives_the_same_logits_on_a_base_with_other_new_rows(name: str, tmp_path: Path):
    made = with_lora(model(name), name)
    made.save_pretrained(str(tmp_path / "a"), save_embedding_layers=False)
    sizes = {k: tuple(v.shape) for k, v in load_file(tmp_path / "a/adapter_model.safetensors").items() if "lora_" not in k}
    assert set(sizes.values()) == {(2, 16)}
    assert (tmp_path / "a/adapter_model.safetensors").stat().st_size < 20_000
    changed = [replace(token, noise=3.0) for token in (POS, TOX)]
    again = load_model(model(name, adapter=str(tmp_path / "a")), "cpu", 0, changed)
    assert torch.equal(logits(again), logits(made))
    if name != "phi":  # peft's own layer leaves out the bias of a head
        plain = PeftModel.from_pretrained(load_model(model(name), "cpu", 0, changed), str(tmp_path / "a"))
        torch.testing.assert_close(logits(plain), logits(made), rtol=0, atol=1e-4)
    with made.disable_adapter():
        assert torch.equal(logits(made), logits(load_model(model(name), "cpu", 0, (POS, TOX))))


@pytest.mark.parametrize("name", [*ARCHITECTURES])
def test_merged_model_and_tokenizer_are_an_ordinary_folder(name: str, tmp_path: Path):
    made = with_lora(model(name), name)
    before = logits(made)
    merged = made.merge_and_unload()
    assert not [n for n, _ in merged.named_modules() if "token_adapter" in n]
    assert len(heads(merged)) == len(heads(load_model(model(name), "cpu", 0)))
    torch.testing.assert_close(logits(merged), before, rtol=0, atol=1e-4)
    merged.save_pretrained(str(tmp_path))
    load_tokenizer(model(), (POS, TOX)).save_pretrained(str(tmp_path))
    text, plain = AutoTokenizer.from_pretrained(str(tmp_path)), AutoModelForCausalLM.from_pretrained(str(tmp_path))
    assert text.encode(POS.text + TOX.text, add_special_tokens=False) == [3072, 3073]
    assert torch.equal(logits(plain), logits(merged))
    there = replace(model(), weights="pretrained", architecture=None, path=str(tmp_path), tokenizer=None)
    with pytest.raises(UserError, match=r"the token '<\|pos\|>' is in the vocabulary of \S+ already \(id 3072\)"):
        load_model(there, "cpu", 0, (POS, TOX))
    kept = load_model(there, "cpu", 0, [replace(token, reuse=True) for token in (POS, TOX)])
    assert torch.equal(logits(kept), logits(merged))


def chain(tokens: list[int]) -> Row:
    at = np.arange(len(tokens) - 1, dtype=np.int32)
    ids = np.asarray(tokens, dtype=np.int32)
    return Row(0, 1.0, ids[:-1], at - 1, at, ids[1:])


TEXTS = ([1, 3072, 3073, 40, 41, 3072], [1, 3073, 900, 3073, 3073, 7], [1, 5, 6, 7])


@pytest.mark.parametrize("mib", [1024, 0], ids=["at once", "a node at a time"])
@pytest.mark.parametrize("name", [*ARCHITECTURES])
def test_gradients_of_the_rows_are_those_of_the_whole_matrix(name: str, mib: int):
    """Against the model's own forward with everything trained, in float64: through the input and, tied, the output as well."""
    config = model(name, dtype="float64")
    whole = load_model(config, "cpu", 0, (POS, TOX))
    loss = sum(
        log_softmax(whole(input_ids=torch.tensor([ids])).logits[0, :-1], -1).gather(1, torch.tensor(ids)[1:, None]).square().sum()
        for ids in TEXTS
    )
    loss.backward()
    lora = Lora(2, 4.0, 0.0, TARGETS.get(name, ["q_proj", "down_proj"]))
    made = add_lora(load_model(config, "cpu", 0, (POS, TOX)), lora, 0, [3073, 3072])  # B = 0: the same function
    scorer = Scorer(made, logits_mib=mib)
    ours = scorer(collate([chain(ids) for ids in TEXTS])).square().sum()
    assert ours.item() == pytest.approx(loss.item(), rel=1e-9)
    ours.backward()
    grads = [p.grad for n, p in made.named_parameters() if "trainable_tokens" in n]
    assert len(grads) == len(heads(whole))
    for grad, weight in zip(grads, heads(whole), strict=True):
        assert weight.grad[3072:3074].abs().min() > 0
        torch.testing.assert_close(grad, weight.grad[[3073, 3072]], rtol=1e-8, atol=1e-10)
    assert {n for n, p in made.named_parameters() if p.grad is not None} == {
        n for n, p in made.named_parameters() if p.requires_grad
    }


def test_lora_on_the_matrix_that_has_the_rows_is_refused():
    with pytest.raises(UserError, match=r"train\.lora\.targets: rows of embed_tokens, lm_head are trained themselves"):
        add_lora(load_model(model(), "cpu", 0, [POS]), Lora(2, 4.0, 0.0, ["q_proj", "embed_tokens"]), 0, [3072])


# ---- adapters that do not fit


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of two tokens, with its tokenizer, as a run leaves it."""
    with_lora(model()).save_pretrained(str(tmp_path / "a"), save_embedding_layers=False)
    load_tokenizer(model(), (POS, TOX)).save_pretrained(str(tmp_path / "a"))
    return tmp_path / "a"


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ((), r"has rows for 2 token\(s\) that this method does not add \(<\|pos\|>, <\|toxic\|>\)"),
        ((POS,), r"has rows for 1 token\(s\) that this method does not add \(<\|toxic\|>\)"),
        ((TOX, POS), r"has a row for <\|pos\|>, where this method adds <\|toxic\|>"),
    ],
)
@pytest.mark.parametrize("name", ["llama", "padded"])
def test_adapter_of_other_tokens(name: str, tokens: tuple[NewToken, ...], words: str, adapter: Path):
    with pytest.raises(UserError, match=words) as caught:
        load_model(model(name, adapter=str(adapter)), "cpu", 0, tokens)
    assert str(caught.value).startswith(f"model.adapter: {adapter} ")


def test_adapter_without_rows_is_sampled_and_not_trained_further(tmp_path: Path):
    add_lora(load_model(model(), "cpu", 0), Lora(2, 4.0, 0.0, ["q_proj"]), 0).save_pretrained(str(tmp_path))
    config = model(adapter=str(tmp_path))
    assert logits(load_model(config, "cpu", 0, (POS, TOX))).shape[-1] == 3074
    base = load_model(replace(config, adapter=None), "cpu", 0, (POS, TOX))
    with pytest.raises(UserError, match=r"has no rows for <\|pos\|>, <\|toxic\|>, which are to be trained"):
        adapted(base, config, (POS, TOX), trainable=True)
    frozen = [replace(token, trained=False) for token in (POS, TOX)]
    assert adapted(base, config, frozen, trainable=True).active_adapter == "default"


def test_adapter_whose_files_are_damaged(adapter: Path):
    (adapter / "tokenizer.json").write_text("{")
    assert logits(load_model(model(adapter=str(adapter)), "cpu", 0, (POS, TOX))).isfinite().all()  # it only tells names
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=f"model.adapter: {adapter} does not fit this model"):
        load_model(model(adapter=str(adapter)), "cpu", 0, (POS, TOX))


def test_adapter_that_trains_tokens_of_the_base_needs_no_new_ones(tmp_path: Path):
    made = add_lora(load_model(model(), "cpu", 0), Lora(2, 4.0, 0.0, ["q_proj"]), 0, [2, 5])
    made.save_pretrained(str(tmp_path), save_embedding_layers=False)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file({k: v + 1 if "trainable_tokens" in k else v for k, v in weights.items()}, tmp_path / "adapter_model.safetensors")
    changed = load_model(model(adapter=str(tmp_path)), "cpu", 0).merge_and_unload()
    for before, after in zip(heads(load_model(model(), "cpu", 0)), heads(changed), strict=True):
        assert torch.equal(after[[2, 5]], before[[2, 5]] + 1)
