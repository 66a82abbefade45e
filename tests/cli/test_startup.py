"""What asking for help does not wait for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "cv2", "av", "numpy", "openvino", "yaml", "aiomqtt", "fastapi"}
OURS = {"streamexit.runtime", "streamexit.config.schema", "streamexit.wire.messages"}
SCRIPT = """
import json, sys
from streamexit.__main__ import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "quantise"),
        (["--version"], "streamexit"),
        (["run", "--help"], "--log-format"),
        (["replay", "--help"], "--agreement"),
        (["watch", "--help"], "--username"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_asking_for_help_loads_nothing_heavy(arguments: list[str], said: str) -> None:
    """The answer comes before anything is loaded that only the work itself needs."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert said in done.stdout
    loaded = set(json.loads(done.stderr))
    assert "streamexit.cli.commands" in loaded
    assert loaded & (HEAVY | OURS) == set()
