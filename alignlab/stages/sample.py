"""sample: completions of every test prompt, from the model before and after training; for AlpacaEval, too, where asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from alignlab.errors import UserError
from alignlab.pipeline import Run
from alignlab.records import Sample, read_jsonl, write_json, write_jsonl
from alignlab.seeds import derive
from alignlab.track import Display


def sample(run: Run) -> list[str]:
    """Write ``samples.jsonl``, or the file that ``sample.file`` names, and ``alpaca_eval.json`` where asked.

    Raises:
        UserError: the trained model is asked for, and there is none.
    """
    settings, prompts = run.config.sample, run.config.data.prompts()
    models = run.models() if settings.model == "both" else [settings.model]
    if "after" in models and not run.trained:
        raise UserError(f"sample.model: after, and {run.folder} holds no trained model. Add the stage train, or sample before.")
    with Display("sample", len(models) * len(prompts)) as display:
        count = write_jsonl(run.path(settings.file), _samples(run, models, display))
    run.say(f"sample: {count} completions of {len(prompts)} prompts ({' and '.join(models)} training)")
    return [settings.file, *(_alpaca_eval(run, models) if settings.alpaca_eval else ())]


def _alpaca_eval(run: Run, models: Sequence[str]) -> list[str]:
    """Write the first completion of each prompt as AlpacaEval reads a model's outputs, a file per model; returns their names.

    The last model, the trained one where there is one, has the plain name.
    """
    prompts = {prompt.name: prompt for prompt in run.config.data.prompts()}
    outputs: dict[str, list[dict[str, str]]] = {which: [] for which in models}
    for row in read_jsonl(run.path(run.config.sample.file)):
        if row["sample"] == 0:
            prompt, which = prompts[row["prompt"]], row["model"]
            name = run.folder.resolve().name + ("-before" if which == "before" and len(models) > 1 else "")
            outputs[which].append(
                {"instruction": prompt.request, "output": row["text"], "generator": name, "dataset": prompt.dataset}
            )
    files = []
    for which, rows in outputs.items():
        files.append("alpaca_eval.json" if which == models[-1] else f"alpaca_eval-{which}.json")
        write_json(run.path(files[-1]), rows)
    return files


def _samples(run: Run, models: Sequence[str], display: Display) -> Iterator[Sample]:
    config, text, done = run.config, run.text, 0
    decoding = config.suite.decoding()
    for which in models:
        model = run.load(which, config.sample.dtype)
        for prompt in config.data.prompts():
            request = config.method.request(prompt)
            try:
                ids = text.request(request)
            except UserError:
                if not config.data.lenient:
                    raise
                continue  # prepare has said so
            # the same random numbers before and after: what differs is the model
            room = text.context - len(ids)
            limited = replace(decoding, max_new_tokens=min(decoding.max_new_tokens, room))
            seed = derive(config.seed, "sample", prompt.name)
            drawn = config.sampler.sample(model, ids, sorted(text.stop), limited, n=config.suite.samples, seed=seed)
            for number, completion in enumerate(drawn):
                yield Sample(which, prompt.name, number, text.decode(completion.tokens), completion.finish)
            done += 1
            display.update(done)
