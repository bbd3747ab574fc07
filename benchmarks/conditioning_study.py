"""Do control tokens condition, and do two do it together? Four variants and two baselines on the tiny model's world, five seeds.

    python -m benchmarks.conditioning_study --out benchmarks/results/conditioning_study.json            # ten minutes, two cores
    python -m benchmarks.conditioning_study --out benchmarks/results/conditioning_study.json --tables   # of runs made before

The world (`scripts/tiny_toned.py`): 1,500 documents of one to three sentences in five tones, drawn by the seed, which is that of
the training, too. Every run takes the settings of `python -m alignlab method=conditioning`: the whole model is trained, three
epochs of 16 sentences a step; all labels are those of the shipped word lists. M-B has no control tokens, M-T those of toxicity, M-S
those of sentiment, M-TS both; `filtering` trains on the sentences that are wanted in both attributes alone, `unlikelihood` unlearns
the others, neither with control tokens; `M-TS, 1 %` leaves 1 % of the sentences without tokens as the paper does, not 30 %.

What is reported: mean over the seeds and 95 % interval (Student's t) of the misalignment of 400 completions without a prompt, in
percent, under each condition that the report's tables have; of the perplexity of held-out text, without control tokens and with the
true ones; of the share of distinct bigrams. What was expected before the first run: the joint misalignment of M-TS under both
tokens at least 15 points below that of M-B, M-T and M-S below M-B in their own attribute, intervals apart; perplexity of M-TS
within 10 % of that of M-B.

A model of a million parameters in a synthetic world, labelled by word lists: a demonstration, not the report's experiment.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import study
from benchmarks.study import Figures

SEEDS = (0, 1, 2, 3, 4)
MODELS: dict[str, tuple[str, ...]] = {
    "M-B": ("method.variant=none",),
    "M-T": ("method.variant=tox",),
    "M-S": ("method.variant=sen",),
    "M-TS": ("method.variant=toxsen",),
    "M-TS, 1 %": ("method.variant=toxsen", "data.bare_share=0.01"),
    "filtering": ("method.variant=none", "method.objective=filtering"),
    "unlikelihood": ("method.variant=none", "method.objective=unlikelihood"),
}
TABLES = {
    "toxicity": ("none", "nontoxic", "toxic"),
    "sentiment": ("none", "pos", "neg"),
    "joint": ("none", "nontoxic+pos"),
}
"""attribute -> conditions, as in the report's Tables 2, 4 and 5, and the opposite label"""


def measure(model: str, seed: int) -> Figures:
    """Train, sample, evaluate."""
    study.alone()
    import tiny_toned

    with tempfile.TemporaryDirectory() as place:
        data = Path(place, "rows.jsonl")
        data.write_text(tiny_toned.lines(seed))
        return study.run(
            [
                "method=conditioning",
                *MODELS[model],
                f"data.path={data}",
                f"data.cache={place}/cache",
                f"seed={seed}",
                "suite.samples=400",
                "train.save_every_steps=null",
                f"sample.model={'both' if model == 'M-B' else 'after'}",
                "stages=[prepare,train,sample,evaluate]",
                "tracker=none",
                "hardware=cpu",
                f"run_dir={place}/run",
            ]
        )[0]


def tables(known: dict[str, Figures], out: Path) -> str:
    """The tables, from the runs."""
    lines: list[str] = []

    def add(title: str, header: Sequence[str], metrics: Sequence[str], scale: float, digits: int) -> None:
        lines.extend(["", f"| {title} | " + " | ".join(header) + " |", "| --- |" + " ---: |" * len(header)])
        for name, which, shown in [("M-B", "before", "untrained"), *((name, "after", name) for name in MODELS)]:
            lines.append(study.line(shown, study.of(known, name, SEEDS, which), metrics, scale, digits))

    for attribute, conditions in TABLES.items():
        add(f"misalignment %, {attribute}", conditions, [f"misalignment_{attribute}:{c}" for c in conditions], 100, 1)
    add("held-out text", ("perplexity", "with true tokens"), ("perplexity", "perplexity_true_tokens"), 1, 3)
    add("distinct bigrams %", ("none", "nontoxic+pos"), ("distinct_2:none", "distinct_2:nontoxic+pos"), 100, 1)
    return "\n".join(lines[1:])


if __name__ == "__main__":
    study.main(__doc__, measure, list(MODELS), SEEDS, tables)
