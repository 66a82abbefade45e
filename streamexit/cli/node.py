"""`streamexit run` and `streamexit check`: a node from a configuration file."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamexit.cli.formats import budget_as_json, budget_in_words, duration_option, plain_table
from streamexit.cli.logs import LogFormat, formatter
from streamexit.cli.options import JsonOption
from streamexit.cli.speaker import Speaker
from streamexit.cli.systemd import notify, reloading

if TYPE_CHECKING:
    from streamexit.budget.terms import Terms
    from streamexit.runtime import Node

log = logging.getLogger(__name__)

ConfigArgument = Annotated[Path, typer.Argument(help="A configuration file (YAML).")]
DurationOption = Annotated[
    str | None, typer.Option(help="Stop after 30s, 5m, 1h; else when the recordings end.")
]


def run(
    config: ConfigArgument,
    duration: DurationOption = None,
    json: JsonOption = False,
    log_format: Annotated[
        LogFormat, typer.Option(help="Of what is said on stderr: for people, or JSON lines.")
    ] = "console",
) -> None:
    """Run a node: analyse the configured streams, publish results, hold the budgets.

    At SIGHUP the file is read again, and what changed in its streams takes effect; at a terminal it means
    that this was closed. That, SIGTERM and Ctrl-C end a node in order. Exit codes: 0 ended well, 1 failed, 2 bad input or a stream in error.
    """
    from streamexit.cli.app import EXIT_BAD_INPUT, console, print_json
    from streamexit.cli.running import summary, summary_table

    seconds = duration_option(duration) if duration else None
    live = not json and log_format == "console" and console.is_terminal
    quiet = live or (json and log_format == "console")
    with logging_to_stderr(log_format, quiet=quiet):
        plain = log_format == "console"
        node = _run(
            config, seconds, live=live, announce=plain and not json and not live, plain=plain
        )
    if json:
        print_json(summary(node))
    else:
        console.print(summary_table(node))
        if node.results_lost():
            console.print(f"results lost: {node.results_lost()}")
    if any(stream.state.state == "error" for stream in node.streams.values()):
        raise typer.Exit(EXIT_BAD_INPUT)


def _run(config: Path, seconds: float | None, *, live: bool, announce: bool, plain: bool) -> Node:
    """A node, from its start to its end."""
    from streamexit.cli.app import prepare
    from streamexit.cli.running import run_node
    from streamexit.config.load import load_configuration
    from streamexit.runtime import Node

    node = Node(
        load_configuration(config),
        on_problem=log.error,
        on_preparation=prepare if plain else partial(log.info, "preparing: %s"),
    )
    # a terminal that was closed means the end, as always
    at_hangup = partial(_stop if sys.stdin.isatty() else _reload, node)
    asyncio.run(run_node(node, duration=seconds, live=live, announce=announce, reload=at_hangup))
    return node


@contextmanager
def logging_to_stderr(log_format: LogFormat, *, quiet: bool) -> Iterator[None]:
    """All that is logged goes to stderr, from a thread; `quiet` leaves out what is no problem."""
    speaker = Speaker(lambda sentence: typer.echo(sentence, err=True))
    speaker.setFormatter(formatter(log_format))
    root, ours = logging.getLogger(), logging.getLogger("streamexit")
    before, level = root.handlers, ours.level
    root.handlers = [speaker]
    if not root.isEnabledFor(logging.DEBUG):
        ours.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        root.handlers = before
        ours.setLevel(level)
        speaker.close()


async def _stop(node: Node) -> None:
    node.stop()


async def _reload(node: Node) -> None:
    reloading()
    response = await node.reload(cause="SIGHUP")
    notify("READY=1")
    if response.error:
        log.error("%s", response.error.message)
        return
    if restart := response.data["needs_restart"]:
        log.warning(
            "the configuration changed in %s, too; that takes a restart", ", ".join(restart)
        )
    for problem in response.data["problems"]:
        log.error("%s", problem)


def check(config: ConfigArgument, json: JsonOption = False) -> None:
    """Validate a configuration and print what each stream would cost."""
    from streamexit.cli.app import console, print_json
    from streamexit.config.load import load_configuration
    from streamexit.planning.streams import UNIT_WORDS, plan_streams

    document = load_configuration(config)
    plans = plan_streams(document)
    overlaid = sorted(document.elsewhere.values())
    if json:
        rows = {
            plan.section.id: {
                "pipeline": plan.pipeline.name,
                "policy": plan.policy.name,
                **budget_as_json(plan.terms, plan.costs),
                "cheapest_fraction": plan.costs.fractions[0],
                "full_cost": {"value": plan.costs.full, "unit": plan.costs.unit},
                "binding": plan.terms.per == "second" or plan.terms.amount < 1,
            }
            for plan in plans
        }
        print_json({"config": str(config), "streams": rows, "from_overlay": overlaid})
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
    for place in overlaid:
        console.print(f"not from this file, but by an earlier command: {place}")
    console.print(f"{config}: good; every budget can be reached")


def _remark(terms: Terms) -> str:
    if terms.per == "second":
        return ""
    strict = ", strict" if terms.strict else ""
    return " of full" + strict + ("" if terms.amount < 1 else ", not binding")
