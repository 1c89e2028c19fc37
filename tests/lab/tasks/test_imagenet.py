"""Images in class folders: the same crops whoever reads them, and no file passed over unsaid."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from tests.lab.support import finish, run_command, training_run

from infobatch.lab.errors import LabError
from infobatch.lab.run.results import read_results
from infobatch.lab.run.settings import Settings
from infobatch.lab.run.train import load_checkpoint, save_state
from infobatch.lab.tasks import all_tasks
from infobatch.lab.tasks.base.images import Images
from infobatch.lab.tasks.base.resnet import resnet18, resnet50
from infobatch.lab.tasks.imagenet.folders import Crops, read_image_folder
from infobatch.lab.tasks.imagenet.mixing import Mixed, mix, mixed_cross_entropy

IMAGENET = all_tasks()["imagenet"]
OPTIONS = {"image-size": "16", "smallest-crop": "0.5", "workers": "0"}
SMALL = {"model": "resnet18", "width": 4, "batch_size": 20, "limit_train": None, "lr": 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three of the digits as PNG and JPEG files of several sizes; 30 train, 20 test, each."""
    root = tmp_path_factory.mktemp("images")
    images, labels = load_digits(return_X_y=True)
    for label in range(3):
        for number, pixels in enumerate(images[labels == label][:50]):
            part, suffix = ("train" if number < 30 else "val"), ("png", "JPEG", "jpg")[number % 3]
            path = root / part / f"digit {label}" / f"{number:03d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((pixels.reshape(8, 8) * 15).astype(np.uint8))
            image.resize((24 + number, 24)).save(path)
    return root


def task(**options):
    return IMAGENET.with_options({**OPTIONS, **options})[0]


def run_of(arm, folder, seed=0, changes=SMALL, **options):
    chosen = task(**options)
    return training_run(arm, chosen.load(folder), task=chosen, seed=seed, **changes)


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


# ------------------------------------------------------------------ reading


def test_every_image_of_every_kind_of_file_is_a_sample_of_its_folders_class(folder):
    data = task().load(folder)
    assert data.class_names == ("digit 0", "digit 1", "digit 2")
    assert len(data) == 90
    assert data.labels.tolist() == [0] * 30 + [1] * 30 + [2] * 30
    rows, targets = data.samples(torch.tensor([89, 0, 45]))
    assert rows.shape == (3, 3, 16, 16)
    assert rows.dtype == torch.uint8
    assert targets.tolist() == [2, 0, 1]
    tested = list(data.test_batches(25))
    assert [len(targets) for _, targets in tested] == [25, 25, 10]
    assert torch.cat([targets for _, targets in tested]).tolist() == [0] * 20 + [1] * 20 + [2] * 20


def test_evaluation_sees_the_middle_of_the_image(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[3:37, 23:57] = 255  # of the 35 by 35 pixels in the middle all but a rim of a half
    middle = np.asarray(Crops(7, 0.1).middle(Image.fromarray(pixels)))
    assert middle.shape == (7, 7, 3)
    assert (middle[1:-1, 1:-1] == 255).all()
    assert middle.min() > 150  # the whole height would have a black rim of three


def test_crops_cover_at_least_the_smallest_part_and_are_flipped_half_of_the_time():
    across, down = np.meshgrid(np.arange(200), np.arange(100))
    image = Image.fromarray(np.stack([across, down * 2, across * 0], 2).astype(np.uint8))
    parts, flips = [], 0
    for seed in range(400):
        crop = np.asarray(Crops(50, 0.3).random(image, seed)).astype(float)
        width, height = np.ptp(crop[..., 0]) * 50 / 49, np.ptp(crop[..., 1]) / 2 * 50 / 49
        parts.append(width * height / 20_000)
        flips += crop[0, 0, 0] > crop[0, -1, 0]
        assert 0.7 < width / height < 1.4
    assert 0.28 < min(parts) < 0.35
    assert 0.6 < max(parts) < 0.68  # 4:3 in a 2:1 image covers two thirds at most
    assert 160 < flips < 240  # 4 standard deviations


@pytest.mark.parametrize("arm", ["infobatch", "es"])
def test_workers_read_what_one_process_reads(folder, arm):
    changes = {**SMALL, "epochs": 3, "batch_size": 8}  # of 90: six batches of 8 and six of 7
    alone = finish(run_of(arm, folder, seed=3, changes=changes))
    helped = finish(run_of(arm, folder, seed=3, changes=changes, workers="2"))
    assert torch.equal(weights(alone), weights(helped))
    assert alone.curves.metric == helped.curves.metric


def test_every_step_crops_anew_and_every_run_of_a_seed_alike(folder):
    def first_inputs(seed, epoch):
        run = run_of("full", folder, seed=seed)
        batches = run.data.batches(
            iter([[0, 0, 1]]), task().prepare, lambda place: run._generator(epoch, place)
        )
        return next(batches).inputs

    same = first_inputs(0, 0)
    assert torch.equal(same, first_inputs(0, 0))
    assert not torch.equal(same[0], same[1])
    assert not torch.equal(same, first_inputs(0, 1))
    assert not torch.equal(same, first_inputs(1, 0))


def test_a_list_of_images_is_the_same_data_until_a_file_changes(folder, tmp_path):
    data = task().load(folder)
    assert data.fingerprint() == task(workers="2").load(folder).fingerprint()
    assert data.fingerprint() != data.limit_train(89).fingerprint()
    copied = tmp_path / "copy"
    for path in folder.rglob("*.*"):
        target = copied / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert task().load(copied).fingerprint() == data.fingerprint()
    next(copied.rglob("*.png")).write_bytes(b"other")
    assert task().load(copied).fingerprint() != data.fingerprint()


# ------------------------------------------------------------------ what is wrong with a folder


def damaged(folder, tmp_path, part):
    """A copy whose eighth file of a class is cut off in the middle."""
    for path in folder.rglob("*.*"):
        target = tmp_path / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    bad = sorted((tmp_path / part / "digit 1").iterdir())[7]
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    return bad


@pytest.mark.parametrize(("part", "workers"), [("train", "2"), ("val", "0")])
def test_an_unreadable_image_stops_the_run_and_is_named(folder, tmp_path, part, workers):
    bad = damaged(folder, tmp_path, part)
    run = run_of("infobatch", tmp_path, workers=workers)
    with pytest.raises(LabError, match=r"is not a readable image.*--option corrupt=skip") as error:
        run.run_epoch()
    assert str(bad) in str(error.value)


def test_unreadable_images_are_left_out_and_counted_if_that_is_asked_for(folder, tmp_path):
    bad = damaged(folder, tmp_path, "train")
    run = run_of("infobatch", tmp_path, corrupt="skip", changes={**SMALL, "epochs": 2})
    assert len(run.data) == 89
    assert run.data.labels.tolist() == [0] * 30 + [1] * 29 + [2] * 30
    assert bad not in [run.data.train.path(index) for index in range(89)]
    assert finish(run).outcome.more["unreadable images"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "val").rename(root / "test"), "there is no .*val"),
        (lambda root: (root / "val" / "digit 1").rename(root / "val" / "x"), "the same class"),
        (lambda root: [p.unlink() for p in (root / "train" / "digit 2").iterdir()], "no image"),
    ],
)
def test_a_folder_of_another_layout_is_refused(folder, tmp_path, change, message):
    damaged(folder, tmp_path, "train")
    change(tmp_path)
    with pytest.raises(LabError, match=message):
        read_image_folder(tmp_path, Crops(8, 0.1), 0)


def test_without_a_folder_the_task_says_what_to_get():
    with pytest.raises(LabError, match=r"imagenet needs --data-dir.*val/CLASS/\*\.jpg"):
        task().load(None)


@pytest.mark.parametrize(
    ("name", "value"),
    [("image-size", "7"), ("image-size", "big"), ("smallest-crop", "0"), ("workers", "-1")],
)
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(LabError, match=f"--option {name} must be a .*number from .* got {value}"):
        task(**{name: value})


# ------------------------------------------------------------------ mixing


@pytest.mark.parametrize("cut", [False, True])
def test_a_mixed_image_is_its_share_of_itself_and_the_rest_of_its_partner(cut):
    inputs = torch.arange(64.0).view(64, 1, 1, 1).expand(64, 3, 20, 20).contiguous()
    mixed, targets = mix(inputs, torch.arange(64), torch.Generator().manual_seed(0), cut=cut)
    assert sorted(targets.partners.tolist()) == list(range(64))
    expected = targets.shares * targets.labels + (1 - targets.shares) * targets.partners
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), expected, rtol=1e-4, atol=1e-3)
    assert len(targets.shares.unique()) > 32
    if cut:
        whole = (mixed == targets.labels.view(-1, 1, 1, 1)) | (
            mixed == targets.partners.view(-1, 1, 1, 1)
        )
        assert whole.all()


def test_the_loss_of_mixed_labels_is_that_of_the_soft_target():
    torch.manual_seed(0)
    outputs, labels, partners = torch.randn(8, 5), torch.arange(8) % 5, torch.arange(8) % 3
    shares = torch.linspace(0, 1, 8)
    soft = shares[:, None] * F.one_hot(labels, 5) + (1 - shares[:, None]) * F.one_hot(partners, 5)
    expected = F.cross_entropy(outputs, soft, reduction="none", label_smoothing=0.1)
    mixed = Mixed(labels, partners, shares)
    torch.testing.assert_close(mixed_cross_entropy(outputs, mixed, 0.1), expected)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_runs_score_the_mixed_target_and_refuse_arms_that_need_one_label(kind, folder):
    run = run_of("infobatch", folder, mix=kind, changes={**SMALL, "epochs": 2})
    assert finish(run).outcome.metric > 0
    assert run.pruner.scores.isfinite().all()
    assert not run.task.by_class_logits


# ------------------------------------------------------------------ models


@pytest.mark.parametrize(("build", "parameters"), [(resnet18, 11_689_512), (resnet50, 25_557_032)])
def test_the_resnets_are_those_of_imagenet(build, parameters):
    model = build(Images(3, 1000, 224), 64, large=True)
    assert sum(p.numel() for p in model.parameters()) == parameters
    features = model.stem(torch.zeros(1, 3, 64, 64))
    assert features.shape == (1, 64, 16, 16)


def test_models_of_other_libraries_may_be_named_and_are_needed_only_then(folder):
    for name in ("resnet50", "timm:resnet26d", "torchvision:swin_t"):
        IMAGENET.check_model(name)
    for name in ("resnet51", "timm:", "other:resnet50"):
        with pytest.raises(LabError, match="choose from: resnet18, resnet50, timm:NAME"):
            IMAGENET.check_model(name)
    with pytest.raises(LabError, match="--width is for resnet18 and resnet50, not for timm:x"):
        run_of("full", folder, changes={**SMALL, "model": "timm:x"})


# ------------------------------------------------------------------ end to end


def test_arms_of_every_kind_run_from_the_command_line(folder, tmp_path):
    words = [word for name, value in OPTIONS.items() for word in ("--option", f"{name}={value}")]
    result = run_command(
        *("compare", "--task", "imagenet", "--data-dir", str(folder), "--model", "resnet18"),
        *("--width", "4", "--epochs", "4", "--batch-size", "30", "--seeds", "1", "--threads", "1"),
        *("--arms", "infobatch,kakurenbo,es,static-el2n", "--cost", "0.9"),
        *("--out", str(tmp_path), *words),
    )
    assert result.exit_code == 0, result.output
    runs = read_results(tmp_path)
    assert {run.arm for run in runs} == {"infobatch", "kakurenbo", "es", "static-el2n"}
    for run in runs:
        assert run.settings.options["image-size"] == "16"
        assert set(run.more) == {"top-5 accuracy", "unreadable images"}


def test_it_learns_and_a_resumed_run_ends_as_one_that_was_never_interrupted(folder, tmp_path):
    changes = {**SMALL, "width": 8, "epochs": 10, "lr": 0.05, "batch_size": 10}
    options = {"image-size": "32", "smallest-crop": "0.8"}
    straight = finish(run_of("infobatch", folder, changes=changes, **options))
    assert straight.outcome.metric > 60  # a third by chance

    interrupted = run_of("infobatch", folder, changes=changes, **options)
    for _ in range(3):
        interrupted.run_epoch()
    save_state(interrupted.state_dict(), tmp_path / "run.pt")
    resumed = run_of("infobatch", folder, changes=changes, workers="1", **options)
    assert load_checkpoint(resumed, tmp_path / "run.pt")
    assert torch.equal(weights(finish(resumed)), weights(straight))
    assert replace(resumed.curves, seconds=[]) == replace(straight.curves, seconds=[])


def test_the_papers_settings_are_those_of_its_resnet_50():
    settings = Settings.of_task(IMAGENET, {**IMAGENET.paper, "device": "cpu", "data": ""})
    assert (settings.model, settings.epochs, settings.batch_size) == ("resnet50", 90, 1024)
    assert (settings.optimizer, settings.lr, settings.weight_decay) == ("lars", 6.4, 1e-5)
    assert IMAGENET.options["image-size"].default == "224"
