"""From a config to a model, a trainer and an optimizer ready for their first step."""

import torch
from torch import Tensor, nn

from fgbench.config.config import Config
from fgbench.datasets.base import Splits
from fgbench.errors import ConfigError
from fgbench.models.build import build_model
from fgbench.run.loop import TrainingState, count_batches
from fgbench.run.optimizers import build_optimizer, build_schedule
from fgbench.run.parallel import distribute
from fgbench.run.validation import check_validation
from fgbench.run.world import World
from fgbench.seeds import derive_generator
from fgbench.trainers.base import Trainer
from fgbench.trainers.build import build_trainer
from fgbench.trainers.compiled import compile_steps


def build_training(
    config: Config, device: torch.device, splits: Splits, world: World | None = None
) -> TrainingState:
    """Build everything a config names, on a device.

    Args:
        config: of the run.
        device: of this process.
        splits: the images, on the device.
        world: the processes of the run; this one alone when None.

    Raises:
        ConfigError: the components do not go together.
    """
    check_validation(config, splits)
    model = build_model(config.model, splits.image_shape, splits.num_classes, config.seed, device)
    if not any(param.requires_grad for param in model.parameters()):
        raise ConfigError(f"model.name: {config.model.name} has no parameters to train")
    trainer = build_trainer(config.trainer)
    batch_size = min(config.batch_size, len(splits.train))
    inputs, _ = splits.train.batch(torch.arange(min(2, len(splits.train)), device=device), None)
    trainer.set_up(model, inputs, splits.num_classes, derive_generator("cpu", config.seed, "trainer"))
    if config.optimizer.exact_lr is not None:
        _check_exact_lr(trainer, model)
    optimizer = build_optimizer(config.optimizer, model, trainer.parameters(), trainer.exact_names(model))
    if config.compile:
        compile_steps(trainer)
    trainer, workers = distribute(trainer, world or World(), batch_size)
    if batch_size == workers.shards:
        _check_normalization(model, inputs[:1], batch_size)
    batches = count_batches(len(splits.train), config.batch_size)
    return TrainingState(
        model=model,
        trainer=trainer,
        optimizer=optimizer,
        schedule=build_schedule(config.schedule, optimizer, batches, config.epochs),
        splits=splits,
        seed=config.seed,
        device=device,
        batch_size=config.batch_size,
        clip_gradient_norm=config.clip_gradient_norm,
        precision=config.precision,
        workers=workers,
    )


def _check_exact_lr(trainer: Trainer, model: nn.Module) -> None:
    """Refuse a separate learning rate for exact gradients if no gradient, or every gradient, is exact."""
    exact = trainer.exact_names(model)
    if exact and exact != trainer.trained_names(model):
        return
    which = "every parameter" if exact else "no parameter"
    do = "set optimizer.lr" if exact else "leave it out, or set trainer.exact_output: true where there is one"
    raise ConfigError(
        f"optimizer.exact_lr: with trainer {trainer.options.name} {which} has an exact gradient, so there "
        f"are not two learning rates: {do}"
    )


def _check_normalization(model: nn.Module, image: Tensor, batch_size: int) -> None:
    """Check that no batch normalisation gets one value per channel, which has no variance.

    Raises:
        ConfigError: one does.
    """
    single: list[str] = []

    def look(name: str, inputs: Tensor) -> None:
        if inputs.numel() == inputs.shape[1]:
            single.append(name)

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    model.eval()
    with torch.no_grad():
        model(image)
    model.train()
    for hook in hooks:
        hook.remove()
    if single:
        workers = f" over {batch_size} workers, one image each," if batch_size > 1 else ""
        raise ConfigError(
            f"batch_size: {batch_size}{workers} leaves batch normalisation ({single[0]}) one value per "
            f"channel, which has no variance; take at least {2 * batch_size}, or model.normalization: group"
        )
