"""Every dataset, model and trainer by name.

To add one: write its file, an options model for it, and a row here. Command-line help, ``fgbench list``,
error messages and the contract tests all read these tables. Users' own code needs no row: a name of the form
``package.module:Class`` is imported as Python finds it, with the class's ``Options`` if it has any.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from fgbench.errors import ConfigError
from fgbench.options import Backwards, Options, declared_backwards
from fgbench.own_code import record


@dataclass(frozen=True)
class Component:
    """One row: where the code is, where its options are, and what ``fgbench list`` says about it."""

    target: str
    options: str
    summary: str
    source: str = ""
    bias: str = ""
    cost: str = ""
    """Cost of a step in forward passes, for trainers."""
    revision: int = 1
    """Raised when its results change; above 1 it is part of a run's hash, so older runs do not count as the
    same."""
    backwards: str = ""
    """What a trainer uses backwards, starting with its default options; ``uses_backwards`` is the exact
    answer."""


DATASETS = {
    "mnist": Component(
        "fgbench.datasets.standard_sets:load_mnist",
        "fgbench.datasets.options:StandardOptions",
        "handwritten digits, 60,000 + 10,000 images of 1x28x28",
        "LeCun et al. (1998)",
    ),
    "fashion-mnist": Component(
        "fgbench.datasets.standard_sets:load_fashion_mnist",
        "fgbench.datasets.options:StandardOptions",
        "clothes, 60,000 + 10,000 images of 1x28x28",
        "Xiao et al. (2017), arXiv 1708.07747",
    ),
    "cifar10": Component(
        "fgbench.datasets.standard_sets:load_cifar10",
        "fgbench.datasets.options:StandardOptions",
        "colour photographs, 50,000 + 10,000 images of 3x32x32",
        "Krizhevsky (2009)",
    ),
    "fashion-mnist-mini": Component(
        "fgbench.datasets.mini:load_fashion_mnist_mini",
        "fgbench.datasets.options:DatasetOptions",
        "10,000 + 2,000 images of Fashion-MNIST, shipped with fgbench",
        "Xiao et al. (2017), arXiv 1708.07747",
    ),
    "imagefolder": Component(
        "fgbench.datasets.imagefolder:load_imagefolder",
        "fgbench.datasets.options:ImageFolderOptions",
        "your own images: DIR/train/<class>/* and DIR/test/<class>/*",
    ),
    "synthetic": Component(
        "fgbench.datasets.synthetic:load_synthetic",
        "fgbench.datasets.options:SyntheticOptions",
        "made-up images of any size, for tests and timing",
    ),
}

MODELS = {
    "fc": Component(
        "fgbench.models.fc:build_fc",
        "fgbench.models.options:FCOptions",
        "fully connected, one hidden layer of 1024 ReLU units (814,090 parameters for 1x28x28, 10 classes)",
        "Baydin et al. (2022), arXiv 2202.08587",
    ),
    "cnn": Component(
        "fgbench.models.cnn:build_cnn",
        "fgbench.models.options:CNNOptions",
        "four 3x3 convolutions and two linear layers (3,333,962 parameters for 1x28x28, 10 classes)",
        "Baydin et al. (2022), arXiv 2202.08587",
    ),
    "vgg16": Component(
        "fgbench.models.vgg:build_vgg16",
        "fgbench.models.options:VGGOptions",
        "VGG-16, for small images by default",
        "Simonyan and Zisserman (2014), arXiv 1409.1556",
    ),
    "resnet18": Component(
        "fgbench.models.resnet:build_resnet18",
        "fgbench.models.options:ResNetOptions",
        "ResNet-18, for small images by default",
        "He et al. (2015), arXiv 1512.03385",
    ),
    "vit": Component(
        "fgbench.models.vit:build_vit",
        "fgbench.models.options:ViTOptions",
        "a small vision transformer, 4 blocks of 128 features (803,082 parameters for 1x28x28, 10 classes)",
        "Dosovitskiy et al. (2020), arXiv 2010.11929",
    ),
    "local-mixer": Component(
        "fgbench.models.local_mixer:build_local_mixer",
        "fgbench.models.options:LocalMixerOptions",
        "mixes patches and groups of channels, for local losses (M/1/16 by default)",
        "Ren et al. (2023), arXiv 2210.03310",
    ),
}

TRAINERS = {
    "backprop": Component(
        "fgbench.trainers.backprop:Backprop",
        "fgbench.trainers.options:BackpropOptions",
        "the exact gradient by reverse mode: the baseline",
        "Rumelhart et al. (1986)",
        bias="none (exact)",
        cost="about 3; 4 with recompute",
        backwards="everything",
    ),
    "forward-gradient": Component(
        "fgbench.trainers.forward_gradient:ForwardGradient",
        "fgbench.trainers.options:ForwardGradientOptions",
        "a random direction times the directional derivative along it",
        "Baydin et al. (2022), arXiv 2202.08587",
        bias="none with mean; projection shrinks by K/P",
        cost="1 + 2K; rank1: 1 + K",
        backwards="nothing; with exact_stages: the last n stages",
    ),
    "activity-forward-gradient": Component(
        "fgbench.trainers.activity_forward_gradient:ActivityForwardGradient",
        "fgbench.trainers.options:ActivityForwardGradientOptions",
        "random perturbation of every layer's activations, one derivative per sample",
        "Ren et al. (2023), arXiv 2210.03310",
        bias="none",
        cost="2K, and the weight-gradient products",
        revision=2,
        backwards="nothing; guess next-weights: transposed weights or their signs",
    ),
    "guided-forward-gradient": Component(
        "fgbench.trainers.guided_forward_gradient:GuidedForwardGradient",
        "fgbench.trainers.options:GuidedForwardGradientOptions",
        "the gradient projected on guesses that come from auxiliary losses of each block",
        "Fournier et al. (2023), arXiv 2306.06968",
        bias="biased: a projection on the guess",
        cost="3 + (L-1)/2, and local forward and backward passes of each of the L blocks",
        backwards="a block's own loss; guess normal or rademacher: the last n stages (its last block)",
    ),
    "feedback-forward-gradient": Component(
        "fgbench.trainers.feedback_forward_gradient:FeedbackForwardGradient",
        "fgbench.trainers.options:FeedbackForwardGradientOptions",
        "the output error sent to every layer by matrices that learn from derivatives of the outputs",
        "Bacho and Chu (2024), arXiv 2212.07282",
        bias="biased: the direction follows the feedback matrices",
        cost="2, and the weight-gradient products; projection: 4",
        revision=4,
        backwards="nothing",
    ),
    "zeroth-order": Component(
        "fgbench.trainers.zeroth_order:ZerothOrder",
        "fgbench.trainers.options:ZerothOrderOptions",
        "central differences of the loss along a random direction kept as a seed, or as rank-one factors",
        "Malladi et al. (2023), arXiv 2305.17333",
        bias="O(epsilon^2)",
        cost="2K",
        backwards="nothing",
    ),
    "frozen": Component(
        "fgbench.trainers.frozen:Frozen",
        "fgbench.trainers.options:FrozenOptions",
        "the body keeps its initial weights, the output layer gets its exact gradient: the control",
        "Rahimi and Recht (2007)",
        bias="no gradient but the output layer's, which is exact",
        cost="1",
        backwards="nothing; with exact_stages: the last n stages",
    ),
    "local-loss": Component(
        "fgbench.trainers.local_loss:LocalLoss",
        "fgbench.trainers.options:LocalLossOptions",
        "every block is trained by its own loss, on its own head",
        "Noekland and Eidnes (2019), arXiv 1901.06656; projection: Gong et al. (2025), arXiv 2501.09238",
        bias="the gradient of another loss in all blocks but the last",
        cost="about 3, and the heads",
        backwards="a block's own loss",
    ),
    "local-forward-gradient": Component(
        "fgbench.trainers.local_forward_gradient:LocalForwardGradient",
        "fgbench.trainers.options:LocalForwardGradientOptions",
        "random perturbation of activations, by derivatives of losses of each block, patch and group",
        "Ren et al. (2023), arXiv 2210.03310",
        bias="the gradient of another loss in all blocks but the last; losses global: none",
        cost="2, and the weight-gradient products",
        backwards="nothing but each layer's own normalisation",
    ),
    "feedback-alignment": Component(
        "fgbench.trainers.feedback_alignment:FeedbackAlignment",
        "fgbench.trainers.options:FeedbackAlignmentOptions",
        "errors go back through fixed random matrices, or the weights' signs, in place of the weights",
        "Lillicrap et al. (2016), arXiv 1411.0247; sign: Liao et al. (2016), arXiv 1510.05067; "
        "direct: Noekland (2016), arXiv 1609.01596",
        bias="biased: the angle between the matrices and the transposed weights",
        cost="about 3; direct: about 2",
        backwards="fixed random matrices; feedback sign: transposed weights or their signs",
    ),
}

TABLES = {"dataset": DATASETS, "model": MODELS, "trainer": TRAINERS}

LOGGERS = {"tensorboard": "fgbench.run.tensorboard:TensorBoard"}
"""What ``log`` may name besides ``package.module:Class``."""

SYNONYMS = {
    **dict.fromkeys(("bp", "backpropagation", "back-propagation", "reverse-mode"), "backprop"),
    **dict.fromkeys(("fg", "fgd", "forward-mode", "forward-ad", "fwdgrad", "forward"), "forward-gradient"),
    **dict.fromkeys(("mezo", "spsa", "zo", "es"), "zeroth-order"),
    **dict.fromkeys(("fa", "dfa", "usf", "sign-symmetry", "direct-feedback-alignment"), "feedback-alignment"),
    **dict.fromkeys(("fmnist", "fashion"), "fashion-mnist"),
    **dict.fromkeys(("mlp", "fcn", "fully-connected", "dense"), "fc"),
    **dict.fromkeys(("convnet", "conv"), "cnn"),
}
"""Other names the field uses for them, so that a message can suggest the right one."""


def import_target(target: str) -> Any:
    """The object that ``package.module:attribute`` names.

    Raises:
        ConfigError: the module cannot be imported or has no such attribute.
    """
    module_name, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot import {target!r}: {error}") from error


_OPTIONS = {
    "trainer": "fgbench.options:TrainerOptions",
    "dataset": "fgbench.datasets.options:DatasetOptions",
    "model": "fgbench.options:Options",
}
"""The options of users' own components that bring none, and the base of those they bring."""


def find(kind: str, name: str) -> Component:
    """The row of ``name`` in the table of ``kind`` (``dataset``, ``model`` or ``trainer``).

    Raises:
        ConfigError: no such name; lists the known names and suggests the nearest.
    """
    table = TABLES[kind]
    if name in table:
        return table[name]
    if ":" in name:
        target = import_target(name)
        record(name, target)
        options = getattr(target, "Options", None)
        classes = kind == "trainer"
        if options is None and (isinstance(target, type) if classes else callable(target)):
            return Component(name, _OPTIONS[kind], "user's own")
        if not (isinstance(options, type) and issubclass(options, Options)):
            base = _OPTIONS[kind].replace(":", ".")
            wanted = "a class" if classes else "a class or function"
            raise ConfigError(f"{name!r}: expected {wanted}, without options or with a class Options({base})")
        return Component(name, f"{name}.Options", "user's own")
    near = nearest_name(kind, name)
    hint = f" (did you mean {near!r}?)" if near else ""
    raise ConfigError(f"unknown {kind} {name!r}{hint}; there are {', '.join(table)}, or package.module:Class")


def nearest_name(kind: str, name: Any) -> str | None:
    """The name that was probably meant, for one that is not in the table of ``kind``.

    >>> nearest_name("trainer", "Forward_Gradient"), nearest_name("trainer", "fg")
    ('forward-gradient', 'forward-gradient')
    """
    word = str(name)[:100].strip().lower().replace("_", "-").replace(" ", "-")
    table = TABLES[kind]
    if SYNONYMS.get(word) in table:
        return SYNONYMS[word]
    return next(iter(difflib.get_close_matches(word, table, n=1)), None)


def options_model(kind: str, name: str) -> type[Options]:
    """The options model of a component."""
    component = find(kind, name)
    if component.options.endswith(".Options"):
        model: type[Options] = import_target(component.target).Options
        return model
    return import_target(component.options)


def uses_backwards(block: Mapping[str, Any]) -> Backwards:
    """What the trainer of a config's block uses backwards; see :class:`Backwards`.

    Unknown for users' own trainers, which are not imported just for this, and for options that no longer
    exist.
    """
    if block["name"] not in TRAINERS:
        return Backwards.UNKNOWN
    try:
        return declared_backwards(options_model("trainer", block["name"])(**block))
    except ValidationError:
        return Backwards.UNKNOWN


def load(kind: str, name: str) -> Any:
    """The component itself: a dataset loader, a model builder or a trainer class. Imports torch."""
    return import_target(find(kind, name).target)
