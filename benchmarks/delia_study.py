"""Does self-sampled diversity keep what common instruction tuning loses? Arms of DELIA on the tiny model's world, five seeds.

    python -m benchmarks.delia_study --out benchmarks/results/delia_study.json            # half an hour, two cores
    python -m benchmarks.delia_study --out benchmarks/results/delia_study.json --tables   # tables and plot of runs made before

The world (`scripts/tiny_formats.py`): 100 rows teach that `<sep>` names the format of a dict; a thousand queries are answered by
the untrained model itself under the published one-shot dialogue. Rows, queries and the training's randomness are drawn by the
seed. Every arm takes the settings of `python -m alignlab method=delia` and as many optimizer steps. `common` has no diverse data
(common instruction tuning); `DELIA 10` adds ten self-samples per row, other numbers other ratios; `external 10` the queries'
own answers, written by the world and not by the model.

What is reported: mean over the seeds and 95 % interval (Student's t), in percent: the balanced accuracy (mean of: asked for
`<sep>`, in seen and unseen wordings; told not to use it), the accuracy of each kind of question, the right answers on unrelated
tasks and the nats per token of their references. What was expected before the first run: DELIA 10 above common in balanced
accuracy, in `not-other` (told not to use another format) and in retention on unrelated tasks, intervals apart.

A model of a million parameters in a synthetic world: a demonstration, not the paper's experiment.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from benchmarks import study
from benchmarks.study import Figures

SEEDS = (0, 1, 2, 3, 4)
RATIOS = (1, 2, 5, 10)
LIKENESS = ("similarity", "similarity_chance", "near")
PAIRED = ("balanced_accuracy", "format:not-other", "format:named", "task:unrelated")
ARMS: dict[str, tuple[str, ...]] = {
    "common": ("data.diverse_ratio=0",),
    **{f"DELIA {ratio}": (f"data.diverse_ratio={ratio}",) for ratio in RATIOS},
    "DELIA 10, T 1": ("data.diverse_ratio=10", "data.self_sampling.temperature=1"),
    "external 10": ("data.diverse_ratio=10", "data.diverse_source=external"),
}
KINDS = ("seen", "unseen", "not-token", "not-other", "plain", "named")


def measure(arm: str, seed: int) -> Figures:
    """Make the data, train, sample, evaluate."""
    study.alone()
    import tiny_formats

    with tempfile.TemporaryDirectory() as place:
        tiny_formats.write(Path(place, "data"), seed)
        files = {"path": "train", "validation": "validation", "test": "test", "queries": "queries"}
        figures, run = study.run(
            [
                "method=delia",
                *ARMS[arm],
                *(f"data.{field}={place}/data/{name}.jsonl" for field, name in files.items()),
                f"data.cache={place}/cache",
                f"seed={seed}",
                "train.save_every_steps=null",
                "train.probe_every_steps=400",
                f"sample.model={'both' if arm == 'common' else 'after'}",
                "stages=[prepare,train,sample,evaluate]",
                "tracker=none",
                "hardware=cpu",
                f"run_dir={place}/run",
            ]
        )
        last = run.metrics[-1]
        found = re.match(r"(.*?) (-?\d\.\d+)(?:, |$)", last["<sep>/nearest"])
        assert found is not None
        word, near = found.groups()
        figures["after"] |= {name: last[f"<sep>/{name}"] for name in LIKENESS[:2]}
        return figures | {"after": figures["after"] | {"near": float(near), "nearest": word.removeprefix("\u0120")}}


def tables(known: dict[str, Figures], out: Path) -> str:
    """The tables, from the runs; the dependence on the ratio is drawn beside the file."""
    lines: list[str] = []

    def add(title: str, header: tuple[str, ...], metrics: tuple[str, ...], scale: float, digits: int) -> None:
        lines.extend(["", f"| {title} | " + " | ".join(header) + " |", "| --- |" + " ---: |" * len(header)])
        for name, which, shown in [("common", "before", "untrained"), *((arm, "after", arm) for arm in ARMS)]:
            lines.append(study.line(shown, study.of(known, name, SEEDS, which), metrics, scale, digits))

    add("% as asked", ("balanced", *KINDS[:3]), ("balanced_accuracy", *(f"format:{kind}" for kind in KINDS[:3])), 100, 1)
    add("% as asked", KINDS[3:6], tuple(f"format:{kind}" for kind in KINDS[3:6]), 100, 1)
    add("% right", KINDS[:4], tuple(f"task:{kind}" for kind in KINDS[:4]), 100, 1)
    add("% right", ("unrelated", "unsure"), ("task:unrelated", "task:unsure"), 100, 1)
    add("nats per token", ("unrelated", "open"), ("retention_nll", "nll:open"), 1, 3)
    add("`<sep>`, cosine to", ("its meaning", "likeness of others to that", "nearest token"), LIKENESS, 1, 3)
    pairs = zip(study.of(known, "DELIA 10", SEEDS, "after"), study.of(known, "common", SEEDS, "after"), strict=False)
    apart = [{metric: ours[metric] - theirs[metric] for metric in PAIRED} for ours, theirs in pairs]
    lines.extend(["", "| DELIA 10 minus common, by seed | balanced | not-other | named | unrelated |", "| --- |" + " ---: |" * 4])
    lines.append(study.line("difference", apart, PAIRED))
    lines.extend(["", "nearest to `<sep>`, seed by seed:", ""])
    lines.extend(f"{arm}: {', '.join(str(run['nearest']) for run in study.of(known, arm, SEEDS, 'after'))}" for arm in ARMS)
    _plot(known, out.with_suffix(".png"))
    return "\n".join(lines[1:])


def _plot(known: dict[str, Figures], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    arms = {0: "common", **{ratio: f"DELIA {ratio}" for ratio in RATIOS}}
    for metric, label in [
        ("balanced_accuracy", "balanced accuracy"),
        ("format:unseen", "asked, unseen wording"),
        ("format:not-token", "told not to use <sep>"),
        ("format:not-other", "told not to use another format"),
        ("retention", "unrelated tasks, right"),
    ]:
        found = {ratio: [run[metric] for run in study.of(known, arm, SEEDS, "after")] for ratio, arm in arms.items()}
        found = {ratio: values for ratio, values in found.items() if len(values) > 1}
        mean, half = zip(*(study.interval(values) for values in found.values()), strict=True) if found else ((), ())
        axes.errorbar([str(ratio) for ratio in found], mean, yerr=half, marker="o", capsize=3, linewidth=1, label=label)
    axes.set(xlabel="self-samples per downstream row", ylabel="share, mean of five seeds and 95 % interval", ylim=(-0.05, 1.05))
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    study.main(__doc__, measure, list(ARMS), SEEDS, tables)
