"""From a YAML node to a dataclass: every key declared, every value of its type, every refusal a sentence."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterable
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignlab.errors import UserError, did_you_mean

T = TypeVar("T")


def build_target(node: DictConfig, path: str, members: Iterable[str]) -> Any:
    """The dataclass that ``_target_`` names, built from the node's other keys.

    Args:
        node: a set of keys.
        path: where the node stands in the configuration, for messages.
        members: what the class must have.

    Raises:
        UserError: the class cannot be imported or lacks something, or a value is wrong (see :func:`build`).
    """
    values = resolved(node, path)
    target = values.pop("_target_", None)
    if not target:
        raise UserError(f"{path}._target_: missing; it names the dataclass, for instance alignlab.methods.diffuse.Diffuse.")
    cls = imported(str(target), path)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UserError(f"{path}._target_: {target} is not a dataclass.")
    lacking = [member for member in members if not hasattr(cls, member)]
    if lacking:
        raise UserError(f"{path}._target_: {target} lacks {', '.join(lacking)}, which a {path} must have.")
    return build(OmegaConf.create(values), cls, path)


def imported(target: str, path: str) -> Any:
    """What a dotted name names; UserError where it cannot be imported."""
    module, _, name = target.rpartition(".")
    if not module:
        raise UserError(f"{path}._target_: '{target}' must be a module and a class, for instance my_package.my_module.MyClass.")
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever the module raises while it is imported
        raise UserError(f"{path}._target_: {target} cannot be imported: {type(error).__name__}: {_first_line(error)}.") from error
    if not hasattr(found, name):
        raise UserError(f"{path}._target_: there is no {name} in {module}.{did_you_mean(name, vars(found))}")
    return getattr(found, name)


def build(node: DictConfig, cls: type[T], path: str) -> T:
    """A dataclass from a node: every field present, none besides, each of its type.

    Args:
        node: a set of keys.
        cls: the dataclass.
        path: where the node stands in the configuration, for messages; empty at the root.

    Raises:
        UserError: a key is unknown, or a value missing, mistyped or out of range.
    """
    values = OmegaConf.create(resolved(node, path))
    schema, hints = _schema(cls, path)
    for key in map(str, values):
        where = _join(path, key)
        if key not in hints:
            raise UserError(f"{where}: no such key.{did_you_mean(where, [_join(path, k) for k in hints])}")
        inner = values._get_node(key)
        kind = next((k for k in (hints[key], *get_args(hints[key])) if dataclasses.is_dataclass(k)), None)
        if kind is not None and isinstance(inner, DictConfig) and not inner._is_none():
            build(inner, kind, where)  # type: ignore[arg-type] # first by itself, so that its messages name it
        try:
            OmegaConf.merge(schema, OmegaConf.masked_copy(values, key))
        except OmegaConfBaseException:  # which does not always say where
            given = OmegaConf.to_container(values)[key]  # type: ignore[call-overload, index]
            raise UserError(f"{where}: must be {_words(hints[key])}, not {shown(given)}.") from None
    merged = OmegaConf.merge(schema, values)
    missing = sorted(_join(path, key) for key in OmegaConf.missing_keys(merged))
    if missing:
        raise UserError(f"{missing[0]}: needs a value; give {missing[0]}=...")
    try:
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (ValueError, TypeError) as error:
        raise UserError(_refused(str(error), path)) from None


def _schema(cls: type, path: str) -> tuple[DictConfig, dict[str, Any]]:
    """OmegaConf's schema of a dataclass, and the type of each field."""
    try:
        schema = OmegaConf.structured(cls)
        hints = get_type_hints(cls)
    except Exception as error:  # a type that cannot be resolved, or that no YAML can hold
        raise UserError(
            f"{path}: a field of {cls.__name__} has a type that a configuration cannot hold: {_first_line(error)}."
        ) from None
    OmegaConf.set_readonly(schema, False)  # a frozen dataclass makes a read-only node
    return schema, {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def resolved(node: DictConfig, path: str) -> dict[str, Any]:
    """The node as plain values, its interpolations resolved."""
    try:
        return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or path}: cannot be resolved: {_first_line(error)}.") from None


def _refused(text: str, path: str) -> str:
    """What a dataclass says of its values, ``field: problem`` by custom, with the path before it."""
    whole = _join(path, text) if re.match(r"[a-z_]+(\.[A-Za-z_]\w*)*(\[.*\])?: ", text) else f"{path}: {text}"
    return whole if whole.endswith(("?", ".")) else whole + "."


_WORDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
}


def _words(hint: Any) -> str:
    """A type in plain words."""
    args = get_args(hint)
    if NoneType in args:
        return " or ".join([*(_words(a) for a in args if a is not NoneType), "null"])
    if get_origin(hint) is list and dataclasses.is_dataclass(args[0]):
        keys = ", ".join(f"{f.name}: ..." for f in dataclasses.fields(args[0]))
        return f"a list such as [{{{keys}}}]"
    if get_origin(hint) in (list, tuple):
        return f"a list of {_WORDS.get(args[0], ('', 'values'))[1]} in square brackets"
    if get_origin(hint) is dict or dataclasses.is_dataclass(hint):
        return "a set of keys"
    return _WORDS.get(hint, (str(hint),))[0]


def shown(value: Any) -> str:
    """A value as YAML writes it, for messages."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
