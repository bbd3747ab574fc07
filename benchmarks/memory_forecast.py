"""Memory of training: what the plan says, against what the process then holds.

    OMP_NUM_THREADS=1 python -m benchmarks.memory_forecast [--only WORD] [--steps 2]

Each configuration is trained in a process of its own for some steps, on 48 made-up texts of 20 to 200 words, four a step.
"Before" is what is resident once rows are made and everything is imported, "peak" the most that is resident from then to the
end of training, with checkpoint and final weights (VmRSS and VmHWM of Linux, the latter set back in between). The forecast is
that of ``plan=true``; its runtime is a constant (``alignlab.forecast.RUNTIME``). "Of tensors" compares without it: the
forecast of tensors alone with peak less before. Models have random weights, and the embedded tokenizer stands in for theirs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np

from benchmarks.common import machine, table

GPT2 = ("model=gpt2", "model.weights=random")
LLAMA = (
    "model=llama2-7b",
    "model.weights=random",
    "model.architecture={model_type: llama, vocab_size: 32000, hidden_size: 1024, intermediate_size: 2816, num_hidden_layers: 20, "
    "num_attention_heads: 16, num_key_value_heads: 16, max_position_embeddings: 4096}",
)
WHOLE, LORA = ("train.lora=null",), ("train.lora={rank: 16, alpha: 16, dropout: 0.05, targets: all-linear}",)
FP32, BF16 = ("train.precision=fp32", "model.dtype=float32"), ("train.precision=bf16", "model.dtype=bfloat16")
AGAIN = ("hardware.gradient_checkpointing=true",)

CASES: dict[str, tuple[str, ...]] = {
    "tiny, LoRA, fp32, 8192 tokens": (*LORA, *FP32),
    "124M, whole, fp32, 1024 tokens": (*GPT2, *WHOLE, *FP32, "hardware.tokens_per_micro=1024"),
    "124M, LoRA, fp32, 2048 tokens": (*GPT2, *LORA, *FP32, "hardware.tokens_per_micro=2048"),
    "124M, LoRA, fp32, 2048 tokens, recomputed": (*GPT2, *LORA, *FP32, *AGAIN, "hardware.tokens_per_micro=2048"),
    "307M, LoRA, fp32, 1024 tokens": (*LLAMA, *LORA, *FP32, "hardware.tokens_per_micro=1024"),
    "307M, LoRA, bf16, 1024 tokens": (*LLAMA, *LORA, *BF16, "hardware.tokens_per_micro=1024"),
    "307M, whole, fp32, 512 tokens, recomputed": (*LLAMA, *WHOLE, *FP32, *AGAIN, "hardware.tokens_per_micro=512"),
    "124M, LoRA, fp32, 512 tokens, 2 processes": (*GPT2, *LORA, *FP32, "hardware.tokens_per_micro=512", "hardware=cpu2"),
}


def write_texts(path: Path) -> None:
    """Judged rows of random words."""
    random = np.random.default_rng(0)
    words = "time year people way day man thing woman life child world school state family".split()  # noqa: SIM905
    with path.open("w") as file:
        for i in range(48):
            length = int(random.choice([20, 80, 120, 160, 200]))
            asked, said = (" ".join(random.choice(words, n)) for n in (20, length))
            file.write(json.dumps({"id": str(i), "instruction": asked, "output": said, "judgment": None}) + "\n")


def resident(name: str, process: str = "self") -> float:
    """VmRSS or VmHWM of a process, in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def one(words: list[str], folder: str) -> None:
    """Forecast and train one configuration; print MiB forecast in all, forecast of tensors, before, and at the peak."""
    from alignlab import costs, run
    from alignlab.compose import compose
    from alignlab.config import check
    from alignlab.data.rows import RowStore
    from alignlab.launch import World
    from alignlab.pipeline import Run
    from alignlab.signals import Stop

    run([*words, "stages=[prepare]"])
    import_module("peft")
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run([*words, "stages=[train]"])
    peak, count = resident("VmHWM"), 1
    if "hardware=cpu2" in words:  # the ranks are processes of their own, and import everything themselves
        count, before = 2, float("nan")
        peak = json.loads(Path(folder, "done", "train.json").read_text())["peak_mib"]["resident"]
    config = check(compose(words)[0])
    planned = Run(Path(folder), config, Stop(), World(0, 1))
    parts = costs.memory(planned, costs.work(RowStore(Path(folder, "rows", "train.arrow")), config, count))[0]
    forecast = [parts.total / 2**20, (parts.total - parts.runtime) / 2**20]
    print(json.dumps([*forecast, before, peak]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(json.loads(options.one[0]), options.one[1])
    print(machine() + "\n")
    rows = []
    for name, words in CASES.items():
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder, texts = str(Path(temporary, "run")), Path(temporary, "texts.jsonl")
            write_texts(texts)
            common = [
                "method=sft",
                f"data.path={texts}",
                f"run_dir={folder}",
                "tracker=none",
                "train.groups_per_step=4",
                f"train.max_steps={options.steps}",
            ]
            hardware = [word for word in words if word.startswith("hardware=")] or ["hardware=cpu"]
            every = [*common, *hardware, *(word for word in words if not word.startswith("hardware="))]
            command = [sys.executable, "-m", "benchmarks.memory_forecast", "--one", json.dumps(every), folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        forecast, tensors, before, peak = json.loads(done.stdout.strip().splitlines()[-1])
        of_tensors = "" if before != before else f"{tensors / (peak - before):.2f}"
        known = "" if before != before else f"{before:.0f}"
        rows.append([name, f"{forecast:.0f}", f"{peak:.0f}", f"{forecast / peak:.2f}", known, f"{tensors:.0f}", of_tensors])
        print(rows[-1], file=sys.stderr, flush=True)
    print(table(["", "forecast, MiB", "peak, MiB", "ratio", "before", "tensors forecast", "of tensors"], rows))


if __name__ == "__main__":
    main()
