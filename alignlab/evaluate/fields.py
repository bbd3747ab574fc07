"""Completions of several fields, such as biographies: how varied each field is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignlab.evaluate.diversity import unigram_diversity
from alignlab.evaluate.statistics import sampled_metrics
from alignlab.protocols import Value
from alignlab.report.document import Table


def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern whose named groups are the fields.

    Raises:
        ValueError: it is no regular expression, or names no field.
    """
    try:
        found = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"fields: not a regular expression: {error}") from None
    if not found.groupindex:
        raise ValueError("fields: the pattern names no field; write one as (?P<name>...)")
    return found


def field_values(texts: Sequence[str], pattern: re.Pattern[str]) -> tuple[dict[str, list[str]], int]:
    """The values of each field over all texts, stripped, and how many texts the pattern fits; a field may be missing in some."""
    found = [match for text in texts if (match := pattern.search(text))]
    values = {name: [m[name].strip() for m in found if m[name] is not None] for name in pattern.groupindex}
    return values, len(found)


def field_metrics(
    texts: Sequence[str], pattern: re.Pattern[str], bootstrap: int, seed: int, name: str
) -> tuple[dict[str, Value], dict[str, np.ndarray], dict[str, Any]]:
    """Of each field: entropy (nats), coverage, share of the most frequent value, unigram diversity; of the whole text, the last.

    Returns the metrics, named ``field.metric``; bootstrap errors of those that are averaged over prompts, [bootstrap]; and the most
    frequent values of each field, with their counts.
    """
    values, fitting = field_values(texts, pattern)
    share = fitting / len(texts)
    spread = 1.96 * (share * (1 - share) / len(texts)) ** 0.5
    metrics = {"parsed": Value(share, max(0.0, share - spread), min(1.0, share + spread), len(texts))}
    errors: dict[str, np.ndarray] = {}
    frequent: dict[str, list[tuple[str, int]]] = {}
    for field, found in values.items():
        frequent[field] = Counter(found).most_common(5)
        if not found:
            continue
        top = frozenset({frequent[field][0][0]})
        measured, again = sampled_metrics(found, top, bootstrap, seed, f"{name}.{field}")
        for metric, short in (("sampled_entropy", "entropy"), ("coverage", "coverage"), ("valid", "most_frequent")):
            metrics[f"{field}.{short}"], errors[f"{field}.{short}"] = measured[metric], again[metric]
        metrics[f"{field}.diversity"] = unigram_diversity(found)
    metrics["text.diversity"] = unigram_diversity(texts)
    return metrics, errors, {"fields": frequent, "parsed": fitting}


def field_table(name: str, details: Mapping[str, Any], results: Mapping[str, Any]) -> Table:
    """One prompt's fields, a row each: how varied each is, and its most frequent value, by each model."""
    columns = (("entropy", "entropy, nats"), ("coverage", "coverage"), ("diversity", "unigram diversity"))
    header = ["field", *(f"{words} {which}" for _, words in columns for which in details)]
    header += [f"most frequent {which}" for which in details]
    rows = []
    fields = list(dict.fromkeys(field for found in details.values() for field in found[name]["fields"]))
    for field in [*fields, "text"]:
        cells = [field.replace("_", " ")]
        for metric, _ in columns:
            found = results.get(f"{field}.{metric}/{name}", {})
            cells += [f"{found[which]['value']:.4g}" if which in found else "-" for which in details]
        for detail in details.values():
            top = detail[name]["fields"].get(field, [])
            cells.append(f"{top[0][0][:40]} ({top[0][1]})" if top else "-")
        rows.append(cells)
    parsed = ", ".join(f"{which} {detail[name]['parsed']} of {detail[name]['n']}" for which, detail in details.items())
    return Table(header, rows, f"{name}: fields of the completions. Those that have the form: {parsed}.")
