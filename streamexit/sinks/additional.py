"""Sinks that other packages bring along, each in a thread of its own."""

from __future__ import annotations

import inspect
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from streamexit.errors import ConfigurationError
from streamexit.plugins import load_plugin
from streamexit.wire.messages import Result

WAITING_RESULTS = 10_000
GOODBYE_SECONDS = 2.0


class Sink(Protocol):
    """Somewhere that results go.

    Its constructor takes `base`, where relative paths start, and the options of the configuration.
    """

    def write(self, result: Result) -> None:
        """Take one result, in the order of the stream's frames. May wait; may raise."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


def check_sink(kind: str, options: Mapping[str, Any], base: Path) -> None:
    """Whether a plugin is there and takes these options, without opening anything.

    Raises:
        PluginError: It is not installed, or cannot be imported.
        ConfigurationError: It does not take these options.
    """
    make = load_plugin("streamexit.sinks", kind)
    try:
        inspect.signature(make).bind(base=base, **options)
    except TypeError as error:
        raise ConfigurationError(f"{kind}: {error}") from error


def open_sink(kind: str, options: Mapping[str, Any], base: Path) -> Sink:
    """The sink of an installed plugin.

    Args:
        kind: Its name.
        options: For its constructor.
        base: Relative paths start here; for its constructor, too.

    Raises:
        PluginError: It is not installed, or cannot be imported.
        ConfigurationError: It does not take these options.
    """
    make = load_plugin("streamexit.sinks", kind)
    try:
        sink: Sink = make(base=base, **options)
    except (TypeError, ValueError, OSError) as error:
        raise ConfigurationError(f"{kind}: {error}") from error
    return sink


class SinkThread:
    """Feeds a sink, so that one that waits or fails holds up nothing else.

    Args:
        name: For messages.
        sink: Used in this thread only.
        on_problem: Called from this thread, once for each kind of problem.

    Attributes:
        written: Results that the sink took.
        dropped: That came while too many were waiting.
        failed: That the sink raised an exception for.
    """

    def __init__(self, name: str, sink: Sink, *, on_problem: Callable[[str], None]) -> None:
        self.written = self.dropped = self.failed = self._came = 0
        self._name = name
        self._sink = sink
        self._on_problem = on_problem
        self._said: set[str] = set()
        self._waiting: queue.Queue[Result | None] = queue.Queue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    def write(self, result: Result) -> None:
        """Hand a result over, without waiting."""
        self._came += 1
        if self._waiting.qsize() >= WAITING_RESULTS:
            self.dropped += 1
            self._say(
                f"takes results more slowly than they come; beyond {WAITING_RESULTS} they are dropped"
            )
            return
        self._waiting.put(result)

    def close(self) -> None:
        """Let it take what is waiting, for a while."""
        self._waiting.put(None)
        self._thread.join(GOODBYE_SECONDS)
        self._closing = True
        if self.written < self._came:
            left = self._came - self.written - self.failed - self.dropped
            self._say(
                f"of {self._came} results {self.written} were written, {self.failed} refused, "
                f"{self.dropped} dropped, {left} not taken before the end"
            )

    def _run(self) -> None:
        while (result := self._waiting.get()) is not None and not self._closing:
            try:
                self._sink.write(result)
            except Exception as error:
                self.failed += 1
                self._say(f"{type(error).__name__}: {error}")
            else:
                self.written += 1
        try:
            self._sink.close()
        except Exception as error:
            self._say(f"while closing: {type(error).__name__}: {error}")

    def _say(self, problem: str) -> None:
        if problem not in self._said and len(self._said) < 20:
            self._said.add(problem)
            self._on_problem(f"sink {self._name}: {problem}")
