"""CIFAR is read from every usual form, a pickle runs nothing, and errors say what to do."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infobatch.lab.errors import LabError
from infobatch.lab.tasks import all_tasks
from infobatch.lab.tasks.cifar.reader import read_cifar

TRAIN, TEST = 10, 4


@pytest.fixture
def arrays():
    """Random images and labels in every class that 10 samples can have."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (TRAIN + TEST, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(TRAIN + TEST) % 3
    return images[:TRAIN], labels[:TRAIN], images[TRAIN:], labels[TRAIN:]


def rows(images):
    """The official order of bytes: all red, all green, all blue."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), 3072)


def write_python(folder: Path, arrays, classes: int) -> None:
    folder.mkdir(parents=True)
    train_x, train_y, test_x, test_y = arrays

    def write(name, images, labels):
        key = b"labels" if classes == 10 else b"fine_labels"
        content = {b"data": rows(images), key: labels.tolist(), b"batch_label": b"a batch"}
        if classes == 100:
            content[b"coarse_labels"] = [19] * len(labels)
        # Protocol 2 and the module's old name are what the official files have.
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data.replace(b"numpy._core", b"numpy.core"))

    names = [b"name %d" % label for label in range(classes)]
    if classes == 10:
        for part in range(5):
            write(f"data_batch_{part + 1}", train_x[2 * part :][:2], train_y[2 * part :][:2])
        write("test_batch", test_x, test_y)
        (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    else:
        write("train", train_x, train_y)
        write("test", test_x, test_y)
        (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}, protocol=2))


def write_binary(folder: Path, arrays, classes: int) -> None:
    folder.mkdir(parents=True)
    train_x, train_y, test_x, test_y = arrays

    def write(name, images, labels):
        columns = [labels[:, None].astype(np.uint8), rows(images)]
        if classes == 100:
            columns.insert(0, np.full((len(labels), 1), 19, np.uint8))  # the coarse label
        (folder / name).write_bytes(np.concatenate(columns, axis=1).tobytes())

    names = "".join(f"name {label}\n" for label in range(classes))
    if classes == 10:
        for part in range(5):
            write(f"data_batch_{part + 1}.bin", train_x[2 * part :][:2], train_y[2 * part :][:2])
        write("test_batch.bin", test_x, test_y)
        (folder / "batches.meta.txt").write_text(names + "\n")
    else:
        write("train.bin", train_x, train_y)
        write("test.bin", test_x, test_y)
        (folder / "fine_label_names.txt").write_text(names)


def write_npz(path: Path, arrays, **changes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True))
    np.savez(path, **{**content, **changes})


def write_folders(folder: Path, arrays) -> None:
    train_x, train_y, test_x, test_y = arrays
    for part, images, labels in (("train", train_x, train_y), ("test", test_x, test_y)):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            target = folder / part / f"kind{label}"
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(target / f"{number:03}.png")


def same(found, arrays, *, order=None) -> None:
    train_x, train_y, test_x, test_y = arrays
    if order:  # class by class
        train, test = np.argsort(train_y, kind="stable"), np.argsort(test_y, kind="stable")
        train_x, train_y, test_x, test_y = (
            train_x[train],
            train_y[train],
            test_x[test],
            test_y[test],
        )
    np.testing.assert_array_equal(found.train_images, train_x)
    np.testing.assert_array_equal(found.train_labels, train_y)
    np.testing.assert_array_equal(found.test_images, test_x)
    np.testing.assert_array_equal(found.test_labels, test_y)
    assert found.train_labels.dtype == np.int64


@pytest.mark.parametrize("inside", [True, False], ids=["the folder itself", "its parent"])
@pytest.mark.parametrize(
    ("write", "name", "classes"),
    [
        (write_python, "cifar-10-batches-py", 10),
        (write_python, "cifar-100-python", 100),
        (write_binary, "cifar-10-batches-bin", 10),
        (write_binary, "cifar-100-binary", 100),
    ],
)
def test_official_batches(tmp_path, arrays, write, name, classes, inside):
    write(tmp_path / name, arrays, classes)
    found = read_cifar(tmp_path / name if inside else tmp_path, classes=classes)
    same(found, arrays)
    assert found.class_names == tuple(f"name {label}" for label in range(classes))


@pytest.mark.parametrize("protocol", range(6))
def test_python_batches_of_every_pickle_protocol(tmp_path, arrays, protocol):
    write_python(tmp_path / "b", arrays, 100)
    for part, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        content = {"data": np.ascontiguousarray(rows(images)), "fine_labels": labels}
        (tmp_path / "b" / part).write_bytes(pickle.dumps(content, protocol=protocol))
    same(read_cifar(tmp_path / "b", classes=100), arrays)


@pytest.mark.parametrize("file", [True, False], ids=["the file", "its folder"])
def test_a_plain_npz_file(tmp_path, arrays, file):
    write_npz(tmp_path / "cifar10.npz", arrays)
    found = read_cifar(tmp_path / "cifar10.npz" if file else tmp_path, classes=10)
    same(found, arrays)
    assert found.class_names[:2] == ("airplane", "automobile")


def test_an_npz_file_with_channels_first_and_columns_of_labels(tmp_path, arrays):
    train_x, train_y, test_x, test_y = arrays
    first = (train_x.transpose(0, 3, 1, 2), train_y[:, None], test_x.transpose(0, 3, 1, 2), test_y)
    names = np.array([f"name {label}" for label in range(10)])
    write_npz(tmp_path / "some.npz", first, classes=names)
    found = read_cifar(tmp_path, classes=10)
    same(found, arrays)
    assert found.class_names == tuple(names)


def test_a_folder_of_class_folders(tmp_path, arrays):
    write_folders(tmp_path, arrays)
    found = read_cifar(tmp_path, classes=10)
    same(found, arrays, order="by class")
    assert found.class_names == ("kind0", "kind1", "kind2")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_tasks_take_what_was_read(tmp_path, arrays, name):
    write_npz(tmp_path / "data.npz", arrays)
    task = all_tasks()[name]
    data = task.load(tmp_path)
    assert data.train_inputs.shape == (TRAIN, 3, 32, 32)
    np.testing.assert_array_equal(data.train_inputs.permute(0, 2, 3, 1), arrays[0])
    outputs = task.build(task.model, 4, data)(task.prepare.inputs(data.train_inputs, None))
    assert outputs.shape == (TRAIN, int(name.removeprefix("cifar")))
    np.testing.assert_array_equal(task.thumbnail(data.train_inputs[0]), arrays[0][0])


class Payload:
    """Pickles to a call of anything that can be imported."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("call", [(os.mkdir, "harm"), (eval, "1"), (exec, ""), (np.load, "x")])
def test_a_pickle_that_asks_for_anything_else_runs_nothing(tmp_path, arrays, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_python(tmp_path / "b", arrays, 100)
    (tmp_path / "b" / "test").write_bytes(pickle.dumps({b"data": Payload(*call)}))
    with pytest.raises(LabError, match=r"test is not read.*it asks for"):
        read_cifar(tmp_path / "b", classes=100)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", pickle.dumps([1]), pickle.dumps({b"data": 1})]
)
def test_a_python_batch_that_is_none_is_refused_by_name(tmp_path, arrays, content):
    write_python(tmp_path / "b", arrays, 100)
    (tmp_path / "b" / "train").write_bytes(content)
    with pytest.raises(LabError, match="train is n"):
        read_cifar(tmp_path / "b", classes=100)


def test_nothing_there_says_what_to_fetch_where_and_where_to_put_it(tmp_path):
    for folder in (None, tmp_path, tmp_path / "absent"):
        with pytest.raises(LabError) as error:
            read_cifar(folder, classes=100)
        for words in (
            "cifar-100-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar.html",
            "--data-dir",
            "x_train, y_train, x_test, y_test",
        ):
            assert words in str(error.value)


def test_an_archive_that_was_not_unpacked_is_noticed(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").touch()
    with pytest.raises(LabError, match=r"cifar-10-python\.tar\.gz is: unpack it"):
        read_cifar(tmp_path, classes=10)


@pytest.mark.parametrize("write", [write_python, write_binary])
def test_a_missing_batch_is_named(tmp_path, arrays, write):
    write(tmp_path / "b", arrays, 10)
    next((tmp_path / "b").glob("data_batch_3*")).unlink()
    with pytest.raises(LabError, match=r"lacks data_batch_3(\.bin)?: unpack the archive again"):
        read_cifar(tmp_path / "b", classes=10)


def test_a_binary_batch_cut_short_is_refused(tmp_path, arrays):
    write_binary(tmp_path / "b", arrays, 10)
    path = tmp_path / "b" / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LabError, match="must be rows of 3073 bytes, got 6145 bytes"):
        read_cifar(tmp_path / "b", classes=10)


def test_an_npz_file_that_lacks_an_array_is_refused(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", x_train=arrays[0], y_train=arrays[1])
    with pytest.raises(LabError, match="it lacks x_test, y_test"):
        read_cifar(tmp_path, classes=10)


def test_an_npz_file_with_pickled_objects_is_refused(tmp_path, arrays):
    write_npz(tmp_path / "a.npz", arrays, x_test=np.array([Payload(os.mkdir, "harm")], object))
    with pytest.raises(LabError, match="must hold plain arrays"):
        read_cifar(tmp_path, classes=10)


@pytest.mark.parametrize("name", ["a.npz", "notes.txt"])
def test_a_file_that_is_no_npz_is_refused(tmp_path, name):
    (tmp_path / name).write_text("nothing of the kind")
    with pytest.raises(LabError, match=name):
        read_cifar(tmp_path / name, classes=10)


def test_a_damaged_npz_file_is_refused(tmp_path, arrays):
    write_npz(tmp_path / "a.npz", arrays)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        offset = archive.getinfo("x_train.npy").header_offset
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[offset + 5000] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(bytes(content))
    with pytest.raises(LabError, match=r"a\.npz is not a readable \.npz file"):
        read_cifar(tmp_path, classes=10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((TRAIN, 32, 32, 3))}, r"train images must be uint8 .* got float64"),
        ({"x_test": np.zeros((TEST, 32, 32), np.uint8)}, r"test images must be .*\(4, 32, 32\)"),
        ({"y_train": np.zeros(3, np.int64)}, "got 10 images and 3 labels"),
        ({"y_test": np.full(TEST, 10)}, r"test labels must lie in 0\.\.9 for cifar10, got 10"),
        ({"y_train": np.full(TRAIN, -1)}, r"train labels must lie in 0\.\.9"),
        ({"x_test": np.zeros((TEST, 8, 8, 3), np.uint8)}, r"one size, got \(32, 32\) and \(8, 8\)"),
        (
            {"x_test": np.zeros((0, 32, 32, 3), np.uint8), "y_test": np.zeros(0, np.int64)},
            r"test images must be uint8 .*, N at least 1",
        ),
    ],
)
def test_data_that_are_not_what_they_should_be_are_refused(tmp_path, arrays, changes, message):
    write_npz(tmp_path / "a.npz", arrays, **changes)
    with pytest.raises(LabError, match=message):
        read_cifar(tmp_path, classes=10)


def test_class_folders_that_differ_are_refused(tmp_path, arrays):
    write_folders(tmp_path, arrays)
    (tmp_path / "test" / "another").mkdir()
    with pytest.raises(LabError, match="must hold the same class folders"):
        read_cifar(tmp_path, classes=10)


def test_class_folders_without_images_are_refused(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part / "cat").mkdir(parents=True)
    with pytest.raises(LabError, match=r"no \.png file in the class folders"):
        read_cifar(tmp_path, classes=10)


def test_images_of_different_size_are_refused(tmp_path, arrays):
    write_folders(tmp_path, arrays)
    path = tmp_path / "train" / "kind1" / "999.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    with pytest.raises(LabError, match=r"one size, got \(32, 32\) and \(8, 8\) in .*999\.png"):
        read_cifar(tmp_path, classes=10)


def test_a_file_that_is_no_image_is_named(tmp_path, arrays):
    write_folders(tmp_path, arrays)
    (tmp_path / "train" / "kind0" / "zzz.png").write_text("no image")
    with pytest.raises(LabError, match=r"zzz\.png is not a readable image"):
        read_cifar(tmp_path, classes=10)
