"""`streamexit profile`: what a pipeline's stages cost on a device, in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamexit.cli.formats import plain_table
from streamexit.cli.options import BackendOption, DeviceOption, JsonOption, PrecisionOption


def profile(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline folder.")],
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    policy: Annotated[str | None, typer.Option(help="Instead of the pipeline's default.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch size to try.")] = 32,
    json: JsonOption = False,
) -> None:
    """Measure the stages by batch size, and write the folder's cost table for this device."""
    from streamexit.backends.opening import BackendOptions, measure_profile, profile_file
    from streamexit.cli.app import console, print_json
    from streamexit.models.pipeline import load_pipeline
    from streamexit.models.shipped import find_pipeline
    from streamexit.scheduling.policy import load_policy

    loaded = load_pipeline(find_pipeline(pipeline))
    options = BackendOptions(backend, device, precision, max_batch=max_batch).resolve()
    scorer = load_policy(loaded.policy_file(policy), loaded.costs.fractions).scorer
    found = measure_profile(loaded, scorer, options)
    path = profile_file(loaded.folder, options)
    found.save(path)
    costs, knees = found.costs(), found.sizes()
    if json:
        print_json(
            {
                "device": found.device,
                "file": str(path),
                "milliseconds_per_frame": {
                    str(size): list(row) for size, row in found.milliseconds.items()
                },
                "batch": list(knees),
                "milliseconds_per_exit": list(costs.per_exit),
                "gflops_per_exit": list(loaded.costs.per_exit),
            }
        )
        return
    stages = range(len(knees))
    table = plain_table("batch", *(f"stage {k + 1}" for k in stages))
    for size, row in found.milliseconds.items():
        cells = (f"{ms:.3f}{' *' if knees[k] == size else ''}" for k, ms in enumerate(row))
        table.add_row(str(size), *cells)
    console.print(
        f"{found.device}; milliseconds of the device per frame, * what a node would choose"
    )
    console.print(table)
    table = plain_table("exit", "ms", "of full", "GFLOPs", "of full", "frames per s")
    for k in stages:
        table.add_row(
            str(k + 1),
            f"{costs.per_exit[k]:.3f}",
            f"{costs.fractions[k]:.1%}",
            f"{loaded.costs.per_exit[k]:.4f}",
            f"{loaded.costs.fractions[k]:.1%}",
            f"{1000 / costs.per_exit[k]:.0f}",
        )
    console.print(table)
    console.print(f"written: {path}")
