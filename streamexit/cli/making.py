"""`streamexit train` and `streamexit fit`: making pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamexit.cli.formats import duration, plain_table
from streamexit.cli.options import DataOption, DeviceOption, JsonOption

if TYPE_CHECKING:
    from rich.table import Table

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

    report = train_pipeline(
        recipe,
        data=data,
        device=device,
        epochs=epochs,
        on_begin=lambda sentence: typer.echo(sentence, err=json),
        on_epoch=on_epoch,
    )
    _say(report, json, _training_summary(report, recipe.parent))


def fit(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline folder.")],
    policy: Annotated[
        list[str] | None, typer.Option(help="Fit this policy only; may be given several times.")
    ] = None,
    default: Annotated[
        str | None,
        typer.Option(
            help="The policy that streams use unless told; else direct, or what is better on held-out folds by "
            "more than chance; with --policy, the one that it is."
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
    _say(report, json, _fitting_summary(report))


def quantise(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline folder.")],
    data: DataOption = None,
    pictures: Annotated[int, typer.Option(min=1, help="Of the calibration part.")] = 300,
    json: JsonOption = False,
) -> None:
    """Quantise the stages to 8-bit integers, for precision int8 on CPUs, and judge the result."""
    from streamexit.calibration.quantise import quantise_pipeline

    report = quantise_pipeline(pipeline, data=data, pictures=pictures)
    _say(report, json, _quantising_summary(report))


def _say(report: dict[str, Any], json: bool, summary: Iterator[str | Table]) -> None:
    from streamexit.cli.app import console, print_json

    if json:
        print_json(report)
        return
    for part in summary:
        console.print(part)


def _training_summary(report: dict[str, Any], folder: Path) -> Iterator[str | Table]:
    yield (
        f"{report['pipeline']}: trained on {report['train_pictures']} pictures, judged on "
        f"{report['test_pictures']} others:"
    )
    per_exit = report["test_figures_per_exit"]
    names = [name for name, value in per_exit[0].items() if isinstance(value, float)]
    words = (f">{name.replace('_', ' ')}" for name in names)
    table = plain_table(">exit", *words, ">GFLOPs", ">share of full")
    costs = report["gflops_per_exit"]
    for k, (figures, cost) in enumerate(zip(per_exit, costs, strict=True), 1):
        reached = (f"{figures[name]:.2%}" for name in names)
        table.add_row(str(k), *reached, f"{cost:.3g}", f"{cost / costs[-1]:.1%}")
    yield table
    yield f"all figures are in {folder / 'training.json'}; next: streamexit fit {folder}"


def _fitting_summary(report: dict[str, Any]) -> Iterator[str | Table]:
    yield f"{report['pipeline']}: policies fitted on {report['calibration_frames']} frames:"
    table = plain_table("policy", ">held-out quality", ">budgets")
    fitted = {name: found for name, found in report.items() if isinstance(found, dict)}
    for name, found in fitted.items():
        mark = " (default)" if name == report["default"] else ""
        table.add_row(name + mark, f"{found['held_out_quality']:.2%}", str(found["table_rows"]))
    yield table
    yield f"policies are in {Path(next(iter(fitted.values()))['file']).parent}"
    yield "held-out quality: mean over budgets and folds, on frames that the policy was not fitted on"


def _quantising_summary(report: dict[str, Any]) -> Iterator[str | Table]:
    yield f"{report['pipeline']}: quantised on {report['pictures']} pictures; on the test part:"
    table = plain_table(">exit", ">float32", ">int8")
    pairs = zip(report["test_figures_float32"], report["test_figures_int8"], strict=True)
    for k, (before, after) in enumerate(pairs, 1):
        table.add_row(str(k), f"{before:.2%}", f"{after:.2%}")
    yield table
    yield f"stages are in {Path(report['files'][0]).parent}; precision: int8 uses them"
