from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streamexit.errors import InputError
from streamexit.sinks.additional import SinkThread
from streamexit.sinks.jsonl import JsonlSink
from streamexit.wire.messages import Fault, Response


def message(verb: str) -> Response:
    """Any message."""
    fault = Fault(code="busy", message="x" * 100)
    return Response(node="lab", verb=verb, status="error", error=fault)


def verbs(path: Path) -> list[str]:
    """Of the messages in a file, each on a line of its own."""
    return [json.loads(line)["verb"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("append", "expected"), [(True, ["old", "new"]), (False, ["new"])])
def test_a_file_that_is_there_is_kept_or_not(
    tmp_path: Path, append: bool, expected: list[str]
) -> None:
    """A node goes on with it, a replay begins it anew."""
    path = tmp_path / "out" / "results.jsonl"
    for verb in ("old", "new"):
        sink = JsonlSink(path, append=append)
        sink.write(message(verb))
        sink.close()
    assert verbs(path) == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_the_sinks_business_only() -> None:
    """It is said once, and counted; whoever hands results over does not notice."""
    problems: list[str] = []
    sink = JsonlSink(Path("/dev/full"), append=True)
    thread = SinkThread("results_file", sink, on_problem=problems.append)
    result: Any = message("x")
    for _ in range(3):
        thread.write(result)
    thread.close()
    assert (thread.written, thread.failed) == (0, 3)
    assert [problem for problem in problems if "No space left on device" in problem] == problems[:1]


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written once there is room again can be read."""
    path = tmp_path / "results.jsonl"
    sink = JsonlSink(path)
    sink.write(message("first"))
    whole = sink._file

    class Half:
        """Has room for half of it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(whole, name)

        def write(self, line: bytes) -> int:
            return whole.write(line[: len(line) // 2])

    monkeypatch.setattr(sink, "_file", Half())
    with pytest.raises(InputError, match=r"results\.jsonl: cannot be written: No space left"):
        sink.write(message("second"))
    monkeypatch.setattr(sink, "_file", whole)
    sink.write(message("third"))
    sink.close()
    assert verbs(path) == ["first", "third"]


def test_a_file_that_cannot_be_is_named(tmp_path: Path) -> None:
    """Before anything begins."""
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        JsonlSink(tmp_path)
