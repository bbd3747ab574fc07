"""From a command line to a composed configuration, by Hydra, and Hydra's refusals as sentences."""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignlab.config import all_keys
from alignlab.errors import MissingError, UserError, did_you_mean

PACKAGE = Path(__file__).resolve().parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""inside the wheel it lies in the package, in a checkout beside it"""


def groups() -> dict[str, list[str]]:
    """Options of every config group."""
    return {folder.name: sorted(f.stem for f in folder.glob("*.yaml")) for folder in sorted(CONF.iterdir()) if folder.is_dir()}


def help_text() -> str:
    """What ``--help`` prints: the text in ``config.yaml`` with the options of every group."""
    listed = (
        textwrap.fill(f"{group}: {', '.join(options)}", 78, subsequent_indent="  ", break_on_hyphens=False)
        for group, options in groups().items()
        if options
    )
    template = OmegaConf.load(CONF / "config.yaml").hydra.help.template
    return str(template).replace("$APP_CONFIG_GROUPS", "\n".join(listed) + "\n")


def compose(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """The configuration for a list of overrides, and the option chosen in each group.

    Raises:
        UserError: Hydra refuses them.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    refuse(overrides)
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


_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[^=@]*)(?P<package>@[^=]*)?(?:=(?P<value>.*))?", re.DOTALL)


NESTED = {"sampler": ("@data.sampler",)}
"""places besides its own that a group has: what a data source samples with"""


def refuse(overrides: Sequence[str]) -> None:
    """Refuse what Hydra lets pass, or answers with a fault of its own.

    Raises:
        UserError: a group is added, deleted, moved or given something that is not the name of an option.
    """
    options = groups()
    for override in overrides:
        parts = _OVERRIDE.fullmatch(override)
        sign, key, package, value = parts.group("sign", "key", "package", "value") if parts else (None, "", None, None)
        if not key.strip():
            raise UserError(f"{override}: cannot be read as KEY=VALUE; there is no key.")
        if key not in options:
            continue
        hint = f"Write {key}=OPTION, with one of: {', '.join(options[key])}."
        if package in NESTED.get(key, ()) and not sign:
            continue
        if sign or package:
            raise UserError(f"{override}: a group cannot be added, moved or taken away. {hint}")
        if value is None or value in ("", "null", "???") or value.startswith(("[", "{", "$")):
            raise UserError(f"{override}: not the name of an option. {hint}")
        if key == "recipe" and value not in options[key]:  # recipes are optional to Hydra, since few pairs have one
            raise _no_option(key, value)


def _no_option(group: str, option: str) -> UserError:
    options = groups().get(group, [])
    listed = f"\nThere are: {', '.join(options)}." if options else " This group has none here."
    return UserError(f"{group}={option}: no such option.{did_you_mean(option, options)}{listed}")


_LAUNCHERS = {"submitit_slurm": "slurm", "submitit_local": "slurm", "joblib": "joblib"}
"""launchers of sweeps that Hydra finds where they are installed, and our extra that brings each"""


def translate(error: Exception, overrides: Sequence[str]) -> UserError:
    """What Hydra refused, where, and the nearest thing that exists."""
    missing = getattr(error, "missing_cfg_file", None)
    if missing:
        group, _, option = str(missing).rpartition("/")
        if option in _LAUNCHERS:
            return MissingError(f"{group}={option}: this launcher is not installed. pip install 'alignlab[{_LAUNCHERS[option]}]'")
        return _no_option(group, option) if group else UserError(f"--config-name: there is no {option}.yaml; leave it out.")
    text = " ".join(str(error).split())
    comma = re.match(r"Ambiguous value for argument '(.*?)' 1\.", text)
    if comma:
        key, _, value = comma[1].partition("=")
        single = "Choose one of them" if key in groups() else f"Write '{key}=[{value}]' for a list, '{key}=\"{value}\"' for a text"
        return UserError(f"{comma[1]}: the comma is ambiguous. {single}, or -m {key}={value} for a run with each.")
    key_there = re.search(r"already at '([^']+)'", text)
    if key_there:
        return UserError(f"{key_there[1]}: exists already; write {key_there[1]}=VALUE without the +.")
    unknown = re.search(r"[Cc]ould not (?:override|delete|append)[^']*'([^'@]+)", text)
    if unknown:
        word = getattr(error.__cause__, "full_key", None) or unknown[1]  # of KEY={a: 1}, the cause knows which one it is
        return UserError(f"{word}: no such key.{did_you_mean(word, [*groups(), *_known(overrides)])}")
    lexed = re.search(r"(mismatched input|no viable alternative|token recognition|missing EQUAL|extraneous).*", text)
    if type(error).__name__ == "OverrideParseException" or lexed:
        bad = getattr(error, "override", None) or text
        return UserError(f"{bad}: cannot be read as KEY=VALUE.{_reading_hint(bad)}")
    return UserError(text)


def _reading_hint(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        return " See --help for examples."
    return f"\nPut a value with special characters in quotes twice, once for the shell and once for Hydra: '{key}=\"{value}\"'."


def _known(overrides: Sequence[str]) -> list[str]:
    """Keys that exist with the groups that were chosen, and nothing else overridden."""
    chosen = tuple(o for o in overrides if o.split("=")[0] in groups() and "," not in o)
    return _keys_with(chosen) or _keys_with(())


@cache
def _keys_with(overrides: tuple[str, ...]) -> list[str]:
    try:
        return list(all_keys(compose(overrides)[0]))
    except UserError:
        return []


_NOT_IN_NAME = re.compile(
    r"^[+~]*(method|model|data|seed|run_dir|stages|plan|overwrite|hydra\..*|(hardware|tracker|inspect|score|sample|sampler)(\..*)?|debug\.traceback)$"
)


def run_name(choices: Mapping[str, str], overrides: Sequence[str], seed: Any) -> str:
    """Name of a run: its options, the overrides that change its results, its seed. The same command has the same name."""
    parts = [choices[group] for group in ("method", "data", "model") if group in choices]
    telling = (o for o in overrides if not _NOT_IN_NAME.match(o.split("=", 1)[0]))
    parts += sorted(telling, key=lambda override: (len(override) > 40, override))  # long ones last: the end is cut off
    name = "-".join(re.sub(r"[^A-Za-z0-9._=,+-]+", "_", part) for part in parts)
    if len(name) > 120:
        name = name[:110] + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name}-seed{seed}"
