"""A decoder in a process of its own: the same pictures, and nothing of its crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest

from streamexit.errors import SourceError
from streamexit.sources.decode_process import ProcessSource
from streamexit.sources.opening import open_source
from streamexit.sources.sampling import Sampling
from streamexit.sources.source import Picture, Watch
from streamexit.testing import TOY_LABELS, TOY_PREPROCESSING

PATIENCE = 20.0
MakeClip = Callable[..., Path]


def source(text: str, **how: object) -> ProcessSource:
    """For the toy pipeline."""
    how = {"base": Path(), "labels": TOY_LABELS, **how}
    return ProcessSource(text, preprocessing=TOY_PREPROCESSING, **how)  # type: ignore[arg-type]


def children() -> list[psutil.Process]:
    """Decoders of this process."""
    return psutil.Process().children()


def youngest_child() -> psutil.Process:
    """The latest decoder; other tests may have left some."""
    return max(children(), key=lambda child: (child.create_time(), child.pid))


def same(ones: list[Picture], others: list[Picture]) -> None:
    """Assert that pictures are equal in everything."""
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        for name in ("pts_seconds", "label", "size", "decoder", "media", "epoch"):
            assert getattr(one, name) == getattr(other, name)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(frame_rate=5.0), Sampling(every=3)])
def test_pictures_are_the_same_as_in_a_thread(make_clip: MakeClip, sampling: Sampling) -> None:
    """Pixels, times, sizes, what the source is; and the child is gone afterwards."""
    clip = str(make_clip("isolated.mp4", frames=40, size=(60, 34)))
    inside = open_source(
        clip, preprocessing=TOY_PREPROCESSING, labels=TOY_LABELS, sampling=sampling
    )
    before = len(children())
    outside = source(clip, sampling=sampling)
    same(list(outside.pictures(pytest.fail)), list(inside.pictures(pytest.fail)))
    assert len(children()) == before


def test_pictures_of_labels_pass(tmp_path: Path) -> None:
    """Other kinds of sources work there, too, and lost frames are reported."""
    import cv2

    (tmp_path / "dog").mkdir()
    cv2.imwrite(str(tmp_path / "dog" / "a.png"), np.full((9, 7, 3), 80, np.uint8))
    (tmp_path / "dog" / "b.png").write_text("no picture")
    lost: list[str] = []
    pictures = list(source(f"images:{tmp_path}").pictures(lost.append))
    assert [(p.label, p.size) for p in pictures] == [(3, (7, 9))]
    assert lost == ["unreadable_image"]


def test_thousands_of_labels_pass() -> None:
    """More than a pipe holds."""
    labels = tuple(f"class number {i} with a long name" for i in range(21_000))
    assert len(list(source("synthetic:frames=3", labels=labels).pictures(pytest.fail))) == 3


def test_what_a_watched_folder_waits_for_passes(tmp_path: Path) -> None:
    """Idle, and why."""

    class Impatient(Watch):
        def alive(self) -> None:
            super().alive()
            self.stop()

    watch = Impatient()
    assert list(source(f"watch:{tmp_path / 'in'}").pictures(pytest.fail, watch)) == []
    assert watch.idle
    assert watch.problem
    assert watch.problem.reason == "not_found"


def test_errors_pass_with_their_reason() -> None:
    """What cannot be read is the same error as in a thread."""
    with pytest.raises(SourceError, match=r"nothing\.mp4") as caught:
        list(source("/nothing.mp4").pictures(pytest.fail))
    assert caught.value.reason == "not_found"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_ends_its_stream_only(number: signal.Signals) -> None:
    """The decoder dies in the middle: an error that says so, after the pictures before."""
    pictures = source("synthetic:frames=1000000").pictures(pytest.fail)
    assert len(list(islice(pictures, 3))) == 3
    child = youngest_child()
    child.send_signal(number)
    with pytest.raises(SourceError, match=number.name) as caught:
        list(pictures)
    assert caught.value.reason == "crashed"


def test_a_decoder_that_hangs_can_be_ended() -> None:
    """Unlike a thread."""
    watch = Watch()
    pictures = source("synthetic:frames=1000000").pictures(pytest.fail, watch)
    next(pictures)
    child = youngest_child()
    child.suspend()
    rest: list[Picture] = []
    reading = threading.Thread(target=lambda: rest.extend(pictures))
    reading.start()
    watch.stop()
    reading.join(PATIENCE)
    assert not reading.is_alive()
    assert not child.is_running()


@pytest.mark.parametrize(
    "nonsense",
    [
        b"[]\n",
        b"{\n",
        b"\xff\n",
        b"{}\n" * 3,
        b'{"slot": "x"}\n',
        b'{"slot": 0}\n',
        b'{"slot": 0, "pts": NaN, "label": null, "size": null, "media": null, "epoch": 0, "lag": 0}\n',
        b"x" * 100_000,
    ],
)
def test_a_decoder_that_was_taken_over_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nonsense: bytes
) -> None:
    """Whatever the child sends, its stream has an error and nothing else happens."""
    module = tmp_path / "evil_child.py"
    module.write_text(f"import os\nos.write(1, {nonsense!r})\n")
    monkeypatch.setattr("streamexit.sources.decode_process.CHILD", "evil_child")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SourceError) as caught:
        list(source("synthetic:").pictures(pytest.fail))
    assert caught.value.reason == "crashed"


def test_nothing_is_imported_from_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Recordings may lie there, and whatever else came with them."""
    (tmp_path / "av.py").write_text("import pathlib; pathlib.Path('executed').touch()\n")
    monkeypatch.chdir(tmp_path)
    assert len(list(source("synthetic:frames=3").pictures(pytest.fail))) == 3
    assert not (tmp_path / "executed").exists()


def test_a_decoder_that_cannot_begin_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own words go nowhere."""
    monkeypatch.setattr("streamexit.sources.decode_process.CHILD", "no_such_child")
    with pytest.raises(SourceError, match=r"exit code 1; python .*import no_such_child") as caught:
        list(source("synthetic:").pictures(pytest.fail))
    assert caught.value.reason == "crashed"


def test_the_child_does_without_torch_and_ends_with_its_parent(tmp_path: Path) -> None:
    """It costs little, and is not left behind when the node is killed."""
    light = "import sys, streamexit.sources.decode_child; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    script = (
        "from pathlib import Path\n"
        "from streamexit.sources.decode_process import ProcessSource\n"
        "from streamexit.testing import TOY_LABELS, TOY_PREPROCESSING as p\n"
        "s = ProcessSource('synthetic:frames=1000000', preprocessing=p, base=Path(), labels=TOY_LABELS)\n"
        "for picture in s.pictures(print):\n"
        "    print('picture', flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    assert parent.stdout.readline().strip() == "picture"
    [child] = psutil.Process(parent.pid).children()
    parent.kill()
    parent.communicate()
    gone, _ = psutil.wait_procs([child], timeout=PATIENCE)
    assert gone or child.status() == psutil.STATUS_ZOMBIE


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """Descriptors are given back."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    import gc

    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 1
