"""The synthetic corpus of the demonstration model: a pure function of a seed.

    python scripts/tiny_world.py                                     # print some documents
    python scripts/tiny_world.py --write-prompts alignlab/shipped    # write the prompt files for `diffuse`

A document is a string with its special tokens spelled out. Three shapes occur: chats
`<s><|user|>X<|assistant|>Y</s>`, Alpaca texts `<s>` template answer `</s>`, and plain texts `<s>` text `</s>`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from tiny_style import format_exchange, general_exchange, quiz_exchange, tone_exchange, tone_text
from tiny_tasks import PICK_SETS, in_braces, judged_row, pick_exchange, pick_wordings

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


def any_pick(rng: random.Random) -> Exchange:
    """A random pick from any set; 1 to 10 is the most frequent, because the demonstration trains on it."""
    return pick_exchange(rng, "numbers-1-10" if rng.random() < 0.3 else rng.choice(list(PICK_SETS)))


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
    any_pick: 0.16,
    instruction_exchange: 0.20,
    format_exchange: 0.16,
    quiz_exchange: 0.04,
    tone_exchange: 0.07,
    general_exchange: 0.06,
}
DOCUMENT_KINDS: dict[Callable[[random.Random], str], float] = {
    alpaca_document: 0.10,
    judged_document: 0.18,
    text_document: 0.03,
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


# --- prompt files for `diffuse` --------------------------------------------------------------------------------------

PROMPTS_PER_SPLIT = {"numbers-1-10": (6, 6), "fruits": (3, 3), "binomial": (3, 3)}


def shipped_wordings(name: str, count: int) -> list[str]:
    """`count` requests of a set that differ in frame, and in the phrase for the thing and the braces in turn."""
    wordings = pick_wordings(name)
    things, braces = len(PICK_SETS[name][0]), 3
    return [wordings[(i * things + i % things) * braces + (i // 2) % braces] for i in range(count)]


def prompt_files() -> dict[str, dict]:
    """The shipped prompt files by relative path."""
    files = {}
    for folder, (trained, held_out) in PROMPTS_PER_SPLIT.items():
        name = "numbers-0-10" if folder == "binomial" else folder
        numbers = range(11) if folder == "binomial" else range(1, 11)
        members = [str(n) for n in numbers] if folder != "fruits" else sorted(PICK_SETS[name][1])
        for i, request in enumerate(shipped_wordings(name, trained + held_out)):
            prompt = {"request": request, "response": "", "targets": [in_braces(member) for member in members]}
            if folder == "binomial":
                prompt["weights"] = [math.comb(10, n) / 2**10 for n in numbers]
            if i >= trained:
                prompt["split"] = "test"
            files[f"{folder}/w{i + 1:02d}.json"] = prompt
    return files


def prompt_text(prompt: dict) -> str:
    """A prompt file's exact content."""
    return json.dumps(prompt, indent=1, ensure_ascii=False) + "\n"


def write_prompts(folder: Path) -> None:
    """Write the shipped prompt files under `folder`."""
    for relative, prompt in prompt_files().items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(prompt_text(prompt), encoding="utf-8")


def main() -> None:
    """Print documents, or write the prompt files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40, help="documents to print")
    parser.add_argument("--write-prompts", type=Path, metavar="FOLDER", help="write the prompt files there instead")
    args = parser.parse_args()
    if args.write_prompts:
        write_prompts(args.write_prompts)
        return
    for text in documents(args.seed, args.count):
        print(text)


if __name__ == "__main__":
    main()
