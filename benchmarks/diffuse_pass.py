"""A pass of Diffuse over one prompt: the trie against a row per target.

    python -m benchmarks.diffuse_pass [--rounds 3]

Forward and backward over all targets of a prompt, for prompt sets of 10 to 200 targets, with a Llama of 512 x 6 and 32,000 tokens.
The plain side is the algorithm of the authors' search.py: the prompt again in front of every target, padded to the longest, 32 rows
at a time, logits everywhere. Prompt and target lengths are those of the authors' prompt files under the Llama-2 tokenizer (prompts
of 37 to 53 tokens, targets of 5 to 9).
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from alignlab import Row, Scorer, collate, trie
from benchmarks.common import alternate, geometric_mean, llama, machine, table

PROMPT = 45
SIZES = (10, 18, 31, 54, 81, 100, 200)


def targets(count: int, random: np.random.Generator) -> list[list[int]]:
    """Distinct targets: an opening brace, one to four tokens of a few hundred frequent ones, a closing brace, the end."""
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        word = random.integers(100, 400, int(random.integers(1, 5)))
        found[(5, *word.tolist(), 6, 2)] = None
    return [list(t) for t in found]


def plain_pass(model: torch.nn.Module, prompt: list[int], answers: list[list[int]], batch: int = 32) -> float:
    """Loss over all targets, each a row of its own, ``batch`` at a time; gradients accumulate."""
    total = 0.0
    for first in range(0, len(answers), batch):
        chunk = answers[first : first + batch]
        width = max(map(len, chunk))
        ids = torch.tensor([prompt + answer + [2] * (width - len(answer)) for answer in chunk])
        mask = torch.tensor([[1.0] * len(answer) + [0.0] * (width - len(answer)) for answer in chunk])
        logits = model(input_ids=ids, use_cache=False).logits[:, len(prompt) - 1 : -1]
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, len(prompt) :].flatten(), reduction="none")
        loss = (nll.view_as(mask) * mask).sum() / len(answers)
        loss.backward()
        total += float(loss.detach())
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="counted runs of each side")
    rounds = parser.parse_args().rounds
    model, random = llama(), np.random.default_rng(0)
    scorer, rows, ratios = Scorer(model), [], []
    for count in SIZES:
        prompt, answers = random.integers(10, 32000, PROMPT).tolist(), targets(count, random)
        tree = trie(prompt, answers)
        weight = tree.weigh(np.full(count, 1 / count))
        batch = collate([Row(0, 1.0, tree.tokens, tree.parent, tree.source, tree.target, {"weight": weight})])
        losses: dict[str, float] = {}

        def fast(batch=batch, losses=losses) -> None:
            model.zero_grad()
            loss = -(scorer(batch) * batch.columns["weight"]).sum()
            loss.backward()
            losses["trie"] = float(loss.detach())

        def plain(prompt=prompt, answers=answers, losses=losses) -> None:
            model.zero_grad()
            losses["plain"] = plain_pass(model, prompt, answers)

        slow, quick = alternate(plain, fast, rounds)
        difference = abs(losses["trie"] - losses["plain"]) / losses["plain"]
        assert difference < 1e-5, losses
        nodes = len({tuple(prompt[:i]) for i in range(1, PROMPT + 1)} | {(*prompt, *a[:i]) for a in answers for i in range(len(a))})
        width = max(map(len, answers))
        ratios.append(slow / quick)
        rows.append(
            [
                count,
                count * (PROMPT + width),
                len(batch),
                nodes,
                f"{slow:.3f}",
                f"{quick:.3f}",
                f"{slow / quick:.1f}",
                f"{difference:.0e}",
            ]
        )
    header = ["targets", "tokens, plain", "tokens, trie", "distinct nodes", "plain, s", "trie, s", "ratio", "loss differs by"]
    print(table(header, rows))
    print(f"\nGeometric mean of the ratios: {geometric_mean(ratios):.1f} ({machine()}; minimum of {rounds})")


if __name__ == "__main__":
    main()
