"""A row of a chat file: who says what in turn, and which of the assistant's turns are learned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from alignlab.data.row_source import HALVED, RawFields, halved, meant
from alignlab.errors import UserError
from alignlab.records import short

FIELDS: Mapping[str, str] = {
    "messages": 'a list of turns {"role": ..., "content": ...}',
    "id": "a text that is not empty, or a whole number",
    "kind": "a text",
    "split": '"train", "test" or "both"',
    "dataset": "a text",
}
"""fields of a row"""

ROLES = ("system", "user", "assistant")

ALSO = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
}
"""what others call the roles"""

SHAREGPT = "rename 'from' to 'role' (human is user, gpt is assistant) and 'value' to 'content'"


class ChatRow(RawFields):
    """The row of a dialogue."""

    fields = FIELDS

    def turns(self, *, empty: bool) -> list[dict[str, str]]:
        """Role and content of each turn: perhaps a system turn, then the user's and the assistant's in turn.

        Args:
            empty: whether an answer may be.

        Raises:
            UserError: they are something else.
        """
        found: list[dict[str, str]] = []
        for n, turn in enumerate(self._list()):
            if not isinstance(turn, Mapping):
                raise self._at(n, "", f'must be {{"role": ..., "content": ...}}, not {_shown(turn)}')
            role = self._role(n, turn)
            self._refuse_order(n, role, found[-1]["role"] if found else "")
            found.append(
                {"role": role, "content": self._content(n, turn, empty=role == "system" or (empty and role == "assistant"))}
            )
        if all(turn["role"] == "system" for turn in found):
            raise self.wrong("messages", "has no user turn")
        return found

    def learned(self, turns: list[dict[str, str]], which: str) -> tuple[int, ...]:
        """Places of the assistant's turns that are learned: those that say so, and of those that do not, ``all`` or the ``last``.

        Raises:
            UserError: something else is said, or of a turn that is not the assistant's.
        """
        places = [n for n, turn in enumerate(turns) if turn["role"] == "assistant"]
        unsaid = set(places if which == "all" else places[-1:])
        said = [self._said(n, turn["role"]) for n, turn in enumerate(turns)]
        return tuple(n for n in places if said[n] or (said[n] is None and n in unsaid))

    def refuse_unlearned(self, turns: list[dict[str, str]], learned: tuple[int, ...]) -> None:
        """Refuse a dialogue to train on that does not end with an answer, or of which nothing is learned."""
        if turns[-1]["role"] != "assistant":
            problem = f"ends with a {turns[-1]['role']} turn, so that there is no answer to learn"
            raise self.wrong("messages", f'{problem}. Give one, or "split": "test" where none is to be trained on')
        if not learned:
            raise self.wrong("messages", "has nothing to learn: no assistant turn is trained on. Leave the dialogue out")

    def _list(self) -> list[Any]:
        value = self._get("messages")
        if value is None:
            if any("from" in turn and "value" in turn for turn in self._turns_of("conversations")):
                raise self.wrong("messages", f"missing; 'conversations' is ShareGPT's name. Rename it, and in its turns {SHAREGPT}")
            key = self._meant("messages")
            there = f"is '{key}' meant?" if key else f"the row has {short(', '.join(self._raw)) or 'no fields'}"
            raise self.wrong("messages", f"missing; must be {FIELDS['messages']} ({there})")
        if not isinstance(value, list):
            raise self.wrong("messages")
        if not value:
            raise self.wrong("messages", "is empty; a dialogue has a user turn at least")
        return value

    def _turns_of(self, key: str) -> Iterator[Mapping[str, Any]]:
        value = self._raw.get(key)
        return (turn for turn in value if isinstance(turn, Mapping)) if isinstance(value, list) else iter(())

    def _at(self, n: int, part: str, problem: str) -> UserError:
        """What to say of a turn."""
        return UserError(f"{self.place}:{self._names['messages']}[{n}]{f'.{part}' * bool(part)}: {problem}.")

    def _role(self, n: int, turn: Mapping[str, Any]) -> str:
        role = turn.get("role")
        if role is None:
            theirs = f"these are ShareGPT's turns: {SHAREGPT}" if "from" in turn else f"must be one of {', '.join(ROLES)}"
            raise self._at(n, "role", f"missing; {theirs}")
        if role not in ROLES:
            low = str(role).lower()
            near = low if low in ROLES else ALSO.get(low) or meant(low, frozenset(ROLES))
            raise self._at(
                n, "role", f"must be one of {', '.join(ROLES)}, not {_shown(role)}" + f" (is '{near}' meant?)" * bool(near)
            )
        return role

    def _refuse_order(self, n: int, role: str, before: str) -> None:
        if role == "system" and n:
            raise self._at(n, "role", "a system turn stands first or nowhere")
        if role == "assistant" and before in ("", "system"):
            raise self._at(n, "role", "the user's turn comes before the assistant's")
        if role == before:
            missing = {"user": "answer", "assistant": "question"}[role]
            raise self._at(n, "role", f"two {role} turns in a row; make them one, or give the {missing} between them")

    def _content(self, n: int, turn: Mapping[str, Any], *, empty: bool) -> str:
        content = turn.get("content")
        if content is None:
            raise self._at(n, "content", "missing; must be a text")
        if isinstance(content, list):
            raise self._at(n, "content", "is a list of parts, and only text is read; give it as one text")
        if not isinstance(content, str):
            raise self._at(n, "content", f"must be a text, not {_shown(content)}")
        if halved(content):
            raise self._at(n, "content", HALVED)
        if not (empty or content.strip()):
            raise self._at(n, "content", "is empty; give the text, or leave the dialogue out")
        return content

    def _said(self, n: int, role: str) -> bool | None:
        """Whether a turn says that it is learned."""
        turn = self._get("messages")[n]
        train, weight = turn.get("train"), turn.get("weight")
        for key, value, choices in (("train", train, "true or false"), ("weight", weight, "0 or 1")):
            if value is not None and role != "assistant":
                raise self._at(n, key, f"only assistant turns are learned, and this is a {role} turn; take it out")
            if value is not None and (isinstance(value, bool) != (key == "train") or value not in (0, 1)):
                raise self._at(n, key, f"must be {choices}, not {_shown(value)}")
        if train is not None and weight is not None and train != weight:
            raise self._at(n, "weight", f"is {weight}, and train is {str(train).lower()}; keep one of them")
        return train if train is not None else bool(weight) if weight is not None else None


def _shown(value: Any) -> str:
    return short(json.dumps(value, ensure_ascii=False, default=str))
