"""A source that is read in a process of its own, so that a codec that crashes or hangs takes nothing along.

Pictures come through shared memory without a name, which vanishes with its last user; all else is one
line of JSON per message. The child is trusted with nothing: what it sends is checked, never unpickled.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, get_args

import numpy as np

from streamexit.errors import SourceError
from streamexit.frame import Media
from streamexit.metrics import DropReason
from streamexit.preprocessing import Image, Preprocessing
from streamexit.redact import redact
from streamexit.sources.addresses import NO_OPTIONS, SourceOptions, parse_address
from streamexit.sources.life import REASONS
from streamexit.sources.source import DropReport, Picture, Watch

SLOTS = 4
LONGEST_LINE = 1 << 16
CHILD = "streamexit.sources.decode_child"
HOME = str(Path(__file__).parents[2])

START = (
    "import runpy, sys; home, child = sys.argv[1:3]; del sys.argv[1:3]; "
    "home in sys.path or sys.path.insert(0, home); runpy.run_module(child, run_name='__main__')"
)
"""Runs the child. Unlike `python -m` not from whatever lies in the working directory, and from where we are."""


class ProcessSource:
    """Another source, in a process of its own.

    Args:
        text: As for `open_source`.
        preprocessing: Of the pipeline.
        base: As for `open_source`.
        options: As for `open_source`.
        how: Further arguments of `open_source`.
    """

    def __init__(
        self,
        text: str,
        *,
        preprocessing: Preprocessing,
        base: Path,
        options: SourceOptions = NO_OPTIONS,
        **how: Any,
    ) -> None:
        address = parse_address(text, options, base=base)
        self.live = address.live
        self._shown = str(address)
        self._shape = (preprocessing.height, preprocessing.width, 3)
        where = {"text": text, "base": base.absolute(), "options": options}
        self._request = {"preprocessing": preprocessing, **where, **how}

    def pictures(self, report: DropReport, watch: Watch | None = None) -> Iterator[Picture]:
        """See `Source`."""
        watch = watch or Watch()
        watch.demand.served = False
        with ExitStack() as stack:
            size = int(np.prod(self._shape))
            memory = os.memfd_create("streamexit", os.MFD_CLOEXEC)
            stack.callback(os.close, memory)
            os.ftruncate(memory, SLOTS * size)
            slots = stack.enter_context(mmap.mmap(memory, SLOTS * size, prot=mmap.PROT_READ))
            child = subprocess.Popen(
                [sys.executable, "-P", "-c", START, HOME, CHILD, str(memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(memory,),
            )
            stack.callback(_end, child)
            watch.on_stop(child.kill)
            assert child.stdin
            assert child.stdout
            with suppress(BrokenPipeError):
                request = self._request
                if watch.demand.sampling is not None:  # a later change takes another opening
                    request = {**request, "sampling": watch.demand.sampling}
                pickle.dump(request, child.stdin)
                child.stdin.flush()
            for message in self._messages(child, child.stdout, watch):
                if "slot" not in message:
                    self._note(message, report, watch)
                    continue
                try:
                    slot = int(message["slot"]) % SLOTS
                    picture = _picture(self._copied(slots, slot), message)
                except (ValueError, TypeError, KeyError) as error:
                    raise self._crashed(f"sent nonsense ({type(error).__name__})") from error
                with suppress(BrokenPipeError):
                    child.stdin.write(bytes([slot]))
                    child.stdin.flush()
                yield picture

    def _copied(self, slots: mmap.mmap, slot: int) -> Image:
        height, width, channels = self._shape
        size = height * width * channels
        return np.frombuffer(slots, np.uint8, size, size * slot).reshape(self._shape).copy()

    def _messages(
        self, child: subprocess.Popen[bytes], lines: IO[bytes], watch: Watch
    ) -> Iterator[dict[str, Any]]:
        """What the child says, until it says that it has come to the end."""
        begun = False
        while line := lines.readline(LONGEST_LINE):
            begun = True
            try:
                message = json.loads(line)
                if not isinstance(message, dict):
                    raise TypeError("not a message")
                if message.get("end"):
                    return
                yield message
            except (ValueError, TypeError, KeyError) as error:
                raise self._crashed(f"sent nonsense ({type(error).__name__})") from error
        if watch.stopped:
            return
        code = child.wait()
        died = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        hint = "" if begun or code != 1 else f"; python -P -c 'import {CHILD}' may say why"
        raise self._crashed(f"died ({died}{hint})")

    def _note(self, message: Mapping[str, Any], report: DropReport, watch: Watch) -> None:
        if message.get("alive"):
            watch.idle = bool(message.get("idle"))
            watch.problem = _problem(message, "problem")
            watch.alive()
        elif message.get("lost") in get_args(DropReason):
            report(message["lost"])
        elif error := _problem(message, "error"):
            raise error

    def _crashed(self, how: str) -> SourceError:
        return SourceError(
            f"{self._shown}: its decoder's process {how}; nothing else is affected",
            reason="crashed",
        )


def _problem(message: Mapping[str, Any], key: str) -> SourceError | None:
    if key not in message:
        return None
    reason = message.get("reason")
    known = reason if reason in REASONS else "internal"
    return SourceError(redact(str(message[key])), reason=known)


def _picture(image: Image, message: Mapping[str, Any]) -> Picture:
    media, size, label = message["media"], message["size"], message["label"]
    pts, lag = float(message["pts"]), float(message["lag"])
    if not (math.isfinite(pts) and math.isfinite(lag)):
        raise ValueError("a time that is none")
    return Picture(
        image,
        pts,
        None if label is None else int(label),
        (int(size[0]), int(size[1])) if size else None,
        media=Media(**media) if media else None,
        epoch=int(message["epoch"]),
        lag_seconds=lag,
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe:
            with suppress(OSError):
                pipe.close()
