"""sample: completions of every test prompt, from the model before and after training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from alignlab.errors import UserError
from alignlab.pipeline import Run
from alignlab.records import Sample, write_jsonl
from alignlab.seeds import derive
from alignlab.track import Display


def sample(run: Run) -> list[str]:
    """Write ``samples.jsonl``, or the file that ``sample.file`` names.

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
    return [settings.file]


def _samples(run: Run, models: Sequence[str], display: Display) -> Iterator[Sample]:
    config, text, done = run.config, run.text, 0
    decoding = config.suite.decoding()
    for which in models:
        model = run.load(which, config.sample.dtype)
        for prompt in config.data.prompts():
            request = config.method.request(prompt)
            ids = text.prompt(request.messages)
            # the same random numbers before and after: what differs is the model
            room = text.context - len(ids)
            limited = replace(decoding, max_new_tokens=min(decoding.max_new_tokens, room))
            seed = derive(config.seed, "sample", prompt.name)
            drawn = config.sampler.sample(model, ids, sorted(text.stop), limited, n=config.suite.samples, seed=seed)
            for number, completion in enumerate(drawn):
                yield Sample(which, prompt.name, number, text.decode(completion.tokens), completion.finish)
            done += 1
            display.update(done)
