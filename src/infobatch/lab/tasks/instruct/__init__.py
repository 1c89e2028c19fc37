"""Instruction tuning: a LLaMA model learns to answer, of Stanford Alpaca or GSM8K."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from infobatch.lab.errors import LabError, need
from infobatch.lab.tasks.base.data import TaskData
from infobatch.lab.tasks.base.task import Metric, Option, Outcome, Task, Trained
from infobatch.lab.tasks.base.text import IGNORED, token_losses
from infobatch.lab.tasks.instruct.choice import choose_records
from infobatch.lab.tasks.instruct.records import final_answer, read_alpaca, read_gsm8k
from infobatch.lab.tasks.instruct.sequences import (
    Instructions,
    by_length,
    encode,
    learn_tokenizer,
    prepare,
    prompt_tokens,
    read_tokenizer,
)
from infobatch.losses import per_sample

WIDTH = 64
HEAD = 32  # size of an attention head
BATCH_OF_TEST = 50


def load(data_dir: Path | None, values: Mapping[str, Any], weights: Path | None) -> Instructions:
    """Read records, choose from them, and turn them into token numbers.

    The tokenizer is that of the weights, or trained whatever the coreset is, so that losses
    per token can be compared among coresets.
    """
    train, test = (read_alpaca if values["data"] == "alpaca" else read_gsm8k)(data_dir)
    if weights is None:
        tokenizer = learn_tokenizer(train, values["vocabulary"])
    else:
        tokenizer = read_tokenizer(weights)
    chosen = choose_records(train, values["coreset"])
    return Instructions(
        *encode(chosen, tokenizer, values["cutoff"], "training set"),
        *by_length(*encode(test, tokenizer, values["cutoff"], "held-out set")),
        tokenizer=tokenizer,
        questions=tuple(test[: values["exact"]]) if values["data"] == "gsm8k" else (),
    )


def build(
    width: int | None, data: TaskData, values: Mapping[str, Any], weights: Path | None
) -> nn.Module:
    """A LLaMA model: a small random one, or pretrained; whole, or with LoRA."""
    tokenizer = cast(Instructions, data).tokenizer
    lora = values["lora"]
    if weights is None:
        model = _random(WIDTH if width is None else width, tokenizer, values)
    elif width is None:
        model = _pretrained(weights, tokenizer, frozen=lora > 0)
    else:
        raise LabError("--width is that of the weights; leave it away")
    model.config.use_cache = False
    if values["checkpointing"] == "1":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora:
        peft = need("peft", "tasks")
        layers = ["q_proj", "k_proj", "v_proj", "o_proj"]
        adapters = peft.LoraConfig(
            task_type="CAUSAL_LM", r=lora, lora_alpha=lora, target_modules=layers
        )
        model = peft.get_peft_model(model, adapters)
    return cast(nn.Module, model)


def _random(width: int, tokenizer: Any, values: Mapping[str, Any]) -> Any:
    """Heads of 32, and an inner layer 8/3 as wide, as in LLaMA."""
    if width % HEAD:
        raise LabError(f"--width must be a multiple of {HEAD}, got {width}")
    transformers = need("transformers", "tasks")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=-(-width * 8 // 3 // HEAD) * HEAD,
        num_hidden_layers=values["layers"],
        num_attention_heads=width // HEAD,
        max_position_embeddings=2 * values["cutoff"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return transformers.LlamaForCausalLM(config)


def _pretrained(folder: Path, tokenizer: Any, *, frozen: bool) -> Any:
    """The model in a folder: as it is stored if it is frozen, else in float32."""
    load = need("transformers", "tasks").AutoModelForCausalLM.from_pretrained
    try:
        model = load(folder, local_files_only=True, dtype="auto" if frozen else torch.float32)
    except (OSError, ValueError, ImportError) as error:
        raise LabError(f"{folder} has no readable weights ({error})") from error
    size = model.get_input_embeddings().num_embeddings
    if size < len(tokenizer):
        raise LabError(f"{folder}: a tokenizer of {len(tokenizer)} tokens, embeddings of {size}")
    return model


def next_token_losses(
    outputs: Any, targets: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The loss of every token but the first, (B, T - 1) float32, and where it counts."""
    next_tokens = targets[:, 1:]
    losses = token_losses(outputs.logits[:, :-1], next_tokens, label_smoothing)
    return losses, next_tokens != IGNORED


def answer_loss(outputs: Any, targets: Tensor, label_smoothing: float) -> Tensor:
    """(B,) mean loss over the tokens of each answer."""
    losses, counts = next_token_losses(outputs, targets, label_smoothing)
    return per_sample(losses, ~counts)


def evaluate(run: Trained) -> Outcome:
    """Mean loss of all held-out answer tokens, and how many questions are answered right.

    An answer is right if the number behind its first "####" is.
    """
    total, tokens = 0.0, 0
    for outputs, targets in run.test_outputs():
        losses, counts = next_token_losses(outputs, targets, 0.0)
        total += float(losses.double().sum())
        tokens += int(counts.sum())
    data = cast(Instructions, run.data)
    if not data.questions:
        return Outcome(total / tokens)
    replies = answers(run.model, data, run.device)
    right = [
        final_answer(reply) == final_answer(record.output)
        for reply, record in zip(replies, data.questions, strict=True)
    ]
    return Outcome(total / tokens, more={"exact match (%)": 100 * (sum(right) / len(right))})


@torch.no_grad()
def answers(model: Any, data: Instructions, device: torch.device) -> list[str]:
    """What a model says to the questions, greedily, in at most as many tokens as a row has."""
    model.eval()
    end = data.tokenizer.eos_token_id
    prompts = prompt_tokens(data.questions, data.tokenizer)
    found = []
    for start in range(0, len(prompts), BATCH_OF_TEST):
        part = prompts[start : start + BATCH_OF_TEST]
        longest = max(len(tokens) for tokens in part)
        padded = [[end] * (longest - len(tokens)) + tokens for tokens in part]
        mask = [[0] * (longest - len(tokens)) + [1] * len(tokens) for tokens in part]
        written = model.generate(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=data.train_inputs.shape[1],
            do_sample=False,
            use_cache=True,
            eos_token_id=end,
            pad_token_id=end,
        )
        found += data.tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)
    return found


OPTIONS = {
    "data": Option("alpaca", "what is learned", ("alpaca", "gsm8k")),
    "coreset": Option("random:2000", "training records: none, random:N or dq:N; none: all"),
    "cutoff": Option("96", "tokens that a sequence is cut at", kind=int, at_least=8),
    "vocabulary": Option(
        "1024",
        "tokens that a tokenizer is trained to have; not with weights",
        kind=int,
        at_least=257,
    ),
    "layers": Option("2", "of the random model; not with weights", kind=int, at_least=1),
    "weights": Option("", "folder with a pretrained model and its tokenizer; without: random"),
    "lora": Option("0", "rank of LoRA on q, k, v and o; 0: all weights are trained", kind=int),
    "checkpointing": Option("0", "1: less memory, a second forward pass", ("0", "1")),
    "exact": Option("32", "held-out questions of gsm8k that a run answers; 0: none", kind=int),
}


def _of_options(values: Mapping[str, Any]) -> dict[str, Any]:
    weights = Path(values["weights"]) if values["weights"] else None
    if values["lora"] and weights is None:
        raise LabError(
            f"--option lora={values['lora']} adapts pretrained weights, and random ones hold "
            "nothing to adapt; give --option weights=FOLDER too, or lora=0"
        )
    return {
        "load": lambda data_dir: load(data_dir, values, weights),
        "build": lambda _name, width, data: build(width, data, values, weights),
    }


TASK = Task.with_defaults(
    OPTIONS,
    _of_options,
    name="instruct",
    description="instruction tuning of a LLaMA model, on Stanford Alpaca or GSM8K",
    epochs=8,
    batch_size=32,
    lr=5e-3,
    model="llama",
    models=("llama",),
    prepare=prepare,
    loss=answer_loss,
    evaluate=evaluate,
    metric=Metric("held-out loss per token", "nats", higher_is_better=False, margin=0.02, digits=3),
    schedule="cosine",
    weight_decay=0.1,
    grad_clip=1.0,
    eval_every=2,
    batch_of_test=BATCH_OF_TEST,
    paper={
        "epochs": 15,
        "batch_size": 64,
        "lr": 1.5e-4,
        "weight_decay": 0.0,
        "precision": "bf16",
        "options": {
            "coreset": "dq:1000",
            "cutoff": "512",
            "lora": "16",
            "checkpointing": "1",
        },
    },
)
