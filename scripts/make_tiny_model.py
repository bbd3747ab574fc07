"""Train the demonstration model: a byte-level BPE tokenizer and a small Llama on the tiny world.

    python scripts/make_tiny_model.py --out alignlab/models/tiny

The folder is written in the standard Hugging Face layout. Equal arguments on equal software and hardware give equal
files. `--smoke` makes a toy of the same layout within seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from tiny_world import BOS, EOS, PAD, SPECIAL_TOKENS, documents

CONTEXT = 512
WIDER = 3.0
CHUNK = 20_000  # documents that are sorted by length together
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|assistant|>' -}}
{%- generation -%}
{{- message['content'] + eos_token -}}
{%- endgeneration -%}
{%- elif message['role'] in ('user', 'system') -%}
{{- '<|' + message['role'] + '|>' + message['content'] -}}
{%- else -%}
{{- raise_exception('unknown role: ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


# --- tokenizer -------------------------------------------------------------------------------------------------------


def train_tokenizer(seed: int, vocab: int, count: int) -> Tokenizer:
    """A byte-level BPE tokenizer, which puts `<s>` in front of plain calls as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(seed, count), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": CONTEXT,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


# --- data ------------------------------------------------------------------------------------------------------------


def batches(tokenizer: Tokenizer, seed: int, tokens: int, chunk: int) -> Iterator[torch.Tensor]:
    """Batches of about `tokens` tokens, documents of like length together, endlessly.

    Documents are not packed: the first position must always hold `<s>`, as it does in use.
    """
    for part in range(1, 10**9):
        texts = list(documents(seed, chunk, part))
        rows = [code.ids for code in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        rows.sort(key=len)
        groups, group = [], []
        for row in rows:
            if group and len(row) * (len(group) + 1) > tokens:
                groups.append(group)
                group = []
            group.append(row)
        random.Random(f"batch order {seed} {part}").shuffle(groups)  # the leftover group is too small to train on
        for group in groups:
            width = len(group[-1])
            yield torch.tensor([row + [0] * (width - len(row)) for row in group])


# --- model -----------------------------------------------------------------------------------------------------------


def build_model(tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    """A small Llama with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
        use_cache=True,
    )
    return LlamaForCausalLM(config)


def learning_rate(step: int, steps: int, peak: float, warm_up: int = 100) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (0.02 + 0.49 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))))


def batch_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean loss over all tokens; padding stands on the right, where no real token attends to it."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)


def widen(model: LlamaForCausalLM) -> None:
    """Give the logits more room: with tied embeddings, rare words cannot be made likely, nor told apart, without it."""
    with torch.no_grad():
        model.model.norm.weight.mul_(WIDER)


def train(model: LlamaForCausalLM, tokenizer: Tokenizer, args: argparse.Namespace, steps: int, lr: float, seed: int) -> None:
    """The training loop, with a line of progress and the time left every 50 steps."""
    embedding = model.get_input_embeddings().weight  # decay would shrink the rows of rare words, which then cannot be told apart
    decayed = [p for p in model.parameters() if p.ndim > 1 and p is not embedding]
    rest = [p for p in model.parameters() if p.ndim == 1 or p is embedding]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    data = batches(tokenizer, seed, args.batch_tokens, args.chunk)
    start, seen, mean = time.perf_counter(), 0, 0.0
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr)
        ids = next(data)
        loss = batch_loss(model, ids)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += ids.numel()
        mean += loss.item() / 50
        if (step + 1) % 50 == 0:
            passed = time.perf_counter() - start
            left = passed / (step + 1) * (steps - step - 1)
            rate = seen / passed
            print(
                f"step {step + 1}/{steps} loss {mean:.4f} {rate:.0f} tokens/s, {left / 60:.1f} min left",
                flush=True,
            )
            mean = 0.0
        if args.checkpoint_every and (step + 1) % args.checkpoint_every == 0:
            save(model, tokenizer, args.checkpoints)
            model.train()


# --- writing ---------------------------------------------------------------------------------------------------------


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the folder under a temporary name, then rename it; files of other names in an old folder are kept."""
    model.eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    model.save_pretrained(fresh)
    save_tokenizer(tokenizer, fresh)
    if out.exists():
        for path in out.iterdir():
            if not (fresh / path.name).exists():
                shutil.move(path, fresh / path.name)
        shutil.rmtree(out)
    fresh.rename(out)


def parse() -> argparse.Namespace:
    """The command line; `--smoke` makes everything small."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--last-steps", type=int, default=1500, help="steps after the logits were given more room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=3072)
    parser.add_argument("--tokenizer-documents", type=int, default=40_000)
    parser.add_argument("--chunk", type=int, default=CHUNK, help="documents drawn at a time")
    parser.add_argument("--threads", type=int, default=1, help="1 is the steadiest on a busy machine; changes rounding")
    parser.add_argument("--checkpoints", type=Path, help="folder for the latest intermediate model")
    parser.add_argument("--checkpoint-every", type=int, default=0, help="steps; 0 = never")
    parser.add_argument("--smoke", action="store_true", help="a toy within seconds, to test the pipeline")
    args = parser.parse_args()
    if args.smoke:
        args.steps, args.last_steps = 5, 2
        args.vocab, args.tokenizer_documents, args.chunk, args.batch_tokens = 512, 300, 300, 512
    if args.checkpoint_every and not args.checkpoints:
        parser.error("--checkpoint-every needs --checkpoints")
    return args


def main() -> None:
    """Train and write the model."""
    args = parse()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs 4 % of the time and changes no result here
    start = time.perf_counter()
    tokenizer = train_tokenizer(args.seed, args.vocab, args.tokenizer_documents)
    model = build_model(tokenizer, args.seed)
    print(f"{tokenizer.get_vocab_size()} tokens, {model.num_parameters()} parameters", flush=True)
    train(model, tokenizer, args, args.steps, args.lr, args.seed)
    widen(model)
    train(model, tokenizer, args, args.last_steps, args.lr / 2, args.seed + 1)
    save(model, tokenizer, args.out)
    print(f"wrote {args.out} after {(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
