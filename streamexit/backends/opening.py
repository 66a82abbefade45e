"""From what the user asks for to a backend that runs."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from streamexit.backends.backend import Backend
from streamexit.backends.content import content_key
from streamexit.backends.cuda_backend import CudaBackend
from streamexit.backends.devices import pick_device, title
from streamexit.backends.openvino_backend import OpenVinoBackend, pick_precision
from streamexit.backends.profile import Profile, measure
from streamexit.backends.torch_backend import TorchBackend
from streamexit.cache import cache_folder
from streamexit.errors import ConfigurationError, PipelineError
from streamexit.exits import CostTable
from streamexit.models.pipeline import Pipeline
from streamexit.scheduling.scorers import Scorer

Say = Callable[[str], None]
"""Told what takes seconds, before it does."""


def quietly(sentence: str) -> None:
    """Nobody wants to know."""


KINDS = ("auto", "openvino", "cuda", "torch", "torch-compiled")


@dataclass(frozen=True)
class BackendOptions:
    """What a user may choose.

    Attributes:
        kind: One of `KINDS`; "auto" is OpenVINO on a CPU and CUDA graphs on a GPU.
        device: auto, cpu, cuda:0 ...
        precision: "auto" (bf16 where the device is good at it), "bf16", "float32", or, with OpenVINO
            and a quantised pipeline, "int8".
        batch: Rows of a full batch at every stage; None lets a measurement choose.
        max_batch: The largest that it may choose.
    """

    kind: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    batch: int | None = None
    max_batch: int = 32

    def resolve(self) -> BackendOptions:
        """With every "auto" decided for this machine.

        Raises:
            ConfigurationError: Something that this machine does not have, or that does not go
                together; the message names the field.
        """
        if self.kind not in KINDS:
            raise ConfigurationError(f"backend: {self.kind!r} is not one of {', '.join(KINDS)}")
        own = {"openvino": "cpu", "cuda": "cuda:0"} if self.device == "auto" else {}
        device = pick_device(own.get(self.kind, self.device))
        default = "openvino" if device.type == "cpu" else "cuda"
        kind = default if self.kind == "auto" else self.kind
        needed = {"openvino": "cpu", "cuda": "cuda"}.get(kind, device.type)
        if device.type != needed:
            raise ConfigurationError(
                f"backend: {kind} runs on {needed}, not on device {device}; use {default} or torch"
            )
        return BackendOptions(
            kind, str(device), _precision(kind, self.precision), self.batch, self.max_batch
        )


def _precision(kind: str, asked: str) -> str:
    if kind == "openvino":
        return pick_precision(asked)
    if kind == "cuda":
        if asked not in ("auto", "bf16", "float32"):
            raise ConfigurationError(f"precision: {asked!r} is not one of auto, bf16, float32")
        return "bf16" if asked == "auto" else asked
    if asked not in ("auto", "float32"):
        raise ConfigurationError(
            f"precision: backend {kind} computes in float32, not {asked!r}; use another backend"
        )
    return "float32"


def open_backend(
    pipeline: Pipeline,
    scorer: Scorer,
    options: BackendOptions,
    *,
    say: Say = quietly,
) -> Backend:
    """Make the backend that is asked for; where no batch size is given, measure once and remember.

    Args:
        pipeline: Its network, in eval mode, and its task.
        scorer: Of one of its policies.
        options: Where and how.
        say: Called with a sentence before something that takes seconds.

    Raises:
        ConfigurationError: See `BackendOptions.resolve`.
    """
    options = options.resolve()
    if options.batch is not None:
        sizes = (options.batch,) * pipeline.network.num_exits
    else:
        sizes = remembered_profile(pipeline, scorer, options, say=say).sizes()
    return _make(pipeline, scorer, options, sizes, say)


def remembered_profile(
    pipeline: Pipeline,
    scorer: Scorer,
    options: BackendOptions,
    *,
    say: Say = quietly,
) -> Profile:
    """The profile of scored stages with these options, from the cache folder if it is there."""
    options = options.resolve()
    name = title(options.kind, torch.device(options.device), options.precision)
    made_by = (name, str(options.max_batch))
    key = content_key(pipeline.network, pipeline.build_task(), scorer, *made_by)
    path = cache_folder() / "profiles" / f"{key}.json"
    try:
        return Profile.load(path)
    except PipelineError:
        profile = measure_profile(pipeline, scorer, options, say=say)
        with contextlib.suppress(OSError):  # it is measured again next time
            profile.save(path)
        return profile


def profile_file(folder: Path, options: BackendOptions) -> Path:
    """Where the profile of a pipeline folder on this device lies, if it was made."""
    resolved = options.resolve()
    name = title(resolved.kind, torch.device(resolved.device), resolved.precision)
    return folder / "profiles" / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def device_costs(folder: Path, options: BackendOptions) -> CostTable:
    """Milliseconds to reach each exit of a pipeline on this device.

    Raises:
        PipelineError: It was not profiled here.
    """
    path = profile_file(folder, options)
    if not path.is_file():
        chosen = "".join(
            f" --{field} {value}"
            for field, value in (("device", options.device), ("backend", options.kind))
            if value != "auto"
        )
        raise PipelineError(
            f"milliseconds need the profile of this pipeline on this device ({path.name}); make it "
            f"with: streamexit profile {folder}{chosen}"
        )
    return Profile.load(path).costs()


def measure_profile(
    pipeline: Pipeline,
    scorer: Scorer,
    options: BackendOptions,
    *,
    say: Say = quietly,
) -> Profile:
    """Time the stages on noise."""
    options = options.resolve()
    say("measuring which batch sizes are best here, once")
    num_stages, p = pipeline.network.num_exits, pipeline.network.preprocessing
    random = np.random.default_rng(0)
    pictures = list(random.integers(0, 256, (4, p.height, p.width, 3), dtype=np.uint8))
    return measure(
        lambda size: _make(pipeline, scorer, options, (size,) * num_stages, say),
        pictures,
        most=options.max_batch,
        clock=time.perf_counter,
    )


def _make(
    pipeline: Pipeline, scorer: Scorer, options: BackendOptions, sizes: Sequence[int], say: Say
) -> Backend:
    """Of options that are resolved."""
    scored = (pipeline.network, pipeline.build_task(), scorer)
    device = torch.device(options.device)
    if options.kind == "openvino":
        return OpenVinoBackend(
            *scored,
            sizes=sizes,
            precision=options.precision,
            cache=cache_folder(),
            quantised=pipeline.quantised,
            say=say,
        )
    if options.kind == "cuda":
        return CudaBackend(*scored, device=device, sizes=sizes, precision=options.precision)
    compiled = options.kind == "torch-compiled"
    return TorchBackend(*scored, device=device, sizes=sizes, compiled=compiled)
