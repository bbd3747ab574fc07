"""From a command line to a composed configuration, by Hydra, and Hydra's refusals as sentences."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignlab.config import all_keys
from alignlab.errors import UserError, did_you_mean

PACKAGE = Path(__file__).resolve().parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""inside the wheel it lies in the package, in a checkout beside it"""


def groups() -> dict[str, list[str]]:
    """Options of every config group."""
    return {folder.name: sorted(f.stem for f in folder.glob("*.yaml")) for folder in sorted(CONF.iterdir()) if folder.is_dir()}


def compose(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """The configuration for a list of overrides, and the option chosen in each group.

    Raises:
        UserError: Hydra refuses them.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    try:
        if GlobalHydra.instance().is_initialized():
            GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            whole = hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
    except Exception as error:
        raise translate(error, overrides) from None
    chosen = {k: str(v) for k, v in whole.hydra.runtime.choices.items() if k in groups() and v is not None}
    return without_hydra(whole), chosen


def without_hydra(node: DictConfig) -> DictConfig:
    """A copy of the configuration without Hydra's own node, open to inspection."""
    copy = OmegaConf.create({k: node._get_node(k) for k in node if k != "hydra"})
    OmegaConf.set_struct(copy, False)
    return copy


def translate(error: Exception, overrides: Sequence[str]) -> UserError:
    """What Hydra refused, where, and the nearest thing that exists."""
    missing = getattr(error, "missing_cfg_file", None)
    if missing:
        group, _, option = str(missing).rpartition("/")
        options = groups().get(group, [])
        return UserError(f"{group}={option}: no such option.{did_you_mean(option, options)}\nThere are: {', '.join(options)}.")
    text = " ".join(str(error).split())
    key = re.search(r"[Cc]ould not (?:override|delete|append)[^']*'([^'@]+)", text)
    if key:
        word = key[1]
        if word in groups():
            return UserError(f"{word}: {text}")
        return UserError(f"{word}: no such key.{did_you_mean(word, [*groups(), *_known(overrides)])}")
    lexed = re.search(r"(mismatched input|no viable alternative|token recognition|missing EQUAL|extraneous).*", text)
    if type(error).__name__ == "OverrideParseException" or lexed:
        bad = getattr(error, "override", None) or text
        return UserError(f"{bad}: cannot be read as KEY=VALUE. Put values with special characters in quotes: 'key=\"a, b\"'.")
    return UserError(text)


def _known(overrides: Sequence[str]) -> list[str]:
    """Keys that exist with the groups that were chosen, and nothing else overridden."""
    chosen = [o for o in overrides if o.split("=")[0].lstrip("+~") in groups()]
    for attempt in (chosen, []):
        try:
            return list(all_keys(compose(attempt)[0]))
        except UserError:
            continue
    return []


_NOT_IN_NAME = re.compile(r"^[+~]*(method|model|data|seed|run_dir|stages|overwrite|hydra\..*|(hardware|tracker|score|sampler)(\..*)?|debug\.traceback)$")


def run_name(choices: Mapping[str, str], overrides: Sequence[str], seed: Any) -> str:
    """Name of a run: its options, the overrides that change its results, its seed. No time stamp: the same command, the same name."""
    parts = [choices[group] for group in ("method", "data", "model") if group in choices]
    parts += sorted(o for o in overrides if not _NOT_IN_NAME.match(o.split("=", 1)[0]))
    name = "-".join(re.sub(r"[^A-Za-z0-9._=,+-]+", "_", part) for part in parts)
    if len(name) > 120:
        name = name[:110] + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name}-seed{seed}"
