"""A small archive of learnable pictures in CIFAR-10's own format."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from streamexit.testing import TOY_LABELS
from streamexit.training.labelled import LabelledImages

COLOURS = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [200, 200, 40]], np.int64)
Archive = Callable[..., Path]


def coloured(count: int, *, size: int, seed: int) -> LabelledImages:
    """Noisy pictures with the colour of their class, from pale (hard) to strong; all different."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, count)
    strength = random.uniform(0, 0.5, (count, 1, 1, 1))
    noise = random.integers(-60, 61, (count, size, size, 3))
    images = (128 + strength * (COLOURS[labels][:, None, None] - 128) + noise).astype(np.uint8)
    return LabelledImages(images, labels.astype(np.int64), TOY_LABELS)


def write_archive(
    path: Path,
    data: LabelledImages,
    *,
    labels: NDArray[Any] | None = None,
    replace: dict[str, bytes | None] | None = None,
) -> Path:
    """Write sheets of 25 rows x 40 columns; `replace` changes or leaves out members."""
    size = data.images.shape[1]
    raw = io.BytesIO()
    np.save(raw, data.labels if labels is None else labels)
    members: dict[str, bytes | None] = {
        "labels.npy": raw.getvalue(),
        "classes.txt": "\n".join(data.classes).encode(),
    }
    for i, part in enumerate(np.split(data.images, len(data.images) // 1000)):
        sheet = part.reshape(25, 40, size, size, 3).transpose(0, 2, 1, 3, 4)
        flat = np.ascontiguousarray(sheet.reshape(25 * size, 40 * size, 3)[..., ::-1])
        members[f"sheet_{i:03d}.png"] = cv2.imencode(".png", flat)[1].tobytes()
    with zipfile.ZipFile(path, "w") as z:
        for name, content in {**members, **(replace or {})}.items():
            if content is not None:
                z.writestr(name, content)
    return path


@pytest.fixture(scope="session")
def make_coloured() -> Callable[..., LabelledImages]:
    """See `coloured`."""
    return coloured


@pytest.fixture(scope="session")
def make_archive() -> Archive:
    """See `write_archive`."""
    return write_archive


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 2,000 training and 1,000 test pictures of 8 x 8 pixels."""
    root = tmp_path_factory.mktemp("archives")
    write_archive(root / "cifar10_train.zip", coloured(2000, size=8, seed=1))
    write_archive(root / "cifar10_test.zip", coloured(1000, size=8, seed=2))
    return root
