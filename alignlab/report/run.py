"""The blocks of a run's report, from the files of its folder."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from alignlab.api import RunFolder
from alignlab.pipeline import Run
from alignlab.records import Prompt, read_jsonl
from alignlab.report import closing, plots
from alignlab.report.document import Block, Code, Column, Facts, Fold, Heading, Image, Samples, Table, Text, cut

SHOWN_PROMPTS, SHOWN_SAMPLES, LONGEST_SAMPLE, LONGEST_REQUEST = 6, 5, 1200, 2000
"""what is shown of ``samples.jsonl``: prompts, completions of each, characters of a completion and of a request"""

LOOP_METRICS = ("step", "epoch", "loss", "floor", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds", "validation_loss")
"""columns of metrics.jsonl that are not a method's own"""


class Report:
    """What a report says, part by part.

    Args:
        run: the run, with its ``evaluate`` stage done.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._folder = run, RunFolder(run.folder)
        self.results, self.details = self._folder.results, self._folder.details
        self.environment = json.loads(run.path("environment.json").read_text())
        self.metrics = self._folder.metrics if run.trained else []
        self.summary: Table = run.config.suite.summary(self.results, self.details)
        choices = self.environment["choices"]
        paths = [word.partition("=")[2] for word in self.environment["overrides"] if word.startswith("data.path=")]
        self.title = f"{choices['method']} on {paths[-1] if paths else choices['data']}, {choices['model']}"

    @cached_property
    def prompts(self) -> Sequence[Prompt]:
        """What is sampled from and evaluated."""
        return self._run.prompts(self._run.models()[-1])

    def blocks(self) -> list[Block]:
        """The whole report."""
        charts = self._run.config.suite.charts(self.details, self.results, self._run.path("plots"))
        per_prompt = self._per_prompt()
        return [
            *self._opening(),
            *(self._training() if self.metrics else []),
            Heading("Prompts"),
            *charts,
            *([Fold("The figures of every prompt", [per_prompt])] if per_prompt.rows else []),
            *self._samples(),
            *self._run.config.method.sections(self._folder, self._run.path("plots")),
            *closing.data(self._run, self.prompts),
            *closing.configuration(self._run),
            *closing.environment(self.environment),
            *closing.cost(self._run, self.metrics),
            *closing.repeat(self._run, self.environment),
        ]

    def _opening(self) -> list[Block]:
        config, choices = self._run.config, self.environment["choices"]
        facts = [("Method", f"{choices['method']}: {_first_paragraph(config.method)}")]
        facts += [(name.capitalize(), choices[name]) for name in ("data", "model") if name in choices]
        if self.metrics:
            steps, last = len(self.metrics), self.metrics[-1]
            facts.append(("Training", f"{_count(steps, 'optimizer step')}, {_count(int(last['epoch']) + 1, 'pass', 'passes')}"))
        facts.append(("Evaluated on", _count(len(self.prompts), "prompt")))
        facts.append(("Seed", str(config.seed)))
        asked = self.environment["overrides"]
        facts.append(("Set on the command line", " ".join(asked) if asked else "nothing: all values are those of the options"))
        blocks: list[Block] = [Heading("What was asked, and what came out"), Text(self._headline(), lead=True), Facts(facts)]
        if self.prompts and self.prompts[0].request:
            blocks += [Text("One of the prompts:"), Code(cut(self.prompts[0].request, LONGEST_REQUEST))]
        meaning = inspect.getdoc(type(config.suite)) or ""
        blocks.append(self.summary)
        if not meaning.startswith(f"{type(config.suite).__name__}("):  # what a dataclass says of itself when nobody wrote anything
            blocks.append(
                Fold("What the figures mean", [Text(" ".join(part.split()).replace("``", "")) for part in meaning.split("\n\n")])
            )
        return blocks

    def _headline(self) -> str:
        """How the suite's objective changed."""
        plain = [name for name in self.results if "/" not in name and ":" not in name]
        objective = getattr(self._run.config.suite, "objective", None)
        name = objective if objective in self.results else next(iter(plain), None)
        if name is None:
            return f"{_count(len(self.prompts), 'prompt')} evaluated."
        over = f"Over {_count(len(self.prompts), 'prompt')}"
        values = {which: f"{value['value']:.3g}" for which, value in self.results[name].items()}
        if "after" not in values or "before" not in values:
            where = "after training" if "after" in values else "and nothing was trained"
            return f"{over}, {name} is {next(iter(values.values()))}, {where}."
        parts = {"trained on": f"{name}:trained", "held out": f"{name}:held-out"}
        both = {
            words: " to ".join(f"{self.results[key][which]['value']:.3g}" for which in ("before", "after"))
            for words, key in parts.items()
            if {"before", "after"} <= set(self.results.get(key, {}))
        }
        more = " (" + "; ".join(f"{words}: {values}" for words, values in both.items()) + ")" if len(both) == 2 else ""
        return f"{over}, {name} went from {values['before']} before training to {values['after']} after{more}."

    def _training(self) -> list[Block]:
        first, last = self.metrics[0], self.metrics[-1]
        floor = f"; its floor is {last['floor']:.4f}" if "floor" in last else ""
        words = f"Loss {first['loss']:.4f} at the first step, {last['loss']:.4f} at the last of {len(self.metrics)}{floor}."
        validated = [row["validation_loss"] for row in self.metrics if "validation_loss" in row]
        if validated:
            words += f" Validation loss {validated[0]:.4f} when first measured, {validated[-1]:.4f} at the end."
        curve = plots.curve(self.metrics, self._run.path("plots", "training.png"))
        blocks: list[Block] = [Heading("Training"), Image(curve, f"Loss against optimizer steps. {words}", words)]
        logged = dict.fromkeys(name for row in self.metrics for name in row)
        names = [name for name in logged if name not in LOOP_METRICS and "/" not in name]  # with a slash: report/probes.py
        known = {name: [row[name] for row in self.metrics if row.get(name) is not None] for name in names}
        known = {name: values for name, values in known.items() if values}
        if known:
            varying = [name for name, values in known.items() if min(values) < max(values)][:12]
            if varying:
                image = plots.logs(self.metrics, varying, self._run.path("plots", "logs.png"))
                blocks.append(
                    Image(image, f"Against optimizer steps: {', '.join(varying)}.", "What the method logs, step by step.")
                )
            rows = [[n, *(_number(v) for v in (values[0], min(values), max(values), values[-1]))] for n, values in known.items()]
            blocks.append(Table(["", "first", "least", "greatest", "last"], rows, "Logs of the method."))
        return blocks

    def _per_prompt(self) -> Table:
        """Every metric of every prompt."""
        by_prompt: dict[str, dict[str, Mapping[str, Any]]] = {}
        for key, found in self.results.items():
            metric, slash, prompt = key.partition("/")
            if slash:
                by_prompt.setdefault(prompt, {})[metric] = found
        metrics = list(dict.fromkeys(metric for found in by_prompt.values() for metric in found))
        rows = [[prompt, *(_change(found.get(metric)) for metric in metrics)] for prompt, found in by_prompt.items()]
        models = " → ".join(self._run.models())
        return Table(["prompt", *metrics], rows, f"{models}. results.json has all digits and the 95 % intervals.")

    def _samples(self) -> list[Block]:
        file = self._run.path(self._run.config.sample.file)
        every = max(1, -(-len(self.prompts) // SHOWN_PROMPTS))
        requests = {prompt.name: prompt.request for prompt in islice(self.prompts, 0, None, every)}
        texts: dict[tuple[str, str], list[str]] = {}
        counts, by_length = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for row in read_jsonl(file):
            key = row["prompt"], row["model"]
            counts[key] += 1
            by_length[key] += row["finish"] == "length"
            if key[0] in requests and len(texts.setdefault(key, [])) < SHOWN_SAMPLES:
                texts[key].append(cut(row["text"], LONGEST_SAMPLE))
        blocks: list[Block] = []
        for name, request in requests.items():
            columns = []
            for which in dict.fromkeys(model for prompt, model in counts if prompt == name):
                key = name, which
                share = by_length[key] / counts[key]
                note = f"The first {len(texts[key])} of {counts[key]}; {share:.1%} of all were cut off by length."
                columns.append(Column(f"{which} training", note, texts[key]))
            if columns:
                blocks.append(Samples(name, cut(request, LONGEST_REQUEST), columns))
        if not blocks:
            return []
        total = f"{len(blocks)} of {_count(len(self.prompts), 'prompt')}, evenly spaced; all completions are in {file.name}."
        return [Heading("Samples"), Text(f"{total} Space at the beginning or end of a completion is marked."), *blocks]


def _change(found: Mapping[str, Any] | None) -> str:
    return " → ".join(_number(value["value"]) for value in found.values()) if found else "-"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def _first_paragraph(thing: Any) -> str:
    """What a class says of itself in the first paragraph of its docstring."""
    return " ".join((inspect.getdoc(type(thing)) or "").split("\n\n")[0].split()).replace("``", "")
