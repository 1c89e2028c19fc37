"""Instruction tuning: a LLaMA model learns to answer, of Stanford Alpaca or GSM8K."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from infobatch.lab.data import TaskData
from infobatch.lab.datasets.instructions import final_answer, read_alpaca, read_gsm8k
from infobatch.lab.errors import LabError
from infobatch.lab.extras import need
from infobatch.lab.instructions import (
    Instructions,
    by_length,
    choose_records,
    encode,
    learn_tokenizer,
    prepare,
    prompt_tokens,
    read_tokenizer,
)
from infobatch.lab.options import whole_number
from infobatch.lab.task import Metric, Option, Outcome, Task, Trained
from infobatch.lab.text import IGNORED, token_losses
from infobatch.losses import per_sample

WIDTH = 64
HEAD = 32  # size of an attention head
BATCH_OF_TEST = 50


@dataclass(frozen=True)
class Setup:
    """The task's options; `TASK.options` says what they are."""

    data: str
    coreset: str
    cutoff: int
    vocabulary: int
    layers: int
    weights: Path | None
    lora: int
    checkpointing: bool
    exact: int

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Setup:
        """From texts.

        Raises:
            LabError: they are not what they must be.
        """
        least = {"cutoff": 8, "vocabulary": 257, "layers": 1, "lora": 0, "exact": 0}
        numbers = {name: whole_number(values, name, at_least=least[name]) for name in least}
        if numbers["lora"] and not values["weights"]:
            raise LabError(
                f"--option lora={values['lora']} adapts pretrained weights, and random ones hold "
                "nothing to adapt; give --option weights=FOLDER too, or lora=0"
            )
        return cls(
            data=values["data"],
            coreset=values["coreset"],
            weights=Path(values["weights"]) if values["weights"] else None,
            checkpointing=values["checkpointing"] == "1",
            **numbers,
        )

    def load(self, data_dir: Path | None) -> Instructions:
        """Read records, choose from them, and turn them into token numbers.

        The tokenizer is that of the weights, or trained whatever the coreset is, so that losses
        per token can be compared among coresets.
        """
        train, test = (read_alpaca if self.data == "alpaca" else read_gsm8k)(data_dir)
        if self.weights is None:
            tokenizer = learn_tokenizer(train, self.vocabulary)
        else:
            tokenizer = read_tokenizer(self.weights)
        chosen = choose_records(train, self.coreset)
        return Instructions(
            *encode(chosen, tokenizer, self.cutoff, "training set"),
            *by_length(*encode(test, tokenizer, self.cutoff, "held-out set")),
            tokenizer=tokenizer,
            questions=tuple(test[: self.exact]) if self.data == "gsm8k" else (),
        )

    def build(self, _name: str, width: int | None, data: TaskData) -> nn.Module:
        """A LLaMA model: a small random one, or pretrained; whole, or with LoRA."""
        transformers = need("transformers", "tasks")
        tokenizer = cast(Instructions, data).tokenizer
        if self.weights is None:
            model = transformers.LlamaForCausalLM(self._config(width, tokenizer))
        else:
            if width is not None:
                raise LabError("--width is that of the weights; leave it away")
            model = _pretrained(self.weights, tokenizer, frozen=self.lora > 0)
        model.config.use_cache = False
        if self.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.lora:
            model = need("peft", "tasks").get_peft_model(model, self._adapters())
        return cast(nn.Module, model)

    def _config(self, width: int | None, tokenizer: Any) -> Any:
        """Of a random model: heads of 32, and an inner layer 8/3 as wide, as in LLaMA."""
        width = WIDTH if width is None else width
        if width % HEAD:
            raise LabError(f"--width must be a multiple of {HEAD}, got {width}")
        return need("transformers", "tasks").LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=-(-width * 8 // 3 // HEAD) * HEAD,
            num_hidden_layers=self.layers,
            num_attention_heads=width // HEAD,
            max_position_embeddings=2 * self.cutoff,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )

    def _adapters(self) -> Any:
        return need("peft", "tasks").LoraConfig(
            task_type="CAUSAL_LM",
            r=self.lora,
            lora_alpha=self.lora,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        )


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
    """(B,) mean loss of the tokens of each answer."""
    losses, counts = next_token_losses(outputs, targets, label_smoothing)
    return per_sample(losses, ~counts)


def evaluate(run: Trained) -> Outcome:
    """Mean loss of all held-out answer tokens, and how many of the questions are answered right."""
    total, tokens = 0.0, 0
    for outputs, targets in run.test_outputs():
        losses, counts = next_token_losses(outputs, targets, 0.0)
        total += float(losses.double().sum())
        tokens += int(counts.sum())
    asked = cast(Instructions, run.data).questions
    more = {"exact match (%)": 100 * exact_match(run)} if asked else {}
    return Outcome(total / tokens, more=more)


def exact_match(run: Trained) -> float:
    """Part of the questions whose final answer, behind "####", is right in the likeliest text."""
    data = cast(Instructions, run.data)
    replies = answers(run.model, data, run.device)
    expected = [final_answer(record.output) for record in data.questions]
    right = [final_answer(a) == b for a, b in zip(replies, expected, strict=True)]
    return sum(right) / len(right)


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


def _remake(values: Mapping[str, str]) -> Task:
    setup = Setup.of(values)
    return replace(TASK, load=setup.load, build=setup.build)


OPTIONS = {
    "data": Option("alpaca", "what is learned", ("alpaca", "gsm8k")),
    "coreset": Option("random:2000", "training records: none, random:N or dq:N; none: all"),
    "cutoff": Option("96", "tokens that a sequence is cut at"),
    "vocabulary": Option("1024", "tokens that a tokenizer is trained to have; not with weights"),
    "layers": Option("2", "of the random model; not with weights"),
    "weights": Option("", "folder with a pretrained model and its tokenizer; without: random"),
    "lora": Option("0", "rank of LoRA on q, k, v and o; 0: all weights are trained"),
    "checkpointing": Option("0", "1: less memory, a second forward pass", ("0", "1")),
    "exact": Option("32", "held-out questions of gsm8k that a run has to answer; 0: none"),
}
_DEFAULT = Setup.of({name: option.default for name, option in OPTIONS.items()})

TASK = Task(
    name="instruct",
    description="instruction tuning of a LLaMA model, on Stanford Alpaca or GSM8K",
    epochs=8,
    batch_size=32,
    lr=5e-3,
    model="llama",
    threads=1,
    models=("llama",),
    load=_DEFAULT.load,
    build=_DEFAULT.build,
    prepare=prepare,
    loss=answer_loss,
    evaluate=evaluate,
    metric=Metric("held-out loss per token", "nats", higher_is_better=False, margin=0.02, digits=3),
    optimizer="adamw",
    schedule="cosine",
    weight_decay=0.1,
    label_smoothing=0.0,
    grad_clip=1.0,
    eval_every=2,
    batch_of_test=BATCH_OF_TEST,
    options=OPTIONS,
    remake=_remake,
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
