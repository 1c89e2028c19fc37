"""transformers' Trainer: which page of Python's manual is this sentence from?

    python examples/transformers_pages.py --epochs 6 --budget 0.7

A small BERT from its configuration, and a tokenizer, learn from the manual that comes with Python.
"""

import argparse
from functools import partial
from pydoc_data.topics import topics

from sklearn.model_selection import train_test_split
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    TrainingArguments,
    set_seed,
)

from infobatch import InfoBatch
from infobatch.integrations.transformers import InfoBatchTrainer

PAGES = ["compound", "debugger", "formatstrings", "specialnames", "string-methods", "types"]

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--budget", type=float, help="0.7: 70%% of the sample passes")
parser.add_argument("--folder", default="pages", help="for checkpoints")
args = parser.parse_args()
set_seed(0)

passages, labels = [], []
for label, page in enumerate(PAGES):
    words = topics[page].split()
    passages += [" ".join(words[start : start + 20]) for start in range(0, len(words), 20)]
    labels += [label] * (len(passages) - len(labels))
train_texts, test_texts, train_labels, test_labels = train_test_split(
    passages, labels, test_size=0.25, stratify=labels, random_state=0
)

bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
bpe_trainer = trainers.BpeTrainer(
    vocab_size=2000,
    special_tokens=["[PAD]", "[CLS]"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
)
bpe.train_from_iterator(train_texts, bpe_trainer)
bpe.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="[PAD]", cls_token="[CLS]")
train_set, test_set = (
    [{**tokenizer(text), "labels": label} for text, label in zip(texts, own, strict=True)]
    for texts, own in ((train_texts, train_labels), (test_texts, test_labels))
)

model = BertForSequenceClassification(
    BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        attention_probs_dropout_prob=0.0,  # it is slow on a CPU
        num_labels=len(PAGES),
    )
)
trainer = InfoBatchTrainer(  # was: Trainer
    model,
    TrainingArguments(
        args.folder,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=32,
        learning_rate=4e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        logging_strategy="epoch",
        eval_strategy="epoch",
        report_to="none",
        use_cpu=True,
    ),
    train_dataset=train_set,
    eval_dataset=test_set,
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=lambda out: {"accuracy": (out.predictions.argmax(1) == out.label_ids).mean()},
    pruner=partial(InfoBatch, budget=args.budget),  # and this
)
trainer.train()
result = trainer.evaluate()

print(trainer.pruner.summary())
print(f"test accuracy {result['eval_accuracy']:.3f}")
