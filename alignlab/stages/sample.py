"""sample: completions of every test prompt, from the model before and after training; for AlpacaEval, too, where asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from alignlab.errors import UserError
from alignlab.pipeline import Run
from alignlab.records import Sample, read_jsonl, write_json, write_jsonl
from alignlab.seeds import derive
from alignlab.text import TextCodec
from alignlab.track import Display

TOGETHER = 4096
"""completions that are drawn before any of them is written; no sample depends on it"""


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
    with Display("sample", sum(len(prompts.names) for prompts in asked.values())) as display:
        count = write_jsonl(run.path(settings.file), _samples(run, asked, display))
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


def _samples(run: Run, asked: Mapping[str, _Asked], display: Display) -> Iterator[Sample]:
    config, text, done = run.config, run.text, 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        display.update(done)

    size = max(1, TOGETHER // config.suite.samples)
    for which, prompts in asked.items():
        model = run.load(which, config.sample.dtype, config.sample.step)
        for first in range(0, len(prompts.names), size):
            part = slice(first, first + size)
            drawn = config.sampler.sample_many(
                model,
                prompts.ids[part],
                sorted(text.stop),
                config.suite.decoding(),
                n=config.suite.samples,
                # the same random numbers before and after: what differs is the model
                seeds=[derive(config.seed, "sample", name) for name in prompts.names[part]],
                context=text.context,
                lengths=None if prompts.lengths is None else prompts.lengths[part],
                progress=progress,
            )
            for name, completions in zip(prompts.names[part], drawn, strict=True):
                for number, completion in enumerate(completions):
                    yield Sample(which, name, number, text.decode(completion.tokens), completion.finish)
