"""alignlab from Python."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alignlab.records import read_jsonl


class RunFolder:
    """A run folder, read.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        from omegaconf import OmegaConf

        return OmegaConf.to_container(OmegaConf.load(self.path / "config.yaml"))  # type: ignore[return-value]

    @property
    def metrics(self) -> list[dict[str, float]]:
        """A mapping per optimizer step; empty before any training."""
        path = self.path / "metrics.jsonl"
        return list(read_jsonl(path)) if path.exists() else []

    @property
    def details(self) -> dict[str, dict[str, Any]]:
        """Before/after -> prompt -> what its chart shows."""
        return json.loads((self.path / "details.json").read_text())

    @property
    def results(self) -> dict[str, dict[str, dict[str, float]]]:
        """Metric -> before/after -> value, low, high, n."""
        return json.loads((self.path / "results.json").read_text())

    @property
    def samples(self) -> list[dict[str, Any]]:
        """A mapping per completion."""
        return list(read_jsonl(self.path / "samples.jsonl"))

    @property
    def scores(self) -> list[dict[str, Any]]:
        """A mapping per line of the score stage."""
        return list(read_jsonl(self.path / "scores.jsonl"))


def run(overrides: Sequence[str] = ()) -> RunFolder:
    """The command line as a function: ``run(["method=diffuse", "seed=1"])``.

    Raises:
        UserError: what the command would have said on stderr.
    """
    from alignlab.__main__ import _quiet_libraries, run_composed
    from alignlab.compose import compose
    from alignlab.launch import World
    from alignlab.provenance import sources

    _quiet_libraries()
    node, choices = compose(overrides)
    run_composed(node, choices, list(overrides), list(overrides), World(0, 1), partial(sources, overrides))
    return RunFolder(node.run_dir)
