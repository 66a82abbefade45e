"""Names of network architectures, and how each is built."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, cast

from streamexit.documents import did_you_mean
from streamexit.errors import PipelineError
from streamexit.models.network import MultiExitNetwork
from streamexit.plugins import load_plugin, plugins
from streamexit.preprocessing import Preprocessing

ARCHITECTURES = {
    "cifar_resnet": "streamexit.models.cifar_resnet:build",
    "densenet": "streamexit.models.densenet:build",
    "hrnet": "streamexit.models.hrnet:build",
    "msdnet": "streamexit.models.msdnet:build",
    "multi_scale_resnet": "streamexit.models.multi_scale_resnet:build",
    "scene_segmenter": "streamexit.models.scene_segmenter:build",
    "torchvision_classification": "streamexit.models.torchvision_classification:build",
    "torchvision_segmentation": "streamexit.models.torchvision_segmentation:build",
}
"""Name -> "module:factory", imported when asked for."""


def build_network(spec: dict[str, Any], preprocessing: Preprocessing) -> MultiExitNetwork:
    """Build a network with fresh weights from a pipeline's `network` mapping.

    Args:
        spec: `architecture` is a name from `ARCHITECTURES` or of an installed plugin, or one's own
            "module:factory"; the other keys are the factory's keyword arguments. `torchvision: resnet50` is short for
            architecture torchvision_classification and that name.
        preprocessing: Passed to the factory.

    Raises:
        PipelineError: Unknown architecture, or arguments that do not fit it.
    """
    options = dict(spec)
    if "torchvision" in options and "architecture" not in options:
        options["architecture"] = "torchvision_classification"
        options["name"] = options.pop("torchvision")
    name = str(options.pop("architecture", ""))
    factory = _find_factory(name)
    try:
        network = factory(**options, preprocessing=preprocessing)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PipelineError(f"network: {error} (architecture {name})") from error
    if not isinstance(network, MultiExitNetwork):
        raise PipelineError(f"network.architecture: {name} did not return a MultiExitNetwork")
    return network


def _find_factory(name: str) -> Callable[..., Any]:
    installed = plugins("streamexit.networks")
    if name in installed and name not in ARCHITECTURES:
        factory = load_plugin("streamexit.networks", name)
    else:
        factory = _import(name, [*ARCHITECTURES, *installed])
    if not callable(factory):
        raise PipelineError(f"network.architecture: {name} is not callable")
    return cast("Callable[..., Any]", factory)


def _import(name: str, known: Sequence[str]) -> object:
    module_name, colon, attribute = ARCHITECTURES.get(name, name).partition(":")
    if not colon:
        raise PipelineError(
            f"network.architecture: {name!r} is unknown; {did_you_mean(name, known)}"
            " (or name your own as module:factory)"
        )
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise PipelineError(
            f"network.architecture: {name}: {error}; is its folder on Python's path (PYTHONPATH)?"
        ) from error
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise PipelineError(f"network.architecture: {name}: {error}") from error
