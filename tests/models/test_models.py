import random
import sys
import weakref

import numpy as np
import pytest
import torch
import torchvision
from textbook import counters_hidden
from torch import nn
from torch.func import functional_call, jvp, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fgbench.errors import ConfigError
from fgbench.models.build import build_model
from fgbench.models.layers import Stages
from fgbench.models.resnet import BasicBlock
from fgbench.models.vit import TransformerBlock
from fgbench.options import Options
from fgbench.registry import MODELS, load, options_model
from fgbench.trainers.local.blocks import split_stages

SHAPES = [(1, 28, 28), (3, 32, 32)]
NORMALIZATIONS = ["batch", "group", "none"]
TINY = [
    ("fc", {"hidden": 8, "layers": 2, "dropout": 0.5}),
    ("cnn", {"width": 4, "hidden": 8}),
    *(
        (name, {"width": 2, "normalization": norm})
        for name in ("vgg16", "resnet18")
        for norm in NORMALIZATIONS
    ),
    ("resnet18", {"width": 2, "stem": "imagenet"}),
    ("vit", {"width": 8, "depth": 2, "heads": 2}),
    ("local-mixer", {"channels": 8, "groups": 2, "blocks": 2}),
]


def options_of(name, **changes):
    return options_model("model", name)(name=name, **changes)


def build(name, shape=(1, 28, 28), classes=10, seed=0, **changes):
    return build_model(options_of(name, **changes), shape, classes, seed, "cpu")


def num_parameters(model):
    return sum(param.numel() for param in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("fc", (1, 28, 28), 814_090),
        ("cnn", (1, 28, 28), 3_333_962),
        ("fc", (3, 32, 32), 3072 * 1024 + 1024 + 10_250),
        ("cnn", (3, 32, 32), 3_333_962 + 2 * 9 * 64 + (4096 - 3136) * 1024),
        ("vit", (1, 28, 28), 803_082),
        ("vit", (3, 32, 32), 803_082 + 2 * 16 * 128 + 15 * 128),
    ],
)
def test_models_have_the_parameters_that_are_documented(name, shape, expected):
    assert num_parameters(build(name, shape)) == expected


def test_fc_depth_is_a_choice():
    assert num_parameters(build("fc", layers=0)) == 784 * 10 + 10
    assert num_parameters(build("fc", layers=2)) == 814_090 + 1024 * 1024 + 1024
    deep = build("fc", hidden=8, layers=100)
    assert len(deep) == 101
    assert deep(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "normalization", "reference"),
    [
        ("vgg16", "batch", torchvision.models.vgg16_bn),
        ("vgg16", "none", torchvision.models.vgg16),
        ("resnet18", "batch", torchvision.models.resnet18),
    ],
)
def test_imagenet_stems_have_torchvision_parameters(name, normalization, reference):
    with torch.device("meta"):  # shapes only: VGG-16 has 138 million parameters
        options = options_of(name, stem="imagenet", normalization=normalization)
        model = load("model", name)(options, (3, 224, 224), 1000)
        theirs = reference()
    shapes = [param.shape for param in model.parameters()]
    assert shapes == [param.shape for param in theirs.parameters()]
    dropout = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert dropout == [module.p for module in theirs.modules() if isinstance(module, nn.Dropout)]


@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_imagenet_stems_compute_what_torchvision_computes(name):
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 64, 64)
    if name == "vgg16":  # without the head, most of whose 120 million weights say nothing new
        layout = torchvision.models.vgg.cfgs["D"]
        theirs = torchvision.models.vgg.make_layers(layout, batch_norm=True)
        ours = build(name, (3, 64, 64))[:-1]
    else:
        theirs = torchvision.models.resnet18(num_classes=10)
        ours = build(name, (3, 64, 64), stem="imagenet")
    with torch.no_grad():
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            own.copy_(other)
        torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-4, atol=1e-4)
        for own, other in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(own, other)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 5, 9), (2, 65, 40)])
@pytest.mark.parametrize(("name", "changes"), TINY)
def test_every_model_takes_every_image_size_and_trains(name, changes, shape):
    model = build(name, shape, classes=7, **changes)
    inputs = torch.randn(2, *shape).to(memory_format=torch.channels_last)
    outputs = model(inputs)
    assert outputs.shape == (2, 7)
    F.cross_entropy(outputs, torch.tensor([3, 5])).backward()
    for name, param in model.named_parameters():
        assert param.grad is not None, name
        assert param.grad.isfinite().all(), name


@pytest.mark.parametrize("name", MODELS)
def test_models_are_sequences_of_stages_that_run_as_plain_sequences(name):
    small = {"fc": {}, "local-mixer": {"channels": 32}}
    model = build(name, **small.get(name, {"width": 4})).eval()
    assert isinstance(model, nn.Sequential)
    value = inputs = torch.randn(2, 1, 28, 28)
    for stage in model:
        value = stage(value)
    assert torch.equal(value, model(inputs))


def test_vgg_pads_small_images_with_zeros_on_all_sides():
    model, inputs = build("vgg16", width=2).eval(), torch.randn(2, 1, 28, 28)
    bare = Stages(model[0][1:], *list(model)[1:])
    torch.testing.assert_close(model(inputs), bare(F.pad(inputs, (2, 2, 2, 2))))


def test_resnet18_has_eight_basic_blocks_which_split_into_sixteen_halves():
    model = build("resnet18", (3, 32, 32), width=4)
    halves = split_stages(model)
    assert sum(isinstance(stage, BasicBlock) for stage in model) == 8
    assert len(halves) == len(model) + 8 == 18
    assert {id(param) for param in halves.parameters()} == {id(param) for param in model.parameters()}
    inputs = torch.randn(2, 3, 32, 32)
    assert torch.equal(halves.eval()(inputs), model.eval()(inputs))


def test_a_transformer_block_is_that_of_pytorch():
    block = TransformerBlock(8, 2, 0.0)
    theirs = nn.TransformerEncoderLayer(
        8, 2, 32, 0.0, nn.GELU(), batch_first=True, norm_first=True, dtype=torch.float32
    )
    (first, attention, _), (second, up, _, _, down, _) = block.attend, block.transform
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(attention.queries_keys_values.weight)
        theirs.self_attn.in_proj_bias.copy_(attention.queries_keys_values.bias)
    pairs = [
        (theirs.self_attn.out_proj, attention.output), (theirs.norm1, first), (theirs.norm2, second),
        (theirs.linear1, up), (theirs.linear2, down),
    ]  # fmt: skip
    for their_module, module in pairs:
        their_module.load_state_dict(module.state_dict())
    tokens = torch.randn(3, 5, 8)
    torch.testing.assert_close(block(tokens), theirs(tokens))


def test_a_transformer_tells_where_a_patch_is_and_drops_features():
    model = build("vit", width=8, depth=1, heads=2).eval()
    images = torch.randn(2, 1, 28, 28)
    moved = images.roll(4, dims=3)
    assert not torch.allclose(model(images), model(moved))
    with torch.no_grad():
        model[0].positions.zero_()
    torch.testing.assert_close(model(images), model(moved))
    dropping = build("vit", width=8, depth=1, heads=2, dropout=0.5)
    assert not torch.equal(dropping(images), dropping(images))
    assert torch.equal(dropping.eval()(images), dropping(images))


def test_a_stage_with_a_hook_is_run_as_a_whole():
    model, seen = build("cnn", width=4, hidden=8), []
    model[1].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    model(torch.zeros(2, 1, 28, 28))
    assert seen == [(2, 4, 14, 14)]


def test_a_stage_whose_forward_was_replaced_is_run_as_a_whole():
    model, images = build("cnn", width=4, hidden=8), torch.randn(2, 1, 28, 28)
    plain = model[1].forward
    model[1].forward = lambda value: 2 * plain(value)
    expected = images
    for stage in model:
        expected = stage(expected)
    assert torch.equal(model(images), expected)


def test_a_stage_with_a_hook_on_its_gradient_is_run_as_a_whole():
    model = build("cnn", width=4, hidden=8)
    model[1].register_full_backward_pre_hook(lambda module, gradients: (0 * gradients[0],))
    model(torch.randn(2, 1, 28, 28)).sum().backward()
    assert not any(param.grad.any() for param in model[0].parameters())


def test_a_pass_frees_a_layer_input_when_the_layer_is_done():
    alive, most = weakref.WeakSet(), 0

    class Layer(nn.Module):
        def forward(self, value):
            nonlocal most
            value = value + 1
            alive.add(value)
            most = max(most, len(alive))
            return value

    stages = Stages(*(nn.Sequential(Layer(), Layer(), Layer()) for _ in range(3)))
    with torch.no_grad():
        stages(torch.zeros(1))
    assert most == 2


@pytest.mark.parametrize(("name", "changes"), TINY)
def test_forward_mode_agrees_with_backprop(name, changes):
    shape = (1, 12, 12) if name == "resnet18" else (1, 8, 8)
    model = build(
        name, shape, classes=3, **{**changes, **({"dropout": 0.0} if name == "fc" else {})}
    ).double()
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(6, *shape, dtype=torch.float64, generator=generator)
    inputs = inputs.to(memory_format=torch.channels_last)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    params = {name: param.detach().clone() for name, param in model.named_parameters()}
    tangents = {
        name: torch.randn(3, *param.shape, dtype=torch.float64, generator=generator)
        for name, param in params.items()
    }

    def loss(params):
        return F.cross_entropy(functional_call(model, params, (inputs,)), labels)

    F.cross_entropy(model(inputs), labels).backward()
    expected = sum(
        (tangents[name] * param.grad).flatten(1).sum(1) for name, param in model.named_parameters()
    )
    with torch.no_grad(), counters_hidden(model), sdpa_kernel(SDPBackend.MATH):
        one = jvp(loss, (params,), ({name: value[0] for name, value in tangents.items()},))[1]
        many = vmap(lambda tangent: jvp(loss, (params,), (tangent,))[1])(tangents)
    torch.testing.assert_close(one, expected[0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(many, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_every_normalization_fits_a_batch(name, normalization):
    torch.manual_seed(0)
    inputs, labels = torch.randn(8, 1, 16, 16), torch.arange(8) % 4
    model = build(name, (1, 16, 16), classes=4, width=8, normalization=normalization)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    losses = []
    for _ in range(36):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_resnet_without_normalization_keeps_the_scale_of_its_features():
    model = build("resnet18", (3, 32, 32), normalization="none", width=16)
    features = model[:-1](torch.randn(4, 3, 32, 32))
    assert 0.1 < features.std() < 10


def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    one, two, other = build("cnn", seed=3), build("cnn", seed=3), build("cnn", seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    for first, second in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(one[0][0].weight, other[0][0].weight)


@pytest.mark.parametrize("name", ["cnn", "vgg16", "resnet18"])
@pytest.mark.parametrize("shape", SHAPES)
def test_features_stay_channels_last(name, shape):
    model, layouts = build(name, shape, width=4), []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            module.register_forward_hook(
                lambda _, args, output: layouts.append(
                    output.is_contiguous(memory_format=torch.channels_last)
                )
            )
    model(torch.randn(2, *shape).to(memory_format=torch.channels_last))
    assert layouts
    assert all(layouts)


class MyOptions(Options):
    outputs: int | None = None


def build_lazily(options, image_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(options.outputs or num_classes))


build_lazily.Options = MyOptions


def build_nothing(options, image_shape, num_classes):
    return None


build_nothing.Options = MyOptions


def build_own(function, **changes):
    name = f"{__name__}:{function.__name__}"
    sys.modules.setdefault(__name__, sys.modules[function.__module__])
    return build_model(MyOptions(name=name, **changes), (1, 4, 4), 3, 0, "cpu")


def test_a_user_builder_may_give_any_module_even_a_lazy_one():
    one, two = build_own(build_lazily), build_own(build_lazily)
    assert one[1].weight.shape == (3, 16)
    assert torch.equal(one[1].weight, two[1].weight)
    assert one.training


@pytest.mark.parametrize(
    ("build_it", "message"),
    [
        (lambda: build_own(build_nothing), "gave a NoneType, expected a torch.nn.Module"),
        (
            lambda: build_own(build_lazily, outputs=5),
            r"gave outputs of shape \(2, 5\) for 2 images, expected \(2, 3\)",
        ),
        (lambda: build("cnn", (1, 3, 3)), "cnn does not work on images of 1x3x3"),
    ],
)
def test_a_model_that_does_not_fit_is_an_error_that_names_it(build_it, message):
    with pytest.raises(ConfigError, match=message):
        build_it()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fc", {"layers": -1}),
        ("fc", {"layers": 1001}),
        ("vit", {"depth": 1001}),
        ("fc", {"dropout": 1.0}),
        ("cnn", {"width": 0}),
        ("vgg16", {"stem": "large"}),
        ("vit", {"heads": 3}),
    ],
)
def test_impossible_options_are_refused(name, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        options_of(name, **changes)


def test_weights_drawn_by_numpy_or_random_follow_the_seed_too(tmp_path, monkeypatch):
    (tmp_path / "drawn_model.py").write_text(
        "import random\nimport numpy as np\nimport torch\nfrom torch import nn\n"
        "from fgbench.options import Options\n\n"
        "def net(options, image_shape, num_classes):\n"
        "    model = nn.Sequential(nn.Flatten(), nn.Linear(4, num_classes))\n"
        "    with torch.no_grad():\n"
        "        model[1].weight.fill_(random.random()).mul_(float(np.random.rand()))\n"
        "    return model\n\n"
        "net.Options = Options\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    one, same, other = (
        build_model(Options(name="drawn_model:net"), (1, 2, 2), 3, seed, "cpu")[1].weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
