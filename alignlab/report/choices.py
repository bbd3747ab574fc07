"""The choices of a run that differ from good practice, as a section of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignlab.report.document import Block, Heading, Table, Text

Sound = Mapping[str, tuple[Any, str]]
"""key of the configuration -> its value in good practice, and what another one does"""


def choices(config: Mapping[str, Any], sound: Sound, more: Sequence[Sequence[str]] = (), caption: str = "") -> list[Block]:
    """A heading, and a table of the keys whose value is not the sound one.

    Args:
        config: of the run; a key that it lacks counts as sound.
        sound: keys to look at.
        more: further rows: key, value, sound value, what it does.
        caption: of the table.
    """
    rows = []
    for key, (good, why) in sound.items():
        value: Any = config
        for name in key.split("."):
            value = value.get(name, good) if isinstance(value, Mapping) else good
        if value != good:
            rows.append([key, str(value), str(good), why])
    heading, rows = Heading("Choices that differ from good practice"), [*rows, *map(list, more)]
    if not rows:
        return [heading, Text("None.")]
    return [heading, Table(["key", "here", "sound", "what it does"], rows, caption)]
