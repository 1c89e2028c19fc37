"""Results survive a crash, never mix settings, and say which line is damaged."""

import gzip
import json
import shutil
from dataclasses import replace

import pytest

from infobatch.lab.errors import LabError
from infobatch.lab.report.summary import summarise
from infobatch.lab.run.results import FILE_NAME, ResultsFile, RunResult, read_results


@pytest.fixture
def folder(comparison, tmp_path):
    shutil.copy(comparison.out / FILE_NAME, tmp_path)
    return tmp_path


def test_a_result_comes_back_from_the_disk_as_it_was(comparison):
    for result in read_results(comparison.out):
        assert RunResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_every_line_stands_for_itself(comparison):
    for line in (comparison.out / FILE_NAME).read_text().splitlines():
        entry = json.loads(line)
        curves = entry["curves"]
        assert {len(curve) for curve in curves.values()} == {entry["epochs"]}
        assert curves["metric"][-1] == entry["metric"]
        assert curves["samples"][-1] == entry["cost"]["samples_forwarded"]
        assert set(entry["versions"]) == {"python", "infobatch", "torch", "numpy"}
        assert entry["settings"]["margin"] == 0.5
        assert entry["time"].endswith("+00:00")


def test_no_path_and_no_host_name_is_recorded(comparison):
    import platform

    text = (comparison.out / FILE_NAME).read_text()
    assert str(comparison.out) not in text
    assert "/tmp" not in text
    assert len(platform.node()) < 4 or platform.node() not in text


def test_a_last_line_cut_short_by_a_crash_is_no_result_and_is_written_again(folder):
    path = folder / FILE_NAME
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:100])

    results = read_results(folder)
    assert len(results) == len(lines) - 1
    last = RunResult.from_json(json.loads(lines[-1]))
    file = ResultsFile(folder, last.settings)
    assert file.find(last.arm, last.cost_target, last.seed) is None
    file.add(last)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [b'{"format": 2, "arm"', b"{}", b"[]", b'"text"', b"\xff\xfe"])
def test_any_other_damaged_line_is_an_error_that_names_it(folder, damage):
    path = folder / FILE_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + damage + b"\n" + b"".join(lines[1:]))
    with pytest.raises(LabError, match=r"results\.jsonl, line 2: not a result"):
        read_results(folder)


def test_a_file_of_another_format_is_refused(folder):
    path = folder / FILE_NAME
    path.write_text(path.read_text().replace('"format": 2', '"format": 1', 1))
    with pytest.raises(LabError, match=r"line 1.*format 1, this version reads 2"):
        read_results(folder)


def test_results_with_other_settings_are_refused_with_the_difference(folder):
    settings = read_results(folder)[0].settings
    with pytest.raises(LabError, match=r"lr 9.0 \(there 0.2\); use another --out"):
        ResultsFile(folder, replace(settings, lr=9.0))


def test_no_file_is_said_plainly(tmp_path):
    with pytest.raises(LabError, match=r"no results in .*: No such file"):
        read_results(tmp_path)


def test_runs_with_different_settings_are_summarised_apart(comparison):
    runs = read_results(comparison.out)
    others = [replace(run, settings=replace(run.settings, lr=9.0)) for run in runs]
    assert [len(part.runs) for part in summarise([*runs, *others])] == [len(runs)] * 2


def test_the_same_run_twice_is_refused(comparison):
    runs = read_results(comparison.out)
    with pytest.raises(LabError, match="full with seed 0 comes twice"):
        summarise([*runs, *runs])


def test_rows_are_means_over_seeds_and_differences_are_paired(comparison):
    runs = read_results(comparison.out)
    (part,) = summarise(runs)
    assert part.rows[0].arm == "full"
    full = {run.seed: run for run in runs if run.arm == "full"}
    for row in part.rows:
        mine = {run.seed: run for run in runs if run.arm == row.arm}
        assert row.metric == pytest.approx(sum(run.metric for run in mine.values()) / 2)
        assert row.saved == pytest.approx(
            100 * (1 - sum(run.cost.samples_forwarded for run in mine.values()) / (2 * 1500))
        )
        if row.arm != "full":
            assert row.difference.pairs == 2
            assert row.difference.mean == pytest.approx(
                sum(mine[seed].metric - full[seed].metric for seed in mine) / 2
            )
    assert set(part.controls) == {"fewer-epochs", "proportional", "random"}


def test_only_seeds_that_both_have_are_paired(comparison):
    runs = [r for r in read_results(comparison.out) if (r.arm, r.seed) != ("full", 1)]
    (part,) = summarise(runs)
    row = next(row for row in part.rows if row.arm == "infobatch")
    assert row.seeds == 2
    assert row.difference.pairs == 1
    assert row.verdict == "undecided (1 seed)"


def test_without_the_reference_there_is_no_difference_and_no_verdict(comparison):
    (part,) = summarise([run for run in read_results(comparison.out) if run.arm == "random"])
    assert part.rows[0].difference is None
    assert part.rows[0].wall_ratio is None
    assert part.rows[0].verdict == ""


def test_results_packed_with_gzip_are_read_too(folder):
    packed = folder / "results.jsonl.gz"
    packed.write_bytes(gzip.compress((folder / FILE_NAME).read_bytes()))
    assert read_results(packed) == read_results(folder)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(LabError, match="no results in"):
        read_results(packed)
