"""export: base and adapter as one model that needs neither peft nor alignlab."""

from __future__ import annotations

import shutil
from dataclasses import replace

from alignlab.models.load import after_model, load_tokenizer
from alignlab.models.merge import merged
from alignlab.pipeline import Run


def export(run: Run) -> list[str]:
    """Write ``merged/``; a fully trained model already stands in ``model/``."""
    if run.path("model").is_dir():
        run.say(f"export: {run.path('model')} is a whole model already")
        return ["model"]
    config = run.config
    if config.model.quantization:
        run.say("export: the adapter is folded into the base as published, unquantised; its answers differ a little from the run's")
    model = merged(after_model(replace(config.model, quantization=None), run.folder, run.device, config.seed), run.text)
    temporary, final = run.path(".merged.tmp"), run.path("merged")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(str(temporary))
    load_tokenizer(config.model).save_pretrained(str(temporary))
    shutil.rmtree(final, ignore_errors=True)
    temporary.replace(final)
    run.say(f"export: {final}")
    return ["merged"]
