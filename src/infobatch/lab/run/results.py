"""Results as JSON lines: one finished run a line, on disk before the next run begins."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from infobatch.lab.arms.base import FORWARD_COST
from infobatch.lab.errors import LabError
from infobatch.lab.run import ranks
from infobatch.lab.run.settings import Settings
from infobatch.lab.tasks.base.task import Metric

FORMAT = 2
FILE_NAME = "results.jsonl"


@dataclass
class Cost:
    """What a run spent on training samples.

    Forwarded and backpropagated samples are counted apart: a method that scores samples without
    training on them pays for the first alone.
    """

    samples_forwarded: int = 0
    samples_backpropagated: int = 0
    steps: int = 0

    @property
    def passes(self) -> float:
        """Sample passes: 1 for a sample trained on, `FORWARD_COST` for one only passed forward."""
        alone = self.samples_forwarded - self.samples_backpropagated
        return self.samples_backpropagated + FORWARD_COST * alone

    def add(self, other: Cost) -> None:
        """Add what another part of the run spent."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Curves:
    """One entry per epoch.

    Attributes:
        kept: samples trained on.
        threshold: score threshold of the selection; None where nothing was pruned by score.
        mean_loss: mean training loss; None if it was not finite.
        metric: on the test set; None where it was not evaluated.
        samples: sample passes since the start.
        seconds: wall seconds since the start.
        headroom, rank_correlation: see `EpochRecord`; None where they are not known.

    Those from `seconds` on are empty in results from before they were kept.
    """

    kept: list[int] = field(default_factory=list)
    threshold: list[float | None] = field(default_factory=list)
    mean_loss: list[float | None] = field(default_factory=list)
    metric: list[float | None] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    headroom: list[float | None] = field(default_factory=list)
    rank_correlation: list[float | None] = field(default_factory=list)


@dataclass
class Histogram:
    """The scores before an epoch in equal bins from `low` to `high`, and the threshold."""

    epoch: int
    low: float
    high: float
    counts: list[int]
    threshold: float


@dataclass
class PrunedSample:
    """A training sample and in how many epochs it was left out."""

    index: int
    class_name: str
    times_pruned: int


@dataclass
class Observations:
    """Loss distributions, and the samples pruned most often and never."""

    histograms: list[Histogram] = field(default_factory=list)
    most_pruned: list[PrunedSample] = field(default_factory=list)
    never_pruned: list[PrunedSample] = field(default_factory=list)


@dataclass
class RunResult:
    """One finished run.

    Attributes:
        cost_target: told by `--cost`; None where the arm spent its own cost, or InfoBatch's.
        dataset_size, epochs: training samples, and epochs of this run.
        metric: of the final epoch, in the task's unit; never the best epoch.
        worst_class: the metric of the class that is worst; None where there are no classes.
        wall_seconds: training with selection and proxy runs inside the clock, evaluation outside.
        peak_memory: bytes; of the device, or of the process on a CPU; None where not known.
        versions, hardware, commit, time: where and when (UTC).
        more: other numbers of the final epoch that the task reports, by name.
        judged_by: what the metric is.
    """

    arm: str
    seed: int
    cost_target: float | None
    settings: Settings
    dataset_size: int
    epochs: int
    cost: Cost
    metric: float
    worst_class: float | None
    wall_seconds: float
    peak_memory: int | None
    curves: Curves
    observations: Observations
    versions: dict[str, str]
    hardware: str
    commit: str | None
    time: str
    more: dict[str, float] = field(default_factory=dict)
    judged_by: Metric = field(default_factory=Metric)

    @property
    def label(self) -> str:
        """The arm, with the cost that it was told: `random@0.6`."""
        return run_label(self.arm, self.cost_target)

    @property
    def cost_fraction(self) -> float:
        """What the run has cost, as a fraction of the full-data run."""
        return self.cost.passes / (self.dataset_size * self.settings.epochs)

    def to_json(self) -> dict[str, Any]:
        """Plain containers, for one line of JSON."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, entries: dict[str, Any]) -> RunResult:
        """Inverse of `to_json`; KeyError, TypeError or ValueError where it is none."""
        known = dict(entries)
        if (version := known.pop("format")) != FORMAT:
            raise ValueError(f"format {version}, this version reads {FORMAT}")
        observed = known["observations"]
        return cls(
            **{
                **known,
                "settings": Settings.from_json(entries["settings"]),
                "judged_by": Metric(**entries.get("judged_by", {})),
                "cost": Cost(**entries["cost"]),
                "curves": Curves(**entries["curves"]),
                "observations": Observations(
                    [Histogram(**item) for item in observed["histograms"]],
                    [PrunedSample(**item) for item in observed["most_pruned"]],
                    [PrunedSample(**item) for item in observed["never_pruned"]],
                ),
            }
        )


def run_label(arm: str, cost: float | None) -> str:
    """An arm and the cost that it was told, as one word."""
    return arm if cost is None else f"{arm}@{cost:g}"


def read_results(path: Path) -> list[RunResult]:
    """All finished runs of a results file, plain or packed with gzip, or of the one in a folder.

    A last line that a crash cut short is left out.

    Raises:
        LabError: there is no such file, or another line is damaged.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise LabError(f"no results in {path}: {reason}") from error
    return _parse(file, content)


def _parse(file: Path, content: bytes) -> list[RunResult]:
    results = []
    for number, line in enumerate(content[: _whole(content)].splitlines(), start=1):
        try:
            results.append(RunResult.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise LabError(
                f"{file}, line {number}: not a result of this version of infobatch "
                f"({type(error).__name__}: {error}); move the file away or use another --out"
            ) from error
    return results


def _whole(content: bytes) -> int:
    """Length of the part that consists of whole lines."""
    return content.rfind(b"\n") + 1


class ResultsFile:
    """The results of one comparison on disk, opened to go on with.

    Raises:
        LabError: the file holds runs with other settings, or a damaged line.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.path = folder / FILE_NAME
        self._results: dict[tuple[str, float | None, int], RunResult] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise LabError(f"--out {folder} cannot be used: {error.strerror}") from error
        for result in _parse(self.path, content):
            if result.settings != settings:
                raise LabError(
                    f"{folder} holds results with other settings: "
                    f"{settings.difference(result.settings)}; use another --out"
                )
            self._results[result.arm, result.cost_target, result.seed] = result
        if len(content) > _whole(content):
            os.truncate(self.path, _whole(content))

    def find(self, arm: str, cost: float | None, seed: int) -> RunResult | None:
        """The finished run, if there is one."""
        return self._results.get((arm, cost, seed))

    def add(self, result: RunResult) -> None:
        """Append a finished run; on return it is on the disk, where the first process writes it."""
        self._results[result.arm, result.cost_target, result.seed] = result
        if ranks.rank() > 0:
            return
        line = json.dumps(result.to_json(), allow_nan=False) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
