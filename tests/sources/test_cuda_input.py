"""The GPU's way from a decoded picture to the network's input says what the CPU's says.

The kernel's own source runs here, as C++ on the CPU: threads are loops.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from streamexit.errors import ConfigurationError, SourceError
from streamexit.preprocessing import Image, InputConverter, Preprocessing
from streamexit.sources.cuda_converter import (
    LEFT_SITED_CODECS,
    CudaConverter,
    on_gpu,
    open_on_gpu,
    surfaces,
)
from streamexit.sources.nv12_kernel import BLOCK, JOB, SOURCE, grid_for, job_for
from tests.conftest import MakeClip, absent

MEAN_LEVELS, MOST_LEVELS = 0.3, 4
"""How far the two ways may lie apart. swscale holds filters in 14 bits and what lies between its two
passes in 15, so a plane may differ by one level; one level of luma and one of chroma are up to 3.3 in
blue, and rounding makes that 4. Measured: 0.15 on average, 0.22 in the worst case, 4 at most."""

STRETCH = Preprocessing(96, 64, (0, 0, 0), (1, 1, 1))
CROP = Preprocessing(96, 64, (0, 0, 0), (1, 1, 1), fit="crop")
LETTERBOX = Preprocessing(96, 64, (0, 0, 0), (1, 1, 1), fit="letterbox")

SHIM = r"""
#include <math.h>
#define __global__
#define __device__ static
static struct { int x, y; } blockIdx, threadIdx, blockDim;
#include "kernel.cu"
static_assert(sizeof(Job) == JOB_BYTES, "JOB has another layout");
extern "C" void launch(
    int grid_x, int grid_y, int block_x, int block_y,
    const u8 *luma, const u8 *chroma, u8 *rgb, const Job *job)
{
    blockDim.x = block_x, blockDim.y = block_y;
    for (blockIdx.y = 0; blockIdx.y < grid_y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid_x; ++blockIdx.x)
            for (threadIdx.y = 0; threadIdx.y < block_y; ++threadIdx.y)
                for (threadIdx.x = 0; threadIdx.x < block_x; ++threadIdx.x)
                    nv12_to_rgb(luma, chroma, rgb, *job);
}
"""

Convert = Callable[[VideoFrame, Preprocessing, bool], Image]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """The kernel on the CPU: picture, preprocessing and whether chroma is left-sited."""
    if not shutil.which("g++"):
        absent("g++ (apt install g++)")
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "kernel.cu").write_text(SOURCE)
    (folder / "shim.cpp").write_text(SHIM)
    command = f"g++ -O2 -Wall -Wextra -Werror -DJOB_BYTES={JOB.itemsize} -shared -fPIC -o kernel.so shim.cpp"
    subprocess.run(command.split(), cwd=folder, check=True, timeout=120)
    launch = ctypes.CDLL(str(folder / "kernel.so")).launch
    launch.argtypes = [ctypes.c_int] * 4 + [ctypes.c_void_p] * 4

    def convert(picture: VideoFrame, preprocessing: Preprocessing, left_sited: bool) -> Image:
        luma, chroma = surfaces(picture)
        image = np.full((preprocessing.height, preprocessing.width, 3), 77, np.uint8)
        job = job_for(picture, preprocessing, left_sited=left_sited)
        pointers = luma.data_ptr(), chroma.data_ptr(), image.ctypes.data, job.ctypes.data
        launch(*grid_for(preprocessing), *BLOCK, *pointers)
        return image

    return convert


def scene(width: int, height: int) -> Image:
    """Smooth shades, grain, and edges in luma and colour."""
    rows, columns = np.indices((height, width))
    y, x = rows / height, columns / width
    shades = np.stack([np.sin(5 * x + 2 * y), np.cos(7 * y - 3 * x), 2 * x - 1], axis=-1)
    noisy = 128 + 100 * shades + np.random.default_rng(0).normal(0, 6, (height, width, 3))
    noisy[(y > 0.2) & (y < 0.5) & (x > 0.3) & (x < 0.55)] = (220, 30, 40)
    noisy[(y > 0.45) & (y < 0.8) & (x > 0.5) & (x < 0.7)] = (20, 200, 60)
    return noisy.clip(0, 255).astype(np.uint8)


def nv12(
    width: int,
    height: int,
    colorspace: Colorspace = Colorspace.ITU709,
    color_range: ColorRange = ColorRange.MPEG,
) -> VideoFrame:
    """A scene as a decoder gives it."""
    picture = VideoFrame.from_ndarray(scene(width, height), format="rgb24")
    return picture.reformat(
        format="nv12", dst_colorspace=colorspace, dst_color_range=color_range.value
    )


def assert_same(ours: Image, theirs: Image) -> None:
    """But for rounding."""
    apart = np.abs(ours.astype(int) - theirs)
    assert ours.shape == theirs.shape
    assert apart.mean() <= MEAN_LEVELS
    assert apart.max() <= MOST_LEVELS


@pytest.mark.parametrize("color_range", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize("colorspace", [Colorspace.ITU601, Colorspace.ITU709])
@pytest.mark.parametrize("preprocessing", [STRETCH, CROP, LETTERBOX], ids=lambda p: str(p.fit))
@pytest.mark.parametrize(
    "size", [(640, 360), (192, 128), (322, 242), (75, 301), (96, 64), (62, 38), (61, 33)], ids=str
)
def test_kernel_and_cpu_path_give_the_same_pixels(
    kernel: Convert,
    size: tuple[int, int],
    preprocessing: Preprocessing,
    colorspace: Colorspace,
    color_range: ColorRange,
) -> None:
    """Shrunk, enlarged, both at once or neither, in every fit and colour coding."""
    picture = nv12(*size, colorspace, color_range)
    ours = kernel(picture, preprocessing, False)
    assert_same(ours, InputConverter(preprocessing)(picture))


def test_kernel_leaves_black_where_there_is_no_picture(kernel: Convert) -> None:
    """Outside of the scaled picture the input is exactly black, inside it is not."""
    image = kernel(nv12(320, 80), LETTERBOX, False)
    shown, _ = LETTERBOX.overlap(320, 80)
    assert image[shown].max(axis=-1).min() > 0
    image[shown] = 0
    assert not image.any()


def test_kernel_reads_rows_that_are_longer_than_the_picture(kernel: Convert) -> None:
    """Bytes between the end of a row and the next are never seen."""
    picture = nv12(128, 96)
    luma, chroma = (np.asarray(plane) for plane in surfaces(picture))
    wide_luma, wide_chroma = np.full((96, 300), 255, np.uint8), np.full((48, 120, 2), 255, np.uint8)
    wide_luma[:, :128], wide_chroma[:, :64] = luma, chroma
    padded = VideoFrame.from_dlpack((wide_luma[:, :128], wide_chroma[:, :64]), format="nv12")
    padded.colorspace, padded.color_range = picture.colorspace, picture.color_range
    assert [plane.line_size for plane in padded.planes] == [300, 240]
    expected = kernel(picture, STRETCH, False)
    np.testing.assert_array_equal(kernel(padded, STRETCH, False), expected)


@pytest.mark.parametrize(
    ("encoder", "left_sited"),
    [
        ("libx264", True),
        ("libx265", True),
        ("mpeg4", True),
        ("mpeg2video", True),
        ("libvpx-vp9", False),
    ],
)
def test_chroma_lies_where_the_codec_puts_it(
    kernel: Convert, tmp_path: Path, encoder: str, left_sited: bool
) -> None:
    """Decoded pictures of each codec come out as on the CPU, where FFmpeg knows their siting."""
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 160, 96, "yuv420p", 4_000_000
        picture = VideoFrame.from_ndarray(scene(160, 96), format="rgb24")
        container.mux([*stream.encode(picture), *stream.encode(None)])
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context.name
        decoded = next(container.decode(video=0))
    assert (codec in LEFT_SITED_CODECS) == left_sited
    theirs = InputConverter(STRETCH)(decoded).astype(int)
    repacked = decoded.reformat(format="nv12")
    assert_same(kernel(repacked, STRETCH, left_sited), theirs.astype(np.uint8))
    assert np.abs(kernel(repacked, STRETCH, not left_sited) - theirs).max() > 2 * MOST_LEVELS


def test_kernel_compiles_as_cuda(tmp_path: Path) -> None:
    """The very text that runs here as C++ is CUDA."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if not nvcc:
        pytest.skip("nvcc is not here")
    (tmp_path / "kernel.cu").write_text(SOURCE)
    command = [nvcc, "--ptx", "-Werror", "all-warnings", "-o", "kernel.ptx", "kernel.cu"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    assert ".entry nv12_to_rgb(" in (tmp_path / "kernel.ptx").read_text()


def test_surfaces_keep_the_memory_of_their_picture() -> None:
    """Planes are seen without a copy, and stay readable when the picture is gone."""
    picture = nv12(62, 38)
    pointers = [plane.buffer_ptr for plane in picture.planes]
    expected = [bytes(plane) for plane in picture.planes]
    luma, chroma = surfaces(picture)
    del picture
    assert [luma.data_ptr(), chroma.data_ptr()] == pointers
    assert (luma.shape, chroma.shape) == ((38, 62), (19, 31, 2))
    assert bytes(np.asarray(luma[0])) == expected[0][:62]
    assert bytes(np.asarray(chroma[0])) == expected[1][:62]


@pytest.mark.parametrize("pix_fmt", ["p010le", "yuv444p"])
def test_another_pixel_format_is_refused_by_name(pix_fmt: str) -> None:
    """Ten bits, or whole chroma, is an error of the source that names the format."""
    with pytest.raises(SourceError, match=pix_fmt) as caught:
        surfaces(VideoFrame(64, 48, pix_fmt))
    assert caught.value.reason == "pixel_format"


def test_missing_cupy_is_an_error_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has not installed the extra reads how to."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'streamexit\[cuda\]'"):
        CudaConverter(STRETCH, 0)


def test_a_picture_in_memory_was_decoded_in_software() -> None:
    """Which decoder was at work is told by where a picture lies."""
    assert not on_gpu(nv12(64, 48))


def on_both(path: Path, preprocessing: Preprocessing, count: int) -> list[tuple[Image, Image]]:
    """The first pictures of an H.264 clip as the GPU and as the CPU make them, all GPU work first."""
    if not importlib.util.find_spec("cupy"):
        absent("cupy (pip install 'streamexit[cuda]')")
    gpu, cpu = CudaConverter(preprocessing, 0), InputConverter(preprocessing)
    with open_on_gpu(str(path), device_index=0) as container:
        pictures = list(itertools.islice(container.decode(video=0), count))
        assert all(on_gpu(picture) for picture in pictures)
        inputs = [gpu(picture) for picture in pictures]
    assert {(image.device.type, image.dtype) for image in inputs} == {("cuda", torch.uint8)}
    with av.open(str(path)) as container:
        expected = [cpu(picture) for picture in itertools.islice(container.decode(video=0), count)]
    return [(ours.cpu().numpy(), image) for ours, image in zip(inputs, expected, strict=True)]


@pytest.mark.needs_cuda
@pytest.mark.parametrize("preprocessing", [STRETCH, CROP, LETTERBOX], ids=lambda p: str(p.fit))
def test_gpu_and_cpu_decode_to_the_same_input(
    make_clip: MakeClip, preprocessing: Preprocessing
) -> None:
    """NVDEC and the kernel together say what software decoding says, picture after picture."""
    path = make_clip("gpu.mp4", frames=12, size=(320, 180))
    for ours, theirs in on_both(path, preprocessing, 12):
        assert_same(ours, theirs)


@pytest.mark.needs_cuda
def test_inputs_are_complete_on_a_stream_of_ones_own(make_clip: MakeClip) -> None:
    """A stream that does not wait for the default one gets whole pictures all the same."""
    path = make_clip("gpu.mp4", frames=12, size=(320, 180))
    with torch.cuda.stream(torch.cuda.Stream(0)):  # type: ignore[no-untyped-call]
        for ours, theirs in on_both(path, STRETCH, 12):
            assert_same(ours, theirs)


@pytest.mark.needs_cuda
def test_what_nvdec_cannot_decode_comes_in_memory(make_clip: MakeClip) -> None:
    """H.264 with whole chroma falls back to software, and the picture shows it."""
    path = make_clip("whole_chroma.mp4", frames=3, pix_fmt="yuv444p")
    with open_on_gpu(str(path), device_index=0) as container:
        assert not on_gpu(next(container.decode(video=0)))
