"""All commands, entered into the application."""

from __future__ import annotations

from streamexit.cli.app import app, reporting_errors
from streamexit.cli.demo import demo
from streamexit.cli.doctor import doctor
from streamexit.cli.making import fit, quantise, train
from streamexit.cli.node import check, run
from streamexit.cli.profiling import profile
from streamexit.cli.replaying import replay
from streamexit.cli.tracing import compare, import_logits, record
from streamexit.cli.watching import watch

__all__ = ["app"]

for command in (
    demo,
    run,
    check,
    doctor,
    replay,
    watch,
    train,
    fit,
    record,
    import_logits,
    compare,
    profile,
    quantise,
):
    app.command()(reporting_errors(command))
