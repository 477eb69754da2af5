"""Random crops and mirror images of a whole batch at once, on its device."""

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by up to 4 pixels each way, over a black border, and mirror half of them.

    Args:
        images: uint8, shape (B, H, W, C).
        generator: on the images' device.

    Returns:
        uint8, shape (B, H, W, C).
    """
    size, height, width, channels = images.shape
    device = images.device
    top, left = torch.randint(0, 2 * PADDING + 1, (2, size), generator=generator, device=device)
    mirrored = torch.randint(0, 2, (size,), generator=generator, device=device)
    padded = F.pad(torch.stack((images, images.flip(2))), (0, 0, *(PADDING,) * 4))
    padded_height, padded_width = height + 2 * PADDING, width + 2 * PADDING
    # A row of a crop is contiguous, so rows are copied whole: far cheaper than indexing pixels one by one.
    first_row = (mirrored * size + torch.arange(size, device=device)) * padded_height + top
    rows = first_row[:, None] + torch.arange(height, device=device)
    starts = (rows * padded_width + left[:, None]) * channels
    windows = padded.view(-1).unfold(0, width * channels, 1)
    return windows.index_select(0, starts.view(-1)).view(size, height, width, channels)
