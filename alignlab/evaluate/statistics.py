"""Figures of a sample and of exact probabilities: entropy, coverage, distances, goodness of fit, bootstrap intervals."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from alignlab.protocols import Value
from alignlab.seeds import generator

SMALL = 5.0
"""expected count below which Pearson's approximation is not used (Cochran's rule)"""
ENUMERATED = 5_000
"""outcomes that the exact multinomial test lists; with more it draws instead"""
DRAWS = 5_000
"""outcomes drawn where they are too many to list"""


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
    """Entropy and coverage of one prompt's samples; with answers, the share of samples among them and the coverage beyond them.

    Returns the metrics with basic bootstrap intervals and, for the interval of a mean over prompts, each metric's bootstrap errors,
    [bootstrap].
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
        figures["beyond"] = (float((~is_answer).sum()), (draws[:, ~is_answer] > 0).sum(1).astype(float))
    errors = {metric: again - value for metric, (value, again) in figures.items()}
    return {metric: interval(metric, value, errors[metric], n) for metric, (value, _) in figures.items()}, errors


SHARES = ("valid", "parsed", "most_frequent")
"""metrics, or last parts of their names, that cannot exceed 1"""


def interval(metric: str, value: float, errors: np.ndarray, n: int) -> Value:
    """95 % basic bootstrap interval: resampling errs from the sample as the sample errs from the truth.

    Widened to hold the value itself, which for entropy and coverage (biased downwards) may lie outside; nothing here is negative.
    """
    low, high = np.quantile(errors, [0.025, 0.975])
    most = 1.0 if metric.split(".")[-1] in SHARES else math.inf
    return Value(value, max(0.0, min(value, value - float(high))), min(most, max(value, value - float(low))), n)


def goodness_of_fit(counts: np.ndarray, weights: np.ndarray, seed: int, name: str) -> dict[str, Value]:
    """Pearson's statistic of counts [k] against weights [k], and the probability of one at least as large under the weights.

    The probability is the chi-square approximation's where every expected count is at least 5, otherwise the exact multinomial
    one: summed over all outcomes while they are few, else estimated from 5,000 of them drawn, with its 95 % interval.
    Targets of no weight are left out.
    """
    counts, weights = counts[weights > 0], weights[weights > 0] / weights.sum()
    n, k = int(counts.sum()), len(counts)
    statistic = float(pearson(counts, n * weights))
    if n * weights.min() >= SMALL:
        p = chi_square_tail(statistic, k - 1)
        found = Value(p, p, p, n)
    elif math.comb(n + k - 1, k - 1) <= ENUMERATED:
        p = _exact_tail(statistic, n, weights)
        found = Value(p, p, p, n)
    else:
        draws = generator(seed, "fit", name).multinomial(n, weights, size=DRAWS)
        reached = int((pearson(draws, n * weights) >= statistic * (1 - 1e-12)).sum())
        p = (reached + 1) / (DRAWS + 1)
        error = 1.96 * math.sqrt(p * (1 - p) / DRAWS)
        found = Value(p, max(0.0, p - error), min(1.0, p + error), n)
    return {"chi_square": Value(statistic, statistic, statistic, n), "fit_p": found}


def pearson(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Sum of (count - expected)^2 / expected over the last axis."""
    return ((counts - expected) ** 2 / expected).sum(-1)


def chi_square_tail(statistic: float, degrees: int) -> float:
    """Probability that a chi-square variable of so many degrees of freedom is at least as large."""
    import torch

    if degrees == 0:
        return 1.0
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def _exact_tail(statistic: float, n: int, weights: np.ndarray) -> float:
    log_weights, total = np.log(weights), 0.0
    for outcome in _compositions(n, len(weights)):
        if pearson(outcome, n * weights) >= statistic * (1 - 1e-12):
            ways = math.lgamma(n + 1) - math.fsum(math.lgamma(count + 1) for count in outcome)
            total += math.exp(ways + float(outcome @ log_weights))
    return min(1.0, total)


def _compositions(n: int, k: int) -> Iterator[np.ndarray]:
    """Every way to put n things into k boxes."""
    for bars in itertools.combinations(range(n + k - 1), k - 1):
        edges = (-1, *bars, n + k - 1)
        yield np.array([right - left - 1 for left, right in itertools.pairwise(edges)])


class Ratios:
    """Sums over sums, with the percentile bootstrap over clusters: rows, or prompts with all that is measured of them.

    Where n clusters are all alike, resampling them finds no error. The interval then holds what clusters unlike them can change, if
    their share is so small that n draws see none with probability 2.5 %: 0 of n has the upper end of Clopper and Pearson.

    Args:
        bootstrap: resamples.
        seed: of the resamples; those of one name and one number of clusters are the same.
    """

    def __init__(self, bootstrap: int, seed: int) -> None:
        self._bootstrap, self._seed = bootstrap, seed

    def mean(self, name: str, values: Sequence[Sequence[float]], most: float = 1.0) -> Value | None:
        """Mean of all values, which clusters hold together; None where there are none."""
        held = [row for row in values if len(row)]
        sums, counts = np.array([math.fsum(row) for row in held]), np.array([len(row) for row in held], float)
        return self.of(name, sums, counts, most)

    def of(self, name: str, sums: np.ndarray, counts: np.ndarray, most: float = 1.0) -> Value | None:
        """Sum of ``sums`` [clusters] over sum of ``counts`` [clusters], from 0 to ``most``; None where the counts are all 0."""
        total = float(counts.sum())
        if not total:
            return None
        value = math.fsum(sums) / total
        (again,) = self._again(name, (sums, counts))
        return _percentiles(value, again, (sums - value * counts)[counts > 0] / total, 0.0, most, len(sums))

    def difference(
        self, name: str, one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], *, most: float = 1.0
    ) -> Value | None:
        """Ratio of ``one`` minus that of ``other``, each (sums, counts) [clusters] of the same clusters, resampled together.

        None where either has no counts. The difference lies between -``most`` and ``most``, those of shares.
        """
        totals = [float(counts.sum()) for _, counts in (one, other)]
        if not all(totals):
            return None
        shares = [math.fsum(sums) / total for (sums, _), total in zip((one, other), totals, strict=True)]
        first, second = self._again(name, one, other)
        errors = (one[0] - shares[0] * one[1]) / totals[0] - (other[0] - shares[1] * other[1]) / totals[1]
        known = (one[1] > 0) | (other[1] > 0)
        return _percentiles(shares[0] - shares[1], first - second, errors[known], -most, most, len(one[0]))

    def _again(self, name: str, *pairs: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
        """The ratio of each pair in the resamples where all pairs have counts, [resamples] each."""
        clusters = len(pairs[0][0])
        drawn = generator(self._seed, "bootstrap", name).integers(0, clusters, (self._bootstrap, clusters))
        below = [counts[drawn].sum(1) for _, counts in pairs]
        known = np.logical_and.reduce([count > 0 for count in below])
        return [sums[drawn].sum(1)[known] / count[known] for (sums, _), count in zip(pairs, below, strict=True)]


def _percentiles(value: float, again: np.ndarray, errors: np.ndarray, least: float, most: float, n: int) -> Value:
    """95 % percentile interval of what was found ``again``, widened to hold the value; ``errors`` [clusters] make it what it is."""
    if np.abs(errors).max() <= 1e-12 and math.isfinite(most):
        unseen = 1 - 0.025 ** (1 / len(errors))
        return Value(value, value - unseen * (value - least), value + unseen * (most - value), n)
    low, high = np.quantile(again, [0.025, 0.975]) if len(again) else (value, value)
    return Value(value, max(least, min(value, float(low))), min(most, max(value, float(high))), n)


def weighted(parts: Sequence[tuple[float, Value]]) -> Value:
    """Sum of independent figures, each with its positive weight; their intervals' reaches are added in squares.

    The method of variance estimates recovery of Zou and Donner (2008, Statistics in Medicine 27): it needs nothing but the
    intervals of the parts, and so keeps the uncertainty of a part whose clusters are all alike, which resampling would not find.
    """
    value = math.fsum(weight * part.value for weight, part in parts)
    below = math.hypot(*(weight * (part.value - part.low) for weight, part in parts))
    above = math.hypot(*(weight * (part.high - part.value) for weight, part in parts))
    return Value(value, value - below, value + above, sum(part.n for _, part in parts))


STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t for 1 to 10 degrees of freedom"""


def over_seeds(values: Sequence[Value], least: float, most: float) -> Value:
    """Mean of one figure of runs that differ in their seed, with its 95 % interval by Student's t; ``n`` counts the runs.

    It is no narrower than the runs' own intervals make it, since few runs may agree by chance, and lies within ``least`` and
    ``most``. Of a single run, its own value and interval.
    """
    if len(values) == 1:
        return values[0]
    found, degrees = np.array([value.value for value in values]), len(values) - 1
    # beyond the table, the expansion of Cornish and Fisher: to 0.002
    quantile = STUDENT[degrees - 1] if degrees <= len(STUDENT) else 1.96 + 2.372 / degrees + 2.823 / degrees**2
    mean, half = math.fsum(found) / len(found), quantile * float(found.std(ddof=1)) / math.sqrt(len(found))
    below, above = (
        math.hypot(*reach) / len(found) for reach in ([v.value - v.low for v in values], [v.high - v.value for v in values])
    )
    return Value(mean, max(least, mean - max(half, below)), min(most, mean + max(half, above)), len(values))
