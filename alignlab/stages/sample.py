"""sample: completions of every test prompt, from the model before and after training; for AlpacaEval, too, where asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from alignlab.errors import UserError
from alignlab.generate.hf import Completion
from alignlab.journal import SUFFIX, Journal
from alignlab.pipeline import Run
from alignlab.records import Sample, read_jsonl, write_json, write_jsonl
from alignlab.seeds import derive
from alignlab.text import TextCodec
from alignlab.track import Display

TOGETHER = 4096
"""completions that are drawn at once at most; no sample depends on it"""


def sample(run: Run) -> list[str]:
    """Write ``samples.jsonl``, or the file that ``sample.file`` names, and ``alpaca_eval.json`` where asked.

    Raises:
        UserError: the trained model is asked for, and there is none; a prompt does not fit the model.
    """
    settings = run.config.sample
    models = run.models() if settings.model == "both" else [settings.model]
    if "after" in models and not run.trained:
        raise UserError(f"sample.model: after, and {run.folder} holds no trained model. Add the stage train, or sample before.")
    asked = {which: _asked(run, which) for which in models}
    total = sum(len(prompts.names) for prompts in asked.values())
    with Journal(run.path(settings.file + SUFFIX), run.digest("sample"), run.stop, "prompts", total) as journal:
        _draw(run, asked, journal)
        count = write_jsonl(run.path(settings.file), _samples(asked, journal))
    names = {name for prompts in asked.values() for name in prompts.names}
    run.say(f"sample: {count} completions of {len(names)} prompts ({' and '.join(models)} training)")
    return [settings.file, *(_alpaca_eval(run, models) if settings.alpaca_eval else ())]


def _alpaca_eval(run: Run, models: Sequence[str]) -> list[str]:
    """Write the first completion of each prompt as AlpacaEval reads a model's outputs, a file per model; returns their names.

    The last model, the trained one where there is one, has the plain name.
    """
    prompts = {(which, prompt.name): prompt for which in models for prompt in run.prompts(which)}
    outputs: dict[str, list[dict[str, str]]] = {which: [] for which in models}
    for row in read_jsonl(run.path(run.config.sample.file)):
        if row["sample"] == 0:
            which = row["model"]
            prompt = prompts[which, row["prompt"]]
            name = run.folder.resolve().name + ("-before" if which == "before" and len(models) > 1 else "")
            outputs[which].append(
                {"instruction": prompt.request, "output": row["text"], "generator": name, "dataset": prompt.dataset}
            )
    files = []
    for which, rows in outputs.items():
        files.append("alpaca_eval.json" if which == models[-1] else f"alpaca_eval-{which}.json")
        write_json(run.path(files[-1]), rows)
    return files


@dataclass(frozen=True)
class _Asked:
    """What a model is asked, a prompt after the other."""

    names: Sequence[str]
    ids: Sequence[Sequence[int]]
    """as the model reads them, with padding where the suite asks for it"""
    lengths: Sequence[int] | None
    """tokens before the padding; None: there is none"""


def _asked(run: Run, which: str) -> _Asked:
    """The prompts of a model that fit it; where the suite says ``padding``, those of a condition are as long as the longest one."""
    prompts, ids = [], []
    for prompt in run.prompts(which):
        request = run.config.method.request(prompt)
        try:
            ids.append(run.text.request(request))
        except UserError:
            if not run.config.data.lenient:
                raise
            continue  # prepare has said so
        prompts.append(prompt)
    names, lengths = [prompt.name for prompt in prompts], [len(tokens) for tokens in ids]
    if getattr(run.config.suite, "padding", None) != "right":
        return _Asked(names, ids, None)
    pad, longest = pad_token(run.text), dict[tuple[str, ...], int]()
    for prompt, length in zip(prompts, lengths, strict=True):
        longest[prompt.conditions] = max(length, longest.get(prompt.conditions, 0))
    padded = [[*own, *[pad] * (longest[prompt.conditions] - len(own))] for prompt, own in zip(prompts, ids, strict=True)]
    return _Asked(names, padded, lengths)


def pad_token(text: TextCodec) -> int:
    """The id of the token that prompts are padded with.

    Raises:
        UserError: the tokenizer has none.
    """
    pad = text.tokenizer.pad_token_id
    pad = text.tokenizer.get_vocab().get("[PAD]") if pad is None else pad
    if pad is None:
        raise UserError("suite.padding: the tokenizer has no padding token (pad_token), and no [PAD]. Take suite.padding=none.")
    return pad


def _draw(run: Run, asked: Mapping[str, _Asked], journal: Journal) -> None:
    """Draw the completions that lack; the place of a prompt counts over the models."""
    config, first = run.config, 0
    size = max(1, TOGETHER // config.suite.samples)
    with Display("sample", sum(len(prompts.names) for prompts in asked.values()), len(journal.done)) as display:
        for which, prompts in asked.items():
            places = range(first, first := first + len(prompts.names))
            if journal.done.issuperset(places):
                continue
            model = run.load(which, config.sample.dtype, config.sample.step)
            for start in range(0, len(places), size):
                part = slice(start, start + size)
                batches = config.sampler.batches(
                    model,
                    prompts.ids[part],
                    sorted(run.text.stop),
                    config.suite.decoding(),
                    n=config.suite.samples,
                    # the same random numbers before and after: what differs is the model
                    seeds=[derive(config.seed, "sample", name) for name in prompts.names[part]],
                    context=run.text.context,
                    lengths=None if prompts.lengths is None else prompts.lengths[part],
                    done=[number for number, place in enumerate(places[part]) if place in journal.done],
                )
                with run.stop.deferred():
                    for batch in batches:
                        journal.add((places[part][number], _texts(run.text, completions)) for number, completions in batch)
                        display.update(len(journal.done), "prompts")


def _texts(text: TextCodec, completions: Sequence[Completion]) -> list[tuple[str, str]]:
    """What is kept of completions: each one's text, and why it ended."""
    return [(text.decode(completion.tokens), completion.finish) for completion in completions]


def _samples(asked: Mapping[str, _Asked], journal: Journal) -> Iterator[Sample]:
    """All completions, in the order of models and prompts."""
    whose = ((which, name) for which, prompts in asked.items() for name in prompts.names)
    for (which, name), drawn in zip(whose, journal, strict=True):
        for number, (text, finish) in enumerate(drawn):
            yield Sample(which, name, number, text, finish)
