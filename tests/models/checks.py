"""What must hold for every network, whatever it is made of."""

from __future__ import annotations

import torch

from streamexit.models.network import Features, MultiExitNetwork, StageOutput


def pictures(network: MultiExitNetwork, count: int = 2) -> torch.Tensor:
    """Noise of the network's own size, uint8 [N, H, W, 3]."""
    size = (count, network.preprocessing.height, network.preprocessing.width, 3)
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)


def run_both_ways(network: MultiExitNetwork) -> list[StageOutput]:
    """All exits' outputs, after a check that stage by stage gives the same and uses all it is handed."""
    network.eval()
    images = pictures(network)
    features: Features = (images,)
    with torch.inference_mode():
        outputs: list[StageOutput] = network(images)
        for k, expected in enumerate(outputs):
            output = network.run_stage(k, features)
            assert torch.equal(output.logits, expected.logits)
            features = output.features
    assert features == ()
    return outputs


def check_every_weight_learns(network: MultiExitNetwork) -> None:
    """Each weight gets a finite gradient other than zero: nothing is computed that no exit looks at."""
    network.train()
    outputs = network(pictures(network, 4))
    generator = torch.Generator().manual_seed(8)
    losses = [(o.logits * torch.randn(o.logits.shape, generator=generator)).sum() for o in outputs]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
