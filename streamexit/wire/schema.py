"""JSON Schemas of the messages: `python -m streamexit.wire.schema docs/schemas` writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from streamexit.wire.messages import MESSAGES


def json_schema(leaf: str) -> dict[str, Any]:
    """The schema (2020-12) of the message that is published under `leaf`."""
    schema = MESSAGES[leaf].model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def write_schemas(folder: Path) -> None:
    """One file per message."""
    folder.mkdir(parents=True, exist_ok=True)
    for leaf in MESSAGES:
        text = json.dumps(json_schema(leaf), indent=2) + "\n"
        (folder / f"{leaf}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
