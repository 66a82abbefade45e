"""Fewer pictures than a source has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamexit.errors import SourceError
from streamexit.sources.opening import open_source
from streamexit.sources.sampling import Sampler, Sampling
from streamexit.sources.source import Picture, Source
from streamexit.testing import TOY_LABELS, TOY_PREPROCESSING
from tests.sources.servers import ffmpeg


def source(text: str, sampling: Sampling) -> Source:
    """For the toy pipeline."""
    return open_source(
        text,
        preprocessing=TOY_PREPROCESSING,
        labels=TOY_LABELS,
        rate=25.0,
        sampling=sampling,
    )


def pictures(text: str, frame_rate: float | None) -> list[Picture]:
    """All that a source gives at that rate."""
    chosen = source(text, Sampling(frame_rate))
    return list(chosen.pictures(lambda reason: pytest.fail(reason)))


@given(
    rate=st.floats(0.1, 60),
    steps=st.lists(st.floats(0.001, 2.0), min_size=1, max_size=100),
)
def test_one_picture_per_slot(rate: float, steps: list[float]) -> None:
    """However uneven the times: never two of one slot, and the first of each slot that has any."""
    sampler = Sampler(Sampling(rate))
    times = np.cumsum(steps).tolist()
    wanted = [t for t in times if sampler.wants(t)]
    slots = [int(np.floor(t * rate + 1e-6)) for t in wanted]
    assert len(set(slots)) == len(slots)
    assert set(slots) == {int(np.floor(t * rate + 1e-6)) for t in times}


@given(rate=st.floats(0.1, 60), fps=st.sampled_from([10.0, 12.5, 25.0, 29.97, 30.0]))
def test_the_glance_ahead_agrees_where_steps_are_even(rate: float, fps: float) -> None:
    """A picture that is wanted is never one that the packets' times ruled out."""
    sampler = Sampler(Sampling(rate))
    sampler.wants(0.0)
    for i in range(1, 200):
        if sampler.wants(i / fps):
            assert sampler.may_want(i / fps, 1 / fps)


def test_all_are_wanted_where_nobody_says_how_many() -> None:
    """Without a rate nothing is skipped."""
    sampler = Sampler(Sampling())
    assert all(sampler.wants(0.0) and sampler.may_want(0.0, 0.1) for _ in range(3))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_video_gives_the_frames_that_are_due(make_clip: Callable[..., Path], codec: str) -> None:
    """At 10 of 25 per second every slot of 0.1 s has its first picture, with its own pixels."""
    clip = make_clip(f"sampled-{codec}.mp4", frames=75, codec=codec, size=(64, 48))
    every, some = pictures(str(clip), None), pictures(str(clip), 10.0)
    assert len(every) == 75
    assert [round(p.pts_seconds * 25) for p in some] == [round(i * 2.5 + 0.49) for i in range(30)]
    by_time = {p.pts_seconds: np.asarray(p.image) for p in every}
    for picture in some:
        np.testing.assert_array_equal(np.asarray(picture.image), by_time[picture.pts_seconds])


def test_a_rate_above_the_source_changes_nothing(make_clip: Callable[..., Path]) -> None:
    """There are no more pictures than there are."""
    clip = make_clip("slow.mp4", frames=20)
    assert len(pictures(str(clip), 100.0)) == 20


def test_generated_pictures_are_sampled_too() -> None:
    """Sources without a codec follow the same rule."""
    assert len(pictures("synthetic:seed=1,frames=50", 5.0)) == 10


def test_each_third_picture(make_clip: Callable[..., Path]) -> None:
    """Counted from the first."""
    clip = make_clip("thirds.mp4", frames=20)
    every = pictures(str(clip), None)
    some = list(source(str(clip), Sampling(every=3)).pictures(lambda reason: pytest.fail(reason)))
    assert [p.pts_seconds for p in some] == [p.pts_seconds for p in every[::3]]
    generated = source("synthetic:frames=20", Sampling(every=3))
    assert len(list(generated.pictures(lambda reason: pytest.fail(reason)))) == 7


@pytest.mark.parametrize("name", ["gop.mp4", "gop.ts"])
def test_key_frames_only(tmp_path: Path, name: str) -> None:
    """Those that the codec needs no other for, with their own pixels and times; nothing counts as lost."""
    path = tmp_path / name
    with ffmpeg(
        *("-f", "lavfi", "-i", "testsrc=s=64x48:r=25", "-t", "2", "-c:v", "libx264"),
        *("-x264opts", "keyint=10:scenecut=0:bframes=2", str(path)),
    ) as process:
        assert process.wait() == 0
    every = {round(p.pts_seconds, 3): p.image for p in pictures(str(path), None)}
    keys = Sampling(key_frames=True)
    some = list(source(str(path), keys).pictures(lambda reason: pytest.fail(reason)))
    assert [round(p.pts_seconds * 25) for p in some] == [0, 10, 20, 30, 40]
    for picture in some:
        np.testing.assert_array_equal(picture.image, every[round(picture.pts_seconds, 3)])


def test_only_one_way_to_choose() -> None:
    """Two at once are refused."""
    with pytest.raises(SourceError, match="exclude each other"):
        Sampling(frame_rate=5.0, every=2)
