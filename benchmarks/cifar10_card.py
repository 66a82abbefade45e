"""The figures of a CIFAR-10 pipeline's card: `python -m benchmarks.cifar10_card PIPELINE`.

Writes the 10,000 test pictures as `class/number.png` into a zip (lossless), replays them through
`streamexit replay images:...` at several budgets and with every policy, and writes the pipeline's
README.md from what came out. Nothing in the card is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import cv2

from streamexit.models.pipeline import load_pipeline
from streamexit.training.datasets import load_part

FRACTIONS = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


def write_test_pictures(data: Path, archive: Path) -> None:
    """The test set as an ImageFolder zip; file names keep the canonical order."""
    test = load_part("cifar10", data, "test", calibration_size=1)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as z:
        for i, (image, label) in enumerate(zip(test.images, test.labels, strict=True)):
            ok, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            assert ok
            z.writestr(f"{test.classes[label]}/{i:05}.png", encoded.tobytes())


def replay(archive: Path, pipeline: Path, fraction: float, policy: str) -> dict[str, Any]:
    """One run of the command that users have."""
    command = [sys.executable, "-m", "streamexit", "replay", f"images:{archive}"]
    command += ["--pipeline", str(pipeline), "--budget", f"fraction={fraction}"]
    command += ["--policy", policy, "--agreement", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def card(pipeline: Path, reports: dict[str, dict[float, dict[str, Any]]]) -> str:
    """The card as Markdown."""
    loaded = load_pipeline(pipeline)
    training = json.loads((pipeline / "training.json").read_text(encoding="utf-8"))
    recipe = training["recipe"]
    best = max(training["test_accuracy_per_exit"])
    interval = 1.96 * math.sqrt(best * (1 - best) / training["test_pictures"])
    lines = [
        f"# {loaded.name}",
        "",
        f"A CIFAR ResNet-{recipe['network']['depth']} with {len(loaded.costs.per_exit)} exits, "
        f"trained from scratch by `streamexit train {pipeline.as_posix()}/train.yaml` "
        f"({recipe['optimiser']['epochs']} epochs on {training['train_pictures']:,} pictures, "
        f"{recipe['precision']} autocast, on {training['device'].upper()}, "
        f"{training['date']}, torch {training['versions']['torch'].split('+')[0]}). "
        f"Policies: `streamexit fit {pipeline.as_posix()}` on "
        f"{recipe['data']['calibration_size']:,} training pictures that the network never saw.",
        "",
        f"Answers one of: {', '.join(loaded.labels)}. It knows 32x32 pictures of single objects; "
        "on camera footage its answers mean little. It is here to show the machinery.",
        "",
        "## Each exit alone",
        "",
        f"Top-1 on the {training['test_pictures']:,} test pictures; cost includes passed heads.",
        "",
        "| exit | GFLOPs per frame | share of full | top-1 |",
        "|---|---|---|---|",
    ]
    for k, accuracy in enumerate(training["test_accuracy_per_exit"]):
        cost, share = loaded.costs.per_exit[k], loaded.costs.fractions[k]
        lines.append(f"| {k + 1} | {cost:.4f} | {share:.1%} | {accuracy:.2%} |")
    lines += [
        "",
        "## Under a budget",
        "",
        "The test pictures as one stream of 10,000 frames through `streamexit replay`, the budget "
        "held by the controller (window 300). Agreement is with the full network's answers.",
        "",
        "| policy | budget | mean cost | worst window | top-1 | agreement | exit shares |",
        "|---|---|---|---|---|---|---|",
    ]
    for policy, rows in reports.items():
        for fraction, r in rows.items():
            shares = " / ".join(f"{100 * s:.0f}" for s in r["exit_shares"])
            lines.append(
                f"| {policy} | {fraction:.0%} | {r['mean_cost']['fraction']:.2%} | "
                f"{r['worst_window_error']:.2%} | {r['accuracy']:.2%} | {r['agreement']:.2%} | "
                f"{shares} |"
            )
    lines += [
        "",
        f"Made by `python -m benchmarks.cifar10_card {pipeline.as_posix()}`. The 95% interval of a "
        f"top-1 figure is about +-{100 * interval:.1f} points.",
        "",
        "## Data",
        "",
        "CIFAR-10 (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009). The "
        "data set's page states no licence and asks for that citation.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--no-card", action="store_true", help="only print")
    arguments = parser.parse_args()
    policies = sorted(load_pipeline(arguments.pipeline).policies)
    reports: dict[str, dict[float, dict[str, Any]]] = {policy: {} for policy in policies}
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "cifar10_test.zip"
        write_test_pictures(arguments.data, archive)
        for policy in policies:
            for fraction in FRACTIONS:
                report = replay(archive, arguments.pipeline, fraction, policy)
                reports[policy][fraction] = report
                print(
                    f"{policy:16} {fraction:4.0%}  cost {report['mean_cost']['fraction']:.4f}  "
                    f"worst window {report['worst_window_error']:.2%}  "
                    f"top-1 {report['accuracy']:.4f}  agreement {report['agreement']:.4f}",
                    flush=True,
                )
    if not arguments.no_card:
        (arguments.pipeline / "README.md").write_text(
            card(arguments.pipeline, reports), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
