"""What the scorer costs over a plain packed forward and backward with the model's own loss over the same tokens.

    python -m benchmarks.scorer_overhead [--rounds 5]

A Llama of 512 x 6 and 32,000 tokens; 1,024 tokens a step as texts of several lengths. The plain side packs them in one line by
position ids and lets the model compute its loss on every token; the scorer scores the same tokens.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from alignlab import Row, Scorer, collate
from benchmarks.common import alternate, llama, machine, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted runs of each side")
    rounds = parser.parse_args().rounds
    model = llama()
    scorer, rows, random = Scorer(model), [], np.random.default_rng(0)
    for length in (64, 256, 1024):
        texts = [random.integers(0, 32000, length) for _ in range(1024 // length)]
        chain = np.arange(length)
        batch = collate([Row(0, 1.0, t, chain - 1, chain[:-1], t[1:]) for t in texts])
        ids = torch.from_numpy(np.concatenate(texts))[None]
        position = torch.from_numpy(np.tile(chain, len(texts)))[None]
        labels = ids.masked_fill(position == 0, -100)
        losses: dict[str, float] = {}

        def plain(ids=ids, position=position, labels=labels, losses=losses) -> None:
            model.zero_grad()
            model.set_attn_implementation("sdpa")
            loss = model(input_ids=ids, position_ids=position, labels=labels, use_cache=False).loss
            loss.backward()
            losses["plain"] = float(loss.detach())

        def ours(batch=batch, losses=losses) -> None:
            model.zero_grad()
            loss = -scorer(batch).mean()
            loss.backward()
            losses["scorer"] = float(loss.detach())

        own, scored = alternate(plain, ours, rounds)
        assert abs(losses["plain"] - losses["scorer"]) < 1e-4, losses
        rows.append([f"{len(texts)} x {length}", f"{own:.3f}", f"{scored:.3f}", f"{scored / own:.2f}"])
    print(table(["texts x tokens", "model's own loss, s", "scorer, s", "ratio"], rows))
    print(f"\n({machine()}; minimum of {rounds})")


if __name__ == "__main__":
    main()
