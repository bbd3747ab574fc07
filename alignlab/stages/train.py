"""train: rows -> an adapter or a model, on as many ranks as the hardware has."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from alignlab.config import Hardware
from alignlab.data.rows import RowStore
from alignlab.engine.scorer import Scorer
from alignlab.environment import return_blocks
from alignlab.errors import MissingError, UserError, refused, system_error
from alignlab.launch import starts_ranks, state_options, train_on_ranks
from alignlab.models.load import adapted, add_lora, load_model
from alignlab.models.new_tokens import keep_matrices, ways
from alignlab.paths import resolve
from alignlab.pipeline import Run
from alignlab.records import write_text
from alignlab.track import Display, MetricsFile
from alignlab.train.capacity import remembered
from alignlab.train.checkpoint import Checkpoints, Progress
from alignlab.train.loop import Metrics, fit
from alignlab.train.plan import Plan

log = logging.getLogger(__name__)


def train(run: Run) -> list[str]:
    """Train, and write ``adapter/`` (LoRA) or ``model/`` (everything), ``metrics.jsonl`` and ``checkpoints/``."""
    from alignlab.costs import header

    config = run.config
    written = ["adapter" if config.train.lora else "model", "metrics.jsonl"]
    if starts_ranks(config.hardware, run.world):
        _on_ranks(run)
        return written
    rows = RowStore(run.path("rows", "train.arrow"))
    refuse(run, rows)
    if run.device == "cpu":
        return_blocks()
    accelerator = _accelerator(run)
    sharded = accelerator.is_fsdp2
    model = trainable_model(run, "cpu" if sharded else str(accelerator.device))
    scorer = Scorer(model, config.hardware.backend, config.hardware.logits_mib)
    total = scorer.base.num_parameters()  # where 4-bit weights lie packed, numel counts bytes
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    run.say(
        f"train: {learning:,} of {total:,} parameters, {accelerator.num_processes} process(es) on {accelerator.device.type}"
        f"{', sharded' if sharded else ''}, {scorer.backend} attention"
    )
    if run.world.main:
        run.say(header(run, rows, total))
    held = run.path("rows", "validation.arrow")
    validation = RowStore(held) if held.exists() else None
    with _Reporter(run) as reporter:
        progress = fit(
            scorer,
            config.method,
            rows,
            config.train,
            hardware=config.hardware,
            accelerator=accelerator,
            checkpoints=Checkpoints(run.path("checkpoints"), config.train.keep_checkpoints, run.digest("train"), run.world),
            seed=config.seed,
            stop=run.stop,
            log=reporter.log,
            resumed=reporter.resumed,
            validation=validation,
            probes=config.method.probes(run.text, rows, validation) if config.train.probe_every_steps else (),
        )
    if run.world.main and not run.stop.failure:
        try:
            save_trained(run, _whole_model(run, progress.best_step or progress.step) if sharded else model)
        except Exception as error:
            shutil.rmtree(run.path(f".{written[0]}.tmp"), ignore_errors=True)
            run.stop.failure = _refusal(run, error)
    run.world.agree(run.stop.failure)
    if progress.finished:
        run.say(f"train: finished early after {progress.step} steps")
    return written


def _on_ranks(run: Run) -> None:
    """Train on ranks of this command's own; again, from the last checkpoint, where they found that memory holds less."""
    hardware, folder = run.config.hardware, run.path("checkpoints")
    asked = hardware.tokens_per_micro
    while True:
        fits = remembered(folder, asked)
        try:
            return train_on_ranks(run.folder, hardware, run.device == "cpu", run.stop, run.machines)
        except (RuntimeError, UserError):
            now = remembered(folder, asked)
            if now == fits:
                raise
        run.say(f"train: micro-batches of {fits} tokens do not fit in memory; the ranks start again with {now}")


def refuse(run: Run, rows: RowStore) -> None:
    """Raise UserError where there is nothing to train on, or to choose the best weights by."""
    config = run.config
    if not len(rows):
        raise UserError(
            "data: there is nothing to train on: no prompt with targets, no row that is not held out (split test).\n"
            "Give data.path others, or leave train out of stages."
        )
    if config.train.best == "validation_loss" and not run.path("rows", "validation.arrow").exists():
        raise UserError("train.best: validation_loss is never measured without data.validation; give it a share or a path.")
    if rows.mass.sum() <= 0:
        raise UserError("data: no row has any mass, so there is nothing to learn.")


def _refusal(run: Run, error: Exception) -> UserError:
    """What to tell the person where the system refuses a file; any other error is raised."""
    system = system_error(error)
    if system is None:
        raise error
    return refused("train", system, run.folder)


def _accelerator(run: Run) -> Accelerator:
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    precision, options, hardware = run.config.train.precision, state_options(), run.config.hardware
    if precision == "fp16" and run.device == "cpu":
        raise UserError("train.precision: fp16 needs a GPU; take bf16 or fp32.")
    AcceleratorState._reset_state()  # it keeps the precision of the process's first run; the next run of a sweep may have another
    return Accelerator(
        cpu=run.device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        fsdp_plugin=_sharding(hardware) if hardware.sharding == "fsdp" and run.world.size > 1 else None,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=options["timeout"])],
    )


def _sharding(hardware: Hardware) -> Any:
    """What accelerate is told of FSDP2: a layer is gathered for its forward and its backward pass and let go after each.

    Nothing is cast: numbers are those of data-parallel training, where autocast chooses what computes in 16 bits.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    state = PartialState(**state_options())
    if state.device.type == "cpu":  # accelerate passes over sharding on a CPU without a word; torch can do it
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_offload=hardware.offload,
        mixed_precision_policy=MixedPrecisionPolicy(),
        activation_checkpointing=False,
        cpu_ram_efficient_loading=False,
    )


def trainable_model(run: Run, device: str) -> Any:
    """The model with what is to be trained in fp32 (or more) and the rest frozen as stored.

    With LoRA these are the adapter and what trains the method's new tokens: rows of theirs, or LoRA on the embedding.
    """
    config, tokens = run.config, run.config.method.new_tokens()
    lora = config.train.lora
    if config.model.adapter and not lora:
        raise UserError(
            "model.adapter: training goes on from an adapter only with train.lora; for all parameters, export it first."
        )
    model = load_model(replace(config.model, adapter=None), device, config.seed, tokens)
    if config.hardware.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if lora and config.model.adapter:
        model = adapted(model, config.model, tokens, trainable=True)
        found = model.peft_config["default"]
        rank = found.r
        if found.lora_alpha != lora.alpha:
            has = f"{found.lora_alpha:g}"
            raise UserError(f"train.lora.alpha: {lora.alpha:g}, and the adapter has {has}; give train.lora.alpha={has}.")
        if rank != lora.rank:
            raise UserError(
                f"train.lora.rank: {lora.rank}, and the adapter {config.model.adapter} has {rank}; give train.lora.rank={rank}."
            )
        return model
    if lora:
        rows, embedding = ways(model, tokens)
        return add_lora(model, lora, config.seed, run.text.ids(rows) if rows else (), embedding=embedding)
    return model.requires_grad_(True).to(torch.promote_types(model.dtype, torch.float32))


def checkpoint_model(run: Run, step: int, dtype: str | None = None) -> Any:
    """The model after so many optimizer steps, in evaluation mode: what ``after_model`` gives had the run ended there.

    Args:
        run: whose folder holds ``checkpoints/step-N``.
        step: N.
        dtype: of its weights; None takes ``model.dtype``.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    config = run.config
    kept = Checkpoints(run.path("checkpoints"), config.train.keep_checkpoints)
    if step not in kept.steps():
        there = ", ".join(map(str, kept.steps())) or "none"
        raise UserError(
            f"sample.step: {kept.folder} has no checkpoint of step {step}; there are: {there}.\n"
            "train.save_every_steps writes them, and train.keep_checkpoints says how many stay."
        )
    stored = replace(config.model, dtype=dtype or config.model.dtype)
    model = trainable_model(replace(run, config=replace(config, model=stored)), run.device)
    try:
        kept.restore_weights(step, torch.nn.ModuleDict({"model": model}))  # named as in the scorer
    except MissingError as error:
        raise UserError(f"sample.step: {error}") from None
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"sample.step: {kept.folder / f'step-{step}'} cannot be used: {error}.") from None
    if not config.train.lora:  # rounded as when it is written; buffers stay
        for p in model.parameters():
            p.data = p.data.to(getattr(torch, config.model.dtype)).to(getattr(torch, stored.dtype))
    return model.eval()


def _whole_model(run: Run, step: int) -> Any:
    """The model of a checkpoint that ranks wrote in shares, whole, in the memory of this machine."""
    model = trainable_model(run, "cpu")
    kept = Checkpoints(run.path("checkpoints"), run.config.train.keep_checkpoints)
    kept.restore_weights(step, torch.nn.ModuleDict({"model": model}))  # named as in the scorer
    return model


def save_trained(run: Run, model: Any) -> None:
    """Write adapter or model in the layout of PEFT or transformers, under a temporary name, then rename."""
    name = "adapter" if run.config.train.lora else "model"
    temporary, final = run.path(f".{name}.tmp"), run.path(name)
    shutil.rmtree(temporary, ignore_errors=True)
    if run.config.train.lora:
        model.peft_config["default"].base_model_name_or_path = resolve(run.config.model.path)
        model.save_pretrained(str(temporary), save_embedding_layers=False)
        (temporary / "README.md").unlink(missing_ok=True)  # a card without content
        _sort_lists(temporary / "adapter_config.json")
        if run.config.method.new_tokens():
            keep_matrices(model, temporary / "adapter_model.safetensors")
            # tells how to resize the base
            run.text.tokenizer.save_pretrained(str(temporary))
    else:
        attention = model.config._attn_implementation
        model.set_attn_implementation("sdpa" if attention.startswith("alignlab") else attention)
        model.to(getattr(torch, run.config.model.dtype)).save_pretrained(str(temporary))
        run.text.tokenizer.save_pretrained(str(temporary))
    shutil.rmtree(final, ignore_errors=True)
    temporary.replace(final)


def _sort_lists(path: Path) -> None:
    """Sort lists: peft writes sets in the order of the process's hash seed; the same run shall give the same bytes."""
    content = {k: sorted(v) if isinstance(v, list) else v for k, v in json.loads(path.read_text()).items()}
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


class _Reporter:
    """Metrics to the file, the tracker and the person; on rank 0 alone."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._file: MetricsFile | None = None
        self._display: Display | None = None

    def __enter__(self) -> _Reporter:
        return self

    def resumed(self, progress: Progress, plan: Plan) -> None:
        """Open everything at the step where the run starts."""
        if not self._run.world.main:
            return
        train = self._run.config.train
        if train.schedule != "constant" and train.warmup_steps >= plan.steps:
            peak = train.lr * (plan.steps - 1) / max(1, train.warmup_steps)
            self._run.say(
                f"train: the warm-up of {train.warmup_steps} steps is longer than the run of {plan.steps}: "
                f"the rate rises to {peak:.2g}, not to {train.lr:g}"
            )
        if progress.step:
            self._run.say(f"train: goes on from step {progress.step} of {plan.steps}")
        try:
            self._file = MetricsFile(self._run.path("metrics.jsonl"), progress.step)
            self._tracker = self._run.tracker
        except OSError as error:
            self._run.stop.failure = refused("train", error, self._run.folder)
            return
        self._display = Display("train", plan.steps, progress.step).__enter__()

    def log(self, metrics: Metrics) -> None:
        """One step."""
        if self._file is None or self._display is None:
            return
        try:
            self._file.write(metrics)
        except OSError as error:
            self._run.stop.failure = refused("train", error, self._run.folder)
            return
        self._tracker.scalars(int(metrics["step"]), {name: v for name, v in metrics.items() if not isinstance(v, str)})
        floor = f" floor {metrics['floor']:.4f}" if "floor" in metrics else ""
        note = f"loss {metrics['loss']:.4f}{floor} {metrics['tokens_per_second']:,.0f} tok/s"
        self._display.update(int(metrics["step"]), note)

    def __exit__(self, *_: object) -> None:
        if self._display is not None:
            self._display.__exit__()
        if self._file is not None:
            self._file.close()
