"""Running a node in the foreground: signals, the live table, the summary."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from streamexit.cli import systemd
from streamexit.cli.formats import budget_as_json, budget_in_words, plain_table, stacked

if TYPE_CHECKING:
    from streamexit.attached import BudgetView
    from streamexit.runtime import Node

REFRESH_SECONDS = 0.5
FEWEST_SHOWN = 15
"""Shadow frames; of fewer the interval says nothing to people."""


async def run_node(
    node: Node,
    *,
    duration: float | None,
    live: bool,
    announce: bool = False,
    beside: Coroutine[Any, Any, None] | None = None,
    received: dict[str, int] | None = None,
    reload: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """Run `node` until it ends or a signal comes; a second signal kills.

    Args:
        node: Not yet started.
        duration: In seconds; None runs until the recordings end.
        live: Show the table.
        announce: Say on stderr where results go, once it runs.
        beside: Runs once the node has started, and is ended with it.
        received: Results that a subscriber counted, per stream, for the table.
        reload: Called at each SIGHUP.
    """
    from streamexit.cli.app import stderr

    loop = asyncio.get_running_loop()
    reloads: list[asyncio.Task[None]] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _stop_once, loop, node, number)
    if reload:
        loop.add_signal_handler(signal.SIGHUP, lambda: reloads.append(loop.create_task(reload())))
    started: list[asyncio.Task[None]] = []

    def ready() -> None:
        systemd.notify("READY=1")
        started.append(asyncio.create_task(systemd.feed_watchdog(lambda: node.health.stuck)))
        if beside is not None:
            started.append(asyncio.create_task(beside))
        if announce:
            stderr.print(_headline(node))
        if live:
            started.append(asyncio.create_task(_show(node, received)))

    try:
        await node.run(duration=duration, ready=ready)
    finally:
        await _end(started)
        if beside is not None and not started:
            beside.close()


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel what ran beside the node; an error of its own is said."""
    from streamexit.cli.app import complain

    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            complain(str(ended))


def _stop_once(loop: asyncio.AbstractEventLoop, node: Node, number: signal.Signals) -> None:
    systemd.notify("STOPPING=1")
    loop.remove_signal_handler(number)
    node.stop()


async def _show(node: Node, received: dict[str, int] | None) -> None:
    from streamexit.cli.app import console

    with Live(console=console, auto_refresh=False, transient=True) as screen:
        while True:
            screen.update(live_table(node, received), refresh=True)
            await asyncio.sleep(REFRESH_SECONDS)


def live_table(node: Node, received: dict[str, int] | None = None) -> RenderableType:
    """What every stream is doing now."""
    columns = ["stream", "state", ">fps", "exit shares (window)", ">cost", "budget"]
    columns += ["agreement", "answer"]
    table = plain_table(*columns, *([">received"] if received is not None else []))
    budgets = node.budgets
    for name, stream in node.streams.items():
        status, costs = budgets.get(name), stream.plan.costs
        mean = status.mean if status else None
        row = [
            name,
            f"{stream.state.state} {stream.state.reason}".strip(),
            f"{stream.fps:.1f}",
            stacked(status.exit_shares) if status else "",
            f"{mean:.1%}" if mean is not None else "-",
            f"{budget_in_words(node.governor.terms(name), costs)} {status.state if status else ''}",
            agreement_in_words(node.governor.view(name)),
            stream.last_label,
        ]
        table.add_row(*row, *([str(received.get(name, 0))] if received is not None else []))
    return Group(Text(_headline(node)), table)


def drops_in_words(dropped: Mapping[str, int]) -> str:
    """As in "12 (8 too_old, 4 decode_error)"."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items()) if n)
    return f"{sum(dropped.values())} ({reasons})" if reasons else "0"


def agreement_in_words(view: BudgetView) -> str:
    """As in "98.7% +- 0.6 (60%: 99.4%)": now, and at the next larger budget."""
    now = view.agreement
    if now is None or view.shadow_frames < FEWEST_SHOWN:
        return "-"
    more = next((at for at in view.agreement_at if at.fraction > now.fraction + 0.05), None)
    words = f"{now.value:.1%} +- {50 * (now.high - now.low):.1f}"
    return words + (f" ({more.fraction:.0%}: {more.value:.1%})" if more else "")


def _headline(node: Node) -> str:
    where = f"node {node.topics.node} on {node.device}"
    where += f", results on {node.broker!r} under {node.topics.root}/" if node.broker else ""
    return where + (f", page at {node.http.url}" if node.http else "")


def summary_table(node: Node, received: dict[str, int] | None = None) -> RenderableType:
    """What every stream did."""
    columns = ["stream", "state", ">frames", ">answered", ">dropped", ">cost", ">budget"]
    columns += ["exit shares", "agreement"]
    table = plain_table(*columns, *([">received"] if received is not None else []))
    table.title, table.title_justify = "Summary", "left"
    if node.delivery and node.delivery.kept:
        table.caption = (
            f"{node.delivery.kept} results wait for the broker; the next start sends them."
        )
        table.caption_justify = "left"
    for name, report in summary(node)["streams"].items():
        last = node.streams[name].before_stop
        row = [
            name,
            " ".join(filter(None, (last.state, last.reason))),
            str(report["frames"]),
            str(report["answered"]),
            drops_in_words(report["dropped"]),
            f"{report['mean_fraction']:.1%}" if report["mean_fraction"] is not None else "-",
            budget_in_words(node.governor.terms(name), node.streams[name].plan.costs),
            stacked(report["exit_shares"]),
            agreement_in_words(node.governor.view(name)),
        ]
        table.add_row(*row, *([str(received.get(name, 0))] if received is not None else []))
    return table


def summary(node: Node) -> dict[str, Any]:
    """The same for machines."""
    streams: dict[str, Any] = {}
    for name, stream in node.streams.items():
        total = stream.exit_counts.total()
        exits = range(len(stream.plan.pipeline.costs.per_exit))
        budget, terms = node.budgets.get(name), node.governor.terms(name)
        agreement = node.governor.view(name).agreement
        streams[name] = {
            "state": stream.state.state,
            "reason": stream.state.reason,
            "frames": stream.counters.frames,
            "answered": stream.counters.answered,
            "dropped": dict(stream.counters.dropped),
            "reconnects": stream.counters.reconnects,
            "abandoned": stream.counters.abandoned,
            "mean_fraction": stream.mean_fraction,
            **budget_as_json(terms, stream.plan.costs),
            "agreement": agreement.model_dump() if agreement else None,
            "budget_state": budget.state if budget else None,
            "exit_shares": [stream.exit_counts[k] / total if total else 0.0 for k in exits],
        }
    books = node.delivery.books if node.delivery else None
    return {
        "node": node.topics.node,
        "boot_id": node.boot_id,
        "device": node.device,
        "results_confirmed": books.confirmed if books else None,
        "results_kept": node.delivery.kept if node.delivery else None,
        "results_lost": node.results_lost(),
        "streams": streams,
    }
