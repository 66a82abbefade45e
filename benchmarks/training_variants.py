"""Ways to train a multi-exit network, side by side: `python -m benchmarks.training_variants`.

One small multi-scale network, one short schedule, several losses; each is judged by what its exits
reach on the test pictures and by what direct search makes of them at a third and at half of the
compute. Each run is kept (`out/training-variants/`), so the command can be stopped and started
again. It writes `docs/training-variants.md`.

Two of the variants live here and not in the package, which has no use for them so far:

- gradient equilibrium (Li et al., ICCV 2019, section 3.1): what flows back into a stage is the mean
  over the exits behind it, not their sum;
- boosting (BoostNet; Yu et al., AAAI 2023): an exit's logits are added to those of the exits before
  it, which it cannot change, so that it learns what they got wrong.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamexit.calibration.collect import collect_evidence, exit_figures
from streamexit.models.architectures import build_network
from streamexit.models.cost import gflops_per_exit
from streamexit.models.network import MultiExitNetwork, StageOutput
from streamexit.scheduling.policy import fit_policy
from streamexit.scheduling.scorers import score_all_exits
from streamexit.scheduling.thresholds import exits_taken, spread_all, thresholds_within
from streamexit.tasks.kinds import build_task
from streamexit.training.datasets import load_part
from streamexit.training.labelled import LabelledImages
from streamexit.training.recipe import Recipe
from streamexit.training.trainer import Trainer

PAGE = Path("docs/training-variants.md")
FOUND = Path("out/training-variants")
BUDGETS = (1 / 3, 1 / 2)
CALIBRATION_SIZE = 3000
TRAINING_PICTURES = 12_000
RECIPE: dict[str, Any] = {
    "name": "variant",
    "task": {"kind": "classification"},
    "network": {
        "architecture": "multi_scale_resnet",
        "widths": [8, 16, 48],
        "layers": [[], [3], [2], [2]],
        "num_classes": 10,
    },
    "preprocessing": {
        "width": 32,
        "height": 32,
        "fit": "crop",
        "mean": [0.4914, 0.4822, 0.4465],
        "std": [0.2470, 0.2435, 0.2616],
    },
    "data": {"dataset": "cifar10", "root": "", "calibration_size": CALIBRATION_SIZE},
    "optimiser": {
        "epochs": 8,
        "peak_learning_rate": 0.1,
        "warmup_epochs": 1,
        "average_decay": 0.98,
    },
    "loss": {"kind": "joint", "exit_weights": "equal"},
    "distillation": {"weight": 0.5, "starts_at": 0.25},
}


class _ScaledGradient(torch.autograd.Function):
    """The tensor itself; its gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """`x`, but a gradient that flows back through it is multiplied by `factor`."""
    return _ScaledGradient.apply(x, factor)  # type: ignore[no-any-return]


def balanced(network: MultiExitNetwork) -> MultiExitNetwork:
    """Gradient equilibrium: stage k's gradient is the mean of those of the exits from k on.

    The paper's losses have the weight 1 each, ours 1 / K, which the heads' factor K makes up for.
    """
    exits = network.num_exits
    for k, stage in enumerate(network.stages):
        behind = exits - k

        def scale_head(_: nn.Module, inputs: tuple[Tensor], behind: int = behind) -> Any:
            return (scaled_gradient(inputs[0], exits / behind),)

        def scale_features(
            _: nn.Module, inputs: Any, output: StageOutput, behind: int = behind
        ) -> StageOutput:
            passed = tuple(scaled_gradient(z, (behind - 1) / behind) for z in output.features)
            return output._replace(features=passed)

        head = stage.head
        assert isinstance(head, nn.Module)
        head.register_forward_pre_hook(scale_head)
        stage.register_forward_hook(scale_features)
    return network


class Boosted(MultiExitNetwork):
    """Each exit adds its logits to the sum of those before it, which it takes as given."""

    def forward(self, images: Tensor) -> list[StageOutput]:
        """As in `MultiExitNetwork`."""
        outputs = super().forward(images)
        total = torch.zeros_like(outputs[0].logits)
        summed = []
        for output in outputs:
            total = total.detach() + output.logits
            summed.append(output._replace(logits=total))
        return summed


def boosted(network: MultiExitNetwork) -> MultiExitNetwork:
    """BoostNet's sum of logits, with gradient equilibrium as there."""
    return balanced(Boosted(network.stages, network.preprocessing))


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        title: In the table.
        change: Of the recipe.
        wrap: Of the network.
    """

    title: str
    change: dict[str, Any]
    wrap: Callable[[MultiExitNetwork], MultiExitNetwork] = lambda network: network


NO_DISTILLATION = {"distillation": {"weight": 0.0}}
VARIANTS = {
    "equal": Variant("equal weights, distillation", {}),
    "rising": Variant(
        "rising weights, distillation", {"loss": {"kind": "joint", "exit_weights": "rising"}}
    ),
    "plain": Variant("equal weights, no distillation", NO_DISTILLATION),
    "balanced": Variant("equal weights, distillation, gradient equilibrium", {}, balanced),
    "boosted": Variant("boosting, no distillation", NO_DISTILLATION, boosted),
}


def run(name: str, seed: int, root: Path) -> dict[str, Any]:
    """Train one variant and judge it."""
    variant = VARIANTS[name]
    recipe = Recipe.model_validate({**RECIPE, **variant.change, "seed": seed})
    torch.manual_seed(seed)
    network = variant.wrap(build_network(recipe.network, recipe.preprocessing.build()))
    parts: dict[str, LabelledImages] = {
        "train": load_part("cifar10", root, "train", calibration_size=CALIBRATION_SIZE).subset(
            slice(TRAINING_PICTURES)
        ),
        "calibration": load_part("cifar10", root, "calibration", calibration_size=CALIBRATION_SIZE),
        "test": load_part("cifar10", root, "test", calibration_size=CALIBRATION_SIZE),
    }
    task = build_task(recipe.task, parts["test"].classes, recipe.preprocessing.build())
    Trainer(
        network,
        task,
        parts["train"],
        recipe,
        device=torch.device("cpu"),
        checkpoint=FOUND / f"{name}-{seed}.pt",
        on_epoch=lambda e: print(f"{name} {seed}: {e.epoch}/{e.epochs} {e.seconds:.0f} s"),
    ).run()
    costs = gflops_per_exit(network)
    fractions = tuple(cost / costs[-1] for cost in costs)
    fitted, judged = (
        collect_evidence(network, task, parts[part]) for part in ("calibration", "test")
    )
    policy = fit_policy("direct", fitted, fractions)
    scores = spread_all(score_all_exits(policy.scorer, judged).double().numpy())
    quality = judged.quality.double().numpy()
    at_budget = {}
    for budget in BUDGETS:
        taken = exits_taken(scores, thresholds_within(policy.table, scores, budget))
        at_budget[f"{budget:.3f}"] = float(quality[np.arange(len(taken)), taken].mean())
    return {
        "fractions": fractions,
        "exits": [f["accuracy"] for f in exit_figures(network, task, parts["test"])],
        "budgets": at_budget,
    }


def page(found: dict[str, list[dict[str, Any]]]) -> str:
    """docs/training-variants.md."""
    runs = next(iter(found.values()))
    costs = " / ".join(f"{100 * f:.0f}" for f in runs[0]["fractions"])
    lines = [
        "# Ways to train a multi-exit network",
        "",
        "Written by `python -m benchmarks.training_variants`; no figure is typed by hand.",
        "",
        f"A small multi-scale network (widths {RECIPE['network']['widths']}, exits at {costs}% of "
        f"the cost), {RECIPE['optimiser']['epochs']} epochs on "
        f"{TRAINING_PICTURES:,} pictures of CIFAR-10, {len(runs)} seed{'s' if len(runs) > 1 else ''}. Top-1 in per cent on the 10,000 test pictures, mean over "
        "seeds (in brackets: largest minus smallest). Little data and a short schedule: differences below "
        "a point say nothing, and a long training might order the rows otherwise.",
        "",
        "| variant | "
        + " | ".join(f"exit {k + 1}" for k in range(len(runs[0]["exits"])))
        + " | direct search at a third | at half |",
        "|---" * (len(runs[0]["exits"]) + 3) + "|",
    ]
    for name, seeds in found.items():
        columns = [[run["exits"][k] for run in seeds] for k in range(len(seeds[0]["exits"]))]
        columns += [[run["budgets"][f"{budget:.3f}"] for run in seeds] for budget in BUDGETS]
        cells = [f"{100 * np.mean(c):.2f} ({100 * (max(c) - min(c)):.2f})" for c in columns]
        lines.append(f"| {VARIANTS[name].title} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Run what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    FOUND.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(arguments.seeds):
        for name in VARIANTS:
            result = FOUND / f"{name}-{seed}.json"
            if not result.is_file():
                result.write_text(json.dumps(run(name, seed, arguments.data)), encoding="utf-8")
            found.setdefault(name, []).append(json.loads(result.read_text(encoding="utf-8")))
    PAGE.write_text(page(found), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
