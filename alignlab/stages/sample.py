"""sample: completions of every test prompt, from the model before and after training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from alignlab.pipeline import Run
from alignlab.records import Sample, write_jsonl
from alignlab.seeds import derive
from alignlab.track import Display


def sample(run: Run) -> list[str]:
    """Write ``samples.jsonl``."""
    total = len(run.models()) * len(run.config.data.prompts())
    with Display("sample", total) as display:
        count = write_jsonl(run.path("samples.jsonl"), _samples(run, display))
    run.say(f"sample: {count} completions of {len(run.config.data.prompts())} prompts ({' and '.join(run.models())} training)")
    return ["samples.jsonl"]


def _samples(run: Run, display: Display) -> Iterator[Sample]:
    config, text, done = run.config, run.text, 0
    decoding = config.suite.decoding()
    for which in run.models():
        model = run.load(which)
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
