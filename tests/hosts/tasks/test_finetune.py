"""The fine-tuning tasks start from the weights of their packages, and every arm trains on them."""

import numpy as np
import pytest
import torch
from tests.hosts.tasks.test_sentence_polarity import KIND, UNKIND, write_official
from tests.lab.support import run_command
from transformers import AutoModel, BertConfig, BertModel

from infobatch.lab.errors import LabError
from infobatch.lab.run.results import read_results
from infobatch.lab.tasks import all_tasks
from infobatch.lab.tasks.base.text import SPECIAL
from infobatch.lab.tasks.finetune.text import Pretrained, encoder_of

TEXT, IMAGE = (all_tasks()[f"finetune-{kind}"] for kind in ("text", "image"))
ARMS = "full,infobatch,adaptive,proportional"


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    return write_official(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    draw = np.random.default_rng(0).integers
    file = tmp_path_factory.mktemp("pictures") / "cifar10.npz"
    np.savez(
        file,
        x_train=draw(0, 256, (48, 32, 32, 3), dtype=np.uint8),
        y_train=np.arange(48) % 10,
        x_test=draw(0, 256, (20, 32, 32, 3), dtype=np.uint8),
        y_test=np.arange(20) % 10,
    )
    return file


def test_the_encoder_has_the_weights_of_the_package():
    model = encoder_of("package").eval()
    with Pretrained("package") as pretrained:
        stock = AutoModel.from_pretrained(pretrained.folder(), local_files_only=True).eval()
    numbers = torch.tensor([[101, 2023, 3185, 102, SPECIAL, SPECIAL], [101] + [2307] * 4 + [102]])
    mask = (numbers != SPECIAL).long()
    with torch.no_grad():
        expected = stock(input_ids=numbers, attention_mask=mask).last_hidden_state
        found = model.encoder(input_ids=numbers, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(found, expected)
        alone, together = model(numbers[:1, :4])[0], model(numbers)[0]
    torch.testing.assert_close(alone, together)  # padding changes no output


def test_sentences_are_in_the_tokens_of_the_encoder(reviews):
    data = TEXT.load(reviews)
    assert len(data) == 88
    assert (data.train_inputs[:, 0] == 101).all()  # [CLS]
    assert data.vocabulary == 30522
    assert data.train_inputs.shape[1] == 64


def test_weights_may_come_from_a_folder(reviews, tmp_path):
    with Pretrained("package") as pretrained:
        (tmp_path / "tokenizer.json").write_bytes(
            (pretrained.folder() / "tokenizer.json").read_bytes()
        )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    BertModel(BertConfig(**sizes, num_attention_heads=2)).save_pretrained(tmp_path)
    assert encoder_of(str(tmp_path)).head.in_features == 16
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(LabError, match=r"must hold model\.safetensors"):
        encoder_of(str(tmp_path))
    assert len(KIND + UNKIND) == 110


def test_the_network_for_images_has_the_weights_of_the_package():
    torch.manual_seed(0)
    model = IMAGE.build(IMAGE.model, None, None)
    batch = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert model.eval()(batch).shape == (2, 10)
    means = [m.running_mean for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(bool(mean.abs().max() > 0) for mean in means)  # a new network's are 0


def test_a_width_is_refused():
    for task in (TEXT, IMAGE):
        with pytest.raises(LabError, match="has no --width"):
            task.build(task.model, 8, None)


def test_arms_fine_tune_the_encoder(reviews, tmp_path):
    result = run_command(
        *("compare", "--task", "finetune-text", "--data-dir", str(reviews), "--seeds", "1"),
        *("--arms", ARMS, "--epochs", "3", "--out", str(tmp_path), "--cost", "0.8"),
        *("--option", "length=12"),
    )
    assert result.exit_code == 0, result.output
    runs = {run.arm: run for run in read_results(tmp_path)}
    assert set(runs) == set(ARMS.split(","))
    assert all(run.metric > 90 for run in runs.values())  # one word of each sentence tells
    assert runs["adaptive"].cost_fraction < 1


def test_arms_fine_tune_the_network_for_images(pictures, tmp_path):
    result = run_command(
        *("compare", "--task", "finetune-image", "--data-dir", str(pictures), "--seeds", "1"),
        *("--arms", "full,adaptive", "--epochs", "2", "--out", str(tmp_path)),
        *("--option", "size=32", "--batch-size", "16"),
    )
    assert result.exit_code == 0, result.output
    assert {run.arm for run in read_results(tmp_path)} == {"full", "adaptive"}
