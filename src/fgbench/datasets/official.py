"""The content of the official datasets, independent of format and order."""

from dataclasses import dataclass

from fgbench.datasets.fingerprint import Fingerprint
from fgbench.errors import DataError


@dataclass(frozen=True)
class Official:
    """The official content of a dataset.

    Attributes:
        class_names: in the order of the labels.
        images: the numbers of training and test images.
        content: digests of both, as :class:`~fgbench.datasets.fingerprint.Fingerprint` has them.
        shape: of an image: channels, height, width.
    """

    class_names: tuple[str, ...]
    images: dict[str, int]
    content: dict[str, str]
    shape: tuple[int, int, int]


OFFICIAL = {
    "mnist": Official(
        tuple("0123456789"),
        {"train": 60_000, "test": 10_000},
        {
            "train": "3655811c0e1223700a4714a92a51f55bd215ed7dc1fa2baa4326a2b58042d82d",
            "test": "634538fb34c5277fce98470b8b285d1e8419eb87f328da42ef1faf690d2c3911",
        },
        (1, 28, 28),
    ),
    "fashion-mnist": Official(
        (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        {"train": 60_000, "test": 10_000},
        {
            "train": "0c69d5cdeb902b69084012f812f066de080317bb3c64f43ca87f910d8ec86906",
            "test": "90c92c0507755a7d443edde8297ce4d0f131e42884e2e87e7fc9b81ffe215258",
        },
        (1, 28, 28),
    ),
    "cifar10": Official(
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        {"train": 50_000, "test": 10_000},
        {
            "train": "55a61f79a40ece2ceda9fb5f9f7078f6ea2fc4952489cef56682bcf92cfcc260",
            "test": "325704b01eb92e1e2a6215ae6a916bb7db7de054af0c496be1c7be2e0fcfbf5f",
        },
        (3, 32, 32),
    ),
}


def check_official(name: str, found: Fingerprint, *, verify: bool = True) -> str:
    """A remark on a dataset that is not the official one; empty if it is.

    Args:
        name: of the dataset.
        found: what was loaded.
        verify: refuse other content where the counts are the official ones.

    Raises:
        DataError: the numbers of images are the official ones, but the content is not.
    """
    official = OFFICIAL[name]
    counts = " + ".join(f"{count:,}" for count in official.images.values())
    if found.images != official.images:
        return f"not the official set, which has {counts}"
    wrong = [part for part, digest in official.content.items() if found.content[part] != digest]
    if not wrong:
        return ""
    other = next((each for each, its in OFFICIAL.items() if its.content == found.content), None)
    if other:
        raise DataError(f"{found.source} holds {other}, not {name}; keep them apart, each in its own folder")
    if verify:
        raise DataError(
            f"{found.source} is damaged: {counts} images, but those of {' and '.join(wrong)} are not the "
            f"official ones of {name}; fetch it anew, or say dataset.verify_content: false if they are meant"
        )
    return f"not the official content in {' and '.join(wrong)}"
