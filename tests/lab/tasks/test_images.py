"""The fast augmentation is crop and flip as everyone writes them, and reads its generator alone."""

import torch
import torch.nn.functional as F

from infobatch.lab.tasks.base.images import ImageInputs, cross_entropy

PLAIN = ImageInputs(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_padding=4, flip=True)


def images(count: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 12, 10), dtype=torch.uint8)


def all_crops(image: torch.Tensor) -> torch.Tensor:
    """Every crop and flip of one image, the slow way: (81 * 2, 3, H, W)."""
    padded = F.pad(image[None].float(), (4, 4, 4, 4), mode="reflect")[0]
    height, width = image.shape[1:]
    crops = [
        padded[:, top : top + height, left : left + width] for top in range(9) for left in range(9)
    ]
    return torch.stack([*crops, *(crop.flip(-1) for crop in crops)])


def test_every_augmented_image_is_a_reflect_padded_crop_or_its_mirror_image():
    batch = images()
    augmented = PLAIN.inputs(batch, torch.Generator().manual_seed(1)) * 255
    for image, result in zip(batch, augmented, strict=True):
        distance = (all_crops(image) - result).abs().amax(dim=(1, 2, 3))
        assert distance.min() < 1e-3


def test_all_offsets_and_both_directions_occur():
    image = images(1)
    augmented = PLAIN.inputs(image.expand(6000, -1, -1, -1), torch.Generator().manual_seed(2)) * 255
    crops = all_crops(image[0]).flatten(1)
    nearest = torch.cdist(augmented.flatten(1), crops).argmin(dim=1)
    counts = torch.bincount(nearest, minlength=162)
    assert counts.min() > 0
    assert counts.max() < 3 * 6000 / 162


def test_the_same_generator_state_gives_the_same_batch():
    batch = images()
    first, second = (PLAIN.inputs(batch, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_without_a_generator_images_are_only_normalised():
    batch = images()
    inputs = ImageInputs(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop_padding=4, flip=True)
    expected = (batch / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.4]
    ).view(3, 1, 1)
    torch.testing.assert_close(inputs.inputs(batch, None), expected)


def test_the_global_generator_is_left_alone_and_the_stored_images_too():
    batch = images()
    before, state = batch.clone(), torch.get_rng_state()
    PLAIN.inputs(batch, torch.Generator().manual_seed(4))
    assert torch.equal(batch, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_loss_and_score_are_per_sample():
    outputs, targets = torch.randn(7, 5), torch.randint(0, 5, (7,))
    losses = cross_entropy(outputs, targets, 0.1)
    assert losses.shape == (7,)
    torch.testing.assert_close(
        losses.mean(), F.cross_entropy(outputs, targets, label_smoothing=0.1)
    )
