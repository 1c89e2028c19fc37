"""Adult is read as UCI distributes it or refused in words, and every kind of arm trains on it."""

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.lab.support import finish, run_command, run_example_here, training_run

from infobatch.lab.errors import LabError
from infobatch.lab.run.results import read_results
from infobatch.lab.tasks import all_tasks
from infobatch.lab.tasks.adult import read_adult

ADULT = all_tasks()["adult"]
ARMS = "infobatch,infobatch-quantile,random,kakurenbo,es,importance-sampling,static-el2n"
ROW = (
    "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, "
    "2174, 0, 40, United-States, <=50K"
)


def people(count: int, seed: int) -> list[str]:
    """Rows in the official format: who has studied for long or has gains earns more."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        years, gain = rng.integers(1, 17), rng.choice([0, 0, 0, 7000])
        work, sex = rng.choice(["Private", "?", "State-gov"]), rng.choice(["Male", "Female"])
        label = ">50K" if years + gain / 1000 + rng.normal() > 12 else "<=50K"
        rows.append(
            f"{rng.integers(17, 90)}, {work}, 1{rng.integers(1e5)}, HS-grad, {years}, Divorced, "
            f"Sales, Unmarried, Black, {sex}, {gain}, 0, {rng.integers(1, 99)}, Mexico, {label}"
        )
    return rows


def write(folder: Path, train: list[str], test: list[str]) -> Path:
    """adult.data with an empty line at its end, adult.test with its remark and full stops."""
    folder.mkdir(exist_ok=True)
    (folder / "adult.data").write_text("\n".join(train) + "\n\n")
    lines = ["|1x3 Cross validator", *(f"{row}." for row in test)]
    (folder / "adult.test").write_text("\n".join(lines) + "\n\n")
    return folder


@pytest.fixture(scope="module")
def census(tmp_path_factory):
    return write(tmp_path_factory.mktemp("census"), people(240, 0), people(120, 1))


def test_rows_are_read_as_they_are_distributed(tmp_path):
    unknown = ROW.replace("State-gov", "?").replace("<=50K", ">50K")
    train, test = read_adult(write(tmp_path, [ROW, unknown], [unknown]))
    assert train.numbers.tolist() == [[39, 13, 2174, 0, 40]] * 2
    assert train.words[:, 0].tolist() == ["State-gov", "?"]
    assert train.words[0, 1:].tolist() == [
        *("Bachelors", "Never-married", "Adm-clerical", "Not-in-family", "White", "Male"),
        "United-States",
    ]
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [1])


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_packed_files_and_a_folder_of_its_name_are_read_alike(suffix, pack, census, tmp_path):
    (tmp_path / "adult").mkdir()
    for name in ("adult.data", "adult.test"):
        packed = pack((census / name).read_bytes())
        (tmp_path / "adult" / f"{name}{suffix}").write_bytes(packed)
    plain, packed = ADULT.load(census), ADULT.load(tmp_path)
    assert plain.fingerprint() == packed.fingerprint()
    assert (len(plain), len(plain.test_targets)) == (240, 120)


def test_the_encoders_have_seen_the_training_part_alone(census, tmp_path):
    other = [row.replace("Mexico", "Norway").replace("Sales", "Skiing") for row in people(120, 1)]
    aged = [f"9{row}" for row in other]  # 917 to 989 years old
    data = ADULT.load(write(tmp_path, people(240, 0), aged))
    assert torch.equal(data.train_inputs, ADULT.load(census).train_inputs)
    numbers, categories = data.train_inputs.split([5, data.train_inputs.shape[1] - 5], dim=1)
    assert numbers.mean(0).abs().max() < 1e-5
    assert (numbers.std(0, correction=0) - 1).abs()[[0, 1, 2, 4]].max() < 1e-4
    assert categories.sum(1).eq(8).all()
    assert data.test_inputs[:, 5:].sum(1).eq(6).all()  # two of eight are not known
    assert data.test_inputs[:, 0].min() > 10


def test_every_kind_of_arm_runs(census, tmp_path):
    result = run_command(
        *("compare", "--task", "adult", "--data-dir", str(census), "--arms", f"full,{ARMS}"),
        *("--seeds", "1", "--epochs", "4", "--batch-size", "40", "--cost", "0.8"),
        *("--out", str(tmp_path)),
    )
    assert result.exit_code == 0, result.output
    full, *others = read_results(tmp_path)
    assert sorted(other.arm for other in others) == sorted(ARMS.split(","))
    for other in others:
        assert full.cost_fraction == 1 > other.cost_fraction
        assert 0 <= other.worst_class <= other.metric <= 100


def test_it_learns(census):
    data = ADULT.load(census)
    changes = {"model": "mlp", "width": None, "limit_train": None, "label_smoothing": 0.0}
    adamw = {"optimizer": "adamw", "lr": 4e-3, "weight_decay": 1e-2}
    run = training_run("full", data, task=ADULT, epochs=20, batch_size=20, **changes, **adamw)
    often = data.test_targets.bincount().max() / 120
    outcome = finish(run).outcome
    assert outcome.metric > 100 * often + 10
    assert outcome.worst_class > 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.replace("39, ", ""), "line 2: a row has 15 fields .* got 14"),
        (lambda row: row.replace("2174", "many"), "line 2: .*capital-gain.* got 'many'"),
        (lambda row: row.replace("39, ", "-1, "), "line 2: age.* must be numbers .* got '-1'"),
        (lambda row: row.replace("<=50K", "50K"), "line 2: the last field must be one of"),
    ],
)
def test_a_row_that_is_none_is_refused_with_its_line(change, message, tmp_path):
    with pytest.raises(LabError, match=rf"adult\.data, {message}"):
        read_adult(write(tmp_path, [ROW, change(ROW)], [ROW]))


def test_a_file_without_rows_is_refused(tmp_path):
    with pytest.raises(LabError, match=r"adult\.test holds no rows"):
        read_adult(write(tmp_path, [ROW], []))


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
def test_a_damaged_file_is_refused(suffix, census, tmp_path):
    write(tmp_path, [ROW], [ROW])
    pack = lzma.compress if suffix == ".xz" else gzip.compress
    packed = pack((census / "adult.data").read_bytes())
    (tmp_path / "adult.data").unlink()
    (tmp_path / f"adult.data{suffix}").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(LabError, match=rf"adult\.data{suffix} is not a readable text file"):
        read_adult(tmp_path)


@pytest.mark.parametrize("place", ["nowhere", "elsewhere", "half"])
def test_what_is_missing_is_said_with_where_to_get_it(place, tmp_path):
    if place == "half":
        write(tmp_path, [ROW], [ROW])
        (tmp_path / "adult.test").unlink()
    folder = {"nowhere": None, "elsewhere": tmp_path / "missing", "half": tmp_path}[place]
    with pytest.raises(LabError, match=r"Download adult\.zip from https://archive\.ics\.uci"):
        read_adult(folder)


@pytest.mark.parametrize("given", [True, False])
def test_the_example_runs(given, census):
    words = ["--data-dir", str(census)] if given else []
    output = run_example_here("adult.py", "--epochs", "8", *words)
    assert float(output.rpartition("test accuracy: ")[2].split("%")[0]) > 65
    assert "sample passes saved" in output
