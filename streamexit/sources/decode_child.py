"""The other end of `decode_process`: reads a source and passes its pictures on. Not for people."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import pickle
import signal
import sys
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from streamexit.errors import StreamExitError
from streamexit.metrics import DropReason
from streamexit.sources.decode_process import SLOTS
from streamexit.sources.opening import open_source
from streamexit.sources.source import Picture, Watch

ALIVE_EVERY_SECONDS = 0.5
PR_SET_PDEATHSIG = 1


class _Parent:
    """Where messages go."""

    def __init__(self) -> None:
        self._said_at = 0.0

    def say(self, **message: Any) -> None:
        """One line; a parent that is gone ends us."""
        try:
            os.write(1, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            sys.exit(1)

    def lost(self, reason: DropReason) -> None:
        self.say(lost=reason)

    def alive(self, watch: Watch) -> None:
        now, problem = time.monotonic(), watch.problem
        if now - self._said_at > ALIVE_EVERY_SECONDS:
            self._said_at = now
            about = {"problem": str(problem), "reason": problem.reason} if problem else {}
            self.say(alive=True, idle=watch.idle, **about)


class _Watch(Watch):
    """Passes signs of life on."""

    def __init__(self, parent: _Parent) -> None:
        super().__init__()
        self._parent = parent

    def alive(self) -> None:
        super().alive()
        self._parent.alive(self)


def main() -> None:
    """Read a request, then pictures."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the node, which ends us
    memory = int(sys.argv[1])
    parent = _Parent()
    with open(0, "rb", closefd=False) as requests:  # nothing more is written until a picture came
        request = pickle.load(requests)
    p = request["preprocessing"]
    size = p.height * p.width * 3
    slots = mmap.mmap(memory, SLOTS * size)
    free = list(range(SLOTS))
    try:
        source = open_source(**request)
        for picture in source.pictures(parent.lost, _Watch(parent)):
            if not free:
                free.extend(os.read(0, SLOTS))
            if not free:
                return  # the parent is gone
            slot = free.pop()
            slots[slot * size : (slot + 1) * size] = np.ascontiguousarray(picture.image).tobytes()
            _pass_on(parent, picture, slot)
    except StreamExitError as error:
        parent.say(error=str(error), reason=getattr(error, "reason", "internal"))
    except Exception as error:
        parent.say(error=f"{type(error).__name__}: {error}", reason="internal")
    parent.say(end=True)


def _pass_on(parent: _Parent, picture: Picture, slot: int) -> None:
    parent.say(
        slot=slot,
        pts=picture.pts_seconds,
        label=picture.label,
        size=picture.size,
        media=asdict(picture.media) if picture.media else None,
        epoch=picture.epoch,
        lag=picture.lag_seconds,
    )


if __name__ == "__main__":
    main()
