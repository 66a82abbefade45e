"""What we compare ourselves with: the loops that a good engineer writes by hand.

Each function runs for some seconds and returns how many frames were answered per second, in the
second part of that time (the first warms up).
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import openvino as ov
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor, nn
from torchvision import models

from streamexit.preprocessing import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224
WARM_UP_SHARE = 0.3


class Whole(nn.Module):
    """A torchvision classifier with its normalisation: uint8 [N, H, W, 3] to logits."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = getattr(models, name)(weights=None).eval()
        self.mean = 255 * torch.tensor(MEAN).view(3, 1, 1)
        self.std = 255 * torch.tensor(STD).view(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.network((images.permute(0, 3, 1, 2).float() - self.mean) / self.std)  # type: ignore[no-any-return]


class Meter:
    """Counts frames between the end of the warm-up and the end."""

    def __init__(self, seconds: float) -> None:
        self._begin = time.perf_counter() + WARM_UP_SHARE * seconds
        self._end = time.perf_counter() + seconds
        self._frames = 0

    def count(self) -> bool:
        """One more frame is answered; whether to go on."""
        now = time.perf_counter()
        self._frames += self._begin <= now < self._end
        return now < self._end

    @property
    def going(self) -> bool:
        """Whether there is time left."""
        return time.perf_counter() < self._end

    @property
    def rate(self) -> float:
        """Frames per second."""
        return self._frames / (self._end - self._begin)


def frames(clip: Path) -> Iterator[Image]:
    """A clip for ever, decoded and scaled; one scaler for all frames, which PyAV's own way lacks."""
    scale = VideoReformatter()
    while True:
        with av.open(str(clip)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "SLICE"
            for frame in container.decode(stream):
                small = scale.reformat(
                    frame, width=SIDE, height=SIDE, format="rgb24", interpolation="BILINEAR"
                )
                yield small.to_ndarray().astype(np.uint8, copy=False)


def decode_only(clip: Path, network: str, streams: int, seconds: float) -> float:
    """Decode and resize, nothing else; one thread per stream."""
    return _from_threads(clip, streams, seconds, lambda image: None)


def network_only(clip: Path, network: str, streams: int, seconds: float) -> float:
    """OpenVINO on one picture again and again, one request per core."""
    image = next(frames(clip))
    return _queue_rate(network, seconds, itertools.repeat(image))


def torch_eager(clip: Path, network: str, streams: int, seconds: float) -> float:
    """PyAV and eager PyTorch, float32, channels last."""
    whole = Whole(network).to(memory_format=torch.channels_last)
    meter = Meter(seconds)
    with torch.inference_mode():
        for image in frames(clip):
            whole(torch.from_numpy(image[None])).argmax(1).item()
            if not meter.count():
                break
    return meter.rate


def one_request(clip: Path, network: str, streams: int, seconds: float) -> float:
    """PyAV and one OpenVINO request with all cores, one after the other."""
    request = compiled_network(network, {"PERFORMANCE_HINT": "LATENCY"}).create_infer_request()
    meter = Meter(seconds)
    for image in frames(clip):
        next(iter(request.infer([image[None]]).values())).argmax(1)
        if not meter.count():
            break
    return meter.rate


def async_queue(clip: Path, network: str, streams: int, seconds: float) -> float:
    """PyAV and OpenVINO's AsyncInferQueue; several streams have a decode thread each."""
    if streams == 1:
        return _queue_rate(network, seconds, frames(clip))
    waiting: queue.Queue[Image] = queue.Queue(maxsize=4 * streams)
    with _Decoders(clip, streams, waiting.put):
        return _queue_rate(network, seconds, (waiting.get() for _ in itertools.count()))


LOOPS: dict[str, Callable[[Path, str, int, float], float]] = {
    "decode and resize only": decode_only,
    "network only, OpenVINO bf16": network_only,
    "PyAV + torch eager": torch_eager,
    "PyAV + OpenVINO, one request": one_request,
    "PyAV + OpenVINO, async queue": async_queue,
}


def compiled_network(network: str, settings: dict[str, Any]) -> ov.CompiledModel:
    """OpenVINO, bf16, one picture at a time."""
    settings = {"INFERENCE_PRECISION_HINT": "bf16", **settings}
    return ov.Core().compile_model(_converted(network), "CPU", settings)


def save_network(network: str, path: Path) -> None:
    """The same for other programs."""
    ov.save_model(_converted(network), path, compress_to_fp16=False)


def _converted(network: str) -> ov.Model:
    example = torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8)
    return ov.convert_model(Whole(network), example_input=example, input=[1, SIDE, SIDE, 3])


def long_clip(clip: Path, folder: Path, *, times: int = 40) -> Path:
    """The clip several times over, in one file, for programs that cannot repeat one."""
    path = folder / "long.mp4"
    if path.exists():
        return path
    with av.open(str(path), "w") as copy:
        out: Any = None
        shift = 0
        for _ in range(times):
            with av.open(str(clip)) as source:
                stream = source.streams.video[0]
                out = out or copy.add_stream_from_template(stream)
                last = 0
                for packet in source.demux(stream):
                    if packet.pts is None or packet.dts is None:
                        continue
                    last = max(last, packet.pts + (packet.duration or 1))
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = out
                    copy.mux(packet)
                shift += last
    return path


def _queue_rate(network: str, seconds: float, images: Iterator[Image]) -> float:
    compiled = compiled_network(network, {"PERFORMANCE_HINT": "THROUGHPUT"})
    jobs = ov.AsyncInferQueue(compiled)
    meter = Meter(seconds)

    def answered(request: ov.InferRequest, _: None) -> None:
        request.get_output_tensor(0).data.argmax(1)
        meter.count()

    jobs.set_callback(answered)
    for image in images:
        jobs.start_async([image[None]])
        if not meter.going:
            break
    jobs.wait_all()
    return meter.rate


class _Decoders:
    """Threads that decode one stream each, until the end of the block."""

    def __init__(self, clip: Path, streams: int, take: Callable[[Image], Any]) -> None:
        self._going = True
        self._take = take
        self._threads = [
            threading.Thread(target=self._run, args=(clip,), daemon=True) for _ in range(streams)
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *error: object) -> None:
        self._going = False

    def _run(self, clip: Path) -> None:
        for image in frames(clip):
            if not self._going:
                return
            self._take(image)


def _from_threads(
    clip: Path, streams: int, seconds: float, take: Callable[[np.ndarray], None]
) -> float:
    meter = Meter(seconds)

    def took(image: Image) -> None:
        take(image)
        meter.count()

    with _Decoders(clip, streams, took):
        while meter.going:
            time.sleep(0.05)
    return meter.rate
