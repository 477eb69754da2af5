"""A plain PyTorch loop without a backward pass: AdamW, a schedule, clipping, accumulation, parameter groups.

Nothing here is fgbench's but the trainer, which stands where ``loss.backward()`` stood, and the images.

    python examples/plain_loop.py            # half a minute on two cores
"""

import torch
from torch import nn

import fgbench
from fgbench.config.config import load_config
from fgbench.datasets.base import load_splits
from fgbench.datasets.search import DataSearch

EPOCHS, BATCH, MICRO_BATCHES = 3, 128, 2

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
loss_fn = nn.CrossEntropyLoss(reduction="none")  # one loss per sample
trainer = fgbench.FeedbackForwardGradient()
generator = torch.Generator()

splits = load_splits(load_config("configs/demo_bp.yaml").dataset, 0, torch.device("cpu"), DataSearch())
inputs, labels = splits.train.batch(torch.arange(BATCH))
trainer.set_up(model, inputs, num_classes=10, generator=generator.manual_seed(0))

decayed = [param for param in model.parameters() if param.dim() > 1]
others = [param for param in model.parameters() if param.dim() == 1]
optimizer = torch.optim.AdamW(
    [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0}]
)
steps = EPOCHS * (len(splits.train) // BATCH)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)

for epoch in range(EPOCHS):
    order = torch.randperm(len(splits.train))
    total = 0.0
    for step in range(len(splits.train) // BATCH):
        optimizer.zero_grad()
        indices = order[step * BATCH : (step + 1) * BATCH]
        for part in indices.chunk(MICRO_BATCHES):
            inputs, labels = splits.train.batch(part)
            stats = trainer.compute_gradients(model, loss_fn, inputs, labels, generator, accumulate=True)
            total += float(stats.loss) / MICRO_BATCHES
        for param in model.parameters():
            param.grad /= MICRO_BATCHES  # the mean over the micro-batches, as of one batch
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        inputs, labels = splits.test.batch(torch.arange(len(splits.test)))
        accuracy = (model(inputs).argmax(1) == labels).float().mean()
    print(f"epoch {epoch + 1}: loss {total / (step + 1):.4f}, test accuracy {accuracy:.4f}")
