"""Pictures that NVDEC decodes: from its surface to the network's input without leaving the GPU."""

from __future__ import annotations

import importlib
from typing import Any, cast

import av
import torch
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.video.frame import VideoFrame
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from streamexit.errors import ConfigurationError, SourceError
from streamexit.preprocessing import Preprocessing
from streamexit.sources.nv12_kernel import BLOCK, KERNEL, SOURCE, grid_for, job_for

LEFT_SITED_CODECS = frozenset({"h264", "hevc", "mpeg2video", "mpeg4"})
"""Those whose FFmpeg decoder calls chroma left-sited unless the stream says otherwise. PyAV does not
tell what a picture says."""


def open_on_gpu(name: str, *, device_index: int, **how: Any) -> InputContainer:
    """Open a video whose pictures are decoded on a GPU and stay there.

    What NVDEC cannot decode is decoded in software: ask `on_gpu` of each picture.

    FFmpeg is told to share PyTorch's context. Left alone it would ask for the same one, but with
    flags of its own, and refuse one that PyTorch has already made.

    Args:
        name: As for `av.open`.
        device_index: Which CUDA device.
        how: As for `av.open`.

    Raises:
        av.FFmpegError: It cannot be opened.
    """
    with torch.cuda.device(device_index):
        torch.zeros(1, device="cuda")  # a thread has a context from its first work on
        hwaccel = HWAccel(
            "cuda",
            device=device_index,
            allow_software_fallback=True,
            options={"primary_ctx": "0", "current_ctx": "1"},
            is_hw_owned=True,
        )
        return cast("InputContainer", av.open(name, hwaccel=hwaccel, **how))


def on_gpu(picture: VideoFrame) -> bool:
    """Whether a decoded picture lies in device memory, and so was decoded there."""
    return picture.format.name == "cuda"


class CudaConverter:
    """As `InputConverter`, for pictures on a GPU; one instance per stream.

    PyTorch owns all memory; CuPy compiles and launches the kernel.

    Args:
        preprocessing: What the network wants.
        device_index: The device that the pictures lie on.
        left_sited: See `job_for`; whether the codec is one of `LEFT_SITED_CODECS`.

    Raises:
        ConfigurationError: CuPy is not installed.
    """

    def __init__(
        self, preprocessing: Preprocessing, device_index: int, *, left_sited: bool = True
    ) -> None:
        self._preprocessing = preprocessing
        self._device = torch.device("cuda", device_index)
        self._left_sited = left_sited
        self._cupy = load_cupy()
        self._kernel = self._cupy.RawKernel(SOURCE, KERNEL)

    def __call__(self, picture: VideoFrame, size: tuple[int, int] | None = None) -> Tensor:
        """Return `picture` as the network's uint8 [H, W, 3] input, on the GPU and complete.

        Complete: the call waits for the kernel, which runs on PyTorch's current stream, so that the
        decoder may have its surface back and any stream may read the input. Another stream than the
        current one must call `record_stream` on it, as always with PyTorch's memory.

        Args:
            picture: As decoded.
            size: As for `InputConverter`.

        Raises:
            SourceError: The picture is not 8-bit 4:2:0.
        """
        luma, chroma = surfaces(picture)  # hold the decoder's memory until this returns
        p = self._preprocessing
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_stream(torch.cuda.default_stream())  # where FFmpeg queues its last copy
            image = torch.empty((p.height, p.width, 3), dtype=torch.uint8, device=self._device)
            job = job_for(picture, p, left_sited=self._left_sited, size=size)
            with self._cupy.cuda.Stream.from_external(stream):
                pointers = luma.data_ptr(), chroma.data_ptr(), image.data_ptr()
                self._kernel(grid_for(p), BLOCK, (*pointers, job))
            stream.synchronize()
        return image


def surfaces(picture: VideoFrame) -> tuple[Tensor, Tensor]:
    """The luma and the chroma plane of an NV12 picture, without a copy.

    Raises:
        SourceError: It has another format.
    """
    held = picture.sw_format or picture.format
    if held.name != "nv12":
        raise SourceError(
            f"the GPU decodes this video to {held.name}, but only 8-bit 4:2:0 (nv12) is taken from "
            "there; decode it in software, or encode it anew",
            reason="pixel_format",
        )
    # Capsules, because PyAV refuses the stream that from_dlpack would name if given the planes.
    luma, chroma = (from_dlpack(plane.__dlpack__()) for plane in picture.planes)
    return luma, chroma


def load_cupy() -> Any:
    """Import CuPy, which only decoding on the GPU needs.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise ConfigurationError(
            "decoding on the GPU needs CuPy; pip install 'streamexit[cuda]', or decode in software"
        ) from error
