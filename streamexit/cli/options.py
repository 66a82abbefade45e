"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder with the data set, instead of the recipe's.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda:0.")]
BackendOption = Annotated[str, typer.Option(help="auto, openvino, cuda, torch or torch-compiled.")]
PrecisionOption = Annotated[str, typer.Option(help="auto, float32, bf16 or int8.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
