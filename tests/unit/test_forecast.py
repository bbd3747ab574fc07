"""The forecast against what is measured: parameters, bytes, and the peak of a process."""

from __future__ import annotations

import ctypes
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alignlab.compose import compose
from alignlab.config import check
from alignlab.costs import Work, _options, advice, memory, shown, work
from alignlab.data.rows import RowStore, write_rows
from alignlab.environment import return_blocks
from alignlab.forecast import RUNTIME, _Books, forecast
from alignlab.launch import ALONE
from alignlab.pipeline import Run
from alignlab.protocols import Row
from alignlab.signals import Stop
from alignlab.stages.train import trainable_model
from alignlab.train.optim import adamw

SMALL = (
    "model=gpt2",
    "model.weights=random",
    "model.architecture={model_type: gpt2, vocab_size: 8000, n_positions: 1024, n_embd: 256, n_layer: 2, n_head: 4}",
)


def columns(length: int) -> dict[str, np.ndarray]:
    """All that some method's loss reads."""
    ones, zeros = np.ones(length), np.zeros(length)
    return {"share": ones, "weight": ones, "bad": zeros, "diverse": zeros, "important": zeros, "role": np.zeros(length, np.int64)}


def chain(length: int, group: int = 0, vocabulary: int = 3000) -> Row:
    tokens = np.random.default_rng(length).integers(0, vocabulary, length).astype(np.int32)
    nodes = np.arange(length, dtype=np.int32)
    return Row(group, 1.0, tokens, nodes - 1, nodes, tokens, columns(length))


def planned(folder: Path, *words: str, lengths: tuple[int, ...] = (60, 50, 40, 30)) -> tuple[Run, Work]:
    """A run of SFT, and its work on chains of these lengths."""
    config = check(compose(["method=sft", "tracker=none", "hardware=cpu", *words])[0])
    write_rows(folder / "train.arrow", (chain(n, i) for i, n in enumerate(lengths)))
    return Run(folder, config, Stop(), ALONE), work(RowStore(folder / "train.arrow"), config, config.hardware.processes)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("train.lora=null",),
        ("train.lora=null", "model.dtype=bfloat16", "train.precision=bf16"),
        ("method=conditioning", "data=toned"),
        ("method=delia", "model.dtype=bfloat16"),
    ],
)
def test_parameters_and_bytes_are_those_of_the_loaded_model(words: tuple[str, ...], tmp_path: Path):
    run, done = planned(tmp_path, *words)
    parts, figures = memory(run, done)
    model = trainable_model(run, "cpu")
    learning = [p for p in model.parameters() if p.requires_grad]
    assert figures["all"] == sum(p.numel() for p in model.parameters())
    assert figures["trained"] == sum(p.numel() for p in learning)
    stored = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())}
    assert parts.weights == sum(stored.values())
    assert sum(getattr(parts, part.name) for part in fields(parts)) == parts.total
    assert parts.optimizer >= 8 * figures["trained"]  # two moments in fp32, and a count for each tensor
    assert parts.optimizer - 8 * figures["trained"] == 4 * len(learning)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_every_allocation_of_a_real_step_is_forecast(whole: bool, again: bool, tmp_path: Path):
    words = (*SMALL, "train.lora=null") if whole else SMALL
    if not whole:
        words = (*words, "train.lora.targets=all-linear", "train.lora.dropout=0.1")
    run, done = planned(tmp_path, *words, f"hardware.gradient_checkpointing={str(again).lower()}", lengths=(200, 150))
    expected, train = memory(run, done)[0], run.config.train
    from alignlab.engine.batch import collate
    from alignlab.engine.scorer import Scorer

    model = trainable_model(run, "cpu").train()
    scorer, books = Scorer(model).train(), _Books()
    learning = [p for p in model.parameters() if p.requires_grad]
    for tensor in (*model.parameters(), *model.buffers()):
        books.take(tensor)
    optimizer = adamw(learning, lr=train.lr, betas=train.betas, eps=train.eps, weight_decay=0.0, decay=train.decay)
    with books:
        for _ in range(2):
            batch = collate(done.micro)
            run.config.method.loss(scorer(batch), batch).total.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            del batch
    assert expected.total - expected.runtime == pytest.approx(sum(books.fullest().values()), rel=0.02)


def test_recomputation_and_smaller_micro_batches_need_less(tmp_path: Path):
    run, done = planned(tmp_path, *SMALL, "train.lora=null", lengths=(200, 190, 180, 170))
    plain = memory(run, done)[0]
    for name, config in _options(run.config, done):
        if name.startswith("hardware."):
            less = memory(replace(run, config=config), work(done.rows, config, 1))[0]
            assert less.activations + less.logits < plain.activations + plain.logits, name
            assert less.weights == plain.weights


def test_advice_names_what_fits_and_nothing_else(tmp_path: Path):
    run, done = planned(tmp_path, *SMALL, "train.lora=null", lengths=(200, 190, 180, 170))
    full = memory(run, done)[0].total
    fitting, least = advice(run, done, full - 2**20)
    assert 1 <= len(fitting) <= 3
    for words, size in fitting:
        assert size <= full - 2**20
        other = [word.strip("'") for word in words.split(" ")] if "lora" not in words else [words.strip("'")]
        again, work_again = planned(tmp_path, *SMALL, *(["train.lora=null"] if "lora" not in words else []), *other)
        again_work = work(done.rows, again.config, 1)
        assert memory(again, again_work)[0].total == size, words
        assert work_again.ranks == 1
    assert advice(run, done, 0)[0] == []
    assert least[1] <= min(size for _, size in fitting)


def test_ranks_share_or_copy(tmp_path: Path):
    run, done = planned(tmp_path, *SMALL, "train.lora=null", lengths=(100,) * 4)
    config = run.config

    def of(ranks: int, **hardware: object) -> object:
        model = trainable_model(run, "meta")
        return forecast(model, done.micro, config.train, replace(config.hardware, **hardware), ranks=ranks)

    alone, copied, shared = of(1), of(2), of(4, sharding="fsdp")
    assert copied.gradients - alone.gradients == memory(run, done)[1]["trained_bytes"]  # a bucket for each
    assert shared.optimizer == -(-alone.optimizer // 4)
    model = trainable_model(run, "meta")
    layers = [sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in model.transformer.h]
    apart = sum(p.numel() * p.element_size() for p in model.parameters()) - sum(layers)
    assert shared.weights == -(-alone.weights // 4) + apart + 2 * max(layers)  # its share, and what it gathers
    assert shared.activations == alone.activations


def test_quantised_weights_are_counted_as_they_lie(tmp_path: Path):
    run, done = planned(tmp_path)
    plain = memory(run, done)[0].weights
    linear = sum(
        module.weight.numel()
        for module in trainable_model(run, "meta").modules()
        if type(module) is torch.nn.Linear and not module.weight.requires_grad and module.weight.shape[0] != 3072
    )
    fewer = forecast(trainable_model(run, "meta"), done.micro, run.config.train, run.config.hardware, quantization="8bit")
    assert plain - fewer.weights == 3 * linear  # of four bytes each, one is left


def test_largest_micro_batch_is_the_largest_of_the_run(tmp_path: Path):
    run, done = planned(
        tmp_path, "hardware.tokens_per_micro=100", "train.groups_per_step=2", "train.epochs=3", lengths=(90, 20, 70, 60, 31, 150)
    )
    micros = [m for i in range(9) for m in done.plan.micros(done.plan.step(i), run.config.method, capacity=100)]
    assert sum(len(row.tokens) for row in done.micro) == max(sum(len(row.tokens) for row in m.rows) for m in micros) == 150
    assert done.several
    assert done.nodes == 3 * 421


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read as Linux tells it")
def test_forecast_is_the_measured_peak(tmp_path: Path):
    """In a fork, which has imported everything: what becomes resident on top of it, within 15 %."""
    sizes = "{model_type: gpt2, vocab_size: 8000, n_positions: 1024, n_embd: 768, n_layer: 2, n_head: 12}"
    words = ("model=gpt2", "model.weights=random", f"model.architecture={sizes}", "train.lora=null", "train.max_steps=2")
    run, done = planned(tmp_path, *words, lengths=(400, 390))
    expected = memory(run, done)[0]
    reader, writer = os.pipe()
    if not os.fork():
        try:
            os.write(writer, str(_measured(run, done)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.wait()
    assert expected.total - expected.runtime == pytest.approx(float(os.read(reader, 64)), rel=0.15)


def _measured(run: Run, done: Work) -> int:
    from alignlab.engine.batch import collate
    from alignlab.engine.scorer import Scorer

    def resident(name: str) -> int:
        return next(int(x.split()[1]) for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name)) * 1024

    return_blocks()
    torch.nn.Linear(64, 64)(torch.ones(64, 64)).sum().backward()  # pages of the kernels
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    model = trainable_model(run, "cpu").train()
    scorer, learning = Scorer(model).train(), [p for p in model.parameters() if p.requires_grad]
    optimizer = adamw(learning, lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decay="all")
    for _ in range(2):
        batch = collate(done.micro)
        run.config.method.loss(scorer(batch), batch).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return resident("VmHWM") - before


def test_sizes_in_words():
    assert [shown(n) for n in (0, 2**20, 2**30, 24.36 * 2**30)] == ["0.0 MiB", "1.0 MiB", "1.0 GiB", "24.4 GiB"]
    assert RUNTIME["cuda"] == 0
