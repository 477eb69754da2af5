"""The fingerprint of a run's data, from its content.

Every image is hashed with its label; two digests are computed from these hashes. ``content`` does not depend
on the order, so it tells whether a set is the official one, in whatever format it is stored. ``loaded`` does,
so equal digests mean that a run sees the same images in the same order, class by class and batch by batch.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CHUNK = 8192


@dataclass(frozen=True)
class Fingerprint:
    """What was loaded, before any limit or split.

    Attributes:
        source: where it was read from, for messages.
        images: number of images by part: ``train``, ``test``, and ``validation`` if the data has that part.
        classes: how many there are.
        content: by part, the SHA-256 of the sorted SHA-256s of every image with its label.
        loaded: the SHA-256 of the same in order, over all parts, the images' shape and the classes.
    """

    source: str
    images: Mapping[str, int]
    classes: int
    content: Mapping[str, str]
    loaded: str

    def to_dict(self) -> dict[str, Any]:
        """The form stored in env.json and the state file."""
        return asdict(self)

    def differs_from(self, before: object) -> str:
        """What has changed since a run wrote ``before``; empty if nothing has, or if it is unknown.

        Args:
            before: the earlier result of ``to_dict``; None or empty for a run that did not record its data.
        """
        if not isinstance(before, Mapping) or before.get("loaded") in (None, self.loaded):
            return ""
        differences = []
        images, contents = (
            value if isinstance(value := before.get(key), Mapping) else {} for key in ("images", "content")
        )
        if dict(images) != dict(self.images):
            differences.append(f"{_count(images)} images then, {_count(self.images)} now")
        if before.get("classes") != self.classes:
            differences.append(f"{before.get('classes')} classes then, {self.classes} now")
        if not differences:
            other = [part for part in self.content if contents.get(part) != self.content[part]]
            if other:
                differences.append(f"other images or labels in {' and '.join(other)}")
            else:
                differences.append("the same images in another order or shape")
        sources = dict.fromkeys((str(before.get("source")), self.source))
        return f"{'; '.join(differences)} ({' / '.join(sources)})"


def take_fingerprint(
    source: str, parts: Mapping[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]], classes: int
) -> Fingerprint:
    """The fingerprint of images and labels.

    Args:
        source: where they were read from, for messages.
        parts: by name, uint8 images of shape (N, C, H, W) and integer labels of shape (N,).
        classes: how many there are.
    """
    hashes = {name: hash_images(images, labels, classes) for name, (images, labels) in parts.items()}
    order = hashlib.sha256(f"{classes} classes".encode())
    for name, (images, _) in parts.items():
        order.update(f"{name} {images.shape}".encode())
        order.update(b"".join(hashes[name]))
    return Fingerprint(
        source,
        {name: len(images) for name, (images, _) in parts.items()},
        classes,
        {name: content_digest(each) for name, each in hashes.items()},
        order.hexdigest(),
    )


def hash_images(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], classes: int = 10) -> list[bytes]:
    """The SHA-256 of every image: its label (a byte; four beyond 256 classes), its pixels."""
    hashes = []
    label_type = np.uint8 if classes <= 256 else np.dtype("<u4")
    for start in range(0, len(images), CHUNK):
        pixels = images[start : start + CHUNK].reshape(len(images[start : start + CHUNK]), -1)
        label = labels[start : start + CHUNK].astype(label_type).view(np.uint8).reshape(len(pixels), -1)
        rows = np.ascontiguousarray(np.concatenate([label, pixels], 1))
        hashes += [hashlib.sha256(row).digest() for row in rows]
    return hashes


def content_digest(hashes: list[bytes]) -> str:
    """One digest of many, independent of their order."""
    return hashlib.sha256(b"".join(sorted(hashes))).hexdigest()


def _count(images: Mapping[str, int]) -> str:
    return " + ".join(str(count) for count in images.values())
