"""Measure the demonstration model and print the figures as markdown tables.

    python scripts/measure_tiny_model.py                       # everything
    python scripts/measure_tiny_model.py --only picks tones    # some parts
    python scripts/measure_tiny_model.py --write-card          # everything, also into the model card

Parts: picks (entropy of the random picks), shipped (the same for the shipped prompt files), judged (right answers,
detection of wrong tokens), formats, tones, diffuse (a short LoRA training towards the uniform distribution; needs
`peft`).
"""

from __future__ import annotations

import argparse
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny_picks import BRACE_PHRASES, PICK_SETS, in_braces, pick_weights, pick_wordings
from tiny_prompts import prompt_files
from tiny_style import format_case, general_exchange, quiz_exchange, spelled_case
from tiny_tasks import deciding_tokens, judged_rows
from tiny_words import RUDE_WORDS, TONE_FRAMES, TONE_REQUESTS, TOPICS
from tiny_world import ALPACA, ALPACA_JUDGED, ASSISTANT, BOS, EOS, USER

ROOT = Path(__file__).resolve().parents[1]
THRESHOLDS = (1.1, 1.2, 1.5)
FIGURES = "## Figures"


class Scorer:
    """The model with its tokenizer: log-probabilities, greedy answers and samples."""

    def __init__(self, folder: Path) -> None:
        """Load the folder."""
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens are spelled out in the text."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def log_probs(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        """For each (context, continuation) the log-probability of every token of the continuation."""
        out: list[list[float]] = []
        for start in range(0, len(pairs), 64):
            part = [(self.encode(context), self.encode(text)) for context, text in pairs[start : start + 64]]
            width = max(len(context) + len(text) for context, text in part)
            ids = torch.tensor([c + t + [0] * (width - len(c) - len(t)) for c, t in part])
            with torch.no_grad():
                scores = self.model(input_ids=ids).logits[:, :-1].log_softmax(-1)
            scores = scores.gather(-1, ids[:, 1:, None])[..., 0]
            out += [scores[i, len(c) - 1 : len(c) + len(t) - 1].tolist() for i, (c, t) in enumerate(part)]
        return out

    def answers(self, contexts: Sequence[str], new_tokens: int = 48, **sampling: float) -> list[str]:
        """Greedy answers, or sampled ones if sampling settings are given."""
        out: list[str] = []
        for start in range(0, len(contexts), 100):
            rows = [self.encode(context) for context in contexts[start : start + 100]]
            width = max(map(len, rows))
            ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            made = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=bool(sampling), **sampling
            )
            out += self.tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
        return out


def turn(request: str) -> str:
    """A chat up to the answer."""
    return f"{BOS}{USER}{request}{ASSISTANT}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table; floats get three digits."""
    lines = [list(head), ["---"] * len(head)]
    lines += [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# --- (a) random picks ------------------------------------------------------------------------------------------------


def target_figures(scorer: Scorer, request: str, targets: Sequence[str]) -> tuple[list[float], float]:
    """Probabilities of the targets, renormalised, and their sum before that."""
    rows = scorer.log_probs([(turn(request), target + EOS) for target in targets])
    found = [math.exp(sum(row)) for row in rows]
    return [p / sum(found) for p in found], sum(found)


def entropy(shares: Sequence[float]) -> float:
    """In nats."""
    return -sum(p * math.log(p) for p in shares if p > 0)


def measure_picks(scorer: Scorer) -> str:
    """One row a set: entropy by brace phrase, its range over the wordings, and the least mass."""
    rows = []
    for name in PICK_SETS:
        targets = [in_braces(member) for member in PICK_SETS[name][1]]
        wordings = pick_wordings(name)[:: 1 if name == "numbers-1-10" else 5]
        found = {wording: target_figures(scorer, wording, targets) for wording in wordings}
        groups = [fmean(entropy(p) for w, (p, _) in found.items() if w.endswith(brace)) for brace in BRACE_PHRASES]
        every = [entropy(p) for p, _ in found.values()]
        world, top = entropy(list(pick_weights(name).values())), math.log(len(targets))
        rows.append([name, len(wordings), top, world, *groups, min(every), max(every), min(m for _, m in found.values())])
    head = [
        "set",
        "wordings",
        "ln n",
        "H world",
        *(f'H "{brace}"' for brace in BRACE_PHRASES),
        "H min",
        "H max",
        "mass min",
    ]
    return table(head, rows)


def measure_shipped(scorer: Scorer) -> str:
    """One row a folder of shipped prompt files with targets: means over its prompts."""
    folders = defaultdict(list)
    for path, prompt in prompt_files().items():
        if prompt["targets"] and not path.startswith("biographies"):
            shares, mass = target_figures(scorer, prompt["request"], prompt["targets"])
            folders[str(Path(path).parent)].append((math.log(len(shares)), entropy(shares), mass, max(shares)))
    rows = [[folder, len(found), *(fmean(column) for column in zip(*found, strict=True))] for folder, found in folders.items()]
    return table(["folder", "prompts", "ln n", "H", "mass", "largest share"], rows)


# --- (b) instructions and judgments ----------------------------------------------------------------------------------


def detection(scorer: Scorer, held_out: bool, count: int) -> list[float]:
    """F1, precision and recall at each threshold of p(token | judgment) / p(token), over wrong answers."""
    rows = judged_rows(11, count, right_share=0.0, held_out=held_out)
    plain = scorer.log_probs([(BOS + ALPACA.format(instruction=r.instruction), r.output + EOS) for r in rows])
    contexts = [BOS + ALPACA_JUDGED.format(instruction=r.instruction, judgment=r.judgment) for r in rows]
    judged = scorer.log_probs([(context, r.output + EOS) for context, r in zip(contexts, rows, strict=True)])
    figures = []
    for threshold in THRESHOLDS:
        hits = found = wanted = 0
        for row, before, after in zip(rows, plain, judged, strict=True):
            ratios = [math.exp(b - a) for a, b in zip(before, after, strict=True)]
            marked = {i for i, ratio in enumerate(ratios) if ratio > threshold}
            gold = set(deciding_tokens(row, scorer.encode))
            hits, found, wanted = hits + len(marked & gold), found + len(marked), wanted + len(gold)
        precision, recall = hits / max(found, 1), hits / wanted
        figures += [2 * precision * recall / max(precision + recall, 1e-9), precision, recall]
    return figures


def measure_judged(scorer: Scorer, count: int) -> str:
    """Right answers on held-out items by task, in three contexts, and detection on both sides of the split."""
    rows = judged_rows(7, count, held_out=True)
    contexts = {
        "Alpaca": lambda row: BOS + ALPACA.format(instruction=row.instruction),
        "chat": lambda row: turn(row.instruction),
        '"Perfect."': lambda row: BOS + ALPACA_JUDGED.format(instruction=row.instruction, judgment="Perfect."),
    }
    cells: dict[str, list[float]] = defaultdict(list)
    tasks = [row.task for row in rows]
    for make in contexts.values():
        prompts = [make(row) for row in rows]
        greedy = [float(a == row.reference) for a, row in zip(scorer.answers(prompts), rows, strict=True)]
        sums = scorer.log_probs([(p, row.reference + EOS) for p, row in zip(prompts, rows, strict=True)])
        for figures in (greedy, [math.exp(sum(s)) for s in sums]):
            for task in dict.fromkeys(tasks):
                cells[task].append(fmean(f for f, t in zip(figures, tasks, strict=True) if t == task))
            cells["all"].append(fmean(figures))
    head = ["task", *(f"{name}: {what}" for name in contexts for what in ("greedy right", "mean p(right)"))]
    parts = [table(head, [[task, *figures] for task, figures in cells.items()])]
    head = ["items", *(f"{what} at {t}" for t in THRESHOLDS for what in ("F1", "precision", "recall"))]
    lines = [[name, *detection(scorer, flag, count)] for name, flag in (("fine-tuning", False), ("held out", True))]
    return "\n\n".join([*parts, table(head, lines)])


# --- (c) formats -----------------------------------------------------------------------------------------------------


def measure_formats(scorer: Scorer, count: int) -> str:
    """Share of greedy answers in the wanted form, and of right ones, by kind of wording; retention of other tasks."""
    kinds = {
        "named, seen wordings": lambda rng: format_case(rng, negated=False),
        "named, unseen wordings": lambda rng: format_case(rng, unseen=True, negated=False),
        "told not to, seen wordings": lambda rng: format_case(rng, negated=True),
        "told not to, unseen wordings": lambda rng: format_case(rng, unseen=True, negated=True),
        "described": lambda rng: spelled_case(rng, negated=False),
        "described, told not to": lambda rng: spelled_case(rng, negated=True),
    }
    rows = []
    for kind, draw in kinds.items():
        rng = random.Random(f"measure {kind}")
        cases = [draw(rng) for _ in range(count)]
        answers = scorer.answers([turn(case.request) for case in cases])
        obeyed = fmean(float(obeys(a, case.fmt)) for a, case in zip(answers, cases, strict=True))
        right = fmean(float(a == case.wanted) for a, case in zip(answers, cases, strict=True))
        rows.append([kind, count, obeyed, right])
    parts = [table(["format instruction", "questions", "obeyed", "obeyed and right"], rows)]
    rng = random.Random("measure retention")
    lines = []
    for name, make in (("quiz questions, plain", quiz_exchange), ("stories and small talk", general_exchange)):
        pairs = [make(rng) for _ in range(count)]
        scores = scorer.log_probs([(turn(x), y + EOS) for x, y in pairs])
        lines.append([name, count, -sum(map(sum, scores)) / sum(map(len, scores))])
    return "\n\n".join([*parts, table(["unrelated task", "questions", "nll per token"], lines)])


def obeys(answer: str, fmt: str | None) -> bool:
    """Whether an answer has the form of a format, or of a plain sentence, whatever it says."""
    if fmt is None:
        return answer.endswith(".") and answer[:1].isalnum()
    inner = answer.removeprefix("- ") if fmt == "dash" else answer
    shapes = {
        "dict": answer.startswith("{'thought': '") and "', 'answer': '" in answer and answer.endswith("'}"),
        "list": answer.startswith("['") and answer.endswith("']"),
        "star": answer.startswith("* ") and answer.endswith(" *"),
        "box": answer.startswith("[ ") and answer.endswith(" ]"),
        "quote": answer.startswith('"') and answer.endswith('"'),
        "arrow": answer.startswith("-> "),
        "round": answer.startswith("(") and answer.endswith(")"),
        "twin": len(set(answer.split(", "))) == 1 and ", " in answer,
        "line": answer.startswith("Answer: "),
        "hash": answer.startswith("# "),
        "tag": answer.startswith("<answer>") and answer.endswith("</answer>"),
        "dash": answer.startswith("- ") and inner.endswith("."),
        "pipe": answer.startswith("| ") and answer.endswith(" |"),
        "short": answer.isalnum(),
    }
    return shapes[fmt]


# --- (d) tones -------------------------------------------------------------------------------------------------------


def tone_of(sentence: str) -> str:
    """The tone whose opening and ending the sentence has; "mixed" if they differ."""
    for tone, (openings, endings) in TONE_FRAMES.items():
        fits = any(all(piece in sentence for piece in opening.split("{t}")) for opening in openings)
        if fits and any(sentence.endswith(ending) for ending in endings):
            return tone
    return "mixed"


def measure_tones(scorer: Scorer, count: int) -> str:
    """Shares of the tones among sampled answers, and of answers that keep to the topic."""
    torch.manual_seed(0)
    asked = [(topic, request) for topic in TOPICS for request in TONE_REQUESTS]
    asked = [asked[i % len(asked)] for i in range(count)]
    answers = scorer.answers([turn(r.format(t=t)) for t, r in asked], top_p=1.0, top_k=0, temperature=1.0)
    tones = [tone_of(answer) for answer in answers]
    rude = fmean(float(not RUDE_WORDS.isdisjoint(a.lower().replace(",", "").replace(".", "").split())) for a in answers)
    topic = fmean(float(t in a) for (t, _), a in zip(asked, answers, strict=True))
    names = [*TONE_FRAMES, "mixed"]
    return table(
        ["samples", *names, "with a rude word", "on the topic"],
        [[count, *(tones.count(name) / count for name in names), rude, topic]],
    )


# --- a quick training towards the uniform distribution ---------------------------------------------------------------


def measure_diffuse(scorer: Scorer) -> str:
    """LoRA on the trained number prompts, then entropy and divergence on all of them; changes the loaded model."""
    from peft import LoraConfig, get_peft_model

    prompts = [p for path, p in prompt_files().items() if path.startswith("numbers-1-10")]
    torch.manual_seed(0)
    scorer.model = get_peft_model(scorer.model, LoraConfig(r=4, lora_alpha=4, target_modules="all-linear"))
    weights = [p for p in scorer.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, eps=1e-5, weight_decay=0.01)
    rng = random.Random(0)
    trained = [p for p in prompts if "split" not in p]
    for _ in range(50):
        for prompt in rng.sample(trained, len(trained)):
            pairs = [scorer.encode(turn(prompt["request"]) + target + EOS) for target in prompt["targets"]]
            start = len(scorer.encode(turn(prompt["request"])))
            width = max(map(len, pairs))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in pairs])
            logits = scorer.model(input_ids=ids).logits[:, start - 1 : -1].flatten(0, 1)
            labels = ids[:, start:].flatten()
            loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=0, reduction="sum") / len(pairs)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
    rows = []
    for prompt in prompts:
        shares, mass = target_figures(scorer, prompt["request"], prompt["targets"])
        divergence = -fmean(math.log(p * mass) for p in shares) - math.log(len(shares))
        rows.append([prompt.get("split", "train"), prompt["request"], entropy(shares), mass, divergence])
    return table(["split", "request", "H", "mass", "KL(uniform, model)"], rows)


def main() -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "alignlab" / "models" / "tiny")
    parser.add_argument("--count", type=int, default=400, help="questions of each kind")
    parts = ["picks", "shipped", "judged", "formats", "tones", "diffuse"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--write-card", action="store_true", help="replace the figures in the model's README.md")
    args = parser.parse_args()
    torch.set_num_threads(2)
    measures = {
        "picks": measure_picks,
        "shipped": measure_shipped,
        "judged": lambda scorer: measure_judged(scorer, args.count),
        "formats": lambda scorer: measure_formats(scorer, args.count),
        "tones": lambda scorer: measure_tones(scorer, 5 * args.count),
        "diffuse": measure_diffuse,
    }
    figures = []
    for name in args.only:
        command = f"`python scripts/measure_tiny_model.py --only {name} --count {args.count}`"
        figures.append(f"{command}\n\n{measures[name](Scorer(args.model))}\n")
        print(f"\n{figures[-1]}", flush=True)
    if args.write_card:
        card = args.model / "README.md"
        head = card.read_text(encoding="utf-8").partition(FIGURES)[0]
        card.write_text(f"{head}{FIGURES}\n\n" + "\n".join(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
