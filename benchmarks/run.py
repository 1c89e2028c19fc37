"""Measure what infobatch costs; write the raw results. See docs/overhead.md for what they say.

python benchmarks/run.py --out benchmarks/results/cpu.json
python benchmarks/report.py
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from epochs import epochs, handing_out, pauses
from machine import machine, versions
from memory import memory
from planning import planning
from reference import Reference
from saving import saving
from steps import accelerator_costs, compiled_costs, cuda_waits, operations, step_costs
from timing import Effort, brief

FORMAT = 1
SIZES = (50_000, 1_280_000, 14_000_000)
LARGE = 100_000_000
BATCH_SIZES = (128, 1024)
STEP_SIZE = 1_280_000  # the size at which single steps are timed, if it is among the sizes


def main() -> None:
    """Run what the command line asks for."""
    arguments = parse()
    torch.set_num_threads(1)
    reference = Reference(arguments.reference) if arguments.reference else None
    results: dict[str, Any] = {
        "format": FORMAT,
        "command": command(arguments),
        "threads": 1,
        "versions": versions(),
        "machine": machine(),
        "reference": reference.describe() if reference else None,
        "measurements": [],
    }
    began = time.perf_counter()
    measure(results["measurements"], arguments, reference)
    results["minutes"] = round((time.perf_counter() - began) / 60, 1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {arguments.out}; now run benchmarks/report.py")


def measure(
    measurements: list[dict[str, Any]], arguments: argparse.Namespace, reference: Reference | None
) -> None:
    """Take all measurements, the small sizes first."""
    effort = Effort(arguments.repeats, arguments.seconds)

    def note(kind: str, samples: dict[str, Any], **facts: Any) -> None:
        measurements.append({"kind": kind, **facts, "samples": samples})
        label = " ".join(f"{name}={value}" for name, value in facts.items())
        print(f"{kind} {label}: {brief(samples)}", flush=True)

    for size in arguments.sizes:
        note("planning", planning(size, reference, effort), size=size)
        for batch_size in BATCH_SIZES:
            facts = {"size": size, "batch_size": batch_size}
            note("epoch", epochs(size, batch_size, reference, effort), **facts)
            note("handing_out", handing_out(size, batch_size, reference, effort), **facts)
        note("pause", pauses(size, effort), size=size)
        found = memory(size, reference)
        measurements.append({"kind": "memory", "size": size, "bytes": found})
        print(f"memory size={size}: {found}", flush=True)

    size = min(arguments.sizes, key=lambda n: abs(n - STEP_SIZE))
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        for batch_size in BATCH_SIZES:
            for grad in (False, True):
                costs = step_costs(
                    size, batch_size, requires_grad=grad, device=device, effort=effort
                )
                facts = {"size": size, "batch_size": batch_size, "device": device}
                note("step", costs, **facts, requires_grad=grad)
    for batch_size in BATCH_SIZES:
        facts = {"size": min(arguments.sizes), "batch_size": batch_size}
        note("compiled", compiled_costs(**facts, effort=effort), **facts)
    facts = {"size": size, "batch_size": 256}
    note("accelerator", accelerator_costs(**facts, effort=effort), **facts)
    for pruned in (False, True):
        for grad in (False, True):
            found = operations(pruned=pruned, requires_grad=grad)
            measurements.append({"kind": "operations", **found})
            print(f"operations {found}", flush=True)
    if "cuda" in devices:
        waits = cuda_waits(50_000, 128)
        measurements.append({"kind": "cuda_waits", "waits": waits})

    run = saving(arguments.saving_size, arguments.saving_epochs, arguments.repeats)
    note("saving", run, size=arguments.saving_size, epochs=arguments.saving_epochs)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--size", type=int, action="append", metavar="N",
        help=f"samples of a data set; may be repeated (default: {', '.join(map(str, SIZES))})",
    )  # fmt: skip
    parser.add_argument(
        "--large", action="store_true", help=f"also N = {LARGE:,}; takes 16 GiB and half an hour"
    )
    parser.add_argument(
        "--reference", type=Path, metavar="PATH",
        help="a checkout of the public reference implementation, to be measured beside infobatch",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=int, default=7, help="rounds of every comparison at least (default: 7)"
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0,
        help="go on with every comparison for so long, up to 101 rounds (default: 20)",
    )  # fmt: skip
    parser.add_argument(
        "--saving-size", type=int, default=16_384, help="samples of the small real training run"
    )
    parser.add_argument(
        "--saving-epochs", type=int, default=16, help="epochs of the small real training run"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/cpu.json"), help="the results file"
    )
    arguments = parser.parse_args()
    arguments.sizes = sorted({*(arguments.size or SIZES), *([LARGE] if arguments.large else [])})
    return arguments


def command(arguments: argparse.Namespace) -> str:
    """The command that repeats this run, without paths of this machine."""
    words = ["python benchmarks/run.py"]
    if arguments.size:
        words += [f"--size {size}" for size in arguments.size]
    if arguments.large:
        words.append("--large")
    if arguments.reference:
        words.append("--reference InfoBatch")
    for name, default in (("repeats", 7), ("seconds", 20.0), ("saving_size", 16_384),
                          ("saving_epochs", 16)):  # fmt: skip
        value = getattr(arguments, name)
        if value != default:
            words.append(f"--{name.replace('_', '-')} {value:g}")
    return " ".join([*words, f"--out benchmarks/results/{arguments.out.name}"])


if __name__ == "__main__":
    main()
