"""TRL's SFTTrainer with LoRA from PEFT: a small Llama learns from Python's manual.

    python examples/trl_lora.py --epochs 4

The model is a random one from its configuration, so that nothing is downloaded; that is why the
embeddings are trained too. With a pretrained one, leave `modules_to_save` away.
"""

import argparse
import math
from functools import partial
from pydoc_data.topics import topics

from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from infobatch import InfoBatch
from infobatch.integrations.transformers import InfoBatchMixin

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--budget", type=float, help="0.7: 70%% of the sample passes")
parser.add_argument("--folder", default="lora", help="for checkpoints")
args = parser.parse_args()
set_seed(0)


class PrunedSFTTrainer(InfoBatchMixin, SFTTrainer):  # 1
    pass


paragraphs = [
    paragraph
    for page in ("compound", "debugger", "specialnames", "types")
    for paragraph in topics[page].split("\n\n")
    if len(paragraph) > 40
]
data = Dataset.from_dict({"text": paragraphs}).train_test_split(0.2, seed=0)

bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
bpe_trainer = trainers.BpeTrainer(
    vocab_size=1000,
    special_tokens=["<pad>", "</s>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
)
bpe.train_from_iterator(data["train"]["text"], bpe_trainer)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>")
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
)
trainer = PrunedSFTTrainer(
    model,
    SFTConfig(
        args.folder,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        max_length=64,
        logging_strategy="epoch",
        eval_strategy="epoch",
        report_to="none",
        use_cpu=True,
        bf16=False,  # TRL's default; most CPUs are slow at it
    ),
    train_dataset=data["train"],
    eval_dataset=data["test"],
    processing_class=tokenizer,
    peft_config=LoraConfig(
        r=16, target_modules="all-linear", modules_to_save=["embed_tokens", "lm_head"]
    ),
    pruner=partial(InfoBatch, budget=args.budget),  # 2
)
trainer.train()
perplexity = math.exp(trainer.evaluate()["eval_loss"])

print(trainer.pruner.summary())
print(f"test perplexity {perplexity:.1f} with {len(tokenizer)} tokens")
