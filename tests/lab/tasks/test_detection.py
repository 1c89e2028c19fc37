"""Boxes are read or refused in words, and go where their pixels go."""

import logging

import numpy as np
import pytest
import torch
from tests.lab.tasks.voc_data import squares, write_annotation, write_voc

from infobatch.lab.errors import LabError
from infobatch.lab.tasks import all_tasks
from infobatch.lab.tasks.base.images import ImageInputs
from infobatch.lab.tasks.detection.boxes import BoxData, BoxInputs, box_data
from infobatch.lab.tasks.detection.voc import BoxedImage, read_voc

DETECTION = all_tasks()["detection"]
PLAIN = ImageInputs((0.0, 0.0, 0.0), (1 / 255,) * 3)  # colours as they are stored
PARTS = {"trainval": squares(4), "test": squares(3, seed=1)}


def read(folder):
    return read_voc(folder, "BCCD", "Fetch it.")


@pytest.mark.parametrize("inner", [".", "BCCD"])
def test_images_and_boxes_are_read_in_the_order_of_the_lists(inner, tmp_path):
    write_voc(tmp_path / inner, PARTS)
    for found, part, boxes in zip(read(tmp_path), PARTS, PARTS.values(), strict=True):
        assert [one.name for one in found] == [f"{part}_{i}" for i in range(len(boxes))]
        for one, wanted in zip(found, boxes, strict=True):
            assert one.image.shape == (48, 64, 3)
            assert one.classes == tuple(label for label, _ in wanted)
            assert one.boxes.tolist() == [list(box) for _, box in wanted]


def test_train_and_val_are_read_together_where_there_is_no_trainval(tmp_path):
    write_voc(tmp_path, {"train": squares(3), "val": squares(2, seed=2), "test": squares(1)})
    names = [one.name for one in read(tmp_path)[0]]
    assert names == ["train_0", "train_1", "train_2", "val_0", "val_1"]


def test_boxes_without_an_area_are_left_out_and_counted(tmp_path, caplog):
    boxes = [
        ("red", (-5, 10, 20, 60)),  # reaches out
        ("red", (10, 10, 10, 20)),
        ("green", (70, 0, 80, 10)),  # outside
        ("green", (30, 5, 40, 15)),
    ]
    write_voc(tmp_path, {"trainval": [boxes], "test": squares(1)})
    with caplog.at_level(logging.WARNING):
        (one,), _ = read(tmp_path)
    assert one.classes == ("red", "green")
    assert one.boxes.tolist() == [[0, 10, 20, 48], [30, 5, 40, 15]]
    assert "2 boxes without an area are left out: red in trainval_0, green in trainval_0" in (
        caplog.text
    )


def test_what_is_missing_or_damaged_is_refused_in_words(tmp_path):
    for data_dir in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(LabError, match=r"Fetch the folder BCCD of https://github\.com/Shengg"):
            DETECTION.load(data_dir)

    def refused(message):
        with pytest.raises(LabError, match=message):
            read(tmp_path)

    write_voc(tmp_path, PARTS)
    annotation = tmp_path / "Annotations" / "trainval_1.xml"
    good = annotation.read_bytes()
    annotation.write_bytes(good[:50])
    refused(r"trainval_1\.xml is not a readable annotation")
    annotation.unlink()
    refused(r"trainval_1\.xml is not a readable annotation")
    write_annotation(tmp_path, "trainval_1", [], size=(64, 48))
    refused("is for an image of 48 x 64 pixels, but trainval_1.jpg has 64 x 48")
    for broken in (("red", (1, 2, "x", 4)), ("red", (1, 2, "nan", 4)), ("", (1, 2, 3, 4))):
        write_annotation(tmp_path, "trainval_1", [broken])
        refused("must have a name and a bndbox with xmin")
    annotation.write_bytes(good)
    picture = tmp_path / "JPEGImages" / "test_0.jpg"
    picture.write_bytes(picture.read_bytes()[:200])
    refused(r"test_0\.jpg is not a readable image")
    lists = tmp_path / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("trainval_0\ntrainval_0\n")
    refused("must name every image once")
    (lists / "trainval.txt").write_text("\n")
    refused("names no image")
    (lists / "trainval.txt").unlink()
    refused("trainval.txt")


def boxed(shape, classes, boxes):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    return BoxedImage("x", image, classes, np.array(boxes, dtype=np.float32).reshape(-1, 4))


def test_images_are_scaled_into_the_middle_of_one_canvas_with_their_boxes():
    wide = boxed((40, 80), ("b", "a"), [[8, 4, 16, 20], [0, 0, 80, 40]])
    tall = boxed((80, 40), (), [])
    data = box_data([wide, tall], [wide], 40)
    assert data.train_inputs.shape == (2, 3, 64, 64)  # 20 x 40 and 40 x 20 fit on it
    assert (data.train_inputs[0, :, :22] == 114).all()
    assert (data.train_inputs[0, :, 42:] == 114).all()
    assert not (data.train_inputs[0, :, 22:42, 12:52] == 114).all(dim=0).any(dim=1).all()
    assert data.train_targets[0].tolist() == [[1, 16, 24, 20, 32], [0, 12, 22, 52, 42]]
    assert data.train_targets[1, :, 0].tolist() == [-1, -1]
    assert torch.equal(data.test_inputs[0], data.train_inputs[0])
    assert data.labels is None


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ((), (), "no training image has a box"),
        (("a",), (), "no test image has a box"),
        (("a",), ("c",), "test set has boxes of c, the training set only of a"),
    ],
)
def test_classes_that_cannot_be_learned_are_refused(train, test, message):
    parts = [[boxed((8, 8), names, [[0, 0, 4, 4]] * len(names))] for names in (train, test)]
    with pytest.raises(LabError, match=message):
        box_data(*parts, 32)


@pytest.mark.parametrize("given", [{"size": "8"}, {"size": "x"}, {"mosaic": "1.5"}])
def test_options_out_of_range_are_refused(given):
    with pytest.raises(LabError, match=f"--option {next(iter(given))} must be a .*number from"):
        DETECTION.with_options(given)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def painted(batch=60, height=32, width=64):
    """Four images each, with boxes whose pixels all have the number of the box's class."""
    images = torch.zeros(batch, 4, 3, height, width, dtype=torch.uint8)
    targets = torch.full((batch, 4, 3, 5), -1.0)
    for quarter in range(4):
        for number, (left, top) in enumerate(((2, 3), (20 + quarter, 16))):
            label = 1 + 2 * quarter + number
            right, bottom = left + 24 + quarter, top + 12
            images[:, quarter, :, top:bottom, left:right] = label
            targets[:, quarter, number] = torch.tensor([label, left, top, right, bottom])
    return images, targets


@pytest.mark.parametrize("mosaic", [0.0, 0.5, 1.0])
def test_boxes_lie_where_their_pixels_are(mosaic):
    images, targets = painted()
    inputs, boxes = BoxInputs(PLAIN, mosaic)(images, targets, generator(), True)
    pixels = inputs[:, 0].round().long()
    assert pixels.shape == (60, 32, 64)
    assert boxes.shape == (60, 12, 5)
    full = {1: 24, 2: 24, 3: 25, 4: 25, 5: 26, 6: 26, 7: 27, 8: 27}
    mosaics = kept = cut = 0
    for picture, rows in zip(pixels, boxes, strict=True):
        there = {int(label): box for label, *box in rows.tolist() if label >= 0}
        seen = set(picture.unique().tolist()) - {0}
        mosaics += bool(seen - {1, 2})
        assert set(there) <= seen
        for label in seen:
            y, x = (picture == label).nonzero(as_tuple=True)
            extent = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            width, height = extent[2] - extent[0], extent[3] - extent[1]
            large = min(width, height) >= 2 and width * height >= 0.1 * full[label] * 12
            assert (label in there) == bool(large)
            if label in there:
                assert there[label] == [float(side) for side in extent]
                kept += 1
            cut += not large
    assert kept > 60
    if mosaic == 0:
        assert mosaics == cut == 0
    else:
        assert cut > 0
        assert (mosaics > 50) == (mosaic == 1)
        assert mosaics > 15


def test_flips_happen_in_both_directions_and_from_the_generator_alone():
    images, targets = painted()
    prepare = BoxInputs(PLAIN, 0.0)
    torch.manual_seed(1)
    inputs, boxes = prepare(images, targets, generator(), True)
    torch.manual_seed(2)
    assert torch.equal(boxes, prepare(images, targets, generator(), True)[1])
    assert not torch.equal(boxes, prepare(images, targets, generator(1), True)[1])
    corners = {tuple(box) for box in boxes[:, 0, 1:3].tolist()}
    assert corners == {(2, 3), (38, 3), (2, 17), (38, 17)}


def test_evaluation_sees_what_is_stored():
    images, targets = painted(batch=2)
    inputs, boxes = BoxInputs(PLAIN, 1.0)(images[:, 0], targets[:, 0], generator(), False)
    torch.testing.assert_close(inputs, images[:, 0].float())
    assert torch.equal(boxes, targets[:, 0])


def test_small_boxes_stay_where_nothing_cuts_them():
    images, targets = painted(batch=8)
    targets[:, 0, 0] = torch.tensor([5, 10, 10, 11, 11])
    _, boxes = BoxInputs(PLAIN, 0.0)(images, targets, generator(), True)
    assert (boxes[:, 0, 0] == 5).all()


def test_the_others_of_a_mosaic_come_from_the_whole_training_set():
    count = 50
    numbers = torch.arange(count)
    data = BoxData(numbers.view(-1, 1, 1, 1), numbers.view(-1, 1, 1).float(), numbers, numbers)
    seen = []

    def prepare(rows, targets, generator, training):
        assert training
        assert torch.equal(rows.flatten(1).float(), targets.flatten(1))
        seen.append(rows.flatten(1))
        return rows, targets

    batches = [[3, 4, 5]] * 40
    found = list(data.batches(batches, prepare, generator))
    assert all(batch.indices.tolist() == [3, 4, 5] for batch in found)
    assert all(rows[:, 0].tolist() == [3, 4, 5] for rows in seen)
    others = torch.cat([rows[:, 1:] for rows in seen])
    assert set(others.flatten().tolist()) == set(range(count))
    list(data.batches(batches[:2], prepare, generator))
    assert torch.equal(seen[-1], seen[1])  # the same generator, the same others
