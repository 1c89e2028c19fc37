"""A masked autoencoder of transformers: pretrained on digits without labels, then fine-tuned.

    python examples/mae.py --epochs 20
    python examples/mae.py --data-dir cifar-10-batches-py --epochs 100

Pretraining is pruned; fine-tuning sees few labels and all of them.
"""

import argparse
import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from infobatch import InfoBatch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data-dir", type=Path, help="CIFAR-10; digits without it")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--fine-tuning-epochs", type=int, default=50)
parser.add_argument("--labelled", type=int, default=200)
parser.add_argument("--batch-size", type=int, default=64)
args = parser.parse_args()

if args.data_dir is None:
    patch = 2
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 8 - 1).float().view(-1, 1, 8, 8), torch.tensor(digits)
    images, test_images, labels, test_labels = train_test_split(
        images, labels, test_size=1 / 3, random_state=0
    )
else:
    from infobatch.lab.tasks.cifar.reader import read_cifar

    patch = 4
    arrays = read_cifar(args.data_dir, classes=10)
    images, test_images = (
        torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1
        for part in (arrays.train_images, arrays.test_images)
    )
    labels, test_labels = map(torch.from_numpy, (arrays.train_labels, arrays.test_labels))
train_set = TensorDataset(images)

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
config = ViTMAEConfig(
    image_size=images.shape[-1],
    patch_size=patch,
    num_channels=images.shape[1],
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=256,
    decoder_hidden_size=32,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=128,
)
model = ViTMAEForPreTraining(config)
# Built from a configuration, transformers 5.23 leaves positions at zero: let them be learned.
for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
    torch.nn.init.normal_(positions, std=0.5)
    positions.requires_grad_(True)
model.to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)

pruner = InfoBatch(train_set, num_epochs=args.epochs)  # 1
loader = DataLoader(train_set, batch_size=args.batch_size, sampler=pruner.sampler)  # 2

for _ in range(args.epochs):
    for (x,) in loader:
        outputs = model(x.to(device))
        errors = (outputs.logits - model.patchify(x.to(device))).square().mean(dim=2)
        losses = (errors * outputs.mask).sum(dim=1) / outputs.mask.sum(dim=1)  # of each image
        loss = pruner.update(losses)  # 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    record = pruner.history[-1]
    print(f"epoch {record.epoch}: loss {record.mean_loss:.4f}, kept {record.kept}", flush=True)
print(pruner.summary())

encoder = copy.deepcopy(model.vit)
encoder.embeddings.config.mask_ratio = 0.0  # the copy's own: it now sees all patches
head = torch.nn.Linear(config.hidden_size, int(labels.max()) + 1).to(device)
optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=2e-3)
labelled = TensorDataset(images[: args.labelled], labels[: args.labelled])


def classify(x):
    return head(encoder(x.to(device)).last_hidden_state[:, 1:].mean(dim=1))


for _ in range(args.fine_tuning_epochs):
    for x, y in DataLoader(labelled, batch_size=32, shuffle=True):
        loss = F.cross_entropy(classify(x), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

with torch.no_grad():
    right = [
        (classify(x).argmax(dim=1).cpu() == y).float()
        for x, y in DataLoader(TensorDataset(test_images, test_labels), batch_size=500)
    ]
print(f"test accuracy {torch.cat(right).mean():.3f}, of {len(labelled)} labels")
