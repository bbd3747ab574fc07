"""How near a model's answers are to the target distribution: exactly, from the trie, and as samples show it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from alignlab.config import at_least
from alignlab.evaluate.fields import compiled, field_metrics, field_table
from alignlab.evaluate.statistics import exact_metrics, goodness_of_fit, interval, sampled_metrics
from alignlab.generate.hf import Decoding
from alignlab.protocols import Row, Source, SuiteDefaults, Value
from alignlab.records import TargetSet
from alignlab.report.document import Image, Table
from alignlab.text import TextCodec
from alignlab.trees import trie

if TYPE_CHECKING:
    from alignlab.engine.scorer import Scorer


@dataclass
class Distribution(SuiteDefaults):
    """Exact and sampled metrics of every test prompt, and their means over prompts: all, trained, held out, of each task.

    Exact, of the probability p(y) that the model gives each target y (summed over response prefixes): ``mass`` on the targets,
    ``kl`` (target || model) in nats, ``total_variation``, ``entropy`` of p restricted to the targets, in nats. Sampled, of n
    completions: ``sampled_entropy`` in nats and ``coverage`` (distinct texts) of the raw strings, the share ``valid`` that are
    targets, the number of distinct texts ``beyond`` the targets, and how well the valid ones fit the weights
    (``chi_square``, ``fit_p``). With ``fields``, a pattern with named groups, prompts without targets are measured field by field.
    """

    samples: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    bootstrap: int
    fields: str | None
    objective: str

    accepts: ClassVar[tuple[type, ...]] = (TargetSet,)

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 1)
        at_least("bootstrap", self.bootstrap, 1)
        if self.fields is not None:
            compiled(self.fields)
        self.decoding()

    def decoding(self) -> Decoding:
        """How to sample."""
        return Decoding(self.temperature, self.top_p, self.top_k, self.max_new_tokens)

    def evaluate(
        self, source: Source, samples: Mapping[str, Sequence[str]], scorer: Scorer, text: TextCodec, seed: int, capacity: int
    ) -> tuple[dict[str, Value], dict[str, Any]]:
        """Metrics by name, and per prompt what its chart shows."""
        trained = {record.name for record in source.training()}  # type: ignore[attr-defined]
        metrics: dict[str, Value] = {}
        details: dict[str, Any] = {}
        replicates: dict[str, np.ndarray] = {}
        groups: dict[str, list[str]] = {"": [], ":trained": [], ":held-out": []}
        for record in source.testing():
            assert isinstance(record, TargetSet)
            name = record.name
            groups[""].append(name)
            groups[":trained" if name in trained else ":held-out"].append(name)
            if record.task:
                groups.setdefault(f":{record.task}", []).append(name)
            found: dict[str, Value] = {}
            detail: dict[str, Any] = {"request": record.request, "trained": name in trained, "task": record.task}
            if record.targets:
                logp = target_logprobs(record, scorer, text, capacity)
                found.update(exact_metrics(np.array(record.weights), logp))
                detail |= {"targets": list(record.targets), "weights": list(record.weights), "exact": np.exp(logp).tolist()}
            if samples.get(name):
                measured, errors, more = self._sampled(record, samples[name], seed)
                found.update(measured)
                detail |= more
                replicates.update({f"{metric}/{name}": values for metric, values in errors.items()})
            metrics.update({f"{metric}/{name}": value for metric, value in found.items()})
            details[name] = detail
        for suffix, names in groups.items():
            metrics.update(_means(metrics, replicates, suffix, names))
        return metrics, details

    def _sampled(
        self, record: TargetSet, samples: Sequence[str], seed: int
    ) -> tuple[dict[str, Value], dict[str, np.ndarray], dict[str, Any]]:
        """Metrics of a prompt's samples, their bootstrap errors, and what charts and tables show."""
        texts = [sample.strip() for sample in samples]
        answers = frozenset(answer.strip() for answer in record.answers())
        metrics, errors = sampled_metrics(texts, answers, self.bootstrap, seed, record.name)
        counts = Counter(texts)
        detail: dict[str, Any] = {"n": len(texts), "most_frequent": counts.most_common(10)}
        if record.targets:
            of_target = np.array([sum(counts[(r + t).strip()] for r in record.responses) for t in record.targets])
            detail["sampled"] = (of_target / len(texts)).tolist()
            if of_target.sum():
                metrics |= goodness_of_fit(of_target, np.array(record.weights), seed, record.name)
        elif self.fields is not None:
            found, more_errors, more = field_metrics(texts, compiled(self.fields), self.bootstrap, seed, record.name)
            metrics, errors, detail = metrics | found, errors | more_errors, detail | more
        return metrics, errors, detail

    def summary(self, results: Mapping[str, Any], details: Mapping[str, Any]) -> Table:
        """Means over prompts: before, after, and what a perfect model would have."""
        first = next(iter(details.values()))
        groups = {"": list(first), ":trained": [n for n, d in first.items() if d["trained"]]}
        groups[":held-out"] = [n for n in first if n not in groups[":trained"]]
        named = {"": "", ":trained": ", trained", ":held-out": ", held out"}
        if not (groups[":trained"] and groups[":held-out"]):
            del groups[":trained"], groups[":held-out"]
        else:
            del groups[""]
        rows = []
        fields = [key for key in results if "/" not in key and key.endswith((".entropy", ".coverage"))]
        for metric in [*HEADLINE, *fields]:
            for suffix, names in groups.items():
                found = results.get(metric + suffix)
                if found:
                    cells = [_cell(found.get(which)) for which in ("before", "after")]
                    rows.append([metric + named[suffix], *cells, _ideal(metric, [first[n] for n in names])])
        return Table(["", "before", "after", "target"], rows, CAPTION)

    def charts(self, details: Mapping[str, Any], results: Mapping[str, Any], folder: Path) -> list[Image | Table]:
        """A chart per prompt with targets, and the likeliest completions of one without."""
        first = next(iter(details.values()))
        blocks: list[Image | Table] = []
        tasks = _task_table(details, results)
        if tasks:
            blocks.append(tasks)
        blocks += _size_curves(details, results, folder)
        charted = list(first)[:: -(-len(first) // MOST_CHARTS)] if first else []
        for name, detail in first.items():
            if "fields" in detail:
                blocks.append(field_table(name, details, results))
            elif "targets" in detail and name in charted:
                blocks.append(_chart(name, details, results, folder / f"prompt-{name.replace('/', '__')}.png"))
            elif "targets" not in detail and "most_frequent" in detail:
                rows = [[text[:60], *(_share(details[m][name], text) for m in details)] for text, _ in detail["most_frequent"]]
                blocks.append(Table([f"{name}: likeliest before", *details], rows, detail["request"]))
        return blocks


HEADLINE = ("sampled_entropy", "entropy", "kl", "total_variation", "mass", "valid", "coverage", "beyond")
"""metrics in the order of the summary"""

NOT_AVERAGED = ("chi_square", "fit_p")
"""of single prompts: a mean of them over prompts means nothing"""

MOST_CHARTS = 24
"""prompts that get a chart of their own; results.json has the figures of all"""

CAPTION = "Means over prompts; entropies and KL in nats; what is sampled with its 95 % interval."


def _cell(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    if value["low"] == value["high"]:
        return f"{value['value']:.4f}"
    shown, low, high = (f"{value[name]:.{3 if value['value'] < 10 else 1}f}" for name in ("value", "low", "high"))
    return f"{shown} [{low}, {high}]"


def _share(detail: Mapping[str, Any], text: str) -> str:
    counts = dict(detail["most_frequent"])
    return f"{counts[text] / detail['n']:.3f}" if text in counts else "-"


def _ideal(metric: str, details: Sequence[Mapping[str, Any]]) -> str:
    """What a model that follows the target distribution has, as a mean over prompts."""
    known = [d["weights"] for d in details if "weights" in d]
    if not known:
        return "-"
    entropies = [-math.fsum(w * math.log(w) for w in weights if w > 0) for weights in known]
    ideal = {
        "sampled_entropy": math.fsum(entropies) / len(known),
        "entropy": math.fsum(entropies) / len(known),
        "kl": 0.0,
        "total_variation": 0.0,
        "mass": 1.0,
        "valid": 1.0,
        "coverage": sum(sum(w > 0 for w in weights) for weights in known) / len(known),
    }.get(metric)
    return "-" if ideal is None else f"{ideal:.4g}"


def _chart(name: str, details: Mapping[str, Any], results: Mapping[str, Any], path: Path) -> Image:
    from alignlab.report import plots

    detail = next(iter(details.values()))[name]
    kl = results[f"kl/{name}"]
    words = ", ".join(f"{which} {value['value']:.3f}" for which, value in kl.items())
    note = f"{name} ({'trained on' if detail['trained'] else 'held out'}); KL(target || model) in nats: {words}"
    models = {which: found[name]["exact"] for which, found in details.items()}
    plots.distribution(detail["request"], detail["targets"], detail["weights"], models, note, path)
    return Image(path, f"Probability of each of {len(detail['targets'])} targets. {note}.")


def target_logprobs(record: TargetSet, scorer: Scorer, text: TextCodec, capacity: int) -> np.ndarray:
    """Log-probability that the model gives each target, summed over the response prefixes, [targets], float64.

    No more than ``capacity`` tree nodes are computed at a time.
    """
    from alignlab.engine.scorer import edge_logprobs_of

    encoded = text.encode(record)
    tree = trie(encoded.prompt, [answer for variants in encoded.answers for answer in variants])
    row = Row(0, 1.0, tree.tokens, tree.parent, tree.source, tree.target, splittable=True)
    logp = edge_logprobs_of(scorer, [row], capacity)[0].double().cpu().numpy()
    return np.logaddexp.reduce(tree.gather(logp).reshape(len(record.targets), len(record.responses)), axis=1)


def _task_table(details: Mapping[str, Any], results: Mapping[str, Any]) -> Table | None:
    """Means over the prompts of each task, where there are several tasks."""
    first = next(iter(details.values()))
    tasks: dict[str, list[bool]] = {}
    for detail in first.values():
        if detail["task"]:
            tasks.setdefault(detail["task"], []).append(detail["trained"])
    if len(tasks) < 2:
        return None
    shown = [m for m in ("sampled_entropy", "coverage", "entropy", "kl", "mass") if m in results]
    rows = []
    for task, trained in tasks.items():
        state = "trained" if all(trained) else "held out" if not any(trained) else "both"
        found = [results.get(f"{m}:{task}", {}) for m in shown]
        ideal = _ideal("entropy", [d for d in first.values() if d["task"] == task])
        cells = [f"{f[which]['value']:.4g}" if which in f else "-" for f in found for which in details]
        rows.append([task, state, str(len(trained)), ideal, *cells])
    header = ["task", "", "prompts", "entropy of target", *(f"{m} {which}" for m in shown for which in details)]
    return Table(header, rows, "Means over the prompts of each task.")


def _size_curves(details: Mapping[str, Any], results: Mapping[str, Any], folder: Path) -> list[Image]:
    """Entropy against the size of the target set, for each task whose prompts have five sizes or more."""
    from alignlab.report import plots

    sizes: dict[str, dict[int, list[str]]] = {}
    for name, detail in next(iter(details.values())).items():
        if "targets" in detail:
            sizes.setdefault(detail["task"], {}).setdefault(len(detail["targets"]), []).append(name)
    blocks = []
    for task, by_size in sizes.items():
        metric = "sampled_entropy" if f"sampled_entropy/{next(iter(by_size.values()))[0]}" in results else "entropy"
        if len(by_size) < 5:
            continue
        order = sorted(by_size)
        means = {
            which: [float(np.mean([results[f"{metric}/{n}"][which]["value"] for n in by_size[size]])) for size in order]
            for which in details
        }
        words = f"{task or 'prompts'}: {metric} in nats against the number of targets, means over the prompts of each size"
        path = folder / f"sizes-{task or 'all'}.png"
        plots.size_curve(order, means, words, path)
        last = ", ".join(f"{which} {values[-1]:.2f}" for which, values in means.items())
        blocks.append(Image(path, f"{words}. At {order[-1]} targets: {last}; an even distribution has {math.log(order[-1]):.2f}."))
    return blocks


def _means(
    metrics: Mapping[str, Value], replicates: Mapping[str, np.ndarray], suffix: str, names: Sequence[str]
) -> dict[str, Value]:
    """Mean of each metric over the prompts that have it, as the paper averages tasks."""
    kinds = dict.fromkeys(key.split("/", 1)[0] for key in metrics if "/" in key)
    means = {}
    for kind in kinds:
        if kind in NOT_AVERAGED:
            continue
        values = [metrics[f"{kind}/{name}"] for name in names if f"{kind}/{name}" in metrics]
        if not values:
            continue
        mean = math.fsum(v.value for v in values) / len(values)
        errors = [replicates[f"{kind}/{name}"] for name in names if f"{kind}/{name}" in replicates]
        n = sum(v.n for v in values)
        means[kind + suffix] = interval(kind, mean, np.mean(errors, axis=0), n) if errors else Value(mean, mean, mean, n)
    return means
