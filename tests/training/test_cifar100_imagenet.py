from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from streamexit.errors import DataError
from streamexit.preprocessing import InputConverter, Preprocessing
from streamexit.training.classification_data import load_imagenet
from streamexit.training.datasets import load_part
from streamexit.training.decoded import CACHE
from streamexit.training.labelled import LabelledImages

MakeData = Callable[..., LabelledImages]
MakeArchive = Callable[..., Path]
WNIDS = ("n01440764", "n01443537", "n02084071")


def solid(height: int, width: int, colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A picture of one colour (RGB)."""
    return np.full((height, width, 3), colour, np.uint8)


def write_picture(file: Path, rgb: NDArray[np.uint8]) -> None:
    """As ImageNet has it: JPEG, suffix .JPEG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]))[1]
    file.write_bytes(encoded.tobytes())


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Three classes, red, green and blue, of various sizes: 60 training and 6 test pictures."""
    sizes = [(40, 60), (90, 30), (33, 33), (16, 20)]
    for part, count in (("train", 20), ("val", 2)):
        for label, wnid in enumerate(WNIDS):
            for i in range(count):
                levels = [20, 20, 20]
                levels[label] = 100 + 5 * i
                picture = solid(*sizes[i % 4], (levels[0], levels[1], levels[2]))
                write_picture(tmp_path / part / wnid / f"{wnid}_{i}.JPEG", picture)
    (tmp_path / "train" / WNIDS[0] / "notes.txt").write_text("no picture")
    return tmp_path


def caches(root: Path) -> list[Path]:
    """Files of decoded pictures."""
    return sorted((root / CACHE).iterdir())


def test_cifar100_is_read_from_its_archives(
    tmp_path: Path, make_coloured: MakeData, make_archive: MakeArchive
) -> None:
    """CIFAR-100 comes from its own archives and is split like any other set."""
    written = make_coloured(1000, size=6, seed=1)
    make_archive(tmp_path / "cifar100_train_lossy.zip", written)
    make_archive(tmp_path / "cifar100_test_lossy.zip", make_coloured(1000, size=6, seed=2))
    train = load_part("cifar100", tmp_path, "train", calibration_size=100)
    calibration = load_part("cifar100", tmp_path, "calibration", calibration_size=100)
    assert (train.images.shape, calibration.images.shape) == ((900, 6, 6, 3), (100, 6, 6, 3))
    both = {i.tobytes() for part in (train, calibration) for i in part.images}
    assert both == {i.tobytes() for i in written.images}
    assert len(load_part("cifar100", tmp_path, "test", calibration_size=100).labels) == 1000


def test_absent_or_damaged_cifar100_is_refused(tmp_path: Path) -> None:
    """An empty folder hears what is looked for; a damaged torchvision folder is named."""
    expected = r"holds neither cifar100_test_lossy\.zip nor cifar-100-python/.*--data"
    with pytest.raises(DataError, match=expected):
        load_part("cifar100", tmp_path, "test", calibration_size=1)
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "test").write_bytes(b"no pickle")
    with pytest.raises(DataError, match="cifar-100-python: Dataset not found or corrupted"):
        load_part("cifar100", tmp_path, "test", calibration_size=1)


@pytest.mark.slow
def test_real_cifar100_has_its_known_sizes(data: Path) -> None:
    """CIFAR-100 has 100 pictures of each of 100 classes in its test set."""
    test = load_part("cifar100", data, "test", calibration_size=1)
    assert test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(test.labels).tolist() == [100] * 100
    assert test.classes[:3] == ("apple", "aquarium_fish", "baby")


def test_imagenet_pictures_have_one_size_and_their_own_label(imagenet: Path) -> None:
    """Pictures of any size come out square, in their class's colour; other files are passed over."""
    train = load_imagenet(imagenet, test=False, size=16)
    assert train.images.shape == (60, 16, 16, 3)
    assert train.classes == WNIDS
    means = train.images.mean((1, 2))
    np.testing.assert_array_equal(means.argmax(1), train.labels)
    assert len(load_imagenet(imagenet, test=True, size=16).labels) == 6


def test_imagenet_pictures_are_what_the_node_would_see(tmp_path: Path) -> None:
    """The shorter side is scaled and the longer one cut, by the node's own preprocessing."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (5, 8, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (80, 50), interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    for part in ("train", "val"):
        write_picture(tmp_path / part / "n0" / "a.JPEG", picture)
    written = (tmp_path / "val" / "n0" / "a.JPEG").read_bytes()
    rgb = cv2.imdecode(np.frombuffer(written, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert rgb is not None
    node = InputConverter(Preprocessing(20, 20, (0, 0, 0), (1, 1, 1), fit="crop"))
    expected = node.from_array(rgb.astype(np.uint8))
    found = load_imagenet(tmp_path, test=True, size=20).images[0]
    np.testing.assert_array_equal(found, expected)
    centre = rgb[:, 15:65].astype(np.float64).reshape(10, 5, 10, 5, 3).mean((1, 3))
    assert np.abs(found.reshape(10, 2, 10, 2, 3).mean((1, 3)) - centre).mean() < 8


def test_imagenet_parts_are_disjoint_views_of_one_file(imagenet: Path) -> None:
    """Train and calibration share no picture, make up the set, mix the classes, and copy nothing."""
    train = load_part("imagenet", imagenet, "train", calibration_size=24)
    calibration = load_part("imagenet", imagenet, "calibration", calibration_size=24)
    assert (train.images.shape, calibration.images.shape) == ((36, 224, 224, 3), (24, 224, 224, 3))
    for part in (train, calibration):
        assert isinstance(part.images, np.memmap)
        assert np.bincount(part.labels, minlength=3).min() > 0
        np.testing.assert_array_equal(part.images.mean((1, 2)).argmax(1), part.labels)
    colours = [{tuple(i[112, 112]) for i in p.images} for p in (train, calibration)]
    assert not colours[0] & colours[1]
    assert len(colours[0] | colours[1]) == 60
    again = load_part("imagenet", imagenet, "calibration", calibration_size=24)
    np.testing.assert_array_equal(again.images, calibration.images)


def test_imagenet_can_be_trained_on(imagenet: Path) -> None:
    """PyTorch takes the mapped pictures without a copy or a warning, and picks rows from them."""
    train = load_part("imagenet", imagenet, "train", calibration_size=24)
    images = torch.from_numpy(train.images)
    rows = torch.tensor([35, 0, 7])
    np.testing.assert_array_equal(images[rows].numpy(), train.images[[35, 0, 7]])
    assert images.data_ptr() == train.images.ctypes.data


def test_decoded_pictures_are_kept_per_size_and_listing(imagenet: Path) -> None:
    """A second call decodes nothing; another size or another set of files is decoded anew."""

    class State(NamedTuple):
        names: list[str]
        written: list[int]

    def state() -> State:
        return State(
            [f.name for f in caches(imagenet)], [f.stat().st_ino for f in caches(imagenet)]
        )

    load_imagenet(imagenet, test=True, size=8)
    first = state()
    assert [n.rsplit("-", 1)[0] for n in first.names] == ["val-8"]
    load_imagenet(imagenet, test=True, size=8)
    assert state() == first
    load_imagenet(imagenet, test=True, size=9)
    assert len(state().names) == 2
    (imagenet / "val" / WNIDS[0] / f"{WNIDS[0]}_1.JPEG").unlink()
    assert len(load_imagenet(imagenet, test=True, size=8).labels) == 5
    assert len(state().names) == 3


def test_no_half_written_file_stays_behind(imagenet: Path) -> None:
    """A file that is no picture is named, and what was decoded before it is thrown away."""
    broken = imagenet / "val" / WNIDS[1] / f"{WNIDS[1]}_1.JPEG"
    for content in (b"", b"no picture"):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=f"{broken.name} is not a picture"):
            load_imagenet(imagenet, test=True, size=8)
        assert caches(imagenet) == []


def test_disk_without_room_is_refused(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room for the decoded pictures is said before the first is decoded."""
    usage = shutil.disk_usage(imagenet)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"val-8-.*needs 0\.0 GB, but only 0\.0 GB are free"):
        load_imagenet(imagenet, test=True, size=8)
    assert caches(imagenet) == []


def test_cache_that_cannot_be_written_is_refused(imagenet: Path) -> None:
    """Where the cache's folder cannot be, the message names the file that was to be written."""
    (imagenet / CACHE).write_text("in the way")
    with pytest.raises(DataError, match=r"val-8-.*cannot write the decoded pictures"):
        load_imagenet(imagenet, test=True, size=8)


def test_other_layouts_are_refused(imagenet: Path, tmp_path: Path) -> None:
    """A missing part, a class in one part only, and a part without pictures are named."""
    with pytest.raises(DataError, match=r"no folder train/; .*val/<wnid>/\*\.JPEG.*--data"):
        load_part("imagenet", tmp_path / "elsewhere", "train", calibration_size=1)
    (imagenet / "train" / "n09").mkdir()
    with pytest.raises(DataError, match=r"same classes, but n09 is only in one"):
        load_part("imagenet", imagenet, "train", calibration_size=1)
    (imagenet / "train" / "n09").rmdir()
    for file in (imagenet / "val").glob("*/*"):
        file.unlink()
    with pytest.raises(DataError, match="val holds no pictures"):
        load_part("imagenet", imagenet, "test", calibration_size=1)
