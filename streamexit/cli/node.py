"""`streamexit run` and `streamexit check`: a node from a configuration file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from streamexit.cli.formats import parse_duration, plain_table
from streamexit.cli.making import JsonOption

ConfigArgument = Annotated[Path, typer.Argument(help="A configuration file (YAML).")]
DurationOption = Annotated[
    str | None, typer.Option(help="Stop after 30s, 5m, 1h; else when the recordings end.")
]


def run(config: ConfigArgument, duration: DurationOption = None, json: JsonOption = False) -> None:
    """Run a node: analyse the configured streams, publish results, hold the budgets."""
    from streamexit.cli.app import EXIT_BAD_INPUT, complain, console, prepare, print_json
    from streamexit.cli.running import run_node, summary, summary_table
    from streamexit.config.load import load_configuration
    from streamexit.runtime import Node

    seconds = parse_duration(duration) if duration else None
    node = Node(load_configuration(config), on_problem=complain, on_preparation=prepare)
    live = not json and console.is_terminal
    asyncio.run(run_node(node, duration=seconds, live=live, announce=not json and not live))
    if json:
        print_json(summary(node))
    else:
        console.print(summary_table(node))
        if node.results_lost():
            console.print(f"results lost: {node.results_lost()}")
    if any(stream.state.state == "error" for stream in node.streams.values()):
        raise typer.Exit(EXIT_BAD_INPUT)


def check(config: ConfigArgument, json: JsonOption = False) -> None:
    """Validate a configuration and print what each stream would cost."""
    from streamexit.cli.app import console, print_json
    from streamexit.config.load import load_configuration
    from streamexit.planning import UNIT_WORDS, plan_streams

    plans = plan_streams(load_configuration(config))
    if json:
        rows = {
            plan.section.id: {
                "pipeline": plan.pipeline.name,
                "policy": plan.policy.name,
                "budget": {"value": plan.fraction * plan.costs.full, "unit": plan.costs.unit},
                "budget_fraction": plan.fraction,
                "cheapest_fraction": plan.costs.fractions[0],
                "full_cost": {"value": plan.costs.full, "unit": plan.costs.unit},
                "binding": plan.fraction < 1,
            }
            for plan in plans
        }
        print_json({"config": str(config), "streams": rows})
        return
    table = plain_table("stream", "pipeline", "policy", "budget", "per frame", "reachable")
    for plan in plans:
        costs = plan.costs
        binding = "" if plan.fraction < 1 else ", not binding"
        table.add_row(
            plan.section.id,
            plan.pipeline.name,
            plan.policy.name,
            f"{plan.fraction:.1%} of full{binding}",
            f"{min(plan.fraction, 1) * costs.full:.4f} {UNIT_WORDS[costs.unit]}",
            f"{costs.fractions[0]:.1%} .. 100%",
        )
    console.print(table)
    console.print(f"{config}: good; every budget can be reached")
