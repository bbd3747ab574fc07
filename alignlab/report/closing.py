"""The second half of a report: data, configuration, environment, cost, how to repeat the run."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from alignlab.config import STAGES
from alignlab.pipeline import Run
from alignlab.provenance import COMMAND_LINE, leaves, read_provenance, source_of
from alignlab.records import Prompt, read_jsonl
from alignlab.report.document import Block, Code, Facts, Fold, Heading, Table, Text


def data(run: Run, prompts: Sequence[Prompt]) -> list[Block]:
    """Counts, lengths, and what was cut off."""
    blocks: list[Block] = [Heading("Data")]
    summary_file = run.path("rows", "summary.json")
    fate = "Nothing that is trained on was cut off or left out for its length."
    if summary_file.exists():
        summary = json.loads(summary_file.read_text())
        if any(found["truncated"] or found["left_out"] for found in summary.values()):
            fate = "Of some records the end was cut off, and some were left out by the method: see truncated and left_out."
        names = list(next(iter(summary.values())))
        rows = [[name, *(f"{found[name]:,.10g}" for found in summary.values())] for name in names]
        blocks.append(Table(["", *summary], rows, "Rows as trained on; tokens, shortest, mean and longest in tree nodes."))
    counts, by_length = Counter[str](), Counter[str]()
    for row in read_jsonl(run.path(run.config.sample.file)):
        counts[row["model"]] += 1
        by_length[row["model"]] += row["finish"] == "length"
    most = getattr(run.config.suite.decoding(), "max_new_tokens", None)
    limit = f" by the limit of {most} tokens or the model's context" if most else ""
    rows = [[f"{which} training", f"{n:,}", f"{by_length[which]:,}", f"{by_length[which] / n:.2%}"] for which, n in counts.items()]
    blocks.append(Text(fate))
    blocks.append(
        Table(["completions", "drawn", "cut off", "share"], rows, f"Completions of {len(prompts)} prompts, cut off{limit}.")
    )
    return blocks


def configuration(run: Run) -> list[Block]:
    """Every value with where it came from; what was set for this run and what is the method's own come first."""
    found = read_provenance(run.folder)["sources"]
    rows = [
        [key, _shown(value), source_of(key, found)] for key, value in leaves(OmegaConf.to_container(run.config.node, resolve=True))
    ]
    header = ["key", "value", "from"]
    asked = [row for row in rows if row[2] == COMMAND_LINE]
    own = [row for row in rows if row[0].startswith("method.")]
    rest = [row for row in rows if row not in asked and row not in own]
    words = "Every value and the last that wrote it: the command line, or the file of that name below conf/."
    blocks: list[Block] = [Heading("Configuration"), Text(words)]
    if asked:
        blocks += [Heading("Set on the command line", 3), Table(header, asked)]
    blocks += [Heading("Of the method", 3), Table(header, own)]
    return [*blocks, Fold(f"The other {len(rest)} values", [Table(header, rest)])]


def environment(found: Mapping[str, Any]) -> list[Block]:
    """Versions, hardware, code and data."""
    facts = [
        ("GPUs", ", ".join(found["gpus"]) or "none"),
        ("Processor", f"{found['processor']}, {found['cores']} cores"),
        ("System", found["system"]),
        ("Python", found["python"]),
        ("Commit", f"{found['commit']} (+: with changes)" if (found["commit"] or "").endswith("+") else found["commit"] or "-"),
        ("Data digest", found["data"]),
        ("Packages", ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)),
    ]
    return [Heading("Environment"), Facts(facts)]


def cost(run: Run, metrics: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Time, tokens, memory."""
    markers = {stage: run.marker(stage) for stage in STAGES if run.marker(stage)}
    seconds = {stage: marker["seconds"] for stage, marker in markers.items()}
    rows = [[stage, f"{value:,.1f}"] for stage, value in seconds.items()]
    rows.append(["together", f"{sum(seconds.values()):,.1f}"])
    facts = []
    if metrics:
        tokens, spent = sum(row["tokens"] for row in metrics), sum(row["seconds"] for row in metrics)
        facts = [("Tokens trained", f"{tokens:,}"), ("Tokens per second", f"{tokens / max(spent, 1e-9):,.0f}")]
    names = {"resident": "Peak memory, resident", "gpu": "Peak memory, GPU"}
    for kind, name in names.items():
        peaks = [marker["peak_mib"][kind] for marker in markers.values() if kind in marker.get("peak_mib", {})]
        if peaks:
            facts.append((name, f"{max(peaks):,} MiB"))
    table = Table(
        ["stage", "seconds"], rows, "Seconds of each stage, as last run; one that went on after a stop counts from there."
    )
    return [Heading("Cost"), *([Facts(facts)] if facts else []), table]


def repeat(run: Run, found: Mapping[str, Any]) -> list[Block]:
    """The commands, and how exactly they repeat."""
    command = list(found["command"])
    blocks: list[Block] = [Heading("How to repeat it"), Code(shlex.join(command))]
    if {"-m", "--multirun"} & set(command[3:]):  # after python -m alignlab
        settings = [o for o in found["overrides"] if not o.startswith("run_dir=")]
        alone = shlex.join(["python", "-m", "alignlab", *settings, f"run_dir={run.folder}"])
        blocks += [Text("That was a sweep. This run of it alone:"), Code(alone)]
    later = [given for given in read_provenance(run.folder)["commands"] if given != command]
    if later:
        blocks += [Text("Also given to this folder:"), Code("\n".join(map(shlex.join, later)))]
    return [*blocks, Text(_exactness(run))]


def _exactness(run: Run) -> str:
    train = run.config.train
    dropout = train.lora.dropout if train.lora else 0
    what = "the same weights, samples and results bit for bit"
    same = f"With seed {run.config.seed}, the same command on the same hardware and versions gives {what}."
    if train.precision != "fp32":
        return f"{same} Training was in {train.precision}: other hardware agrees only within the rounding of that precision."
    if dropout:
        return f"{same} Adapters were trained with dropout {dropout:g}: other hardware draws otherwise and agrees in distribution."
    return f"{same} In fp32 without dropout, other hardware agrees to float tolerance, unless the model has dropout of its own."


def _shown(value: Any) -> str:
    """As in YAML; a text that looks like something else, in quotes."""
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) or value == "" else value
