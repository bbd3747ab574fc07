"""Training on short sentences: packed ones, against a Trainer that pads to the longest of a batch, and against TRL's packing.

    pip install 'alignlab[bench]'
    python -m benchmarks.sentence_pass [--rounds 2] [--steps 3] [--sentences 128] [--layers 12] [--width 768]

A model of the shape of GPT-2 small with random weights and 50,257 tokens, all parameters trained, fp32, no dropout, AdamW.
Sentences have the lengths of the report's data, of which a mean of about 31 tokens and fewer than 64 is all that is known: here
a gamma distribution of shape 5 with mean 31, cut at 11 and 63. Each side takes the same steps of the same sentences in its
own training loop: alignlab's `fit` with method=conditioning; transformers' `Trainer` with batches of 64 padded to the longest, and
as many accumulated; TRL's `SFTTrainer` with `packing=True` into rows of 1,024 tokens (without a flash kernel its sentences see one
another: other losses, the same work). Tokens of real text per second, in the best round; the first step of a round does not count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import GPT2Config, GPT2LMHeadModel

from alignlab.compose import compose
from alignlab.config import check
from alignlab.data.rows import RowStore, write_rows
from alignlab.engine.scorer import Scorer
from alignlab.protocols import Row
from alignlab.signals import Stop
from alignlab.train.checkpoint import Checkpoints
from alignlab.train.loop import fit
from alignlab.trees import chains
from benchmarks.common import machine, table

EOS, BATCH, BLOCK = 50256, 64, 1024


def sentences(count: int) -> list[list[int]]:
    """Random tokens in the lengths of the data, each with the token that ends it."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.gamma(5, 31 / 5, count).round().astype(int), 11, 63)
    return [[*random.integers(0, EOS, n - 1).tolist(), EOS] for n in lengths]


def gpt2(width: int, layers: int) -> GPT2LMHeadModel:
    """The architecture with random weights and without dropout."""
    torch.manual_seed(0)
    sizes = {"n_embd": width, "n_layer": layers, "n_head": width // 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes))


def alignlab_steps(texts: list[list[int]], model: GPT2LMHeadModel, per_step: int, folder: Path) -> list[float]:
    """Seconds of each step of alignlab's loop."""
    config = check(compose(["method=conditioning", "method.variant=none", "tracker=none", f"train.groups_per_step={per_step}"])[0])
    text_role = {"role": 0, "bad": 0.0}
    rows = (
        Row(i, len(ids) - 1.0, *chains([(ids[:1], ids[1:])]), {k: np.full(len(ids) - 1, v) for k, v in text_role.items()})
        for i, ids in enumerate(texts)
    )
    write_rows(folder / "rows.arrow", rows)
    times: list[float] = []
    with Stop() as stop:
        fit(
            Scorer(model, "auto", config.hardware.logits_mib),
            config.method,
            RowStore(folder / "rows.arrow"),
            config.train,
            hardware=config.hardware,
            accelerator=Accelerator(cpu=True),
            checkpoints=_NoCheckpoints(folder / "checkpoints", 1),
            seed=0,
            stop=stop,
            log=lambda metrics: times.append(metrics["seconds"]),
        )
    return times


class _NoCheckpoints(Checkpoints):
    """The other sides save nothing either."""

    def save(self, *_: Any) -> Path:
        return self.folder


def trainer_steps(texts: list[list[int]], model: GPT2LMHeadModel, per_step: int, folder: Path) -> list[float]:
    """Seconds of each step of transformers' Trainer, padding to the longest of each batch."""
    from transformers import Trainer, TrainingArguments

    def padded(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(item["input_ids"]) for item in batch)
        ids = torch.full((len(batch), width), EOS)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for line, item in enumerate(batch):
            own = torch.tensor(item["input_ids"])
            ids[line, : len(own)] = labels[line, : len(own)] = own
            mask[line, : len(own)] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    arguments = TrainingArguments(
        **_common(folder), per_device_train_batch_size=BATCH, gradient_accumulation_steps=per_step // BATCH
    )
    made = Trainer(model=model, args=arguments, train_dataset=[{"input_ids": t} for t in texts], data_collator=padded)  # type: ignore[arg-type]
    return _timed(made)


def trl_steps(texts: list[list[int]], model: GPT2LMHeadModel, per_step: int, folder: Path) -> list[float]:
    """Seconds of each step of TRL's SFTTrainer, which packs sentences into rows."""
    from datasets import Dataset
    from transformers import GPT2TokenizerFast
    from trl import SFTConfig, SFTTrainer

    total = sum(map(len, texts))
    rows = max(1, round(total / len(texts) * per_step / BLOCK))  # as many tokens to a step
    arguments = SFTConfig(
        **_common(folder),
        per_device_train_batch_size=rows,
        packing=True,
        max_length=BLOCK,
        bf16=False,
        gradient_checkpointing=False,
    )
    letters = {chr(0x100 + i): i for i in range(EOS)} | {"<|endoftext|>": EOS}
    tokenizer = GPT2TokenizerFast(vocab=letters, merges=[], pad_token="<|endoftext|>")
    made = SFTTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict({"input_ids": texts}), processing_class=tokenizer
    )
    return _timed(made)


def _common(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "weight_decay": 0.1,
        "learning_rate": 5e-4,
    }


def _timed(trainer: Any) -> list[float]:
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    return [end - start for start, end in zip(ends[::2], ends[1::2], strict=False)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of each round; the first does not count")
    parser.add_argument("--sentences", type=int, default=128, help="per step, a multiple of 64")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--without", nargs="*", default=[], help="sides to leave out: trainer, trl")
    args = parser.parse_args()
    texts = sentences(args.sentences * args.steps)
    real = sum(map(len, texts)) / args.steps
    sides: dict[str, Callable[..., list[float]]] = {"alignlab": alignlab_steps, "trainer": trainer_steps, "trl": trl_steps}
    if find_spec("trl") is None and "trl" not in args.without:
        print("trl is not installed (pip install 'alignlab[bench]'): it is left out\n")
        args.without.append("trl")
    sides = {name: side for name, side in sides.items() if name not in args.without}
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(args.rounds):
        for name, side in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                times = side(texts, gpt2(args.width, args.layers), args.sentences, Path(folder))
            best[name] = min(best[name], float(np.mean(times[1:])))
    rows = [
        [name, f"{seconds:.2f}", f"{real / seconds:,.0f}", f"{seconds / best['alignlab']:.2f}"] for name, seconds in best.items()
    ]
    print(f"{machine()}; {args.sentences} sentences a step, {real / args.sentences:.1f} tokens each\n")
    print(table(["", "seconds a step", "tokens of text per second", "alignlab is faster by"], rows))


if __name__ == "__main__":
    main()
