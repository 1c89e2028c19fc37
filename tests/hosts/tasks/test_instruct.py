"""Instruction tuning with transformers, tokenizers and PEFT themselves, on files made here."""

import json
import os
import subprocess
import sys

import pytest
import torch
from tests.hosts.support import ROOT, run_example
from tests.lab.support import run_command
from transformers import LlamaConfig, LlamaForCausalLM

from infobatch.lab.arms import all_arms
from infobatch.lab.arms.base import ArmContext
from infobatch.lab.errors import LabError
from infobatch.lab.run.results import read_results
from infobatch.lab.run.settings import Settings
from infobatch.lab.run.train import TrainingRun
from infobatch.lab.tasks import all_tasks
from infobatch.lab.tasks.base.text import IGNORED
from infobatch.lab.tasks.instruct import BATCH_OF_TEST, answer_loss, answers, evaluate
from infobatch.lab.tasks.instruct.records import Record
from infobatch.lab.tasks.instruct.sequences import encode, learn_tokenizer, prompt_tokens

ARMS = "full,fewer-epochs,infobatch,infobatch-quantile,random,kakurenbo,es,selective-backprop,bls"
WORDS = ("apple", "bread", "cloud", "drum", "earth", "flute", "grass", "house", "island", "juice")


def entries():
    """A hundred records: words in capitals, and words in another order."""
    pairs = [(a, b) for a in WORDS for b in WORDS]
    return [
        {"instruction": "Write in capitals.", "input": f"{a} {b}", "output": f"{a} {b}".upper()}
        if number % 2
        else {"instruction": f"Swap {a} and {b}.", "input": "", "output": f"{b} and {a}"}
        for number, (a, b) in enumerate(pairs)
    ]


def sums():
    return [
        {
            "question": f"{a} and {b}" + " now" * (a // 3) + "?",
            "answer": f"<<{a}+{b}={a + b}>>So\n#### {a + b}",
        }
        for a, b in ((1, 2), (3, 4), (20, 5), (6, 1))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    (path / "alpaca_data.json").write_text(json.dumps(entries()))
    lines = "\n".join(json.dumps(entry) for entry in sums())
    for name in ("train.jsonl", "test.jsonl"):
        (path / name).write_text(lines)
    return path


def instruct(**options):
    small = {"coreset": "none", "vocabulary": "320", "layers": "1", "cutoff": "64"}
    return all_tasks()["instruct"].with_options({**small, **options})[0]


def training_run(task, data, **changes):
    small = {"width": 32, "epochs": 4, "lr": 0.01, "device": "cpu", "data": ""}
    settings = Settings.of_task(task, {**small, **changes})
    context = ArmContext(len(data), settings.epochs, 0.5, 0.875, seed=0, labels=None)
    return TrainingRun(task, data, all_arms()["full"].start(context), settings, seed=0)


def compare(folder, out, *arguments):
    small = ("coreset=none", "vocabulary=320", "layers=1", "cutoff=64")
    options = [word for option in small for word in ("--option", option)]
    return run_command(
        *("compare", "--task", "instruct", "--data-dir", str(folder), "--out", str(out)),
        *("--seeds", "1", "--width", "32", *options, *arguments),
    )


# ------------------------------------------------------------------ runs


def test_every_kind_of_arm_runs_and_learns(folder, tmp_path):
    result = compare(folder, tmp_path, "--arms", ARMS, "--epochs", "6", "--lr", "0.01")
    assert result.exit_code == 0, result.output
    found = {run.arm: run for run in read_results(tmp_path)}
    assert set(found) == set(ARMS.split(","))
    for run in found.values():
        assert run.metric < 4.0  # a guess among 320 tokens: 5.8
        assert run.judged_by.unit == "nats"
        assert not run.judged_by.higher_is_better
    assert found["infobatch"].cost_fraction < 1


# ------------------------------------------------------------------ sequences and losses


@pytest.fixture(scope="module")
def trained(folder):
    """A run after one epoch, on sequences of which some are cut."""
    task = instruct(cutoff="40")
    run = training_run(task, task.load(folder), epochs=1)
    run.run_epoch()
    run.model.eval()
    return run


def loss_of_transformers(model, inputs, targets):
    """The model's own loss of one sequence without padding."""
    length = int((inputs >= 0).sum())
    tokens, labels = inputs[None, :length].long(), targets[None, :length].long()
    with torch.no_grad():
        return float(model(tokens, labels=labels).loss), int((labels[:, 1:] != IGNORED).sum())


def test_a_sample_s_loss_is_that_which_transformers_has_for_its_sequence_alone(trained):
    data = trained.data
    rows = torch.arange(12)
    inputs, targets = trained.task.prepare(*data.samples(rows), torch.Generator(), True)
    with torch.no_grad():
        losses = answer_loss(trained.model(inputs), targets, 0.0)
    alone = [loss_of_transformers(trained.model, *data.samples(row))[0] for row in rows]
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx(alone, abs=1e-5)


def test_the_metric_is_the_mean_over_answer_tokens_of_the_held_out_set(trained):
    data = trained.data
    pairs = [
        loss_of_transformers(trained.model, *sequence)
        for sequence in zip(data.test_inputs, data.test_targets, strict=True)
    ]
    tokens = sum(count for _, count in pairs)
    expected = sum(loss * count for loss, count in pairs) / tokens
    assert len({count for _, count in pairs}) > 1  # otherwise a mean of means would be the same
    assert evaluate(trained).metric == pytest.approx(expected, abs=1e-5)


def test_a_batch_is_as_long_as_its_longest_sequence(trained):
    data = trained.data
    lengths = (data.train_inputs >= 0).sum(1)
    two = lengths.argsort()[:2]
    inputs, targets = trained.task.prepare(*data.samples(two), torch.Generator(), True)
    assert inputs.shape == targets.shape == (2, lengths[two].max())
    assert lengths[two].max() < data.train_inputs.shape[1]
    assert (lengths == 40).any()  # where they are cut


def test_targets_are_the_answer_and_its_end(folder):
    data = instruct().load(folder)
    tokenizer = data.tokenizer
    for inputs, targets in zip(data.train_inputs, data.train_targets, strict=True):
        text = tokenizer.decode(inputs[inputs >= 0])
        answer = tokenizer.decode(targets[targets != IGNORED])
        assert text.startswith("<|special|>### Instruction:\n")
        assert text.endswith("### Response:\n" + answer)
        assert answer.endswith("<|special|>")
        assert len(answer) > len("<|special|>")


def test_what_is_cut_and_what_is_left_out_is_counted(caplog):
    short, long = Record("Count.", "", "one"), Record("Count.", "", "one two three " * 20)
    wordy = Record("Count with me from one to three, " * 20, "", "one")
    tokenizer = learn_tokenizer([short, long, wordy], 320)
    inputs, targets = encode([long, wordy, short, long], tokenizer, 40, "training set")
    assert "of 4 sequences 2 are cut at 40 tokens, and 1, whose prompts" in caplog.text
    assert inputs.shape == (3, 40)
    assert (targets != IGNORED).any(1).all()
    assert (targets == tokenizer.eos_token_id).sum(1).tolist() == [0, 1, 0]
    with pytest.raises(LabError, match="no prompt has fewer than --option cutoff=40 tokens"):
        encode([wordy], tokenizer, 40, "training set")


def test_text_that_looks_like_a_special_token_is_text():
    record = Record("What is <|special|>?", "", "<|special|> again<|special|>")
    tokenizer = learn_tokenizer([record], 320)
    inputs, _ = encode([record], tokenizer, 512, "training set")
    places = (inputs[0] == tokenizer.eos_token_id).nonzero().flatten().tolist()
    assert places == [0, inputs.shape[1] - 1]


@pytest.mark.slow
def test_another_process_has_the_same_tokens(folder):
    program = (
        "import sys; from pathlib import Path; from tests.hosts.tasks.test_instruct import *; "
        "print(instruct(coreset='dq:30').load(Path(sys.argv[1])).fingerprint())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
    )
    data = instruct(coreset="dq:30").load(folder)
    assert len(data) == 30
    assert done.stdout.split() == [data.fingerprint()], done.stderr[-2000:]


# ------------------------------------------------------------------ final answers


def test_sums_that_were_learned_by_heart_are_answered_and_counted(folder):
    task = instruct(data="gsm8k")
    run = training_run(task, task.load(folder), epochs=60, eval_every=0)
    before = evaluate(run).more["exact match (%)"]
    while not run.finished:
        run.run_epoch()
    replies = answers(run.model, run.data, run.device)
    assert before == 0
    assert run.outcome.more["exact match (%)"] == 100
    assert replies == ["So\n#### 3", "So\n#### 7", "So\n#### 25", "So\n#### 7"]
    lengths = {len(tokens) for tokens in prompt_tokens(run.data.questions, run.data.tokenizer)}
    assert len(lengths) > 1  # so that some prompts were padded


def test_so_many_questions_are_asked_as_the_option_says(folder):
    assert len(instruct(data="gsm8k", exact="3").load(folder).questions) == 3
    assert instruct(data="gsm8k", exact="0").load(folder).questions == ()
    assert instruct(data="alpaca").load(folder).questions == ()
    assert BATCH_OF_TEST >= 32


# ------------------------------------------------------------------ pretrained weights, LoRA


@pytest.fixture(scope="module")
def pretrained(folder, tmp_path_factory):
    """A folder as save_pretrained writes it."""
    data = instruct().load(folder)
    path = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(data.tokenizer) + 5,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    data.tokenizer.save_pretrained(path)
    return path


def test_weights_bring_their_model_and_tokenizer(folder, pretrained):
    task = instruct(weights=str(pretrained))
    data = task.load(folder)
    run = training_run(task, data, width=None)
    saved = LlamaForCausalLM.from_pretrained(pretrained, dtype=torch.float32).state_dict()
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, saved[name])
    assert torch.equal(data.train_inputs, instruct().load(folder).train_inputs)


def test_lora_trains_adapters_on_q_k_v_and_o_alone(folder, pretrained):
    task = instruct(weights=str(pretrained), lora="4", checkpointing="1")
    run = training_run(task, task.load(folder), width=None, epochs=3, lr=0.05)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    while not run.finished:
        run.run_epoch()
    changed = {
        n for n, value in run.model.state_dict().items() if not torch.equal(value, before[n])
    }
    parts = {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert len(changed) == 2 * 2 * len(parts)  # A and B in two layers
    assert {name.split(".")[-4] for name in changed} == parts  # q_proj.lora_A.default.weight
    assert run.curves.mean_loss[-1] < run.curves.mean_loss[0]
    assert run.model.get_base_model().lm_head.weight.dtype == torch.bfloat16
    assert run.model.get_base_model().is_gradient_checkpointing


def test_checkpointing_changes_memory_and_nothing_else(folder):
    def first_epoch(**options):
        task = instruct(**options)
        run = training_run(task, task.load(folder), epochs=2)
        run.run_epoch()
        return run.model.state_dict()

    plain, saving = first_epoch(), first_epoch(checkpointing="1")
    for name, value in plain.items():
        torch.testing.assert_close(saving[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": "16"}, "lora=16 adapts pretrained weights"),
        ({"cutoff": "7"}, "cutoff must be a whole number from 8 up, got 7"),
        ({"vocabulary": "1e3"}, "vocabulary must be a whole number from 257 up, got 1e3"),
        ({"exact": "-1"}, "exact must be a whole number from 0 up, got -1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(LabError, match=message):
        instruct(**options)


def test_the_paper_s_settings_need_weights_and_say_so(folder, pretrained, tmp_path):
    given = ("--preset", "paper", "--arms", "full", "--data-dir", str(folder), "--out")
    options = ("--option", "coreset=dq:20", "--epochs", "1", "--precision", "fp32", "--seeds", "1")
    words = ("compare", "--task", "instruct", *given, str(tmp_path), *options)
    result = run_command(*words)
    assert result.exit_code == 2
    assert "give --option weights=FOLDER too" in result.stderr
    result = run_command(*words, "--option", f"weights={pretrained}")
    assert result.exit_code == 0, result.output
    (run,) = read_results(tmp_path)
    assert run.settings.options["lora"] == "16"
    assert run.settings.options["coreset"] == "dq:20"
    assert run.settings.batch_size == 64


def test_folders_without_a_usable_model_are_refused_in_words(folder, pretrained, tmp_path):
    with pytest.raises(LabError, match=r"must be a folder with config.json.*got .*nowhere"):
        instruct(weights=str(tmp_path / "nowhere")).load(folder)
    task = instruct(weights=str(pretrained))
    with pytest.raises(LabError, match="--width is that of the weights"):
        training_run(task, task.load(folder), width=32)
    (tmp_path / "config.json").write_text((pretrained / "config.json").read_text())
    with pytest.raises(LabError, match="has no readable tokenizer"):
        instruct(weights=str(tmp_path)).load(folder)
    learn_tokenizer([Record(**entry) for entry in entries()], 340).save_pretrained(tmp_path)
    task = instruct(weights=str(tmp_path))
    data = task.load(folder)
    with pytest.raises(LabError, match="has no readable weights"):
        training_run(task, data, width=None)
    (tmp_path / "model.safetensors").write_bytes((pretrained / "model.safetensors").read_bytes())
    with pytest.raises(LabError, match="a tokenizer of 340 tokens, embeddings of 325"):
        training_run(task, data, width=None)


def test_a_width_that_has_no_whole_heads_is_refused(folder):
    task = instruct()
    with pytest.raises(LabError, match="--width must be a multiple of 32, got 48"):
        training_run(task, task.load(folder), width=48)


# ------------------------------------------------------------------ the example


@pytest.mark.slow
def test_the_example_saves_and_learns_and_leaves_a_model_that_transformers_loads(tmp_path):
    end = run_example("instruct.py", tmp_path, "--epochs", 4, "--budget", 0.7, "--save", "tuned")
    assert end.saved == pytest.approx(0.3, abs=0.003)  # half a batch of 16 in 3,600 samples
    assert end.metric < 3.0  # a guess among 500 tokens: 6.2
    assert LlamaForCausalLM.from_pretrained(tmp_path / "tuned").config.vocab_size > 256


@pytest.mark.slow
def test_the_example_adapts_pretrained_weights_with_lora(folder, pretrained, tmp_path):
    given = ("--data-dir", folder, "--weights", pretrained, "--lora", 4, "--save", "tuned")
    run_example("instruct.py", tmp_path, "--epochs", 2, *given)
    before = LlamaForCausalLM.from_pretrained(pretrained).state_dict()
    after = LlamaForCausalLM.from_pretrained(tmp_path / "tuned").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".self_attn." in name for name in changed)
