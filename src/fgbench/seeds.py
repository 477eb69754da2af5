"""Random streams, derived from the seed rather than stored.

Every use of randomness has its own stream, seeded from ``(seed, stream, indices)``: initial weights, split,
batch order, augmentation, dropout, tangents. So two trainers with the same seed share everything but their
tangents bit for bit, resuming in the middle of an epoch needs no generator state, and any worker can
regenerate any tangent.
"""

import hashlib

import torch


def derive_seed(seed: int, stream: str, *indices: int) -> int:
    """A 63-bit seed for one random stream, the same on every machine.

    >>> derive_seed(0, "batch order", 3) == derive_seed(0, "batch order", 3)
    True
    >>> derive_seed(0, "batch order", 3) == derive_seed(0, "batch order", 4)
    False
    """
    text = "/".join([str(seed), stream, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def draw_seed(generator: torch.Generator) -> int:
    """A 63-bit seed from a generator's state, which then advances.

    The state is read on the host, so this does not synchronise with a GPU.
    """
    state = generator.get_state().numpy().tobytes()
    torch.empty(1, device=generator.device).random_(generator=generator)
    return int.from_bytes(hashlib.blake2b(state, digest_size=8).digest(), "big") >> 1


def derive_generator(device: torch.device | str, seed: int, stream: str, *indices: int) -> torch.Generator:
    """A generator on ``device`` for one random stream."""
    return torch.Generator(device).manual_seed(derive_seed(seed, stream, *indices))
