"""What the per-token losses cost transformers' Trainer: memory at the peak, and a step's time.

Needs `pip install "infobatch[transformers]"`. Each case runs in a process of its own.

python benchmarks/trainer.py --out benchmarks/results/trainer.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

CASES = ("stock", "weight 1", "pruned", "stock, bf16", "weight 1, bf16", "pruned, bf16")
VOCABULARY, TOKENS, BATCH, SEQUENCES, EPOCHS = 32_000, 256, 4, 24, 4


def main() -> None:
    """Run every case in turn, some rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/trainer.json"))
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case)))
        return
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(arguments.repeats):
        for case in CASES:
            command = [sys.executable, __file__, "--case", case]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            for name, value in json.loads(text.splitlines()[-1]).items():
                found.setdefault(case, {}).setdefault(name, []).append(value)
        print(json.dumps(found[case]), flush=True)
    sizes = {"vocabulary": VOCABULARY, "tokens": TOKENS * BATCH}
    arguments.out.write_text(json.dumps({**sizes, "cases": found}, indent=1) + "\n", "utf-8")


def measure(case: str) -> dict[str, float]:
    """Train a tiny language model with a large vocabulary; peak MiB and median ms of a step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback
    from transformers import TrainingArguments as Arguments

    from infobatch import InfoBatch
    from infobatch.integrations.transformers import InfoBatchTrainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=VOCABULARY,
    ))  # fmt: skip
    rows = [torch.randint(0, 200 if i % 2 else VOCABULARY, (TOKENS,)) for i in range(SEQUENCES)]
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.process_time() - self.began)

    given: dict[str, Any] = {}
    if "stock" not in case:
        ratio = 0.0 if "weight 1" in case else 0.5
        given["pruner"] = partial(InfoBatch, prune_ratio=ratio, delta=1.0)
    with tempfile.TemporaryDirectory() as folder:
        args = Arguments(
            folder, per_device_train_batch_size=BATCH, num_train_epochs=EPOCHS, use_cpu=True,
            report_to="none", save_strategy="no", disable_tqdm=True, bf16="bf16" in case,
            logging_strategy="no", optim="sgd",
        )  # fmt: skip
        kind = InfoBatchTrainer if given else Trainer
        data = [{"input_ids": row, "labels": row} for row in rows]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kind(model, args, train_dataset=data, **given, callbacks=[Clock()]).train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"MiB": (peak - before) / 1024, "ms": statistics.median(seconds[2:]) * 1000}


if __name__ == "__main__":
    main()
