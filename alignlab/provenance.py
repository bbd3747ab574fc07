"""Where each configuration value came from: the command line, or the file of the config group that wrote it last."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alignlab.compose import CONF
from alignlab.records import write_json

COMMAND_LINE = "command line"
FILE = "provenance.json"
"""in a run folder: the commands that were given to it, and where the values of the last one came from"""


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings; an empty mapping is a value."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def sources(overrides: Sequence[str], loader: Any = None, name: str = "config") -> dict[str, str]:
    """Who wrote each key: ``command line`` or a file below ``conf/`` such as ``recipe/diffuse-tiny``; the last writer wins.

    Args:
        overrides: those of the run, with Hydra's own.
        loader: Hydra's loader where one is at work; it knows configuration folders given by ``--config-dir``.
        name: of the primary configuration.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.types import RunMode

    loader = loader or ConfigLoaderImpl(create_config_search_path(str(CONF)))
    found: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once, when Hydra composed
        _, repository = loader._parse_overrides_and_create_caching_repo(name, list(overrides))
        composed = loader.compute_defaults_list(name, list(overrides), RunMode.RUN)
        for default in composed.defaults:
            content = repository.load_config(default.config_path).config
            for key, _ in leaves(OmegaConf.to_container(content), default.package or ""):
                found[key] = default.config_path
    for override in composed.config_overrides:
        for key, _ in leaves(override.value(), override.key_or_group):
            found[key] = COMMAND_LINE
    return {key: where for key, where in found.items() if not key.startswith("hydra.")}


def source_of(key: str, found: Mapping[str, str]) -> str:
    """Who wrote a key: itself, or the mapping that it lies in; ``alignlab`` where nobody did."""
    while key not in found and "." in key:
        key = key.rpartition(".")[0]
    return found.get(key, "alignlab")


def write_provenance(folder: Path, node: Any, found: Mapping[str, str], command: Sequence[str]) -> None:
    """Write the file: every key of the configuration with its source, and the command after those that were there."""
    commands = [given for given in read_provenance(folder)["commands"] if given != list(command)]
    keys = [key for key, _ in leaves(OmegaConf.to_container(node, resolve=True))]
    where = {key: source_of(key, found) for key in keys}
    if where.get("run_dir") != COMMAND_LINE:
        where["run_dir"] = "alignlab"
    write_json(folder / FILE, {"commands": [*commands, list(command)], "sources": where})


def read_provenance(folder: Path) -> dict[str, Any]:
    """The file's content; empty where there is none yet."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.exists() else {"commands": [], "sources": {}}
