"""What judgments taught a model: right answers, known mistakes, detection, and the likelihood of what was good."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from alignlab.config import at_least, finite
from alignlab.errors import UserError
from alignlab.evaluate.detection import Inspected, log_ratios
from alignlab.evaluate.statistics import Ratios
from alignlab.generate.hf import Decoding
from alignlab.protocols import Row, Source, SuiteDefaults, Value
from alignlab.records import Judged
from alignlab.report.document import Block, Image, Link, Table
from alignlab.template import Encoded, Template, contexts, encode, gold, load_template
from alignlab.text import TextCodec
from alignlab.trees import chains, chunks

if TYPE_CHECKING:
    from alignlab.engine.scorer import Scorer

MOST_INSPECTED = 300
"""responses whose tokens are kept for the microscope"""


@dataclass
class JudgedAnswers(SuiteDefaults):
    """Figures of the test rows, with 95 % bootstrap intervals over rows; of those rows that have what a figure needs.

    ``right``: share of greedy answers that are the reference, spaces at the ends ignored. ``p_right``: mean probability of the
    reference, exactly. ``p_right_praised``: the same where the context asks for a response that a judgment praises: a ceiling.
    ``p_wrong``: mean probability of the tokens that are known to be wrong, each after the tokens before it. ``nll_satisfactory``:
    nats per token of satisfactory responses. ``detection_f1``, ``detection_precision``, ``detection_recall``: of the tokens whose
    probability the judgment raises by more than the threshold, against the known wrong ones.
    """

    template: str
    cutoff: int
    threshold: float
    praise: str | None
    samples: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    bootstrap: int
    objective: str

    accepts: ClassVar[tuple[type, ...]] = (Judged,)

    def __post_init__(self) -> None:
        load_template(self.template)
        finite("threshold", self.threshold)
        if not self.threshold > 0:
            raise ValueError(f"threshold: must be above 0, not {self.threshold}")
        for name in ("samples", "bootstrap"):
            at_least(name, getattr(self, name), 1)
        self.decoding()

    def decoding(self) -> Decoding:
        """How to sample."""
        return Decoding(self.temperature, self.top_p, self.top_k, self.max_new_tokens)

    def evaluate(
        self, source: Source, samples: Mapping[str, Sequence[str]], scorer: Scorer, text: TextCodec, seed: int, capacity: int
    ) -> tuple[dict[str, Value], dict[str, Any]]:
        """Metrics by name, with ``:task`` behind it for the rows of a task, and by row what charts and the microscope show."""
        template = load_template(self.template)
        found: list[_Figures] = []
        details: dict[str, Any] = {}
        trained, shown = {record.name for record in source.training()}, 0  # type: ignore[attr-defined]
        for texts, figures, logp in _scored(self._questions(source, template, text), scorer, capacity):
            figures.take(texts, logp, text)
            record = figures.record
            if record.reference is not None and record.name in samples:
                figures.right = [float(answer.strip() == record.reference.strip()) for answer in samples[record.name]]
            inspected = figures.inspected if shown < MOST_INSPECTED else None
            shown += inspected is not None
            details[record.name] = {
                "request": record.instruction,
                "task": record.task,
                "trained": record.name in trained,
                "right": figures.right and float(np.mean(figures.right)),
                "tokens": None if inspected is None else asdict(inspected),
            }
            found.append(figures)
        metrics = self._metrics(found, "", seed)
        tasks = dict.fromkeys(figures.record.task for figures in found if figures.record.task)
        for task in tasks if len(tasks) > 1 else ():
            metrics |= self._metrics([f for f in found if f.record.task == task], f":{task}", seed)
        return metrics, details

    def _questions(self, source: Source, template: Template, text: TextCodec) -> Iterator[tuple[dict[str, Encoded], _Figures]]:
        """For each test row what is scored, by name."""
        for record in source.testing():
            assert isinstance(record, Judged)
            try:
                yield self._question(record, template, text)
            except UserError as error:
                source.reject(record, error)

    def _question(self, record: Judged, template: Template, text: TextCodec) -> tuple[dict[str, Encoded], _Figures]:
        texts: dict[str, Encoded] = {}
        figures = _Figures(record)
        if record.reference:
            texts["reference"] = encode(record, template, text, self.cutoff, output=record.reference, field="reference")
            if self.praise is not None:
                praised = replace(record, judgment=self.praise)
                texts["praised"] = encode(
                    praised, template, text, self.cutoff, judged=True, output=record.reference, field="reference"
                )
        if record.output and record.satisfactory:
            texts["plain"] = encode(record, template, text, self.cutoff)
        elif record.output:
            texts["plain"], texts["judged"] = contexts(record, template, text, self.cutoff)
            figures.gold = gold(record, texts["plain"][1], template, text)
        return texts, figures

    def _metrics(self, found: Sequence[_Figures], suffix: str, seed: int) -> dict[str, Value]:
        ratio = Ratios(self.bootstrap, seed)
        metrics = {
            "right": ratio.mean("right", [f.right for f in found]),
            "p_right": ratio.mean("p_right", [f.p_right for f in found]),
            "p_right_praised": ratio.mean("p_right_praised", [f.p_praised for f in found]),
            "p_wrong": ratio.mean("p_wrong", [f.p_wrong for f in found]),
            "nll_satisfactory": ratio.mean("nll_satisfactory", [f.nll for f in found], most=math.inf),
        }
        marks = [f.marks(self.threshold) for f in found]
        hits, marked, wrong = (np.array([m[i] for m in marks if m is not None], float) for i in range(3))
        metrics["detection_precision"] = ratio.of("precision", hits, marked)
        metrics["detection_recall"] = ratio.of("recall", hits, wrong)
        metrics["detection_f1"] = ratio.of("f1", 2 * hits, marked + wrong)
        return {name + suffix: value for name, value in metrics.items() if value is not None}

    def summary(self, results: Mapping[str, Any], details: Mapping[str, Any]) -> Table:
        """Figures before and after."""
        rows = [[name, *(_cell(results[name].get(which)) for which in ("before", "after"))] for name in HEADLINE if name in results]
        first: Mapping[str, Any] = next(iter(details.values()), {})
        seen = sum(detail["trained"] for detail in first.values())
        caption = f"Over {len(first)} test rows, {seen or 'none'} of them trained on; with 95 % intervals."
        if not rows:
            caption = "Nothing to measure: no test row has a response, a judgment or a reference."
        return Table(["", "before", "after"], rows, caption)

    def charts(self, details: Mapping[str, Any], results: Mapping[str, Any], folder: Path) -> list[Block]:
        """Figures by task, detection against the threshold, and the token microscope, a page of its own beside the report."""
        from alignlab.report.judged import draw

        blocks: list[Block] = []
        tasks = dict.fromkeys(name.partition(":")[2] for name in results if ":" in name)
        if tasks:
            shown = [name for name in BY_TASK if name in results]
            header = ["task", *(f"{name} {which}" for name in shown for which in details)]
            rows = []
            for task in tasks:
                cells = [results.get(f"{name}:{task}", {}).get(which) for name in shown for which in details]
                rows.append([task, *("-" if cell is None else f"{cell['value']:.3f}" for cell in cells)])
            blocks.append(Table(header, rows, "Means over the test rows of each task."))
        models = {which: [Inspected(**d["tokens"]) for d in found.values() if d["tokens"]] for which, found in details.items()}
        if any(models.values()):
            for path, words in draw(models, self.threshold, folder.parent, folder):
                blocks.append(Image(path, words) if path.suffix == ".png" else Link(path, words))
        return blocks


HEADLINE = (
    "right",
    "p_right",
    "p_right_praised",
    "p_wrong",
    "nll_satisfactory",
    "detection_f1",
    "detection_precision",
    "detection_recall",
)
"""metrics in the order of the summary"""


BY_TASK = ("right", "p_right", "p_wrong", "detection_f1")
"""metrics in the table of tasks"""


@dataclass
class _Figures:
    """What is measured of one row; lists are empty where the row lacks what a figure needs."""

    record: Judged
    gold: list[int] | None = None
    right: list[float] = field(default_factory=list)
    p_right: list[float] = field(default_factory=list)
    p_praised: list[float] = field(default_factory=list)
    p_wrong: list[float] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    inspected: Inspected | None = None

    def take(self, texts: Mapping[str, Encoded], logp: Mapping[str, np.ndarray], text: TextCodec) -> None:
        """Read log-probabilities [T] of the texts."""
        record = self.record
        self.p_right = [math.exp(float(logp[name].sum())) for name in ("reference",) if name in logp]
        self.p_praised = [math.exp(float(logp[name].sum())) for name in ("praised",) if name in logp]
        if "judged" in logp:
            self.p_wrong = [math.exp(p) for p, wrong in zip(logp["plain"], self.gold or (), strict=False) if wrong]
            self.inspected = Inspected(
                name=record.name,
                instruction=record.instruction,
                judgment=record.judgment or "",
                pieces=pieces(texts["plain"][1], text),
                plain=logp["plain"].tolist(),
                judged=logp["judged"].tolist(),
                gold=self.gold or [],
            )
        elif "plain" in logp:
            self.nll = (-logp["plain"]).tolist()

    def marks(self, threshold: float) -> tuple[int, int, int] | None:
        """Wrong tokens that are detected, detected tokens, wrong tokens; None where nobody knows the wrong ones."""
        if self.inspected is None or self.gold is None:
            return None
        found = np.array(log_ratios(self.inspected)) > math.log(threshold)
        wrong = np.array(self.gold, bool)
        return int((found & wrong).sum()), int(found.sum()), int(wrong.sum())


def _scored(
    questions: Iterator[tuple[dict[str, Encoded], _Figures]], scorer: Scorer, capacity: int
) -> Iterator[tuple[dict[str, Encoded], _Figures, dict[str, np.ndarray]]]:
    """The questions with the log-probabilities [T] of each text, a few at a time."""
    from alignlab.engine.scorer import edge_logprobs_of

    waiting: list[tuple[dict[str, Encoded], _Figures]] = []

    def rows() -> Iterator[Row]:
        for texts, figures in questions:
            waiting.append((texts, figures))
            if texts:
                yield Row(0, 1.0, *chains(list(texts.values())))

    for chunk in chunks(rows(), capacity):
        found = iter(edge_logprobs_of(scorer, chunk, capacity))
        for texts, figures in _first(waiting, len(chunk), lambda item: bool(item[0])):
            if not texts:
                yield texts, figures, {}
                continue
            logp = next(found).double().cpu().numpy()
            ends = np.cumsum([len(scored) for _, scored in texts.values()])[:-1]
            yield texts, figures, dict(zip(texts, np.split(logp, ends), strict=True))
    for texts, figures in waiting:
        yield texts, figures, {}


def _first(waiting: list[Any], count: int, counts: Callable[[Any], bool]) -> Iterator[Any]:
    """Take items from the front until ``count`` of those that count are taken."""
    while count:
        item = waiting.pop(0)
        count -= counts(item)
        yield item


def pieces(ids: Sequence[int], text: TextCodec) -> list[str]:
    """Text of each token, [T]: what it adds to the text before it; one that adds nothing whole, or is special, by its name."""
    tokenizer = text.tokenizer
    found, shown = [], ""
    for count, token in enumerate(ids, 1):
        now = tokenizer.decode(ids[:count], skip_special_tokens=False)
        whole = now.startswith(shown) and len(now) > len(shown) and not now.endswith("\ufffd")
        found.append(now[len(shown) :] if whole else str(tokenizer.convert_ids_to_tokens(token)))
        shown = now if whole else shown
    return found


def _cell(value: Mapping[str, float] | None) -> str:
    return "-" if value is None else f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
