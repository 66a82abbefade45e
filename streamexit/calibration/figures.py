"""The pictures of a comparison. Matplotlib comes with the extra `plots`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streamexit.calibration.outcomes import Comparison
from streamexit.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_GROUPS = 20
KINDS = (".svg", ".png", ".pdf")


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Four panels: accuracy over cost, exit shares, reliability of scores, which frames leave where.

    Exit shares and the last panel are of the first method.

    Args:
        comparison: What `compare` found.
        path: .svg, .png or .pdf.

    Raises:
        InputError: Matplotlib is missing, or it does not know the file's kind.
    """
    check_drawable(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    _accuracy(panels[0, 0], comparison)
    _shares(panels[0, 1], comparison)
    _reliability(panels[1, 0], comparison)
    _leaving(panels[1, 1], comparison)
    header = comparison.trace.header
    truth = "" if header.label_source == "truth" else " (agreement with the last exit)"
    figure.suptitle(f"{header.pipeline} on {header.data}{truth}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise InputError(f"--plot: {path}: cannot be written: {error.strerror}") from error


def check_drawable(path: Path) -> None:
    """See, before the work, that `draw_comparison` can draw.

    Raises:
        InputError: Matplotlib is missing, or it does not know the file's kind.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot needs Matplotlib: pip install 'streamexit[plots]'")
    if path.suffix not in KINDS:
        raise InputError(f"--plot: {path}: name a file that ends in {', '.join(KINDS)}")


def _accuracy(panel: Axes, comparison: Comparison) -> None:
    for method in comparison.methods:
        points = [runs for runs in method.outcomes.values() if all(r.on_target for r in runs)]
        if not points:
            continue
        cost = [np.mean([run.cost for run in runs]) for runs in points]
        mean = np.array([np.mean([run.accuracy for run in runs]) for runs in points])
        low = np.array([np.mean([run.interval[0] for run in runs]) for runs in points])
        high = np.array([np.mean([run.interval[1] for run in runs]) for runs in points])
        panel.errorbar(
            cost,
            100 * mean,
            yerr=100 * np.stack([mean - low, high - mean]),
            marker=".",
            linewidth=1,
            elinewidth=0.5,
            label=method.name,
        )
    budgets = list(comparison.references)
    for name, style in (("oracle", ":"), ("random", "--")):
        values = [100 * comparison.references[budget][name] for budget in budgets]
        panel.plot(budgets, values, style, color="grey", linewidth=1, label=name)
    panel.axhline(100 * comparison.full, color="black", linewidth=0.7, label="full network")
    fractions = comparison.trace.header.costs.fractions
    panel.plot(
        fractions, [100 * a for a in comparison.exit_accuracy], "k+", label="each exit alone"
    )
    panel.set(title="accuracy over cost, 95% intervals", xlabel="mean cost, share of the full")
    panel.set_ylabel("accuracy, %")
    panel.legend(fontsize="x-small", ncols=2, loc="lower right")


def _shares(panel: Axes, comparison: Comparison) -> None:
    method = comparison.methods[0]
    budgets = list(method.outcomes)
    shares = np.array([np.mean([r.exit_shares for r in method.outcomes[b]], 0) for b in budgets])
    floor = np.zeros(len(budgets))
    for k in range(shares.shape[1]):
        panel.bar(
            [f"{100 * b:.3g}%" for b in budgets], 100 * shares[:, k], bottom=floor, label=f"{k + 1}"
        )
        floor += 100 * shares[:, k]
    panel.set(title=f"exit shares of {method.name}", xlabel="budget", ylabel="frames, %")
    panel.legend(title="exit", fontsize="x-small")


def _reliability(panel: Axes, comparison: Comparison) -> None:
    seen: set[str] = set()
    for method in comparison.methods:
        if method.scorer in seen or not method.reliability:
            continue
        seen.add(method.scorer)
        bins = method.reliability[0]
        panel.plot([b[0] for b in bins], [b[1] for b in bins], ".-", label=method.scorer)
    panel.plot([0, 1], [0, 1], color="grey", linewidth=0.7)
    panel.set(title="calibration of scores at exit 1", xlabel="score", ylabel="share that is right")
    panel.legend(fontsize="x-small")


def _leaving(panel: Axes, comparison: Comparison) -> None:
    budget, names, table = comparison.leaving
    names, table = names[:MOST_GROUPS], table[:MOST_GROUPS]
    image = panel.imshow(100 * table, aspect="auto", cmap="viridis", vmin=0, vmax=100)
    panel.set_yticks(range(len(names)), names, fontsize="small")
    panel.set_xticks(range(table.shape[1]), [str(k + 1) for k in range(table.shape[1])])
    by = "class" if comparison.trace.header.kind == "images" else "time"
    if len(comparison.leaving[1]) > MOST_GROUPS:
        by = f"{by} (the first {MOST_GROUPS} of {len(comparison.leaving[1])})"
    name = comparison.methods[0].name
    panel.set(title=f"where frames leave, by {by}: {name} at {budget:.0%}", xlabel="exit")
    panel.figure.colorbar(image, ax=panel, label="frames, %")
