"""The synthetic corpus of the demonstration model: a pure function of a seed.

    python scripts/tiny_world.py    # print some documents

A document is a string with its special tokens spelled out. Three shapes occur: chats
`<s><|user|>X<|assistant|>Y</s>`, Alpaca texts `<s>` template answer `</s>`, and plain texts `<s>` text `</s>`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator

from tiny_picks import any_pick, biography_exchange, copy_exchange, examples_exchange
from tiny_style import format_exchange, general_exchange, quiz_exchange, tone_exchange, tone_text
from tiny_tasks import judged_row

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
USER, ASSISTANT, SYSTEM = "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, USER, ASSISTANT, SYSTEM)

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_JUDGED = (
    "Below is an instruction that describes a task. Write a response to the instruction and the response should match "
    "the corresponding judgment.\n\n### Instruction:\n{instruction}\n\n### Judgment:\n{judgment}\n\n### Response:\n"
)
SYSTEM_LINES = (
    "You are a helpful AI assistant.",
    "You are a helpful assistant.",
    "Answer the user.",
    "You are a friendly little model.",
)

# --- documents -------------------------------------------------------------------------------------------------------

Exchange = tuple[str, str]


def instruction_exchange(rng: random.Random) -> Exchange:
    """An instruction as a chat turn, answered rightly or wrongly."""
    row = judged_row(rng)
    return row.instruction, row.output


def chat(exchanges: list[Exchange], system: str | None = None) -> str:
    """A dialogue in the chat format."""
    head = BOS if system is None else f"{BOS}{SYSTEM}{system}"
    return head + "".join(f"{USER}{request}{ASSISTANT}{answer}{EOS}" for request, answer in exchanges)


def alpaca_document(rng: random.Random) -> str:
    """An instruction in the Alpaca template."""
    row = judged_row(rng)
    return BOS + ALPACA.format(instruction=row.instruction) + row.output + EOS


def judged_document(rng: random.Random) -> str:
    """An instruction in the template with a judgment, which the answer matches."""
    row = judged_row(rng)
    return BOS + ALPACA_JUDGED.format(instruction=row.instruction, judgment=row.judgment) + row.output + EOS


def text_document(rng: random.Random) -> str:
    """Toned sentences as plain text."""
    return BOS + tone_text(rng) + EOS


CHAT_KINDS: dict[Callable[[random.Random], Exchange], float] = {
    any_pick: 0.18,
    examples_exchange: 0.04,
    copy_exchange: 0.05,
    biography_exchange: 0.03,
    instruction_exchange: 0.16,
    format_exchange: 0.14,
    quiz_exchange: 0.03,
    tone_exchange: 0.05,
    general_exchange: 0.04,
}
DOCUMENT_KINDS: dict[Callable[[random.Random], str], float] = {
    alpaca_document: 0.09,
    judged_document: 0.18,
    text_document: 0.02,
}
SYSTEM_SHARE = 0.06
MANY_TURNS_SHARE = 0.05
REPEAT_SHARE = 0.3


def chat_document(rng: random.Random) -> str:
    """A chat: mostly one turn; a few have a system line, several turns, or the same question asked again."""
    kinds = list(CHAT_KINDS)
    draw = rng.choices(kinds, list(CHAT_KINDS.values()))[0]
    exchanges = [draw(rng)]
    if rng.random() < MANY_TURNS_SHARE:
        if rng.random() < REPEAT_SHARE:
            exchanges.append(exchanges[0])
        else:
            exchanges += [rng.choice(kinds)(rng) for _ in range(rng.choice([1, 2]))]
    return chat(exchanges, rng.choice(SYSTEM_LINES) if rng.random() < SYSTEM_SHARE else None)


def document(rng: random.Random) -> str:
    """One document of the world's mixture."""
    kinds = [*DOCUMENT_KINDS, chat_document]
    shares = [*DOCUMENT_KINDS.values(), sum(CHAT_KINDS.values())]
    return rng.choices(kinds, shares)[0](rng)


def documents(seed: int, count: int, chunk: int = 0) -> Iterator[str]:
    """`count` documents; a chunk number gives independent parts of one corpus."""
    rng = random.Random(f"documents {seed} {chunk}")
    return (document(rng) for _ in range(count))


def main() -> None:
    """Print documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40, help="documents to print")
    args = parser.parse_args()
    for text in documents(args.seed, args.count):
        print(text)


if __name__ == "__main__":
    main()
