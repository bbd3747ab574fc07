"""export: base and adapter as one model that needs neither peft nor alignlab."""

from __future__ import annotations

import shutil

from alignlab.models.load import load_tokenizer
from alignlab.models.merge import merged
from alignlab.pipeline import Run


def export(run: Run) -> list[str]:
    """Write ``merged/``; a fully trained model already stands in ``model/``."""
    if run.path("model").is_dir():
        run.say(f"export: {run.path('model')} is a whole model already")
        return ["model"]
    model = merged(run.load("after"), run.text)
    temporary, final = run.path(".merged.tmp"), run.path("merged")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(str(temporary))
    load_tokenizer(run.config.model).save_pretrained(str(temporary))
    shutil.rmtree(final, ignore_errors=True)
    temporary.replace(final)
    run.say(f"export: {final}")
    return ["merged"]
