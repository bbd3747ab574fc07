"""Five families of chat models at the size of a test: templates, tokenizers of the right kind, and random weights.

The templates say in Jinja what ``Family.written`` says in Python; neither is taken from a published model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

_CORPUS = [
    "Pick a number from 1 to 10. Answer like {4} or {7}, with nothing else.",
    "user model assistant system You are helpful. It is {1} {2} {3} {10}",
    "a[0]{ b[1]{ c[2]{ d[3]{ e[4]{ f[5]{",  # as in code: what follows a bracket may merge with it
    "Name a fruit: apple, pear, cherry, fig. Café, naïve, 北京 and Привет are words too.",
]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_WORDS = Regex(r"'(?:s|t|re|ve|m|ll|d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


@dataclass(frozen=True)
class Family:
    """A prompt format.

    Attributes:
        kind: model type in transformers.
        template: its Jinja template.
        prompt: what stands before the answer to the request R.
        answer: the answer A as the template writes it, up to the end of the turn.
        after: what the template writes after the end of the turn.
        end: the end-of-turn token.
        eos: the tokenizer's own last token.
        bos: the first token; None where there is none.
    """

    kind: str
    template: str
    prompt: str
    answer: str
    end: str
    eos: str
    bos: str | None = None
    after: str = ""

    def written(self, request: str, answer: str = "") -> str:
        """The conversation as text: up to the answer, or up to the end of it."""
        asked = self.prompt.replace("R", request, 1)
        return asked + self.answer.replace("A", answer, 1) if answer else asked


_LLAMA2 = """{%- if messages[0]['role'] == 'system' -%}
    {%- set head = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set head = '' -%}{%- set turns = messages -%}{%- endif -%}
{%- for turn in turns -%}
    {%- set text = (head if loop.first else '') + turn['content'] -%}
    {%- if turn['role'] == 'user' -%}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
    {%- else -%}{{ ' ' + text.strip() + ' ' + eos_token }}{%- endif -%}
{%- endfor -%}"""

_MISTRAL = """{{- bos_token -}}
{%- for turn in messages -%}
    {%- if turn['role'] == 'user' -%}{{ ' [INST] ' + turn['content'] + ' [/INST]' }}
    {%- else -%}{{ ' ' + turn['content'] + eos_token }}{%- endif -%}
{%- endfor -%}"""

MISTRAL_2024 = """{{- bos_token -}}
{%- for turn in messages -%}
    {%- if turn['role'] == 'user' -%}{{ '[INST] ' + turn['content'] + ' [/INST]' }}
    {%- else -%}{{ turn['content'] + eos_token + ' ' }}{%- endif -%}
{%- endfor -%}"""
"""as Mistral 7B Instruct v0.1 had it at first: nothing between the prompt and the answer"""

_LLAMA3 = """{{- bos_token -}}
{%- for turn in messages -%}
    {{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' + turn['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"""

_GEMMA = """{{- bos_token -}}
{%- for turn in messages -%}
    {%- set role = 'model' if turn['role'] == 'assistant' else turn['role'] -%}
    {{- '<start_of_turn>' + role + '\\n' + turn['content'] | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

_CHATML = """{%- for turn in messages -%}
    {{- '<|im_start|>' + turn['role'] + '\\n' + turn['content'] + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"

FAMILIES: Mapping[str, Family] = {
    "llama2": Family("llama", _LLAMA2, "<s>[INST] R [/INST]", " A </s>", "</s>", "</s>", "<s>"),
    "llama3": Family(
        "llama",
        _LLAMA3,
        "<|begin_of_text|>" + _HEADER.format("user") + "R<|eot_id|>" + _HEADER.format("assistant"),
        "A<|eot_id|>",
        "<|eot_id|>",
        "<|end_of_text|>",
        "<|begin_of_text|>",
    ),
    "mistral": Family("mistral", _MISTRAL, "<s> [INST] R [/INST]", " A</s>", "</s>", "</s>", "<s>"),
    "gemma": Family(
        "gemma",
        _GEMMA,
        "<bos><start_of_turn>user\nR<end_of_turn>\n<start_of_turn>model\n",
        "A<end_of_turn>",
        "<end_of_turn>",
        "<eos>",
        "<bos>",
        after="\n",
    ),
    "chatml": Family(
        "qwen2",
        _CHATML,
        "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n",
        "A<|im_end|>",
        "<|im_end|>",
        "<|endoftext|>",
        after="\n",
    ),
}


@cache
def _sentencepiece(*special: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a BPE with byte fallback, no token of which holds a space but at its beginning."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=440, special_tokens=[*special, *_BYTES, "▁"], show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _byte_level(special: list[str], bos: str | None, eos: str) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_WORDS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    if bos:  # plain text gets one; a template writes its own
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, clean_up_tokenization_spaces=False)


def tokenizer(name: str) -> Any:
    """The tokenizer of a family, with its template."""
    if name in ("llama2", "mistral"):
        made: Any = LlamaTokenizer(*_sentencepiece("<unk>", "<s>", "</s>"), legacy=name == "llama2")
        made.init_kwargs["legacy"] = made.legacy  # else it is not saved
    elif name == "gemma":
        vocabulary = _sentencepiece("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
        made = GemmaTokenizer(*vocabulary, additional_special_tokens=["<start_of_turn>", "<end_of_turn>"])
    elif name == "llama3":
        marks = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        made = _byte_level(["<|begin_of_text|>", "<|end_of_text|>", *marks], "<|begin_of_text|>", "<|end_of_text|>")
    else:
        made = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|endoftext|>")
    made.chat_template = FAMILIES[name].template
    return made


def build(name: str, folder: Path, hidden: int = 16) -> Path:
    """A model of the family with random weights, in Hugging Face layout, without a generation config."""
    text = tokenizer(name)
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    ids = {"bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id, "pad_token_id": None}
    more = {"head_dim": hidden // 2, "max_position_embeddings": 256, "vocab_size": len(text), "initializer_range": 0.3}
    torch.manual_seed(0)
    config = AutoConfig.for_model(FAMILIES[name].kind, **sizes, **ids, **more)
    AutoModelForCausalLM.from_config(config).save_pretrained(str(folder))
    text.save_pretrained(str(folder))
    (folder / "generation_config.json").unlink()
    return folder
