"""Traces of text: `python -m benchmarks.text.make_traces sst2 --out out/traces`.

Trains a small transformer with four exits (or takes the checkpoint in `--work`, or goes on with it)
and writes `sst2-calibration.npz` and `sst2-test.npz`, what every exit says of every text, for
`streamexit compare`. `data.py` says what the two are made of.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.text.data import (
    DATASETS,
    Encode,
    Encoded,
    TextData,
    encoded,
    encoder,
    learn_vocabulary,
)
from benchmarks.text.network import ExitTransformer, MultiExitText, gflops_per_exit
from benchmarks.text.train import Recipe, train
from streamexit.calibration.trace import TraceHeader, TraceWriter
from streamexit.errors import StreamExitError
from streamexit.exits import CostTable
from streamexit.scheduling.evidence import Calibration
from streamexit.tasks.classification import ClassificationTask


@dataclass(frozen=True)
class Setup:
    """What is run on a data set: the vocabulary's size, the recipe, options of the network."""

    vocabulary: int
    recipe: Recipe
    network: dict[str, Any]


SETUPS = {
    "sst2": Setup(8000, Recipe(epochs=5, batch_size=128), {}),
    "agnews": Setup(12000, Recipe(epochs=5), {"layers": 4}),
}


def read_exits(
    network: MultiExitText, task: ClassificationTask, tokens: Tensor, mask: Tensor, labels: Tensor
) -> Calibration:
    """Every exit's evidence on one batch, as `calibration.collect` puts it together for pictures.

    Args:
        network: In eval mode.
        task: Reads the logits.
        tokens: int64 [N, T].
        mask: bool [N, T], False where padding is.
        labels: int64 [N].
    """
    device = next(network.parameters()).device
    carry: Tensor | None = None
    distributions, confidences = [], []
    with torch.inference_mode():
        for logits in network(tokens.to(device), mask.to(device)):
            readout = task.read(logits, carry)
            carry = readout.carry
            distributions.append(readout.distribution)
            confidences.append(readout.confidence)
    distribution = torch.stack(distributions, 1).cpu().clone()
    right = (distribution.argmax(2) == labels[:, None]).float()
    return Calibration(distribution, torch.stack(confidences, 1).cpu().clone(), right)


def write_trace(
    path: Path, header: TraceHeader, network: MultiExitText, part: Encoded, *, batch_size: int = 128
) -> list[float]:
    """Run all exits on a part, in full precision and in order; returns every exit's accuracy."""
    task = ClassificationTask(labels=header.labels)
    right = torch.zeros(network.num_exits)
    with TraceWriter(path, header) as writer:
        for start in range(0, len(part), batch_size):
            rows = range(start, min(start + batch_size, len(part)))
            tokens, mask, labels = part.batch(rows)
            evidence = read_exits(network, task, tokens, mask, labels)
            right += evidence.quality.sum(0)
            writer.append(
                evidence,
                label=labels.numpy(),
                stream=np.zeros(len(rows), np.int32),
                time=np.asarray(rows, np.float64),
            )
    return [float(share) for share in right / len(part)]


def make_traces(
    network: MultiExitText,
    data: TextData,
    encode: Encode,
    recipe: Recipe,
    *,
    pipeline: str,
    work: Path,
    out: Path,
    say: Callable[[str], None] = print,
) -> None:
    """Train and write both traces.

    Args:
        network: Untrained, or what fine-tuning begins with, on the device to use.
        data: The data set.
        encode: Its texts to tokens.
        recipe: How to train.
        pipeline: What the network is called in the traces.
        work: Folder of checkpoints.
        out: Folder of traces.
        say: Told what is going on.

    Raises:
        DataError: The checkpoint is of something else.
    """
    train(network, encoded(data.train, encode), recipe, work / f"{pipeline}.pt", say=say)
    costs = CostTable("gflops", gflops_per_exit(network, data.max_length))
    parts = {"calibration": data.calibration, "test": data.test}
    for name, part in parts.items():
        header = TraceHeader(
            pipeline=pipeline,
            data=f"{data.name}, {name}, {len(part.texts)} texts",
            kind="images",
            label_source="truth",
            labels=data.classes,
            streams=(data.name,),
            costs=costs,
            provenance={
                "made_by": "benchmarks.text",
                "date": f"{datetime.now(UTC):%Y-%m-%d}",
                "torch": torch.__version__,
                "recipe": asdict(recipe),
                "train_texts": len(data.train.texts),
                "tokens": data.max_length,
            },
        )
        path = out / f"{data.name}-{name}.npz"
        accuracies = write_trace(path, header, network, encoded(part, encode))
        say(f"{path}: {len(part.texts)} texts")
        for k, accuracy in enumerate(accuracies):
            say(
                f"  exit {k + 1}: top-1 {accuracy:.2%}, {costs.per_exit[k]:.4f} GFLOPs, "
                f"{costs.fractions[k]:.1%} of full"
            )


def small_transformer(data: TextData, setup: Setup) -> tuple[ExitTransformer, Encode]:
    """The untrained network and its encoder."""
    encode, size = encoder(learn_vocabulary(data.train, setup.vocabulary), data.max_length)
    torch.manual_seed(setup.recipe.seed)
    network = ExitTransformer(
        vocabulary=size,
        max_length=data.max_length,
        classes=len(data.classes),
        **setup.network,
    )
    return network, encode


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options that all networks share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=sorted(DATASETS))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, default=Path("out/text"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=Path("out/traces"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train and write the traces."""
    arguments = parser_of(__doc__).parse_args(argv)
    setup = SETUPS[arguments.dataset]
    try:
        data = DATASETS[arguments.dataset](arguments.data)
        print(
            f"{data.name}: {len(data.train.texts)} texts to train on, "
            f"{len(data.calibration.texts)} calibration, {len(data.test.texts)} test",
            flush=True,
        )
        network, encode = small_transformer(data, setup)
        make_traces(
            network.to(arguments.device),
            data,
            encode,
            setup.recipe,
            pipeline=f"{data.name}-transformer",
            work=arguments.work,
            out=arguments.out,
            say=lambda line: print(line, flush=True),
        )
    except StreamExitError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
