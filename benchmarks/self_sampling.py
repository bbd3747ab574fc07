"""Self-sampling against a loop of single ``generate`` calls: the same prompts, decoding and model, to rows of text on disk.

    python -m benchmarks.self_sampling [--rounds 1] [--batch 64]

Two cases: the embedded model on shipped queries of ``data=named-formats``, in one-shot dialogues; and random weights of GPT-2
small's sizes, which never end an answer by themselves, on a few of them. To reach: three times as fast on a CPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from alignlab.compose import compose
from alignlab.config import check
from alignlab.data.self_sampling import SelfSampling, self_sample
from alignlab.generate.hf import HfSampler
from alignlab.models.load import load_model, load_text
from alignlab.paths import resolve
from alignlab.records import Dialogue, read_jsonl, write_jsonl
from alignlab.signals import Stop
from alignlab.text import TextCodec
from alignlab.workshop import Workshop
from benchmarks.common import geometric_mean, machine, table

SYSTEM = "You are a helpful AI assistant."


def settings(tokens: int) -> SelfSampling:
    """The authors' decoding; nothing is left out."""
    return SelfSampling(SYSTEM, True, 1, 0.7, 0.95, 0, tokens, [], [], 0, False)


def one_by_one(model: torch.nn.Module, text: TextCodec, queries: list[Dialogue], tokens: int, file: Path) -> None:
    """What a short script does."""
    rows = []
    for query in queries:
        ids = torch.tensor([text.request(settings(tokens).request(query))])
        drawn = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=0.7,
            top_p=0.95,
            top_k=0,
            max_new_tokens=tokens,
            eos_token_id=sorted(text.stop),
            pad_token_id=min(text.stop),
        )
        answer = {"role": "assistant", "content": text.decode(drawn[0, ids.shape[1] :].tolist())}
        rows.append({"messages": [query.messages[0], answer]})
    write_jsonl(file, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each side, after one of two queries; the fastest counts")
    parser.add_argument("--batch", type=int, default=64, help="data.sampler.batch")
    arguments = parser.parse_args()
    config = check(compose([])[0]).model
    text = load_text(config)
    rows = read_jsonl(Path(resolve("alignlab:shipped/named-formats/queries.jsonl")))
    queries = [Dialogue(str(n), tuple(row["messages"]), (), "diverse", "", "", False) for n, row in enumerate(rows)]
    torch.manual_seed(0)
    cases = [
        ("embedded model", load_model(config, "cpu", 0), queries[:300], 80),
        ("GPT-2 small's sizes, random weights", GPT2LMHeadModel(GPT2Config()).eval(), queries[:32], 32),
    ]
    lines, ratios = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, model, asked, tokens in cases:

            def theirs(asked: list[Dialogue], model=model, tokens=tokens) -> None:
                one_by_one(model, text, asked, tokens, Path(folder) / "theirs.jsonl")

            def ours(asked: list[Dialogue], model=model, tokens=tokens) -> None:
                shop = Workshop(Path(folder), [], lambda: text, lambda: model, Stop(), print)
                fresh = Path(tempfile.mkdtemp(dir=folder))
                self_sample(asked, settings(tokens), HfSampler(1024, arguments.batch), 0, fresh, shop)

            seconds: dict[Callable[[list[Dialogue]], None], list[float]] = {theirs: [], ours: []}
            for few in (True, *[False] * arguments.rounds):
                for side, taken in seconds.items():
                    started = time.perf_counter()
                    side(asked[:2] if few else asked)
                    taken += [] if few else [time.perf_counter() - started]
            slow, quick = map(min, seconds.values())
            ratios.append(slow / quick)
            lines.append([name, len(asked), tokens, f"{slow:.1f}", f"{quick:.1f}", f"{slow / quick:.1f}"])
    print(table(["case", "queries", "new tokens at most", "generate one by one, s", "alignlab, s", "ratio"], lines))
    runs = f"minimum of {arguments.rounds}, {arguments.batch} at once"
    print(f"\nGeometric mean of the ratios: {geometric_mean(ratios):.1f} ({machine()}; {runs})")


if __name__ == "__main__":
    main()
