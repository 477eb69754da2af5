"""A small vision transformer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgbench.models.layers import Stages, TokenMean
from fgbench.models.options import ViTOptions

MLP_RATIO = 4
"""Units of a block's hidden layer, as a multiple of the tokens' width."""


def build_vit(options: ViTOptions, image_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """Patches as tokens, ``depth`` transformer blocks, a linear layer on the tokens' mean: depth + 2 stages.

    Images get a border of zeros up to a multiple of ``patch``. Positions are learnt; each block normalises
    before its attention and before its hidden layer; ``dropout`` follows the positions and every linear layer
    of a block but the one that makes queries, keys and values. Weights are drawn from the global generator:
    uniform with the variance 2 / (inputs + outputs), biases 0, positions normal with deviation 0.02.

    Source: Dosovitskiy et al. (2020), arXiv 2010.11929, without its class token; the mean over the tokens in
    its place as in Beyer et al. (2022), arXiv 2205.01580.
    """
    blocks = [TransformerBlock(options.width, options.heads, options.dropout) for _ in range(options.depth)]
    head = nn.Sequential(nn.LayerNorm(options.width), TokenMean(), nn.Linear(options.width, num_classes))
    model = Stages(PatchTokens(options, image_shape), *blocks, head)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


class PatchTokens(nn.Module):
    """Images to tokens: a linear map of each patch, plus a learnt position embedding."""

    def __init__(self, options: ViTOptions, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        rows, columns = -(-height // options.patch), -(-width // options.patch)
        top, left = (
            (count * options.patch - size) // 2 for count, size in ((rows, height), (columns, width))
        )
        self.border = (
            left,
            columns * options.patch - width - left,
            top,
            rows * options.patch - height - top,
        )
        self.project = nn.Conv2d(channels, options.width, options.patch, stride=options.patch)
        self.positions = nn.Parameter(torch.empty(1, rows * columns, options.width).normal_(std=0.02))
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Images of shape (B, C, H, W) to tokens of shape (B, T, width)."""
        images = F.pad(images, self.border) if any(self.border) else images
        tokens = self.project(images).flatten(2).transpose(1, 2)
        return self.dropout(tokens + self.positions)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); x of shape (B, T, width)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attend = nn.Sequential(nn.LayerNorm(width), SelfAttention(width, heads), nn.Dropout(dropout))
        self.transform = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, MLP_RATIO * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(MLP_RATIO * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens to tokens."""
        tokens = tokens + self.attend(tokens)
        return tokens + self.transform(tokens)


class SelfAttention(nn.Module):
    """Scaled dot-product attention of ``heads`` heads among an image's tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens to tokens, shape (B, T, width)."""
        parts = self.queries_keys_values(tokens).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return self.output(mixed.transpose(1, 2).flatten(2))
