"""The pass along tangents against backprop: the derivative of every model is <g, v>, or it is refused."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from fgbench.errors import ConfigError
from fgbench.trainers.forward_mode import Factors, ForwardPass

LOSS = nn.CrossEntropyLoss(reduction="none")


def module(forward, **parts):
    """A module whose forward pass is a function of itself and the inputs."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

    Model.forward = forward
    return Model()


class StraightThrough(torch.autograd.Function):
    """A backward pass that is no derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Masked(torch.autograd.Function):
    """Draws a mask, and has both derivatives."""

    @staticmethod
    def forward(ctx, x):
        mask = torch.rand_like(x) > 0.5
        ctx.save_for_backward(mask)
        ctx.save_for_forward(mask)
        return x * mask

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * ctx.saved_tensors[0]


class Tripled(torch.autograd.Function):
    """Writes into its argument."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(3)

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient

    @staticmethod
    def jvp(ctx, tangent):
        return tangent.mul_(3)


class Reverse(torch.autograd.Function):
    """As for adversarial features; runs no operation of its own."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


sign, reverse = StraightThrough.apply, Reverse.apply  # the usual way, before any pass


@torch.library.custom_op("fgbench_test::square", mutates_args=())
def square(x: torch.Tensor) -> torch.Tensor:
    """An operator with a backward pass, of which forward mode sees nothing."""
    return x * x


square.register_fake(torch.empty_like)
square.register_autograd(
    lambda ctx, gradient: 2 * ctx.x * gradient,
    setup_context=lambda ctx, inputs, output: setattr(ctx, "x", inputs[0]),
)


def images(layout=torch.channels_last):
    return torch.randn(5, 3, 12, 12).contiguous(memory_format=layout)


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 8, (3, 2), stride=2, dilation=(1, 2), bias=False),
        nn.Conv2d(8, 6, 1, groups=2),
        nn.BatchNorm2d(6, affine=False),
        nn.GELU(),
        nn.ConvTranspose2d(6, 2, 2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(18, 3),
    )


def tokens(self, x):
    hidden = self.encode(self.embed(x) + self.position)
    return self.head(hidden.mean(1))


def keeps_what_it_detached(self, x):
    hidden = self.a(x)
    kept = hidden.detach()
    hidden = self.norm(hidden)
    return self.head(hidden * kept)


def detaches_in_place(self, x):
    hidden = self.a(x) * 1.0
    hidden.detach_()
    return self.head(hidden * self.a(x))


def detaches_by_function(self, x):
    hidden = self.a(x) * 1.0
    torch.detach_(hidden)
    return self.head(hidden * self.a(x))


def writes_into_a_copy_of_a_weight(self, x):
    weight = self.a.weight.clone()
    dense = weight.sum()  # a look at all of it first
    weight[0] = 0
    weight.mul_(self.mask)
    return self.head(F.linear(x, weight) * dense)


def constant_region(self, x):
    hidden = self.a(x)
    with torch.no_grad():
        scale = 1 + hidden.square().mean(1, keepdim=True)
    return self.head(hidden / scale)


def in_place(self, x):
    hidden = self.a(x)
    hidden[:, :2] *= self.scale
    hidden.add_(x, alpha=0.5).clamp_(-1, 1)
    hidden[hidden > 0.8] = 0.1
    return self.head(hidden)


CASES = {
    "linear layers": lambda: (
        nn.Sequential(nn.Linear(8, 6), nn.ReLU(True), nn.Linear(6, 3)),
        torch.randn(6, 8),
    ),
    "convolutions, channels last": lambda: (
        convolutions().to(memory_format=torch.channels_last),
        images(),
    ),
    "convolutions, contiguous": lambda: (convolutions(), images(torch.contiguous_format)),
    "torchvision resnet": lambda: (
        torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3),
        torch.randn(4, 3, 32, 32),
    ),
    "attention over embedded tokens": lambda: (
        module(
            tokens,
            embed=nn.Embedding(9, 8, padding_idx=0, scale_grad_by_freq=True),
            position=nn.Parameter(torch.randn(5, 8)),
            encode=nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True, activation="gelu"),
            head=nn.Linear(8, 3),
        ),
        torch.arange(30).view(6, 5) % 9,
    ),
    "detached": lambda: (
        module(keeps_what_it_detached, a=nn.Linear(8, 8), norm=nn.BatchNorm1d(8), head=nn.Linear(8, 3)),
        torch.randn(6, 8),
    ),
    "detached in place": lambda: (
        module(detaches_in_place, a=nn.Linear(8, 8), head=nn.Linear(8, 3)),
        torch.randn(6, 8),
    ),
    "detached by torch.detach_": lambda: (
        module(detaches_by_function, a=nn.Linear(8, 8), head=nn.Linear(8, 3)),
        torch.randn(6, 8),
    ),
    "a function of its own that draws": lambda: (
        module(lambda self, x: self.head(Masked.apply(self.a(x))), a=nn.Linear(8, 8), head=nn.Linear(8, 3)),
        torch.randn(6, 8),
    ),
    "a pruned copy of a weight": lambda: (
        module(
            writes_into_a_copy_of_a_weight,
            a=nn.Linear(8, 8),
            mask=(torch.randn(8, 8) > 0).double(),
            head=nn.Linear(8, 3),
        ),
        torch.randn(6, 8),
    ),
    "normalised sequences, time first": lambda: (
        module(
            lambda self, x: self.head(
                self.norm(self.a(x.transpose(0, 1).contiguous()).permute(1, 2, 0)).mean(2)
            ),
            a=nn.Linear(8, 6),
            norm=nn.BatchNorm1d(6),
            head=nn.Linear(6, 3),
        ),
        torch.randn(6, 5, 8),
    ),
    "normalised images turned round": lambda: (
        module(
            lambda self, x: self.head(self.norm(self.a(x).transpose(2, 3)).square().mean((2, 3))),
            a=nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
            norm=nn.BatchNorm2d(4),
            head=nn.Linear(4, 3),
        ),
        images(),
    ),
    "asks what is a leaf": lambda: (
        module(
            lambda self, x: self.head(
                (h := self.a(x)) * (1 + x.is_leaf + 2 * h.is_leaf + self.a.weight.is_leaf)
            ),
            a=nn.Linear(8, 8),
            head=nn.Linear(8, 3),
        ),
        torch.randn(6, 8),
    ),
    "a backward pass of its own on a constant": lambda: (
        module(lambda self, x: self.head(sign(x)) * sign(x).sum(), head=nn.Linear(8, 3)),
        torch.randn(6, 8),
    ),
    "without gradient": lambda: (
        module(constant_region, a=nn.Linear(8, 8), head=nn.Linear(8, 3)),
        torch.randn(6, 8),
    ),
    "in place": lambda: (
        module(in_place, a=nn.Linear(8, 8), scale=nn.Parameter(torch.randn(2)), head=nn.Linear(8, 3)),
        torch.randn(6, 8),
    ),
    "tied and transposed": lambda: (
        module(
            lambda self, x: self.head(F.linear(self.a(x).tanh(), self.a.weight.T) @ self.w.T),
            a=nn.Linear(8, 6),
            w=nn.Parameter(torch.randn(8, 8)),
            head=nn.Linear(8, 3),
        ),
        torch.randn(6, 8),
    ),
    "parameters as inputs and in lists": lambda: (
        module(
            lambda self, x: self.head(F.relu(self.rows[0]) * torch.cat([x, self.rows[1][None]])[-6:]),
            rows=nn.ParameterList([torch.rand(8), torch.rand(8)]),
            head=nn.Linear(8, 3),
        ),
        torch.randn(6, 8),
    ),
    "a weight laid out by columns": lambda: (by_columns(), torch.randn(6, 8)),
    "recurrent": lambda: (
        module(
            lambda self, x: self.head(self.gru(x)[0][:, -1]),
            gru=nn.GRU(8, 5, batch_first=True),
            head=nn.Linear(5, 3),
        ),
        torch.randn(6, 4, 8),
    ),
}


def by_columns():
    layer = nn.Linear(8, 6)
    layer.weight = nn.Parameter(torch.randn(8, 6).t())
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(6, 3))


def signs(shape, generator):
    return torch.randint(0, 2, shape, generator=generator).double() * 2 - 1


def draw(param, count, structure, generator):
    if structure == "full" or param.dim() == 1:
        return torch.randn(count, *param.shape, generator=generator, dtype=torch.float64)
    kernel = signs((count, *param.shape[2:]), generator) if param.dim() > 2 else None
    return Factors(
        signs((count, param.shape[0]), generator), signs((count, param.shape[1]), generator), kernel
    )


def problem(name):
    torch.manual_seed(2)
    model, inputs = CASES[name]()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    return model.double(), inputs, torch.arange(len(inputs)) % 3


@pytest.mark.parametrize("structure", ["full", "rank-one"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_the_gradient_times_the_tangents(name, count, structure):
    model, inputs, labels = problem(name)
    reference = copy.deepcopy(model)
    torch.manual_seed(3)
    true_loss = LOSS(reference(inputs), labels).mean()
    true_loss.backward()
    drawn_next = torch.rand(1)
    generator = torch.Generator().manual_seed(4)
    tangents = {param: draw(param, count, structure, generator) for param in model.parameters()}
    parameters = [param.clone() for param in model.parameters()]
    torch.manual_seed(3)
    with ForwardPass(model, tangents, count) as forward:
        loss = LOSS(model(inputs), labels).mean()
        derivatives = forward.tangent_of(loss)

    assert torch.equal(torch.rand(1), drawn_next), "the same chance as under backprop"
    torch.testing.assert_close(loss, true_loss.detach(), rtol=1e-12, atol=1e-12)
    true, squares = torch.zeros(count).double(), 0.0
    for param, twin in zip(model.parameters(), reference.parameters(), strict=True):
        tangent = tangents[param]
        tangent = tangent.dense() if isinstance(tangent, Factors) else tangent
        if twin.grad is not None:
            true += (tangent * twin.grad).flatten(1).sum(1)
            squares += float(twin.grad.square().sum())
    assert (derivatives - true).abs().max() <= 1e-10 * squares**0.5
    for buffer, expected in zip(model.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected)
    assert all(map(torch.equal, parameters, model.parameters()))
    assert all(param.requires_grad for param in model.parameters())


def on_hidden(change):
    return lambda: module(
        lambda self, x: self.head(change(self.a(x))), a=nn.Linear(8, 8), head=nn.Linear(8, 3)
    )


def multiplied_into_places(hidden):
    return hidden.scatter_reduce(1, torch.zeros(6, 8).long(), hidden, "prod")


def gradient_hook(self, x):
    hidden = self.a(x)
    if hidden.requires_grad:
        hidden.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
    return self.head(hidden)


def parameter_hook():
    layer = nn.Linear(8, 3)
    layer.weight.register_hook(lambda gradient: 2 * gradient)
    return nn.Sequential(layer)


def module_hook():
    layer = nn.Linear(8, 3)
    layer.register_full_backward_hook(lambda layer, inputs, outputs: None)
    return nn.Sequential(nn.Linear(8, 8), layer)


def shared_memory():
    one, two = nn.Linear(8, 8).double(), nn.Linear(8, 8).double()
    two.weight = nn.Parameter(one.weight.data)
    return nn.Sequential(one, two)


def own_gradient(self, x):
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(self.a(x).square().sum(), x, create_graph=True)
    return self.head(slope)


REFUSED = {
    "a straight-through estimator": (
        on_hidden(lambda hidden: StraightThrough.apply(hidden)),
        "StraightThrough has a backward pass of its own",
    ),
    "one by another name": (on_hidden(lambda hidden: sign(hidden)), r"call Square\.apply\("),
    "one that hands its argument on": (on_hidden(lambda hidden: reverse(hidden)), r"call Square\.apply\("),
    "one that writes into its argument": (
        on_hidden(lambda hidden: Tripled.apply(hidden * 1.0)),
        "writes into its arguments",
    ),
    "a look at the graph": (
        on_hidden(lambda hidden: hidden if hidden.grad_fn is None else 2 * hidden),
        "looks at a grad_fn",
    ),
    "an operator of the user's own": (on_hidden(square), "operator of your own"),
    "products in places": (on_hidden(multiplied_into_places), "formula of scattered products is wrong"),
    "a sparse matrix": (
        on_hidden(lambda hidden: torch.sparse.mm(torch.eye(6).double().to_sparse(), hidden)),
        "sparse",
    ),
    "a hook on a tensor": (
        lambda: module(gradient_hook, a=nn.Linear(8, 8), head=nn.Linear(8, 3)),
        "hooks a gradient",
    ),
    "a hook on a parameter": (parameter_hook, "'0.weight' has a gradient hook"),
    "a hook on a module": (module_hook, r"'1' \(Linear\) has a backward hook"),
    "a lazy layer": (lambda: nn.Sequential(nn.LazyLinear(3)), "'0.weight' is lazy"),
    "shared memory": (shared_memory, "share memory"),
    "a gradient of its own": (
        lambda: module(own_gradient, a=nn.Linear(8, 8), head=nn.Linear(8, 3)),
        "computes gradients itself",
    ),
    "an operation without a formula": (
        lambda: module(
            lambda self, x: self.head(
                torch._fake_quantize_learnable_per_tensor_affine(
                    self.a(x), torch.ones(1).double(), torch.zeros(1).double(), 0, 255
                )
            ),
            a=nn.Linear(8, 8),
            head=nn.Linear(8, 3),
        ),
        "fake_quantize",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_forward_mode_is_not_backprop_a_model_is_refused_in_one_line(name):
    build, message = REFUSED[name]
    torch.manual_seed(2)
    model = build().double()
    tangents = {
        param: torch.randn(1, *param.shape).double()
        for param in model.parameters()
        if not isinstance(param, nn.parameter.UninitializedParameter)
    }
    with pytest.raises(ConfigError, match=message) as refused, ForwardPass(model, tangents):
        model(torch.randn(6, 8).double())
    assert "\n" not in str(refused.value)
    assert all(param.requires_grad for param in model.parameters())
    assert not torch.ones(1).requires_grad


def test_a_refusal_names_the_module():
    model = nn.Sequential(
        nn.Linear(8, 8), nn.ModuleDict({"inner": REFUSED["a hook on a tensor"][0]()})["inner"]
    )
    tangents = {param: torch.randn(1, *param.shape) for param in model.parameters()}
    with pytest.raises(ConfigError, match=r"in '1' \(Model\)"), ForwardPass(model, tangents):
        model(torch.randn(6, 8))


def test_a_wrong_tangent_is_seen():
    """The test above can fail: one entry of a tangent changed changes d."""
    model, inputs, labels = problem("linear layers")
    tangents = {param: torch.randn(1, *param.shape).double() for param in model.parameters()}
    found = []
    for _ in range(2):
        with ForwardPass(model, tangents) as forward:
            found.append(float(forward.tangent_of(LOSS(model(inputs), labels).mean())))
        tangents[model[2].bias][0, 0] += 0.01
    assert found[0] != pytest.approx(found[1], rel=1e-6)


def test_nothing_of_a_pass_outlives_it():
    model, inputs, _ = problem("convolutions, channels last")
    tangents = {param: torch.randn(1, *param.shape).double() for param in model.parameters()}
    with ForwardPass(model, tangents) as forward:
        kept = model[:3](inputs)
        outputs = model(inputs)
    assert forward.shadows.get(kept) is None
    assert not outputs.requires_grad
    model(inputs).sum().backward()
    assert all(param.grad is not None for param in model.parameters())


def test_in_float32_a_deep_network_with_batch_norm_is_off_by_no_more_than_rounding():
    torch.manual_seed(0)
    model = torchvision.models.resnet.ResNet(
        torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3
    ).to(memory_format=torch.channels_last)
    inputs = 5 + torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)  # far from centred
    labels = torch.arange(8) % 3
    found = []
    for dtype in (torch.float32, torch.float64):
        twin = copy.deepcopy(model).to(dtype)
        generator = torch.Generator().manual_seed(1)
        tangents = {
            param: torch.randn(1, *param.shape, generator=generator).to(dtype) for param in twin.parameters()
        }
        with ForwardPass(twin, tangents) as forward:
            found.append(float(forward.tangent_of(LOSS(twin(inputs.to(dtype)), labels).mean())))
    LOSS(twin(inputs.double()), labels).mean().backward()
    length = sum(float(param.grad.square().sum()) for param in twin.parameters()) ** 0.5
    assert abs(found[0] - found[1]) <= 2e-3 * length


def test_a_loss_that_is_made_of_named_results_has_its_derivative():
    model, inputs, labels = problem("linear layers")
    classes = F.pad(labels[:, None], (0, 2), value=-1)
    loss = F.multilabel_margin_loss(model(inputs), classes)
    true = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    tangents = {param: torch.randn(1, *param.shape).double() for param in model.parameters()}
    with ForwardPass(model, tangents) as forward:
        found = forward.tangent_of(F.multilabel_margin_loss(model(inputs), classes))
    expected = sum((part * each[0]).sum() for part, each in zip(true, tangents.values(), strict=True))
    torch.testing.assert_close(found[0], expected)
