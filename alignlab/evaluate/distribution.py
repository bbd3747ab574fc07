"""How near a model's answers are to the target distribution: exactly, from the trie, and as samples show it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.config import at_least
from alignlab.generate.hf import Decoding
from alignlab.protocols import Row, Source, Value
from alignlab.records import TargetSet
from alignlab.report.document import Image, Table
from alignlab.seeds import generator
from alignlab.text import TextCodec
from alignlab.trees import trie

if TYPE_CHECKING:
    from alignlab.engine.scorer import Scorer


@dataclass
class Distribution:
    """Exact and sampled metrics of every test prompt, and their means over prompts (all, trained, held out).

    Exact, of the probability p(y) that the model gives each target y (summed over response prefixes): ``mass`` on the targets,
    ``kl`` (target || model) in nats, ``total_variation``, ``entropy`` of p restricted to the targets, in nats. Sampled, of n
    completions: ``sampled_entropy`` in nats and ``coverage`` (distinct texts) of the raw strings, and the share ``valid`` that are
    targets.
    """

    samples: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    bootstrap: int
    objective: str

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 1)
        at_least("bootstrap", self.bootstrap, 1)
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
        replicates: dict[str, list[np.ndarray]] = {}
        groups: dict[str, list[str]] = {"": [], ":trained": [], ":held-out": []}
        for record in source.testing():
            assert isinstance(record, TargetSet)
            name = record.name
            groups[""].append(name)
            groups[":trained" if name in trained else ":held-out"].append(name)
            found: dict[str, Value] = {}
            detail: dict[str, Any] = {"request": record.request, "trained": name in trained}
            if record.targets:
                logp = target_logprobs(record, scorer, text, capacity)
                found.update(exact_metrics(np.array(record.weights), logp))
                detail |= {"targets": list(record.targets), "weights": list(record.weights), "exact": np.exp(logp).tolist()}
            if samples.get(name):
                texts = [sample.strip() for sample in samples[name]]
                answers = frozenset(answer.strip() for answer in record.answers())
                measured, draws = sampled_metrics(texts, answers, self.bootstrap, seed, name)
                found.update(measured)
                for metric, values in draws.items():
                    replicates[f"{metric}/{name}"] = [values]
                counts = Counter(texts)
                detail["sampled"] = [sum(counts[(r + t).strip()] for r in record.responses) / len(texts) for t in record.targets]
                detail["most_frequent"] = counts.most_common(10)
                detail["n"] = len(texts)
            metrics.update({f"{metric}/{name}": value for metric, value in found.items()})
            details[name] = detail
        for suffix, names in groups.items():
            metrics.update(_means(metrics, replicates, suffix, names))
        return metrics, details

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
        for metric in HEADLINE:
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
        for name, detail in first.items():
            if "targets" in detail:
                blocks.append(_chart(name, details, results, folder / f"prompt-{name.replace('/', '__')}.png"))
            elif "most_frequent" in detail:
                rows = [[text[:60], *(_share(details[m][name], text) for m in details)] for text, _ in detail["most_frequent"]]
                blocks.append(Table([f"{name}: likeliest before", *details], rows, detail["request"]))
        return blocks


HEADLINE = ("sampled_entropy", "entropy", "kl", "total_variation", "mass", "valid", "coverage")
"""metrics in the order of the summary"""

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
    }[metric]
    return f"{ideal:.4g}"


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


def exact_metrics(weights: np.ndarray, logp: np.ndarray) -> dict[str, Value]:
    """Metrics of the target weights [targets] against the model's log-probabilities [targets]; no sampling error."""
    log_mass = float(np.logaddexp.reduce(logp))
    p, positive = np.exp(logp), weights > 0
    kl = float(np.sum(weights[positive] * (np.log(weights[positive]) - logp[positive])))
    log_share = logp - log_mass
    entropy = float(-np.sum(np.exp(log_share) * log_share))
    variation = 0.5 * (float(np.abs(weights - p).sum()) + max(0.0, -math.expm1(log_mass)))
    values = {"mass": math.exp(log_mass), "kl": kl, "total_variation": variation, "entropy": entropy}
    return {name: Value(v, v, v, len(p)) for name, v in values.items()}


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the empirical distribution of counts (Eq. 3)."""
    share = counts[counts > 0] / counts.sum()
    return float(-np.sum(share * np.log(share)))


def sampled_metrics(
    texts: Sequence[str], answers: frozenset[str], bootstrap: int, seed: int, name: str
) -> tuple[dict[str, Value], dict[str, np.ndarray]]:
    """Entropy, coverage and share of valid answers of one prompt's samples, with basic bootstrap intervals.

    Returns the metrics and, for the interval of a mean over prompts, each metric's bootstrap errors, [bootstrap].
    """
    counter = Counter(texts)
    distinct = sorted(counter)
    counts = np.array([counter[t] for t in distinct])
    is_answer = np.array([t in answers for t in distinct])
    n = len(texts)
    draws = generator(seed, "bootstrap", name).multinomial(n, counts / n, size=bootstrap)
    figures: dict[str, tuple[float, np.ndarray]] = {
        "sampled_entropy": (entropy(counts), np.array([entropy(draw) for draw in draws])),
        "coverage": (float(len(distinct)), (draws > 0).sum(1).astype(float)),
    }
    if answers:
        figures["valid"] = (float(counts[is_answer].sum() / n), draws[:, is_answer].sum(1) / n)
    errors = {metric: again - value for metric, (value, again) in figures.items()}
    return {metric: interval(value, errors[metric], n) for metric, (value, _) in figures.items()}, errors


def interval(value: float, errors: np.ndarray, n: int) -> Value:
    """95 % basic bootstrap interval: resampling errs from the sample as the sample errs from the truth.

    Widened to hold the value itself, which for entropy and coverage (biased downwards) may lie outside.
    """
    low, high = np.quantile(errors, [0.025, 0.975])
    return Value(value, min(value, value - float(high)), max(value, value - float(low)), n)


def _means(
    metrics: Mapping[str, Value], replicates: Mapping[str, list[np.ndarray]], suffix: str, names: Sequence[str]
) -> dict[str, Value]:
    """Mean of each metric over the prompts that have it, as the paper averages tasks."""
    kinds = dict.fromkeys(key.split("/", 1)[0] for key in metrics if "/" in key)
    means = {}
    for kind in kinds:
        values = [metrics[f"{kind}/{name}"] for name in names if f"{kind}/{name}" in metrics]
        if not values:
            continue
        mean = math.fsum(v.value for v in values) / len(values)
        errors = [e for name in names for e in replicates.get(f"{kind}/{name}", [])]
        n = sum(v.n for v in values)
        means[kind + suffix] = interval(mean, np.mean(errors, axis=0), n) if errors else Value(mean, mean, mean, n)
    return means
