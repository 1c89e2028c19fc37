"""Diffusion: an unconditional U-Net of diffusers on digits, or on CIFAR-10, in a plain loop.

    python examples/diffusion.py --epochs 10
    python examples/diffusion.py --data-dir cifar-10-batches-py --score timestep

A sample's loss says mostly how much noise was drawn for it. With `--score timestep` samples are
ranked by their loss over the usual one at that timestep instead.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from infobatch import InfoBatch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data-dir", type=Path, help="CIFAR-10; digits without it")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--score", choices=("raw", "timestep"), default="raw")
parser.add_argument("--out", type=Path, help="a folder for 16 generated images")
args = parser.parse_args()

if args.data_dir is None:
    images = torch.tensor(load_digits().images[:, None] / 8 - 1, dtype=torch.float32)
    images, test_images = images[:1500], images[1500:]
else:
    from infobatch.lab.tasks.cifar.reader import read_cifar

    arrays = read_cifar(args.data_dir, classes=10)
    images, test_images = (
        torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1
        for part in (arrays.train_images, arrays.test_images)
    )
train_set = TensorDataset(images)

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = UNet2DModel(
    sample_size=images.shape[-1],
    in_channels=images.shape[1],
    out_channels=images.shape[1],
    layers_per_block=1,
    block_out_channels=(16, 32),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=8,
).to(device)
noising = DDPMScheduler(num_train_timesteps=1000)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
usual = torch.ones(10, device=device)  # loss at ten ranges of timesteps

pruner = InfoBatch(train_set, num_epochs=args.epochs, delta=0.825)  # 1
loader = DataLoader(train_set, batch_size=args.batch_size, sampler=pruner.sampler)  # 2


def denoising_losses(batch):
    clean = batch.to(device)
    noise = torch.randn_like(clean)
    timesteps = torch.randint(0, 1000, (len(clean),), device=device)
    predicted = model(noising.add_noise(clean, noise, timesteps), timesteps).sample
    return F.mse_loss(predicted, noise, reduction="none").mean(dim=(1, 2, 3)), timesteps


for _ in range(args.epochs):
    for (batch,) in loader:
        losses, timesteps = denoising_losses(batch)
        scores = None
        if args.score == "timestep":
            levels = timesteps // 100
            for level in levels.unique():
                usual[level] += 0.3 * (losses.detach()[levels == level].mean() - usual[level])
            scores = losses.detach() / usual[levels]
        loss = pruner.update(losses, scores=scores)  # 3
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    record = pruner.history[-1]
    print(f"epoch {record.epoch}: {record.kept} of {record.total} kept", flush=True)

if args.out is not None:
    args.out.mkdir(parents=True, exist_ok=True)
    pipeline = DDIMPipeline(model, DDIMScheduler.from_config(noising.config))
    pictures = pipeline(batch_size=16, num_inference_steps=20, output_type="np").images
    for number, picture in enumerate(pipeline.numpy_to_pil(pictures)):
        picture.save(args.out / f"{number}.png")

print(pruner.summary())
with torch.no_grad():
    test_losses = torch.cat([denoising_losses(part)[0] for part in test_images.split(500)])
print(f"test loss {test_losses.mean():.3f} of the noise's variance of 1")
