"""export: base and adapter as one model that needs neither peft nor alignlab, with a certificate that it is the same model."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from alignlab.config import Model
from alignlab.errors import UserError
from alignlab.generate.hf import Decoding
from alignlab.models.load import after_model, load_model, load_text, load_tokenizer
from alignlab.models.merge import Agreement, agreement, predictions
from alignlab.pipeline import Run
from alignlab.protocols import Request
from alignlab.records import write_json

FIXED = Request([{"role": "user", "content": "Is this the same model?"}])
"""compared at in any case"""
PROMPTS = 16
"""of the run's own, spread over all of them"""
ANSWER = 8
"""tokens of the run's model's likeliest answer that follow each prompt"""
TOKENS = 64
"""of each prompt with its answer, the last ones: bounds the memory that logits take"""


def export(run: Run) -> list[str]:
    """Write ``merged/`` and the certificate ``export.json``; a fully trained model already stands in ``model/``.

    The model with its adapter, the merged one, and the merged one as it is read back from the files are compared at every position
    of several prompts with the beginnings of their answers.

    Raises:
        UserError: merging or storing moves more of the next-token probability than rounding does: 0.1 % and 0.001 % anywhere, or,
            where weights have 16 bits, 5 % at more than 5 % of the positions. Nothing is exported then.
    """
    if run.path("model").is_dir():
        run.say(f"export: {run.path('model')} is a whole model already")
        return ["model"]
    if run.config.model.quantization:
        run.say("export: the adapter is folded into the base as published, unquantised; its answers differ a little from the run's")
    temporary, final, certificate = run.path(".merged.tmp"), run.path("merged"), run.path("export.json")
    for left in (temporary, final):  # of an export that was cut off, or of another adapter
        shutil.rmtree(left, ignore_errors=True)
    certificate.unlink(missing_ok=True)
    try:
        found = _written(run, temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    write_json(temporary / "alignlab_export.json", found)
    temporary.replace(final)
    write_json(certificate, found)
    merging, storing = found["merged_and_adapter"], found["reloaded_and_merged"]
    run.say(
        f"export: {final}: merging moved at most {merging['max_total_variation']:.2g} of the next-token probability, storing "
        f"{storing['max_total_variation']:.2g}; top token kept at {merging['top1_agreement']:.1%} of {found['positions']} positions"
    )
    return ["merged", "export.json"]


def _written(run: Run, folder: Path) -> dict[str, Any]:
    """Write the merged model into a folder; returns its certificate.

    Raises:
        UserError: it predicts otherwise than the model with its adapter, or what is read back otherwise than what was written.
    """
    config, seed, tokens = run.config.model, run.config.seed, run.config.method.new_tokens()
    model = after_model(config, run.folder, run.device, seed, tokens)
    requests, prompts, sequences = _sequences(run, model)
    of_run = predictions(model, sequences)
    if config.quantization:
        del model
        model = after_model(replace(config, quantization=None), run.folder, run.device, seed, tokens)
    of_adapter = predictions(model, sequences) if config.quantization else of_run
    model = model.merge_and_unload()
    of_merged = predictions(model, sequences)
    wide = model.dtype.itemsize > 2
    certificate: dict[str, Any] = {"dtype": config.dtype, "prompts": len(prompts), "positions": sum(map(len, sequences))}
    figures = agreement(of_merged, of_adapter)
    certificate["merged_and_adapter"] = _checked(figures, 1e-3 if wide else None, "merging", "this adapter does not survive it")
    if config.quantization:
        certificate["merged_and_quantised"] = _plain(agreement(of_merged, of_run))
    model.save_pretrained(str(folder))
    load_tokenizer(config, tokens).save_pretrained(str(folder))
    del model
    of_files = predictions(_read_back(replace(config, path=str(folder)), requests, prompts, run), sequences)
    figures = agreement(of_files, of_merged)
    certificate["reloaded_and_merged"] = _checked(figures, 1e-5 if wide else None, "storing", "the files hold another model")
    return certificate


def _sequences(run: Run, model: Any) -> tuple[list[Request], list[list[int]], list[list[int]]]:
    """Requests, their token ids, and the token ids to compare at: the same with the beginning of the model's answer."""
    config, text = run.config, run.text
    own = run.prompts("after")
    added = "".join(token.text for token in config.method.new_tokens())
    fixed = [FIXED, Request(text=added)] if added else [FIXED]
    requests, prompts, sequences = [], [], []
    for request in [*fixed, *map(config.method.request, own[:: math.ceil(len(own) / PROMPTS) or 1])]:
        with suppress(UserError):  # too long for the model: the sample stage says so
            prompts.append(text.request(request))
            requests.append(request)
            greedy = Decoding(0.0, 1.0, 0, min(ANSWER, text.context - len(prompts[-1])))
            answer = config.sampler.sample(model, prompts[-1], sorted(text.stop), greedy, n=1, seed=0)[0]
            sequences.append([*prompts[-1], *answer.tokens][-TOKENS:])
    return requests, prompts, sequences


def _read_back(config: Model, requests: Sequence[Request], prompts: Sequence[Sequence[int]], run: Run) -> Any:
    """The model in the folder ``config.path``, whose tokenizer and template are compared on the way.

    Raises:
        UserError: it cannot be read, or prompts have other tokens.
    """
    whole = replace(config, weights="pretrained", revision=None, adapter=None, quantization=None)
    whole = replace(whole, tokenizer=None, chat_template=None, tokenizer_legacy=None)
    try:
        text = load_text(whole)
        if [text.request(request) for request in requests] != prompts:
            raise UserError("the tokenizer read back gives a prompt other tokens.")
        return load_model(whole, run.device, run.config.seed)
    except UserError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"export: what was written is not the run's model: {first}\nServe adapter/ with peft instead.") from error


def _checked(figures: Agreement, anywhere: float | None, what: str, why: str) -> dict[str, Any]:
    """The figures for the certificate.

    Args:
        figures: of two models that should be one.
        anywhere: total variation tolerated at any position; None tolerates 5 % at 95 % of the positions, since with 16 bits
            rounding alone moves as much at one of some hundred.
        what: was done between the two.
        why: it is refused.

    Raises:
        UserError: the figures are not within the tolerance.
    """
    name, tolerated = ("p95_total_variation", 0.05) if anywhere is None else ("max_total_variation", anywhere)
    moved = getattr(figures, name)
    if not moved <= tolerated:  # what is not a number is refused, too
        raise UserError(
            f"export: {what} moves {moved:.2g} of the next-token probability, and {tolerated:.3g} is tolerated: {why}.\n"
            "Nothing was exported. Serve adapter/ with peft instead."
        )
    return _plain(figures) | {"tolerated": {name: tolerated}}


def _plain(figures: Agreement) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in asdict(figures).items()}
