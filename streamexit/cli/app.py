"""The Typer application and what all commands share: errors, logging, exit codes."""

from __future__ import annotations

import errno
import functools
import json
import logging
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console

from streamexit.errors import InputError, StreamExitError
from streamexit.redact import redact

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

P = ParamSpec("P")

app = typer.Typer(
    name="streamexit",
    help="Video streams through early-exit networks, each held at its own compute budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(width=None if sys.stdout.isatty() else 120)  # a log is not cut at 80 columns
stderr = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 400)

_debug = False


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"streamexit {version('streamexit')}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option(help="Show tracebacks and debug messages.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    global _debug
    _debug = debug
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    if not debug:
        for chatty in ("asyncio", "aiomqtt", "mqtt", "amqtt", "transitions"):
            logging.getLogger(chatty).setLevel(logging.CRITICAL)


def reporting_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn exceptions into one message on stderr and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except StreamExitError as error:
            if _debug:
                typer.echo(redact(traceback.format_exc()), err=True)
            complain(str(error))
            code = EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_FAILURE
            raise typer.Exit(code) from error
        except OSError as error:  # of what is written to
            if _debug or error.errno == errno.EPIPE:  # whoever read our output has enough of it
                raise
            complain(f"{error.filename or 'the output'}: {(error.strerror or str(error)).lower()}")
            raise typer.Exit(EXIT_FAILURE) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from interrupt

    return wrapped


def complain(message: str) -> None:
    """One error message on stderr."""
    typer.echo(f"error: {redact(message)}", err=True)


def prepare(message: str) -> None:
    """What is going on before anything can be seen, on stderr."""
    typer.echo(f"preparing: {message}", err=True)


def print_json(document: dict[str, Any]) -> None:
    """The one JSON document that --json promises on stdout."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))
