"""A folder into which recordings come."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from streamexit.sources.access import Access
from streamexit.sources.addresses import parse_address
from streamexit.sources.source import Picture, Watch
from streamexit.sources.video import VideoSource
from streamexit.sources.watched import WatchedSource
from streamexit.testing import TOY_PREPROCESSING, ManualClock

MakeClip = Callable[..., Path]


class Rig(Watch):
    """A watch whose waiting lets time pass, and does what the test wants to happen meanwhile."""

    def __init__(self, folder: Path, *, existing: bool = False) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.then: list[Callable[[], object]] = []
        self.drops: list[str] = []
        self.source = WatchedSource(
            folder,
            lambda path: VideoSource(parse_address(str(path)), TOY_PREPROCESSING),
            Access(),
            existing=existing,
            settle_seconds=2.0,
            clock=self.clock,
        )

    def wait(self, seconds: float) -> bool:
        """See `Watch`: nobody sleeps here."""
        self.clock.advance(seconds)
        if self.clock.now % 5 < seconds:
            if not self.then:
                self.stop()
            else:
                self.then.pop(0)()
        return self.stopped

    def pictures(self) -> Iterator[Picture]:
        """Until there is nothing more to happen."""
        return self.source.pictures(self.drops.append, self)


def test_recordings_are_played_as_they_come(make_clip: MakeClip, tmp_path: Path) -> None:
    """Those that come later, once each, in order, on one time line; other files and old ones are not."""
    clip = make_clip("part.mp4", frames=10)
    shutil.copy(clip, tmp_path / "old.mp4")
    rig = Rig(tmp_path)
    (tmp_path / "notes.txt").write_text("no recording")
    rig.then = [
        lambda: shutil.copy(clip, tmp_path / "a.mp4"),
        lambda: shutil.copy(clip, tmp_path / ".hidden.mp4"),
        lambda: shutil.copy(clip, tmp_path / "b.mp4"),
    ]
    pictures = list(rig.pictures())
    assert len(pictures) == 20
    assert [p.epoch for p in pictures] == [0] * 10 + [1] * 10
    assert all(a.pts_seconds < b.pts_seconds for a, b in pairwise(pictures))
    assert rig.drops == []


def test_existing_recordings_are_played_if_wanted(make_clip: MakeClip, tmp_path: Path) -> None:
    """The oldest first."""
    shutil.copy(make_clip("part.mp4", frames=10), tmp_path / "old.mp4")
    assert len(list(Rig(tmp_path, existing=True).pictures())) == 10


def test_a_recording_under_a_name_that_was_there_is_played(
    make_clip: MakeClip, tmp_path: Path
) -> None:
    """Cameras write to the same names again, over the old file or in its place; what stays is not replayed."""
    first, second = make_clip("10.mp4", frames=10), make_clip("20.mp4", frames=20)
    moved = shutil.copy(second, tmp_path / "moved")
    rig = Rig(tmp_path)
    rig.then = [
        lambda: shutil.copy(first, tmp_path / "a.mp4"),
        lambda: shutil.copy(second, tmp_path / "a.mp4"),
        lambda: shutil.copy(first, tmp_path / "b.mp4"),
        lambda: Path(moved).rename(tmp_path / "b.mp4"),
        lambda: None,
    ]
    assert [p.epoch for p in rig.pictures()] == [0] * 10 + [1] * 20 + [2] * 10 + [3] * 20


def test_a_recording_that_is_being_written_is_waited_for(
    make_clip: MakeClip, tmp_path: Path
) -> None:
    """It is played once it has stopped growing, whole."""
    content = make_clip("part.mp4", frames=10).read_bytes()
    rig = Rig(tmp_path)
    file = tmp_path / "growing.mp4"

    def write(share: float) -> Callable[[], object]:
        return lambda: file.write_bytes(content[: int(share * len(content))])

    rig.source._settle_seconds = 7.0  # longer than between two writes
    rig.then = [write(0.3), write(0.6), write(1.0), lambda: None, lambda: None]
    assert len(list(rig.pictures())) == 10
    assert rig.drops == []


def test_one_that_cannot_be_read_is_left_behind(
    make_clip: MakeClip, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted and named in the log; the next one is played."""
    clip = make_clip("part.mp4", frames=10)
    rig = Rig(tmp_path)
    rig.then = [
        lambda: (tmp_path / "broken.mp4").write_text("no video"),
        lambda: shutil.copy(clip, tmp_path / "good.mp4"),
    ]
    assert len(list(rig.pictures())) == 10
    assert rig.drops == ["unreadable_recording"]
    assert "broken.mp4" in caplog.text


def test_files_that_come_and_go_do_not_matter(make_clip: MakeClip, tmp_path: Path) -> None:
    """Links to nothing neither hide other recordings nor make played ones new."""
    clip = make_clip("part.mp4", frames=10)
    rig = Rig(tmp_path)
    for name in "bdfh":
        rig.then.append(partial(shutil.copy, clip, tmp_path / f"{name}.mp4"))
    for name in "acegi":
        link = tmp_path / f"{name}.mp4"
        rig.then += [partial(link.symlink_to, "nothing"), link.unlink]
    assert len(list(rig.pictures())) == 40
    assert rig.drops == []


def test_epochs_go_on_where_a_recording_had_several(make_clip: MakeClip, tmp_path: Path) -> None:
    """A recording whose clock jumps counts on, and the next one after it."""
    early, late = (
        make_clip(f"{start}.ts", frames=10, start=start).read_bytes() for start in (0, 500)
    )
    rig = Rig(tmp_path)
    rig.then = [
        lambda: (tmp_path / "a.ts").write_bytes(early + late),
        lambda: (tmp_path / "b.ts").write_bytes(early),
    ]
    epochs = [p.epoch for p in rig.pictures()]
    assert epochs == [0] * 10 + [1] * 10 + [2] * 10


def test_a_folder_that_is_gone_for_a_while_is_waited_for(
    make_clip: MakeClip, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its disk comes back: what came meanwhile is played, what was played is not; said once, and shown."""
    clip, folder, away = make_clip("part.mp4", frames=10), tmp_path / "in", tmp_path / "away"
    folder.mkdir()
    rig = Rig(folder)
    shown: list[str] = []

    def note() -> None:
        shown.append(rig.problem.reason if rig.problem else "")

    rig.then = [
        lambda: shutil.copy(clip, folder / "a.mp4"),
        lambda: folder.rename(away),
        note,
        lambda: shutil.copy(clip, away / "b.mp4"),
        lambda: away.rename(folder),
        note,
    ]
    assert len(list(rig.pictures())) == 20
    assert shown == ["not_found", ""]
    assert caplog.text.count("looked into again") == 1


def test_a_folder_that_is_missing_at_the_start_is_waited_for(
    make_clip: MakeClip, tmp_path: Path
) -> None:
    """What lies there when it comes was there before; what is put there later is played."""
    clip, folder = make_clip("part.mp4", frames=10), tmp_path / "in"
    rig = Rig(folder)
    rig.then = [
        lambda: shutil.copytree(clip.parent, folder, ignore=lambda _, names: names),
        lambda: shutil.copy(clip, folder / "a.mp4"),
    ]
    assert len(list(rig.pictures())) == 10
