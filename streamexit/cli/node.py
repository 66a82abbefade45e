"""`streamexit run` and `streamexit check`: a node from a configuration file."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamexit.cli.formats import budget_in_words, parse_duration, plain_table
from streamexit.cli.making import JsonOption

if TYPE_CHECKING:
    from streamexit.budget.terms import Terms

ConfigArgument = Annotated[Path, typer.Argument(help="A configuration file (YAML).")]
DurationOption = Annotated[
    str | None, typer.Option(help="Stop after 30s, 5m, 1h; else when the recordings end.")
]


def run(config: ConfigArgument, duration: DurationOption = None, json: JsonOption = False) -> None:
    """Run a node: analyse the configured streams, publish results, hold the budgets.

    At SIGHUP the budgets and windows in the file are read again and take effect.
    """
    from streamexit.cli.app import EXIT_BAD_INPUT, complain, console, prepare, print_json
    from streamexit.cli.running import run_node, summary, summary_table
    from streamexit.cli.speaker import Speaker
    from streamexit.config.load import load_configuration
    from streamexit.errors import StreamExitError
    from streamexit.runtime import Node

    seconds = parse_duration(duration) if duration else None
    speaker = Speaker(complain)
    logger = logging.getLogger("streamexit")
    logger.addHandler(speaker)
    node = Node(load_configuration(config), on_problem=speaker, on_preparation=prepare)
    live = not json and console.is_terminal

    def reload() -> None:
        try:
            node.take_over(load_configuration(config).value)
        except StreamExitError as error:
            speaker(str(error))

    if not live:  # a table would be torn
        logging.getLogger("streamexit.governor").setLevel(logging.INFO)
    announce = not json and not live
    # a terminal that was closed means the end, as always
    at_hangup = None if sys.stdin.isatty() else reload
    try:
        asyncio.run(
            run_node(node, duration=seconds, live=live, announce=announce, reload=at_hangup)
        )
    finally:
        logger.removeHandler(speaker)
        speaker.close()
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
    from streamexit.planning.streams import UNIT_WORDS, plan_streams

    plans = plan_streams(load_configuration(config))
    if json:
        rows = {
            plan.section.id: {
                "pipeline": plan.pipeline.name,
                "policy": plan.policy.name,
                "budget": {
                    "value": plan.terms.amount * plan.costs.full,
                    "unit": plan.costs.unit,
                    "per": plan.terms.per,
                },
                "budget_fraction": plan.terms.amount if plan.terms.per == "frame" else None,
                "cheapest_fraction": plan.costs.fractions[0],
                "full_cost": {"value": plan.costs.full, "unit": plan.costs.unit},
                "binding": plan.terms.per == "second" or plan.terms.amount < 1,
            }
            for plan in plans
        }
        print_json({"config": str(config), "streams": rows})
        return
    table = plain_table("stream", "pipeline", "policy", "budget", "per frame", "reachable")
    for plan in plans:
        costs = plan.costs
        terms, unit = plan.terms, UNIT_WORDS[costs.unit]
        timed = terms.per == "second"
        table.add_row(
            plan.section.id,
            plan.pipeline.name,
            plan.policy.name,
            budget_in_words(terms, costs) + _remark(terms),
            "depends on its rate" if timed else f"{min(terms.amount, 1) * costs.full:.4f} {unit}",
            f"{costs.fractions[0]:.1%} .. 100%",
        )
    console.print(table)
    console.print(f"{config}: good; every budget can be reached")


def _remark(terms: Terms) -> str:
    if terms.per == "second":
        return ""
    strict = ", strict" if terms.strict else ""
    return " of full" + strict + ("" if terms.amount < 1 else ", not binding")
