"""A step of CUT: packed texts, scored where a token is scored, against two padded rows per example with a softmax everywhere.

    python -m benchmarks.cut_pass [--rounds 1] [--examples 8]

Forward and backward of optimizer steps of 8 examples, of a Llama of 512 x 6 and 32,000 tokens with LoRA as in conf/method/cut.yaml,
dropout 0, fp32. The padded side is the algorithm of the authors' modeling_llama_unlikelihood.py and finetune_unlikelihood.py,
without their 8-bit weights and recomputed activations: the response after its likelihood context, and again after the bare
instruction, or for a satisfactory response a row of padding; all to the longest of the micro-batch, a multiple of 8; softmax of all
positions, then its logarithm. Micro-batches of 1 and of 8, as theirs. The other side takes the same steps in forests of
hardware.tokens_per_micro nodes at most, and again of 1,024.

Lengths: instruction, response and judgment each drawn by themselves from the percentiles below, tokens at random. Mixes of
satisfactory and judged examples: the first iteration of the authors' online data, balanced and whole, and Shepherd (here with the
lengths of the online data's judged examples).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from alignlab import Row, Scorer, collate
from alignlab.compose import compose
from alignlab.config import check
from alignlab.engine.batch import Batch
from alignlab.methods.cut import ALIGN_N, ALIGN_P, MISALIGN
from alignlab.models.load import add_lora
from alignlab.protocols import Loss
from alignlab.train.plan import deal
from alignlab.trees import chains
from benchmarks.common import llama, machine, table

MIXES = {"71 : 287": (71, 287), "713 : 287": (713, 287), "0 : 1317": (0, 1317)}
STEP = 8
SMALL = 1024
"""nodes of a forest that a CPU's caches like better"""

# First iteration of the authors' online data (data/iter/train-alpaca-sample-iter1.json of wwxu21/CUT), Llama 2 tokens:
# 713 satisfactory responses, 287 judged ones. A response counts the token that ends it. Nothing drawn exceeds the 99th percentile.
PERCENTILES = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99)
SATISFACTORY = {
    "instruction": (5, 9, 10, 12, 13, 15, 17, 19, 24, 31, 39, 84),
    "response": (8, 33, 65, 121, 183, 248, 318, 388, 456, 531, 616, 781),
}
JUDGED = {
    "instruction": (7, 10, 13, 15, 17, 20, 23, 26, 30, 35, 49, 99),
    "response": (11, 26, 37, 57, 83, 121, 166, 206, 273, 412, 584, 933),
    "judgment": (3, 3, 26, 37, 45, 52, 59, 65, 79, 102, 147, 310),
}
TEMPLATE, JUDGED_TEMPLATE = 36, 48
"""tokens of Alpaca's template, and of the one with a judgment"""


class Example(NamedTuple):
    """Token ids; ``judged`` is the context with the judgment, None where the response is satisfactory."""

    plain: list[int]
    judged: list[int] | None
    response: list[int]


def draw(mix: tuple[int, int], count: int, random: np.random.Generator) -> list[Example]:
    """Examples in the proportion of the mix, shuffled; lengths by inverse CDF, one from each of as many equal parts of it."""
    judged = round(count * mix[1] / sum(mix))
    examples = []
    for number, quantiles in ((count - judged, SATISFACTORY), (judged, JUDGED)):
        lengths = {}
        for name, values in quantiles.items():
            at = (random.permutation(number) + random.random(number)) / max(number, 1) * 100
            lengths[name] = np.interp(at, PERCENTILES, values).round().astype(int)
        for i in range(number):
            size = {name: int(values[i]) for name, values in lengths.items()}
            plain = random.integers(10, 32000, TEMPLATE + size["instruction"]).tolist()
            rest = random.integers(10, 32000, JUDGED_TEMPLATE - TEMPLATE + size.get("judgment", 0)).tolist()
            response = [*random.integers(10, 32000, size["response"] - 1).tolist(), 2]
            examples.append(Example(plain, [*plain, *rest] if quantiles is JUDGED else None, response))
    return [examples[i] for i in random.permutation(count)]


def row_of(example: Example, group: int, weighting: str = "example") -> Row:
    """The row that ``Cut.rows`` makes of it."""
    count, judged = len(example.response), example.judged is not None
    texts = [(example.plain, example.response)] + ([(example.judged, example.response)] if example.judged else [])
    columns = {
        "role": np.repeat([MISALIGN, ALIGN_N] if judged else [ALIGN_P], count),
        "share": np.full(count * len(texts), 1 / count if weighting == "example" else 1.0),
        "pair": np.repeat([count, -count] if judged else [0], count),
        "gold": np.full(count * len(texts), -1),
    }
    return Row(group, 1.0 if weighting == "example" else float(count), *chains(texts), columns)


def padded_loss(model: torch.nn.Module, examples: Sequence[Example], threshold: float, alpha: float) -> torch.Tensor:
    """Loss of a micro-batch: L2, the mean over all response tokens; with judged examples (L1 + L2) / 2, L1 the mean over theirs."""
    count = len(examples)
    first = [(e.judged or e.plain, e.response) for e in examples]
    second = [(e.plain, e.response) if e.judged else None for e in examples]
    width = -(-max(len(c) + len(r) for c, r in filter(None, [*first, *second])) // 8) * 8
    ids, scored = torch.zeros(2 * count, width, dtype=torch.long), torch.zeros(2 * count, width, dtype=torch.bool)
    mask = torch.zeros(2 * count, width, dtype=torch.long)
    for line, text in enumerate([*first, *second]):
        if text is not None:
            length = len(text[0]) + len(text[1])
            ids[line, :length] = torch.tensor([*text[0], *text[1]])
            mask[line, :length] = 1
            scored[line, len(text[0]) : length] = True
    probs = torch.softmax(model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float(), dim=2)[:, :-1]
    targets, scored = ids[:, 1:, None], scored[:, 1:]
    own = scored[:count]
    nll = -torch.log(probs[:count]).gather(2, targets[:count])[..., 0][own].mean()  # the logarithm of all, as theirs
    judged = torch.tensor([e.judged is not None for e in examples])
    if not judged.any():
        return nll
    with_judgment = probs[:count].gather(2, targets[:count])[..., 0][judged][own[judged]]
    without = probs[count:].gather(2, targets[count:])[..., 0][judged][scored[count:][judged]]
    wrong = (with_judgment / without).detach() > threshold
    chance = torch.where(wrong, 1 - without, without)
    logs = torch.log(torch.where(chance == 0, 1e-5, chance))
    return (nll - torch.where(wrong, alpha * logs, logs).mean()) / 2


class Sides:
    """The model with what trains it, one way and the other."""

    def __init__(self) -> None:
        self.config = check(compose(["method=cut"])[0])
        assert self.config.train.lora is not None
        self.model = add_lora(llama(), replace(self.config.train.lora, dropout=0.0), 0)
        for name, weight in self.model.named_parameters():
            if "lora_B" in name:  # at zero, its gradient would not reach the other factor
                torch.nn.init.normal_(weight, std=0.02)
        self.scorer = Scorer(self.model, logits_mib=self.config.hardware.logits_mib)

    def loss(self, logp: torch.Tensor, batch: Batch) -> Loss:
        """That of CUT."""
        return self.config.method.loss(logp, batch)

    def sft(self, logp: torch.Tensor, batch: Batch) -> Loss:
        """Plain likelihood of the same tokens, each counting what it counts in CUT."""
        return Loss(-(batch.columns["share"].to(logp.dtype) * logp).sum(), {})

    def padded(self, examples: Sequence[Example], micro: int) -> list[float]:
        """Losses of the micro-batches, step by step; gradients are left in the model."""
        self.model.get_base_model().set_attn_implementation("sdpa")
        losses = []
        for first in range(0, len(examples), STEP):
            self.model.zero_grad()
            for start in range(first, min(first + STEP, len(examples)), micro):
                method = self.config.method
                loss = padded_loss(self.model, examples[start : start + micro], method.threshold, method.alpha)
                (loss * (micro / STEP)).backward()
                losses.append(float(loss.detach()))
        return losses

    def packed(
        self, examples: Sequence[Example], loss: Callable[[torch.Tensor, Batch], Loss], capacity: int | None = None
    ) -> float:
        """Mean loss of the same steps in forests; gradients are left in the model."""
        rows, total = [row_of(example, group) for group, example in enumerate(examples)], 0.0
        for first in range(0, len(rows), STEP):
            self.model.zero_grad()
            step = rows[first : first + STEP]
            for chosen in deal([len(row.tokens) for row in step], capacity or self.config.hardware.tokens_per_micro, 1):
                batch = collate([step[i] for i in chosen])
                part = loss(self.scorer(batch), batch).total / STEP
                part.backward()
                total += float(part.detach())
        return total * STEP / len(examples)

    def gradient(self) -> torch.Tensor:
        """Of all that is trained, [P]."""
        return torch.cat([w.grad.flatten() for w in self.model.parameters() if w.grad is not None])


def compare(sides: Sides, step: Sequence[Example]) -> tuple[float, float, float]:
    """How much the sides differ on the beginnings of a step's texts, relatively: losses at micro-batch 1, at 8, and gradients at 1.

    At 8 the padded side takes its means over the tokens of the micro-batch, L1 over those of judged examples alone. No weighting
    here does that, so its loss is put together from the sums per term that ``Cut.loss`` logs with weighting=token.
    """
    short = [Example(e.plain[:24], e.judged and e.judged[:24] + e.judged[-12:], e.response[-40:]) for e in step]
    theirs = sides.padded(short, 1)
    wanted = sides.gradient()
    sides.packed(short, sides.loss)
    gradient = float((sides.gradient() - wanted).norm() / wanted.norm())
    single = 0.0
    with torch.no_grad():
        for example, loss in zip(short, theirs, strict=True):
            batch = collate([row_of(example, 0)])
            single = max(single, abs(float(sides.loss(sides.scorer(batch), batch).total) - loss) / loss)
        batch = collate([row_of(example, group, "token") for group, example in enumerate(short)])
        logs = sides.loss(sides.scorer(batch), batch).logs
    assert 0 < logs["detected"][0] < logs["detected"][1], "one of the two branches of L1 was not taken"
    (satisfactory, n), (unlikely, m), (judged, _) = ((float(logs[k][0]), logs[k][1]) for k in ("align_p", "misalign", "align_n"))
    eight = ((satisfactory + judged) / (n + m) + unlikely / m) / 2
    theirs = sides.padded(short, STEP)
    assert sides.gradient().isfinite().all(), "a row of padding alone reached the gradient"
    return single, abs(eight - theirs[0]) / theirs[0], gradient


def seen(examples: Sequence[Example], micro: int) -> int:
    """Positions that the padded side computes."""
    chunks = [examples[i : i + micro] for i in range(0, len(examples), micro)]
    return sum(2 * len(c) * -(-max(len(e.judged or e.plain) + len(e.response) for e in c) // 8) * 8 for c in chunks)


def resident(field: str) -> float:
    """MiB of this process by Linux' own count: VmRSS now, VmHWM at the most. A child's ru_maxrss would begin at its parent's."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return int(line.split()[1]) / 1024


def growth(side: str) -> float:
    """MiB that a step of the first mix takes at its peak, beyond what the process holds after a small step."""
    sides, before = Sides(), 0.0
    step = draw(MIXES["71 : 287"], STEP, np.random.default_rng(0))
    small = [Example(e.plain[:4], e.judged and e.judged[:6], e.response[:4]) for e in step]
    way, size = side.split()
    for examples in (small, step):
        before = resident("VmRSS")
        if way == "padded":
            sides.padded(examples, int(size))
        else:
            sides.packed(examples, sides.loss, int(size))
    return resident("VmHWM") - before


def memory() -> str:
    """Each side in a process of its own, since a peak cannot be taken back."""
    peaks = {}
    for side in ("padded 1", "padded 8", "packed 8192", f"packed {SMALL}"):
        command = [sys.executable, "-m", "benchmarks.cut_pass", "--memory", side]
        peaks[side] = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    header = ["nodes at a time, packed", "peak, MiB", "of padded, micro-batch 1", "of padded, micro-batch 8"]
    one, eight = peaks["padded 1"], peaks["padded 8"]
    rows = [[s.split()[1], f"{p:.0f}", f"{p / one:.2f}", f"{p / eight:.2f}"] for s, p in peaks.items() if "packed" in s]
    return table(header, rows) + f"\n\nPadded: {one:.0f} MiB at micro-batch 1, {eight:.0f} at 8."


def fastest(acts: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Seconds of each, the least of ``rounds`` runs; they alternate."""
    best = [float("inf")] * len(acts)
    for _ in range(rounds):
        for side, act in enumerate(acts):
            started = time.perf_counter()
            act()
            best[side] = min(best[side], time.perf_counter() - started)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each side")
    parser.add_argument("--examples", type=int, default=8, help="of each mix, a multiple of 8")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(growth(options.memory))
        return
    sides, random, rows, differences = Sides(), np.random.default_rng(0), [], []
    capacity = sides.config.hardware.tokens_per_micro
    for name, mix in MIXES.items():
        examples = draw(mix, options.examples, random)
        single, eight, gradient = compare(sides, examples[:STEP])
        losses: dict[str, float] = {}

        def one(examples=examples, losses=losses) -> None:
            losses["padded"] = float(np.mean(sides.padded(examples, 1)))

        def packed(examples=examples, losses=losses) -> None:
            losses["packed"] = sides.packed(examples, sides.loss, capacity)

        def small(examples=examples) -> None:
            sides.packed(examples, sides.loss, SMALL)

        def sft(examples=examples) -> None:
            sides.packed(examples, sides.sft, capacity)

        def whole(examples=examples) -> None:
            sides.padded(examples, STEP)

        seconds = fastest((one, packed, small, sft, whole), options.rounds)
        single = max(single, abs(losses["packed"] - losses["padded"]) / losses["padded"])
        assert max(single, eight) < 1e-5, "the sides compute different losses"
        differences.append((single, eight, gradient))
        counts = (seen(examples, 1), seen(examples, STEP), sum(len(row_of(e, 0).tokens) for e in examples))
        a, b, c, plain, d = (s / len(examples) for s in seconds)
        rows.append([name, *counts, *(f"{s:.2f}" for s in (a, d, b, c)), *(f"{r:.1f}" for r in (a / b, d / b, a / c, d / c))])
        rows[-1].append(f"{b / plain:.2f}")
        print(rows[-1], file=sys.stderr, flush=True)
    header = ["satisfactory : judged", "positions by 1", "by 8", "nodes", "padded by 1, s", "by 8, s"]
    header += [f"packed by {capacity}, s", f"by {SMALL}, s", "ratio to 1", "to 8", f"by {SMALL}: to 1", "to 8", "of sft"]
    print(table(header, rows))
    print(f"\nSeconds per example, {options.examples} examples of each mix ({machine()}; minimum of {options.rounds}).")
    worst = [f"{max(values):.0e}" for values in zip(*differences, strict=True)]
    print(f"Losses differ by {worst[0]} at micro-batch 1 and {worst[1]} at 8, gradients at 1 by {worst[2]} (relative, largest).")
    if Path("/proc/self/status").exists():
        print("\n" + memory())


if __name__ == "__main__":
    main()
