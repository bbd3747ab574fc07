"""The training loop: it knows steps and masses, and no method.

A loss is a SUM with a mass; it is divided once, by the mass of the whole step over all micro-batches and ranks. The number of
processes and the size of a micro-batch therefore change the speed and not the curve.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from alignlab.config import Hardware, Train
from alignlab.data.rows import RowStore
from alignlab.engine.batch import Batch, collate
from alignlab.engine.scorer import Scorer
from alignlab.engine.shards import let_go, whole
from alignlab.errors import UserError, refused
from alignlab.protocols import Loss, Method, Probe
from alignlab.seeds import derive
from alignlab.signals import FAILED, Stop
from alignlab.train.capacity import Capacity
from alignlab.train.checkpoint import Checkpoints, Progress, trained
from alignlab.train.measure import Sums, mean_loss, probe_figures
from alignlab.train.optim import Schedule, adamw, warmup
from alignlab.train.plan import Micro, Plan, Step

Metrics = dict[str, Any]
"""figures of a step, and words that a probe gives"""


def fit(
    scorer: Scorer,
    method: Method,
    rows: RowStore,
    train: Train,
    *,
    hardware: Hardware,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    seed: int,
    stop: Stop,
    log: Callable[[Metrics], None],
    resumed: Callable[[Progress, Plan], None] = lambda progress, plan: None,
    validation: RowStore | None = None,
    probes: Sequence[Probe] = (),
) -> Progress:
    """Train until the plan ends, the method is finished or a signal comes.

    Args:
        scorer: the model to train; its parameters that require a gradient are trained.
        method: gives rows their loss.
        rows: training rows.
        train: everything that shapes the curve.
        hardware: everything that does not.
        accelerator: places the scorer on its devices.
        checkpoints: where to save to and resume from.
        seed: of the data's order, its variants and dropout.
        stop: looked at after each step.
        log: receives the metrics of each step, on every rank.
        resumed: told where the run starts and its plan, before the first step.
        validation: rows whose loss is measured every ``train.validate_every_steps`` steps.
        probes: what is measured every ``train.probe_every_steps`` steps.

    Raises:
        UserError: the loss is not finite; nothing of that step was applied.
        StoppedError: a signal came; the state is saved.
        MissingError: a file cannot be written.
    """
    plan = Plan(rows, groups_per_step=train.groups_per_step, epochs=train.epochs, max_steps=train.max_steps, seed=seed)
    schedule = Schedule(train.schedule, train.lr, warmup(train.warmup_steps, plan.steps), plan.steps)
    learning = trained(scorer).values()
    raw = adamw(learning, lr=train.lr, betas=train.betas, eps=train.eps, weight_decay=train.weight_decay, decay=train.decay)
    model, optimizer = accelerator.prepare(scorer, raw)
    let_go(scorer)
    progress = checkpoints.load(scorer, raw) or Progress()
    capacity = Capacity(checkpoints.folder, hardware.tokens_per_micro, int(rows.length.min()), accelerator.num_processes)
    if progress.scaler and accelerator.scaler:
        accelerator.scaler.load_state_dict(progress.scaler)
    accelerator.wait_for_everyone()  # before rank 0 writes a checkpoint that another rank would read
    resumed(progress, plan)
    computing = _Computing(model, method, plan, accelerator, capacity)
    model.train()
    with stop.deferred():
        if progress.step < plan.steps and not progress.finished:
            capacity.attempt(partial(computing.rehearse, progress.step, raw))
        while progress.step < plan.steps and not progress.finished:
            started = time.monotonic()
            step = plan.step(progress.step)
            lr = schedule.at(step.index)
            for group in optimizer.param_groups:
                group["lr"] = lr
            sums = capacity.attempt(partial(computing.gradients, step, optimizer))
            totals, signal = sums.reduce(accelerator, stop.number)
            if signal == FAILED:
                checkpoints.world.agree(stop.failure)
            norm = float(whole(accelerator.clip_grad_norm_(model.parameters(), train.clip or math.inf)))
            _check_finite(totals["loss"][0], norm, step.index, train, checkpoints)
            optimizer.step()
            optimizer.zero_grad()
            progress.step += 1
            metrics = _metrics(progress, step.epoch, lr, norm, totals, time.monotonic() - started)
            _accumulate(progress, totals)
            if validation is not None and _due(progress.step, train.validate_every_steps, plan.steps):
                metrics["validation_loss"] = mean_loss(model, method, validation, capacity.nodes, accelerator)
            if probes and _due(progress.step, train.probe_every_steps, plan.steps):
                metrics.update(probe_figures(accelerator.unwrap_model(model), probes, capacity.nodes))
            if train.best in metrics and (progress.best is None or metrics[train.best] < progress.best):
                progress.best, progress.best_step = metrics[train.best], progress.step
            if step.ends_epoch:
                epoch = {name: total / count for name, (total, count) in progress.epoch_sums.items() if count}
                progress.epoch_sums = {}
                progress.finished = method.finished(epoch)
            log(metrics)
            last = progress.finished or progress.step == plan.steps
            best = train.best and progress.best_step == progress.step
            if signal or last or best or _due(progress.step, train.save_every_steps, None):
                _save(checkpoints, progress, scorer, raw, accelerator, stop)
            if signal and not last:
                raise stop.error(f"step {progress.step} of {plan.steps} is saved in {checkpoints.folder}", signal)
    if train.best and progress.best_step is not None:
        checkpoints.restore_weights(progress.best_step, scorer)
    return progress


class _Computing:
    """Forward and backward passes of a step's micro-batches."""

    def __init__(self, model: torch.nn.Module, method: Method, plan: Plan, accelerator: Accelerator, capacity: Capacity) -> None:
        self._model, self._method, self._plan, self._accelerator, self._capacity = model, method, plan, accelerator, capacity
        self._rank, self._world = accelerator.process_index, accelerator.num_processes

    def gradients(self, step: Step, optimizer: Any, capacity: int) -> Sums:
        """Put the gradient of a step in place; its logs."""
        optimizer.zero_grad()
        sums = Sums()
        micros = self._plan.micros(step, self._method, capacity=capacity, rank=self._rank, world=self._world)
        for i, micro in enumerate(micros):
            torch.manual_seed(derive(self._plan.seed, "dropout", step.index, self._rank, i))
            with nullcontext() if i + 1 == len(micros) else self._accelerator.no_sync(self._model):
                # data-parallel training averages over ranks: `world` turns the average back into the sum
                loss, batch = self._pass(micro, self._world / step.mass if micro.counts else 0.0)
            sums.add(loss, batch, micro.counts)
        return sums

    def rehearse(self, start: int, optimizer: torch.optim.Optimizer, capacity: int) -> None:
        """Take the largest micro-batch of the steps to come through all that needs memory, and change nothing."""
        optimizer.zero_grad()
        micro = self._plan.worst(self._method, capacity=capacity, world=self._world, start=start)
        torch.manual_seed(derive(self._plan.seed, "dropout", start, self._rank, 0))
        self._pass(micro, 0.0)
        if not optimizer.state:
            for group in optimizer.param_groups:
                group["lr"] = 0.0
                for p in group["params"]:
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad.zero_()  # the loss may not be finite
            optimizer.step()
            optimizer.state.clear()
        optimizer.zero_grad()

    def _pass(self, micro: Micro, weight: float) -> tuple[Loss, Batch]:
        batch = collate(micro.rows).to(self._accelerator.device)
        self._capacity.size = len(batch)
        with self._accelerator.autocast():
            loss = self._method.loss(self._model(batch), batch)
        self._accelerator.backward(loss.total * weight)
        return loss, batch


def _due(step: int, every: int | None, last: int | None) -> bool:
    return step == last or bool(every and step % every == 0)


def _metrics(
    progress: Progress, epoch: int, lr: float, norm: float, totals: Mapping[str, tuple[float, float]], seconds: float
) -> Metrics:
    tokens = totals["tokens"][0]
    fixed = {"step": progress.step, "epoch": epoch, "loss": totals["loss"][0] / totals["loss"][1], "lr": lr, "grad_norm": norm}
    speed = {"tokens": int(tokens), "tokens_per_second": tokens / max(seconds, 1e-9), "seconds": seconds}
    own = {n: s / c for n, (s, c) in totals.items() if c and n not in ("loss", "tokens")}
    return {**fixed, **speed, **own}


def _accumulate(progress: Progress, totals: Mapping[str, tuple[float, float]]) -> None:
    for name, (total, count) in totals.items():
        cell = progress.epoch_sums.setdefault(name, [0.0, 0.0])
        cell[0], cell[1] = cell[0] + total, cell[1] + count


def _check_finite(loss: float, norm: float, step: int, train: Train, checkpoints: Checkpoints) -> None:
    if math.isfinite(loss) and (math.isfinite(norm) or train.precision == "fp16"):  # fp16's scaler skips such steps itself
        return
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
    kept = checkpoints.steps()
    where = f"The last good checkpoint is {checkpoints.folder / f'step-{kept[-1]}'}." if kept else "No checkpoint was due before."
    raise UserError(
        f"training: {what} at step {step + 1}; the step was not applied. {where}\nTry a lower train.lr (now {train.lr:g}) "
        f"or train.warmup_steps{'' if train.precision == 'fp32' else f', or train.precision=fp32 (now {train.precision})'}."
    )


def _save(
    checkpoints: Checkpoints, progress: Progress, scorer: Scorer, optimizer: Any, accelerator: Accelerator, stop: Stop
) -> None:
    checkpoints.world.agree(stop.failure)
    progress.scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
    try:
        checkpoints.save(progress, scorer, optimizer)
    except OSError as error:
        stop.failure = refused("train", error, checkpoints.folder)
    checkpoints.world.agree(stop.failure)
