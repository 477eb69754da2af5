"""Models as people write them: one row each, tiny, with inputs of the kind they take.

A row's function is the forward pass of a body, ``(self, inputs) -> features (6, n)``, its keywords the body's parts. The
model is ``nn.Sequential(body, nn.Linear(n, 3))``; ``whole`` rows are models by themselves.
"""
# fmt: off

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

L, P = nn.Linear, nn.Parameter
BATCH = 6


def rows():
    return torch.randn(BATCH, 8)


def tokens():
    return torch.randn(BATCH, 5, 8)


def tokens8():
    return torch.randn(BATCH, 8, 8)


def images():
    return torch.randn(BATCH, 3, 8, 8)


def signals():
    return torch.randn(BATCH, 4, 9)


def volumes():
    return torch.randn(BATCH, 2, 4, 4, 4)


def ids():
    return torch.randint(0, 9, (BATCH, 5))


@dataclass
class Row:
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], torch.Tensor]
    batches: int = 1
    """How many steps are taken, on other inputs; the last is compared."""


ZOO: list[Row] = []


class Body(nn.Module):
    """A module whose forward pass is a function, with a list for what its hooks or itself log."""

    def __init__(self, function: Callable[..., Any], parts: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.log = function, []
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, P):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, inputs):
        return self.function(self, inputs)


def add(name, function, inputs=rows, *, features=8, batches=1, finish=None, **parts):
    """A row; parts are builders (called) so that every test has its own."""

    def build():
        body = Body(function, {key: part() if callable(part) else part for key, part in parts.items()})
        model = nn.Sequential(body, L(features, 3))
        return finish(model) if finish else model

    ZOO.append(Row(name, build, inputs, batches))


def whole(name, build, inputs=rows, batches=1):
    """A row that is a model by itself."""
    ZOO.append(Row(name, build, inputs, batches))


def par(*shape):
    return lambda: P(torch.randn(*shape))


def lin(*shape, **options):
    return lambda: L(*shape, **options)


def bn(channels=8, **options):
    return lambda: nn.BatchNorm1d(channels, **options)


# A parameter is the input of a layer, or of anything
add("relu of a parameter", lambda s, x: F.relu(s.w) * x, w=par(8))
add("linear of a learnt query", lambda s, x: s.proj(s.query) * x, query=par(1, 8), proj=lin(8, 8))
add("convolution of a learnt map", lambda s, x: (s.conv(s.map) * s.conv(x)).mean((2, 3)), images, map=par(1, 3, 8, 8),
    conv=lambda: nn.Conv2d(3, 8, 3))
add("hypernetwork: a weight computed from parameters", lambda s, x: F.linear(x, s.make(s.code).view(8, 8)).tanh(),
    code=par(1, 4), make=lin(4, 64))
add("learnt softmax temperature", lambda s, x: F.softmax(s.a(x) / s.t.exp(), -1), a=lin(8, 8), t=par(1))
add("layer scale and a learnt gate", lambda s, x: x + s.gamma * s.a(x) * s.g.sigmoid(), a=lin(8, 8), gamma=par(8), g=par(()))
add("PReLU, learnt clamp", lambda s, x: torch.minimum(s.act(s.a(x)), s.top), a=lin(8, 8), act=nn.PReLU, top=par(8))
add("batch norm of a parameter's rows", lambda s, x: x @ s.bn(s.w).mT, w=par(8, 8), bn=bn())

# In place over tensors that are alive
add("h + bn(h.view)", lambda s, x: (h := s.a(x), (h + s.bn(h.view(-1, 8)).view(h.shape)).mean(1))[1], tokens, a=lin(8, 8), bn=bn())
add("keep = h.detach(); bn(h) * keep", lambda s, x: (h := s.a(x), keep := h.detach(), s.bn(h) * keep)[2], a=lin(8, 8), bn=bn())
add("relu_ after a branch took the view", lambda s, x: (h := s.a(x), half := h[:, :4], r := h + 0, r.relu_(), torch.cat([half, r[:, 4:]], 1))[4],
    a=lin(8, 8))
add("in-place add to a slice", lambda s, x: (h := s.a(x) * 1.0, h[:, :4].add_(s.b(x)), h.tanh())[2], a=lin(8, 8), b=lin(8, 4))
add("in-place relu on a residual", lambda s, x: (h := s.a(x), h.relu_(), s.b(h) + h)[2], a=lin(8, 8), b=lin(8, 8))
add("index assignment", lambda s, x: (h := torch.zeros(len(x), 8), h.__setitem__((slice(None), slice(0, 4)), s.a(x)), h + x)[2], a=lin(8, 4))
add("masked_fill_, clamp_, mul_", lambda s, x: (h := s.a(x) * 1, h.masked_fill_(x > 1, 0.5), h.clamp_(-1, 1), h.mul_(s.g))[3],
    a=lin(8, 8), g=par(8))
add("the inputs written over", lambda s, x: s.a(x.mul_(2).add_(1)).tanh(), a=lin(8, 8))
add("out of an in-place chain: h += a; h *= b; h -= c",
    lambda s, x: (h := s.a(x), h.add_(s.w), h.mul_(s.w), h.sub_(x))[3], a=lin(8, 8), w=par(8))
add("convolution of a view of what goes on", lambda s, x: (x := s.a(x), (x + s.dw(x.transpose(1, 2)).transpose(1, 2)).mean(1))[1], tokens,
    a=lin(8, 8), dw=lambda: nn.Conv1d(8, 8, 3, padding=1, groups=8))
add("index_put_ and scatter_add_", lambda s, x: torch.zeros(len(x), 8).scatter_add_(1, s.i.expand(len(x), 8), s.a(x)).index_put((s.r,), s.w), a=lin(8, 8),
    i=lambda: torch.arange(8) % 5, r=lambda: torch.tensor([0, 2]), w=par(8))


# Hooks that log
def hooked(kind):
    def finish(model):
        body = model[0]
        if kind == "forward":
            body.a.register_forward_hook(lambda module, args, out: body.log.append(out.detach()))
            body.bn.register_forward_hook(lambda module, args, out: body.log.append(args[0].detach()))
        elif kind == "change":
            body.a.register_forward_hook(lambda module, args, out: 2 * out)
        elif kind == "pre":
            body.bn.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        elif kind == "gradient":
            body.a.weight.register_hook(lambda grad: 2 * grad)
        elif kind == "backward":
            body.a.register_full_backward_hook(lambda module, gin, gout: (0.5 * gin[0],) if gin[0] is not None else None)
        return model

    return finish


for kind in ("forward", "change", "pre", "gradient", "backward"):
    add(f"a {kind} hook", lambda s, x: s.bn(s.a(x)).relu_(), a=lin(8, 8), bn=bn(), finish=hooked(kind))
add("a tensor hook on an activation", lambda s, x: (h := s.a(x), h.register_hook(lambda g: 3 * g) if h.requires_grad else None, h.tanh())[2],
    a=lin(8, 8))
add("a list that keeps activations", lambda s, x: (h := s.a(x), s.log.append(h), r := F.relu(h, inplace=True), s.log.append(r.detach()), s.bn(r))[4],
    a=lin(8, 8), bn=bn())


# Control flow
def path(s, x):
    h = s.a(x)
    return s.bn(h) if x.mean() > 0 else h + s.bn(h)


class Shifted:
    """Batches of positive and negative mean, in turn."""

    def __init__(self):
        self.sign = -1.0

    def __call__(self):
        self.sign = -self.sign
        x = torch.randn(BATCH, 8)
        return x - x.mean() + self.sign


add("another path on the second batch", path, Shifted(), batches=2, a=lin(8, 8), bn=bn())


def counting(s, x):
    s.steps += 1
    h = s.a(x)
    return F.relu(h) if s.steps % 2 else torch.tanh(s.b(h)) + h


add("another path by a counter", counting, batches=2, a=lin(8, 8), b=lin(8, 8), finish=lambda m: (setattr(m[0], "steps", 0), m)[1])
add("a while loop that stops by value",
    lambda s, x: (h := s.a(x), [h := s.a(h) for _ in range(int(x.abs().sum().item()) % 3)], h)[2], batches=2, a=lin(8, 8))
add("mixture of experts by argmax", lambda s, x: torch.stack([s.e[int(k)](row) for k, row in zip(s.gate(x).argmax(1), x, strict=True)]),
    gate=lin(8, 2), e=lambda: nn.ModuleList([L(8, 8), L(8, 8)]))
add("expert by boolean mask", lambda s, x: (m := s.gate(x)[:, 0] > 0, h := x.new_zeros(len(x), 8),
    h.__setitem__(m, s.a(x[m])), h.__setitem__(~m, s.b(x[~m])), h)[4], gate=lin(8, 2), a=lin(8, 8), b=lin(8, 8))

# Parameters in lists, and where nobody looks
add("cat of a parameter also used alone", lambda s, x: torch.cat([x * s.t, s.t])[1:], t=par(1, 8))
add("parameters in a ParameterList", lambda s, x: torch.stack([x * p for p in s.ps]).sum(0), ps=lambda: nn.ParameterList([P(torch.randn(8)) for _ in range(3)]))
add("parameters in a ParameterDict, einsum", lambda s, x: torch.einsum("bi,ij,j->bj", x, s.d["w"], s.d["s"]),
    d=lambda: nn.ParameterDict({"w": P(torch.randn(8, 8)), "s": P(torch.randn(8))}))
add("a parameter in a plain list too", lambda s, x: x @ s.plain[0] + s.w.sum(0), w=par(8, 8),
    finish=lambda m: (setattr(m[0], "plain", [m[0].w]), m)[1])
add("stack, meshgrid and where of parameters", lambda s, x: torch.where(x > 0, torch.stack([s.a, s.b])[0], s.b) * x, a=par(8), b=par(8))
add("a class token and positions", lambda s, x: s.t(torch.cat([s.cls.expand(len(x), 1, 8), x], 1) + s.pos)[:, 0], tokens,
    cls=par(1, 1, 8), pos=par(1, 6, 8), t=lin(8, 8))
add("an unused parameter", lambda s, x: s.a(x).relu(), a=lin(8, 8), unused=par(3))
add("a frozen layer", lambda s, x: s.b(s.a(x).relu()), a=lin(8, 8), b=lin(8, 8), finish=lambda m: (m[0].a.requires_grad_(False), m)[1])
add("two parameters that share memory", lambda s, x: x * s.u + s.v, u=par(8), v=par(8), finish=lambda m: share(m))


def share(model):
    both = torch.randn(12)
    model[0].u, model[0].v = P(both[:8]), P(both[4:])
    return model


# Chance
add("functional dropout", lambda s, x: F.dropout(s.a(x).relu(), 0.5, s.training), a=lin(8, 8))
add("dropout module before batch norm", lambda s, x: s.bn(s.d(s.a(x))), a=lin(8, 8), d=lambda: nn.Dropout(0.3), bn=bn())
add("dropout in place", lambda s, x: s.d(s.a(x)).tanh(), a=lin(8, 8), d=lambda: nn.Dropout(0.3, inplace=True))
add("alpha dropout", lambda s, x: s.d(F.selu(s.a(x))), a=lin(8, 8), d=lambda: nn.AlphaDropout(0.3))
add("dropout of whole maps", lambda s, x: s.d(s.c(x)).mean((2, 3)), images, c=lambda: nn.Conv2d(3, 8, 3), d=lambda: nn.Dropout2d(0.4))
add("stochastic depth", lambda s, x: x + s.sd(s.a(x).relu()), a=lin(8, 8), sd=lambda: torchvision.ops.StochasticDepth(0.5, "row"))
add("DropBlock", lambda s, x: s.d(s.c(x)).mean((2, 3)), images, c=lambda: nn.Conv2d(3, 8, 3), d=lambda: torchvision.ops.DropBlock2d(0.3, 3))
add("noise on the activations", lambda s, x: s.a(x + 0.1 * torch.randn_like(x)) * torch.rand(()), a=lin(8, 8))
add("a path drawn by Python's random", lambda s, x: s.a(x) if __import__("random").random() < 0.5 else s.b(x), a=lin(8, 8), b=lin(8, 8))
add("reparametrised sample (VAE)", lambda s, x: s.m(x) + s.v(x).exp() * torch.randn(len(x), 8), m=lin(8, 8), v=lin(8, 8))
add("gumbel softmax", lambda s, x: F.gumbel_softmax(s.a(x), tau=0.7), a=lin(8, 8))
add("a learnt rate of RReLU", lambda s, x: F.rrelu(s.a(x), 0.1, 0.4, s.training), a=lin(8, 8))

# Recurrent
add("LSTM", lambda s, x: s.r(x)[0][:, -1], tokens, r=lambda: nn.LSTM(8, 8, batch_first=True))
add("LSTM of two layers with dropout", lambda s, x: s.r(x)[0][:, -1], tokens, r=lambda: nn.LSTM(8, 8, 2, dropout=0.3, batch_first=True))
add("bidirectional GRU", lambda s, x: s.r(x)[1].mean(0), tokens, r=lambda: nn.GRU(8, 8, bidirectional=True, batch_first=True))
add("RNN with a learnt first state", lambda s, x: s.r(x, s.h.expand(1, len(x), 8).contiguous())[0].sum(1), tokens, r=lambda: nn.RNN(8, 8, batch_first=True), h=par(1, 1, 8))
add("LSTMCell in a loop", lambda s, x: (hc := (x[:, 0] * 0, x[:, 0] * 0), [hc := s.c(x[:, t], hc) for t in range(3)], hc[0])[2], tokens, c=lambda: nn.LSTMCell(8, 8))
add("own recurrence, tied over time", lambda s, x: (h := x[:, 0], [h := torch.tanh(s.a(x[:, t]) + s.b(h)) for t in range(4)], h)[2], tokens, a=lin(8, 8), b=lin(8, 8))

# Attention
add("scaled_dot_product_attention", lambda s, x: (qkv := s.a(x).chunk(3, -1), F.scaled_dot_product_attention(*qkv).mean(1))[1], tokens, a=lin(8, 24))
add("causal attention", lambda s, x: (qkv := s.a(x).chunk(3, -1), F.scaled_dot_product_attention(*qkv, is_causal=True).mean(1))[1], tokens, a=lin(8, 24))
add("attention with dropout", lambda s, x: (qkv := s.a(x).chunk(3, -1), F.scaled_dot_product_attention(*qkv, dropout_p=0.3).mean(1))[1], tokens, a=lin(8, 24))
add("MultiheadAttention", lambda s, x: s.m(x, x, x)[0].mean(1), tokens, m=lambda: nn.MultiheadAttention(8, 2, batch_first=True))
add("MultiheadAttention without weights, cross", lambda s, x: s.m(s.q.expand(len(x), 2, 8), x, x, need_weights=False)[0].mean(1), tokens,
    q=par(1, 2, 8), m=lambda: nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True))
add("TransformerEncoderLayer", lambda s, x: s.t(x).mean(1), tokens, t=lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True))
add("TransformerEncoderLayer, norm first, gelu, dropout", lambda s, x: s.t(x).mean(1), tokens,
    t=lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.2, "gelu", batch_first=True, norm_first=True))
add("attention by einsum with relative positions", lambda s, x: (a := torch.einsum("bqd,bkd->bqk", s.q(x), s.k(x)) + s.r, torch.einsum("bqk,bkd->bd", a.softmax(-1), x))[1],
    tokens, q=lin(8, 8), k=lin(8, 8), r=par(5, 5))

# Weights tied, transposed, viewed
add("x @ w.T", lambda s, x: (x @ s.w.T).relu(), w=par(8, 8))
add("x @ w.mT and addmm", lambda s, x: torch.addmm(s.b, x, s.w.mT) + (x @ s.w.mT).tanh(), w=par(8, 8), b=par(8))
add("tied: F.linear(h, a.weight.T)", lambda s, x: F.linear(s.a(x).tanh(), s.a.weight.T), a=lin(8, 6))
add("tied modules: one layer twice", lambda s, x: s.a(s.a(x).relu()), a=lin(8, 8))
add("tied parameter of two modules", lambda s, x: s.b(s.a(x).relu()), a=lin(8, 8), b=lin(8, 8),
    finish=lambda m: (setattr(m[0].b, "weight", m[0].a.weight), m)[1])
add("relu(h) + h.mT", lambda s, x: (h := s.a(x), F.relu(h) + h.mT)[1].mean(1), tokens8, a=lin(8, 8))
add("a weight that is not contiguous", lambda s, x: s.a(x).relu(), a=lin(8, 8), finish=lambda m: (setattr(m[0].a, "weight", P(torch.randn(8, 8).t())), m)[1])
add("a convolution weight in channels_last", lambda s, x: s.c(x).relu_().mean((2, 3)), images, c=lambda: nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last))
add("a weight with gaps in memory", lambda s, x: F.linear(x, s.w), w=lambda: P(torch.randn(8, 16)[:, ::2]))
add("a weight made of slices", lambda s, x: F.linear(x, torch.cat([s.w[:3], s.w[5:], s.w[3:5]])), w=par(8, 8))
add("weights sliced by width (slimmable)", lambda s, x: F.pad(F.linear(x, s.a.weight[:4], s.a.bias[:4]), (0, 4)), a=lin(8, 8))
add("masked weights", lambda s, x: F.linear(x, s.a.weight * s.mask, s.a.bias), a=lin(8, 8), mask=lambda: (torch.rand(8, 8) > 0.5).double())
add("rotated weights: roll, flip, permute", lambda s, x: F.linear(x, s.w.roll(1, 0).flip(1).permute(1, 0)), w=par(8, 8))
add("w.data read beside", lambda s, x: F.linear(x, s.w) / (1 + s.w.data.abs().max()), w=par(8, 8))
add("as_strided of an activation", lambda s, x: s.a(x).contiguous().as_strided((len(x), 8), (8, 1)) + 0, a=lin(8, 8))
add("unfold, windows of an activation", lambda s, x: s.a(x).unfold(1, 4, 2).sum(-1), a=lin(8, 18))

# Reparametrised and normalised
add("spectral_norm", lambda s, x: s.a(x).relu(), a=lambda: parametrizations.spectral_norm(L(8, 8)))
add("spectral_norm of old", lambda s, x: s.a(x).relu(), a=lambda: nn.utils.spectral_norm(L(8, 8)))
add("weight_norm", lambda s, x: s.a(x).relu(), a=lambda: parametrizations.weight_norm(L(8, 8)))
add("weight_norm of a convolution", lambda s, x: s.c(x).mean((2, 3)), images, c=lambda: parametrizations.weight_norm(nn.Conv2d(3, 8, 3)))
add("orthogonal", lambda s, x: s.a(x).relu(), a=lambda: parametrizations.orthogonal(L(8, 8)))


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).mT


add("an own parametrisation", lambda s, x: s.a(x).relu(), a=lambda: (a := L(8, 8), parametrize.register_parametrization(a, "weight", Symmetric()), a)[2])
add("weight standardisation", lambda s, x: (w := s.c.weight, F.conv2d(x, (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)).mean((2, 3)))[1],
    images, c=lambda: nn.Conv2d(3, 8, 3, bias=False))
add("BatchNorm, cumulative average", lambda s, x: s.bn(s.a(x)), a=lin(8, 8), bn=bn(momentum=None), batches=2)
add("BatchNorm without statistics", lambda s, x: s.bn(s.a(x)), a=lin(8, 8), bn=bn(track_running_stats=False))
add("BatchNorm in evaluation mode", lambda s, x: s.bn(s.a(x)), a=lin(8, 8), bn=bn(), finish=lambda m: (m[0].bn.eval(), m)[1])
add("BatchNorm2d twice through one layer", lambda s, x: s.bn(s.c(s.bn(s.c(x)).relu_())).mean((2, 3)), images, features=3, c=lambda: nn.Conv2d(3, 3, 3, padding=1), bn=lambda: nn.BatchNorm2d(3))
add("InstanceNorm with statistics", lambda s, x: s.n(s.c(x)).relu().mean((2, 3)), images, c=lambda: nn.Conv2d(3, 8, 3), n=lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True))
add("LayerNorm, GELU", lambda s, x: F.gelu(s.n(s.a(x))), a=lin(8, 8), n=lambda: nn.LayerNorm(8))
add("RMSNorm, SwiGLU", lambda s, x: (a := s.a(s.n(x)), b := F.silu(a[:, :8]) * a[:, 8:], b)[2], a=lin(8, 16), n=lambda: nn.RMSNorm(8))
add("GroupNorm", lambda s, x: s.n(s.c(x)).relu_().mean((2, 3)), images, c=lambda: nn.Conv2d(3, 8, 3), n=lambda: nn.GroupNorm(2, 8))
add("LocalResponseNorm, logsumexp", lambda s, x: s.n(s.c(x)).logsumexp((2, 3)), images, c=lambda: nn.Conv2d(3, 8, 3), n=lambda: nn.LocalResponseNorm(3))


def ema(s, x):
    h = s.a(x)
    with torch.no_grad():
        s.average.mul_(0.9).add_(0.1 * h.mean(0))
    return h - s.average


add("an EMA buffer moved in forward", ema, a=lin(8, 8), average=lambda: torch.zeros(8))
add("an EMA buffer replaced in forward", lambda s, x: (h := s.a(x), setattr(s, "average", (0.9 * s.average + 0.1 * h.detach().mean(0))), h - s.average)[2],
    a=lin(8, 8), average=lambda: torch.zeros(8))

# Convolutions
add("grouped and depthwise convolutions", lambda s, x: s.d(s.g(s.c(x))).relu_().mean((2, 3)), images, c=lambda: nn.Conv2d(3, 8, 3),
    g=lambda: nn.Conv2d(8, 8, 1, groups=4), d=lambda: nn.Conv2d(8, 8, 3, groups=8))
add("transposed convolution", lambda s, x: s.t(s.c(x)).mean((2, 3)), images, c=lambda: nn.Conv2d(3, 4, 3, stride=2), t=lambda: nn.ConvTranspose2d(4, 8, 3, stride=2))
add("1d convolution, dilated, same padding", lambda s, x: s.c(x).relu().mean(2), signals, c=lambda: nn.Conv1d(4, 8, 3, padding="same", dilation=2))
add("3d convolution", lambda s, x: s.c(x).relu().mean((2, 3, 4)), volumes, c=lambda: nn.Conv3d(2, 8, 3, padding=1))
add("circular and reflected padding", lambda s, x: (s.c(x) + s.r(x)).mean((2, 3)), images, c=lambda: nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"),
    r=lambda: nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"))
add("squeeze and excitation", lambda s, x: (h := s.c(x), h * s.b(s.a(h.mean((2, 3))).relu_()).sigmoid()[:, :, None, None])[1].mean((2, 3)), images,
    c=lambda: nn.Conv2d(3, 8, 3), a=lin(8, 2), b=lin(2, 8))
add("dense connections", lambda s, x: (h := torch.cat([x, s.a(x).relu_()], 1), torch.cat([h, s.b(h).relu_()], 1)[:, -8:].mean((2, 3)))[1], images,
    a=lambda: nn.Conv2d(3, 4, 3, padding=1), b=lambda: nn.Conv2d(7, 8, 3, padding=1))
add("an inception of four pools", lambda s, x: torch.cat([f(s.c(x), 2).mean((2, 3)) for f in (F.max_pool2d, F.avg_pool2d)], 1), images, c=lambda: nn.Conv2d(3, 4, 3))
add("adaptive, fractional and unpooled", lambda s, x: (h := s.c(x), p := F.max_pool2d(h, 2, return_indices=True), F.adaptive_avg_pool2d(F.max_unpool2d(*p, 2), 1).flatten(1))[2],
    images, c=lambda: nn.Conv2d(3, 8, 3))
add("pixel shuffle, interpolation", lambda s, x: F.interpolate(F.pixel_shuffle(s.c(x), 2), scale_factor=0.5, mode="bilinear").flatten(1)[:, :8], images, c=lambda: nn.Conv2d(3, 8, 3))
add("spatial transformer: grid_sample", lambda s, x: F.grid_sample(x, F.affine_grid(s.t(x.mean((2, 3))).view(-1, 2, 3), x.shape, False), align_corners=False).flatten(1)[:, :8],
    images, t=lin(3, 6))
add("unfold and fold", lambda s, x: s.a(F.unfold(x, 3).mT).mean(1), images, a=lin(27, 8))
add("deformable: bilinear by hand with gather", lambda s, x: x.flatten(1).gather(1, s.i.expand(len(x), -1)) * s.w, images, i=lambda: torch.randint(0, 192, (8,)), w=par(8))

# Embeddings
add("Embedding", lambda s, x: s.e(x).mean(1), ids, e=lambda: nn.Embedding(9, 8))
add("Embedding with padding_idx", lambda s, x: s.e(x).mean(1), ids, e=lambda: nn.Embedding(9, 8, padding_idx=3))
add("Embedding scaled by frequency", lambda s, x: s.e(x).mean(1), ids, e=lambda: nn.Embedding(9, 8, scale_grad_by_freq=True))
add("Embedding with max_norm", lambda s, x: s.e(x).mean(1), ids, e=lambda: nn.Embedding(9, 8, max_norm=1.0))
add("EmbeddingBag", lambda s, x: s.e(x), ids, e=lambda: nn.EmbeddingBag(9, 8))
add("indexing a parameter", lambda s, x: s.w[x].mean(1), ids, w=par(9, 8))
add("tied embedding and output", lambda s, x: F.linear(s.a(s.e(x).mean(1)), s.e.weight)[:, :8], ids, e=lambda: nn.Embedding(9, 8), a=lin(8, 8))

# Where forward mode is not backprop
add("a no_grad region", lambda s, x: (h := s.a(x), keep := no_grad(lambda: h.relu()), h * keep)[2], a=lin(8, 8))
add("no_grad with in place inside", lambda s, x: (h := s.a(x), k := no_grad(lambda: h.clone().clamp_(min=0)), h + k)[2], a=lin(8, 8))
add("detach in a straight-through estimator", lambda s, x: (h := s.a(x), h + (h.round() - h).detach())[1], a=lin(8, 8))
add("vector quantisation", lambda s, x: (h := s.a(x), q := s.book[torch.cdist(h, s.book).argmin(1)], h + (q - h).detach() + 0 * q + q.square().mean())[2], a=lin(8, 8), book=par(4, 8))
add("stop-gradient twin (BYOL)", lambda s, x: F.normalize(s.a(x)) * F.normalize(s.b(s.a(x))).detach(), a=lin(8, 8), b=lin(8, 8))


def no_grad(function):
    with torch.no_grad():
        return function()


class Straight(torch.autograd.Function):
    """A sign with the gradient of the identity."""

    @staticmethod
    def forward(ctx, value):
        return value.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Squared(torch.autograd.Function):
    """With every rule, as the documentation has it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value):
        return value * value

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * ctx.saved_tensors[0] * tangent


add("autograd.Function: straight-through sign", lambda s, x: Straight.apply(s.a(x)) * x, a=lin(8, 8))
add("autograd.Function with every rule", lambda s, x: Squared.apply(s.a(x)), a=lin(8, 8))
add("checkpointed", lambda s, x: checkpoint(lambda h: s.b(s.a(h).relu()), x, use_reentrant=False), a=lin(8, 8), b=lin(8, 8))
add("checkpointed the old way, with dropout", lambda s, x: checkpoint(lambda h: F.dropout(s.b(h), 0.3), s.a(x), use_reentrant=True), a=lin(8, 8), b=lin(8, 8))


def force(s, x):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(s.a(x).square().sum(), x, create_graph=True)[0]


add("a gradient taken inside", force, a=lin(8, 8))
add("enable_grad inside", lambda s, x: enable_grad(lambda: s.a(x).tanh()), a=lin(8, 8))


def enable_grad(function):
    with torch.enable_grad():
        return function()


# Numbers of other kinds, and other operations
add("fft filter", lambda s, x: torch.fft.irfft(torch.fft.rfft(s.a(x)) * torch.view_as_complex(s.w), n=8), a=lin(8, 8), w=par(5, 2))
add("complex parameters' parts", lambda s, x: (z := torch.complex(s.a(x), s.b(x)), (z * z.conj()).real + z.angle())[1], a=lin(8, 8), b=lin(8, 8))
add("linear algebra: solve, det, cholesky", lambda s, x: (m := s.w @ s.w.mT + 8 * torch.eye(8), torch.linalg.solve(m, x.mT).mT + torch.linalg.cholesky(m).diagonal() + m.logdet())[1], w=par(8, 8))
add("sort, topk, cumsum", lambda s, x: (h := s.a(x), h.sort(1)[0] + F.pad(h.topk(4, 1)[0], (0, 4)) + h.cumsum(1))[1], a=lin(8, 8))
add("max, norm, softplus, log1p", lambda s, x: (h := s.a(x), F.softplus(h) / h.norm(dim=1, keepdim=True) + h.amax(1, keepdim=True) + h.abs().log1p())[1], a=lin(8, 8))
add("bilinear and cosine similarity", lambda s, x: s.b(x, s.a(x)) * F.cosine_similarity(x, s.a(x))[:, None], a=lin(8, 8), b=lambda: nn.Bilinear(8, 8, 8))
add("Fourier features, sin and cos", lambda s, x: torch.cat([(x @ s.f).sin(), (x @ s.f).cos()], 1), f=par(8, 4))
add("mixed dtypes: a float32 layer", lambda s, x: s.a(x.float()).double(), a=lambda: L(8, 8).float())
add("polynomials: prod, pow, outer", lambda s, x: (h := s.a(x), (h[:, :, None] * h[:, None, :]).sum(2) + h.prod(1, keepdim=True) + h.abs().pow(1.5))[1], a=lin(8, 8))
add("batch matrix products: bmm, baddbmm", lambda s, x: torch.baddbmm(s.b, torch.bmm(x, x.mT), s.a(x)).mean(1), tokens, a=lin(8, 8), b=par(1, 5, 8))
add("euler steps (neural ODE)", lambda s, x: (h := x, [h := h + 0.1 * torch.tanh(s.a(h)) for _ in range(4)], h)[2], a=lin(8, 8))
add("maxout, GLU", lambda s, x: F.glu(s.a(x).view(len(x), 16, 2).amax(2)), a=lin(8, 32))
add("radial basis: cdist", lambda s, x: (-torch.cdist(x, s.c).square()).exp() * s.g, c=par(8, 8), g=par(8))
add("vmap inside", lambda s, x: torch.vmap(lambda row: s.w @ row)(x), w=par(8, 8))
add("samples that interact: batch similarity", lambda s, x: (h := s.a(x), F.softmax(h @ h.mT, 1) @ h)[1], a=lin(8, 8))
add("tokens folded into the batch", lambda s, x: s.a(x.reshape(-1, 8)).view(len(x), 5, 8).mean(1), tokens, a=lin(8, 8))
add("a relu whose input goes elsewhere too", lambda s, x: (h := s.a(x), F.relu(h) + h.sigmoid())[1], a=lin(8, 8))
add("relu of a sum of two layers", lambda s, x: F.relu(s.a(x) + s.b(x)), a=lin(8, 8), b=lin(8, 8))
add("relu, logged and reused", lambda s, x: (h := s.a(x), s.log.append(float(F.relu(h).mean())), h)[2], a=lin(8, 8))
add("clamped relu6, hardtanh in place", lambda s, x: F.hardtanh_(F.relu6(s.a(x)), 0.1, 0.9), a=lin(8, 8))


# Heads and whole models
class Cosine(nn.Linear):
    def forward(self, x):
        return 5 * F.linear(F.normalize(x), F.normalize(self.weight))


class Wrapped(nn.Module):
    """As DataParallel is: the model inside, its outputs passed on."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def mlp(*end):
    return nn.Sequential(L(8, 6), nn.ReLU(inplace=True), *end)


def scaled_head():
    model = mlp(L(6, 3))
    model[2].register_forward_hook(lambda module, args, out: 2 * out)
    return model


def twice():
    head = L(3, 3)
    return mlp(L(6, 3), head, head)


whole("a cosine head", lambda: mlp(Cosine(6, 3, bias=False)))
whole("a head with a hook that scales", scaled_head)
whole("a head used twice", twice)
whole("a head without bias", lambda: mlp(L(6, 3, bias=False)))
whole("a head under weight_norm", lambda: mlp(parametrizations.weight_norm(L(6, 3))))
whole("log_softmax after the head", lambda: mlp(L(6, 3), nn.LogSoftmax(1)))
whole("a convolution as the head", lambda: nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten()), images)
whole("wrapped as by DataParallel", lambda: Wrapped(mlp(L(6, 3))))
whole("logistic regression", lambda: L(8, 3))
whole("only biases are trained", lambda: only_biases(mlp(L(6, 3))))
whole("nn.Sequential with batch norm, dropout, in-place relu", lambda: nn.Sequential(
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)), nn.Sequential(nn.MaxPool2d(2), nn.Dropout(0.3), nn.Flatten(), L(36, 3))), images)
whole("scripted", lambda: torch.jit.script(mlp(L(6, 3))))
whole("traced inside", lambda: nn.Sequential(torch.jit.trace(mlp(), torch.randn(BATCH, 8)), L(6, 3)))
whole("two outputs", lambda: Body(lambda s, x: (s.a(x), s.a(x)), {"a": L(8, 3)}))
whole("a dictionary of outputs", lambda: Body(lambda s, x: {"logits": s.a(x)}, {"a": L(8, 3)}))
whole("everything frozen", lambda: mlp(L(6, 3)).requires_grad_(False))
whole("a lazy layer", lambda: nn.Sequential(nn.LazyLinear(6), nn.ReLU(), L(6, 3)))


def only_biases(model):
    for name, param in model.named_parameters():
        param.requires_grad_("bias" in name)
    return model


assert len({row.name for row in ZOO}) == len(ZOO)
