"""`streamexit train` and `streamexit fit`: making pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamexit.cli.formats import duration
from streamexit.cli.options import DataOption, DeviceOption, JsonOption

if TYPE_CHECKING:
    from streamexit.training.trainer import EpochReport


def train(
    recipe: Annotated[Path, typer.Argument(help="A train.yaml; its folder becomes the pipeline.")],
    data: DataOption = None,
    device: DeviceOption = "auto",
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    json: JsonOption = False,
) -> None:
    """Train a multi-exit network, resuming where a stopped run left off."""
    from streamexit.calibration.make import train_pipeline

    def on_epoch(report: EpochReport) -> None:
        accuracy = " ".join(f"{a:6.2%}" for a in report.exit_accuracy)
        typer.echo(
            f"epoch {report.epoch:3}/{report.epochs}  loss {report.loss:.4f}  "
            f"training accuracy per exit {accuracy}  {report.seconds:.0f} s, "
            f"{duration(report.seconds_left)} left",
            err=json,
        )

    report = train_pipeline(recipe, data=data, device=device, epochs=epochs, on_epoch=on_epoch)
    _show(report, json)


def fit(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline folder.")],
    policy: Annotated[
        list[str] | None, typer.Option(help="Fit this policy only; may be given several times.")
    ] = None,
    default: Annotated[
        str | None,
        typer.Option(
            help="The policy that streams use unless told; else the best on held-out folds, or, with --policy, "
            "the one that it is."
        ),
    ] = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    seed: int = 0,
    json: JsonOption = False,
) -> None:
    """Fit exit policies on the calibration part of the data, and enter them into the pipeline."""
    from streamexit.calibration.make import fit_policies

    report = fit_policies(
        pipeline, names=policy, default=default, data=data, device=device, seed=seed
    )
    _show(report, json)


def quantise(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline folder.")],
    data: DataOption = None,
    pictures: Annotated[int, typer.Option(min=1, help="Of the calibration part.")] = 300,
    json: JsonOption = False,
) -> None:
    """Quantise the stages to 8-bit integers, for precision int8 on CPUs, and judge the result."""
    from streamexit.calibration.quantise import quantise_pipeline

    _show(quantise_pipeline(pipeline, data=data, pictures=pictures), json)


def _show(report: dict[str, Any], json: bool) -> None:
    from streamexit.cli.app import print_json

    if json:
        print_json(report)
        return
    for key, value in report.items():
        typer.echo(f"{key}: {value}")
