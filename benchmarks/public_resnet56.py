"""Exits on somebody else's ResNet-56: `python -m benchmarks.public_resnet56`.

The trunk and its last exit are the CIFAR-10 ResNet-56 of akamaster/pytorch_resnet_cifar10 (BSD-2),
and not of our training. It is frozen; two light exits after blocks 9 and 18 are trained on its
features. So this shows policies on a network that was not made for early exits, and nothing about
training.

He's plain 6n+2 blocks, 0.85 million weights: the paper of EENet calls its network ResNet-56, but its
code builds bottleneck blocks, [9, 9, 9] and four times as wide.

The trunk has seen all 50,000 training pictures and knows them by heart, so they cannot calibrate a
policy. The trace is of the 10,000 test pictures, for `streamexit compare` to split in two.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamexit.calibration.collect import exit_figures
from streamexit.calibration.record import Recording, record_trace
from streamexit.models.architectures import build_network
from streamexit.models.cost import gflops_per_exit
from streamexit.models.network import MultiExitNetwork, Stage
from streamexit.models.pipeline import Pipeline, load_pipeline, save_pipeline
from streamexit.preprocessing import Preprocessing
from streamexit.sources.source import Picture
from streamexit.tasks.classification import ClassificationTask
from streamexit.training.datasets import load_part
from streamexit.training.labelled import LabelledImages

WEIGHTS = "weights/resnet56-4bfd9763.th"
PUBLISHED = 0.9339
NETWORK: dict[str, Any] = {
    "architecture": "cifar_resnet",
    "depth": 56,
    "exits": [9, 18, 27],
    "num_classes": 10,
    "shortcuts": "pad",
}
PREPROCESSING = Preprocessing(
    width=32, height=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), fit="crop"
)


def our_key(theirs: str, exits: list[int]) -> str:
    """Where a weight of theirs belongs in our network.

    Theirs: conv1, bn1, layer{1,2,3}.{0..8}.{conv1,bn1,conv2,bn2}, linear. Ours: per stage a trunk of
    numbered blocks, the stem as blocks 0 to 2 of the first.
    """
    name = theirs.removeprefix("module.")
    head, _, rest = name.partition(".")
    if head in ("conv1", "bn1"):
        return f"stages.0.trunk.{0 if head == 'conv1' else 1}.{rest}"
    if head == "linear":
        return f"stages.{len(exits) - 1}.head.2.{rest}"
    number, _, rest = rest.partition(".")
    block = 9 * (int(head.removeprefix("layer")) - 1) + int(number) + 1
    stage = next(k for k, last in enumerate(exits) if block <= last)
    place = block - 1 - (exits[stage - 1] if stage else 0) + (0 if stage else 3)
    return f"stages.{stage}.trunk.{place}.{rest.replace('bn', 'norm')}"


def load_trunk(network: MultiExitNetwork, file: Path) -> None:
    """Put the public weights into our network; only the early exits' heads keep their own."""
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    mapped = {our_key(key, NETWORK["exits"]): value for key, value in state.items()}
    missing, unexpected = network.load_state_dict(mapped, strict=False)
    wrong = [key for key in missing if ".head." not in key]
    if wrong or unexpected:
        raise RuntimeError(f"weights do not map: {wrong = }, {unexpected = }")


def features_of(network: MultiExitNetwork, images: Tensor, k: int) -> Tensor:
    """What stage k passes on, in bfloat16."""
    parts = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for batch in torch.split(images, 500):
            carried: tuple[Tensor, ...] = (batch,)
            for stage in range(k + 1):
                carried = network.run_stage(stage, carried).features
            parts.append(carried[0].to(torch.bfloat16))
    return torch.cat(parts)


def train_head(head: nn.Module, features: Tensor, labels: Tensor, *, epochs: int) -> None:
    """SGD with cosine decay on frozen features."""
    optimiser = torch.optim.SGD(head.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * -(-len(labels) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(0)
    head.train()
    for epoch in range(epochs):
        total = 0.0
        order = torch.randperm(len(labels), generator=generator)
        for rows in torch.split(order, 128):
            with torch.autocast("cpu", torch.bfloat16):
                logits = head(features[rows].clone())
            loss = functional.cross_entropy(logits.float(), labels[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1}/{epochs} loss {total / len(labels):.4f}", flush=True)
    head.eval()


def make_pipeline(folder: Path, data: Path, *, epochs: int) -> Pipeline:
    """Load the trunk, check it, train the two early heads, write a pipeline folder."""
    torch.manual_seed(0)
    network = build_network(NETWORK, PREPROCESSING).to(memory_format=torch.channels_last).eval()
    load_trunk(network, data / WEIGHTS)
    test = load_part("cifar10", data, "test", calibration_size=1)
    task = ClassificationTask(labels=test.classes)
    whole = exit_figures(network, task, test)[-1]["accuracy"]
    print(f"the trunk's own exit: {whole:.2%}; published: {PUBLISHED:.2%}", flush=True)
    if abs(whole - PUBLISHED) > 5e-5:
        raise RuntimeError("the public weights are not reproduced")
    pictures = load_part("cifar10", data, "train", calibration_size=1)
    labels = torch.from_numpy(pictures.labels)
    for k in range(2):
        stage = network.stages[k]
        assert isinstance(stage, Stage)
        features = features_of(network, torch.from_numpy(pictures.images), k)
        train_head(stage.head, features, labels, epochs=epochs)
    save_pipeline(
        folder,
        name="public-resnet56",
        task={"kind": "classification", "top_k": 3},
        network_spec=NETWORK,
        network=network,
        labels=test.classes,
        calibration=None,
    )
    print("exits:", exit_figures(network, task, test), gflops_per_exit(network), flush=True)
    return load_pipeline(folder)


def as_recording(pictures: LabelledImages, data: str) -> Recording:
    """Labelled pictures as frames."""
    rows = zip(pictures.images, pictures.labels.tolist(), strict=True)
    frames = ((0, Picture(image, float(i), label)) for i, (image, label) in enumerate(rows))
    return Recording("images", ("test",), frames, data)


def main() -> None:
    """Make the pipeline if it is not there yet, and its trace."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--folder", type=Path, default=Path("out/public-resnet56"))
    parser.add_argument("--trace", type=Path, default=Path("out/traces/public-resnet56-test.npz"))
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    if (arguments.folder / "pipeline.yaml").is_file():
        pipeline = load_pipeline(arguments.folder)
    else:
        pipeline = make_pipeline(arguments.folder, arguments.data, epochs=arguments.epochs)
    test = load_part("cifar10", arguments.data, "test", calibration_size=1)
    recording = as_recording(test, "cifar10 test")
    trace = record_trace(pipeline, recording, arguments.trace, device=torch.device("cpu"))
    print(arguments.trace, len(trace), "frames, accuracy per exit", trace.quality.mean(0))


if __name__ == "__main__":
    main()
