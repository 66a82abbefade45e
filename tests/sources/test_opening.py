"""From text to source, and the sources that need no file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from streamexit.errors import SourceError
from streamexit.preprocessing import Preprocessing
from streamexit.sources.joined import JoinedSource
from streamexit.sources.opening import open_source
from streamexit.sources.source import DropReport, Picture, Source, Watch
from streamexit.sources.synthetic import SyntheticSource
from streamexit.testing import TOY_LABELS, TOY_PREPROCESSING, ListSource, toy_pictures


def opened(text: str, base: Path = Path(), rate: float = 25.0) -> Source:
    """What the toy pipeline makes of `text`."""
    return open_source(
        text, preprocessing=TOY_PREPROCESSING, labels=TOY_LABELS, base=base, rate=rate
    )


def pictures(source: Source, most: int = 1000) -> list[Picture]:
    """The first `most` pictures, none of which may be lost."""
    return list(islice(source.pictures(lambda reason: pytest.fail(reason)), most))


def test_relative_paths_start_at_the_base(make_clip: Callable[..., Path], tmp_path: Path) -> None:
    """Videos and picture folders are looked for from the base, absolute paths from the root."""
    clip = make_clip("based.mp4", frames=4)
    (tmp_path / "dog").mkdir()
    cv2.imwrite(str(tmp_path / "dog" / "a.png"), np.zeros((8, 8, 3), np.uint8))
    assert len(pictures(opened("based.mp4", base=clip.parent))) == 4
    assert len(pictures(opened(str(clip), base=tmp_path))) == 4
    assert [p.label for p in pictures(opened(f"images:{tmp_path.name}", tmp_path.parent))] == [3]
    assert [p.label for p in pictures(opened(f"images:{tmp_path}"))] == [3]


@pytest.mark.parametrize("name", ["a b.mp4", "fünf.mp4", "100%d.mp4", "cam:1.mp4", "images.mp4"])
def test_any_file_name_can_be_opened(
    make_clip: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A video in the working directory is found under its name, special characters or not."""
    shutil.copy(make_clip("plain.mp4", frames=4), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(pictures(opened(name))) == 4


def test_urls_are_live_and_everything_else_is_not() -> None:
    """A camera's address makes a live source without being opened; recordings can be held back."""
    assert opened("rtsp://root:alpha@camera/1").live
    assert not opened("clip.mp4").live
    assert not opened("images:folder").live
    assert not opened("synthetic:").live


@pytest.mark.parametrize(
    ("text", "count"),
    [("synthetic:", 300), ("synthetic:frames=7", 7), ("synthetic:seed=3,frames=2", 2)],
)
def test_synthetic_sources_take_options(text: str, count: int) -> None:
    """The number of frames can be given; times follow the rate."""
    got = pictures(opened(text, rate=10.0))
    assert len(got) == count
    assert [p.pts_seconds for p in got] == pytest.approx([i / 10 for i in range(count)])


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("synthetic:sead=1", "seed"),
        ("synthetic:frames=-3", "whole number"),
        ("synthetic:frames=many", "whole number"),
        ("synthetic:frames=", "whole number"),
        ("synthetic:frames", "whole number"),
        ("synthetic:frames=1.5", "whole number"),
    ],
)
def test_bad_options_are_refused_with_a_remedy(text: str, hint: str) -> None:
    """A wrong option is an error at once, which quotes it and says what would be right."""
    with pytest.raises(SourceError, match=hint) as caught:
        opened(text)
    assert caught.value.reason == "bad_source"
    assert text in str(caught.value)


def test_synthetic_pictures_depend_on_the_seed_only() -> None:
    """The same seed gives the same moving pictures, another seed others."""
    first, again, other = (
        np.stack([p.image for p in pictures(SyntheticSource(TOY_PREPROCESSING, seed=s, frames=70))])
        for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5
    assert all((a != b).any() for a, b in pairwise(first))


def test_synthetic_pictures_have_the_pipelines_size() -> None:
    """Height and width are the network's, not swapped."""
    oblong = Preprocessing(16, 4, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    [picture] = pictures(SyntheticSource(oblong, frames=1))
    assert picture.image.shape == (4, 16, 3)
    assert picture.image.dtype == np.uint8


def test_joined_parts_share_one_time_line() -> None:
    """Parts are played in order; times go on evenly, wherever each part's own clock starts."""
    late = [Picture(p.image, p.pts_seconds + 500.0, p.label) for p in toy_pictures(3, seed=1)]
    joined = JoinedSource([ListSource(toy_pictures(2)), ListSource(late)])
    got = pictures(joined)
    assert [p.pts_seconds for p in got] == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16])
    assert [p.label for p in got] == [p.label for p in toy_pictures(2) + late]


@pytest.mark.parametrize("length", [1, 3])
def test_a_repeated_recording_starts_again(length: int) -> None:
    """Repeating gives the same pictures again and again, with times that keep rising."""
    got = pictures(JoinedSource([ListSource(toy_pictures(length))], repeat=True), most=10)
    assert len(got) == 10
    assert all(a.pts_seconds < b.pts_seconds for a, b in pairwise(got))
    np.testing.assert_array_equal(got[length].image, got[0].image)


def test_a_part_that_breaks_breaks_the_whole() -> None:
    """An error of a part is not swallowed, and what came before it is delivered."""
    broken = ListSource(toy_pictures(1), error=SourceError("torn", reason="no_frames"))
    stream = JoinedSource([broken, ListSource(toy_pictures(5))]).pictures(lambda _: None)
    assert next(stream).pts_seconds == 0.0
    with pytest.raises(SourceError, match="torn"):
        next(stream)


def test_repeating_nothing_comes_to_an_end() -> None:
    """A repeated source that has no pictures ends or is an error; it does not spin for ever."""

    class Nothing:
        live = False
        openings = 0

        def pictures(self, report: DropReport, watch: Watch | None = None) -> Iterator[Picture]:
            self.openings += 1
            if self.openings > 5:
                pytest.fail("opened again and again without one picture")
            return iter(())

    with suppress(SourceError):
        assert pictures(JoinedSource([Nothing()], repeat=True)) == []
