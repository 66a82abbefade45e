"""Video streams through early-exit networks, each held at its own compute budget.

What stands in `__all__` is the public face: it changes by semantic versioning, all else without notice.
Everything is imported when it is first used, so that `import streamexit` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamexit.budget.controller import BudgetController as BudgetController
    from streamexit.budget.terms import Terms as Terms
    from streamexit.errors import InputError as InputError
    from streamexit.errors import OperationError as OperationError
    from streamexit.errors import SourceError as SourceError
    from streamexit.errors import StreamExitError as StreamExitError
    from streamexit.exits import Budget as Budget
    from streamexit.exits import CostTable as CostTable
    from streamexit.exits import ExitRecord as ExitRecord
    from streamexit.models.network import MultiExitNetwork as MultiExitNetwork
    from streamexit.models.network import Stage as Stage
    from streamexit.models.network import StageOutput as StageOutput
    from streamexit.models.pipeline import Pipeline as Pipeline
    from streamexit.models.pipeline import load_pipeline as load_pipeline
    from streamexit.models.pipeline import save_pipeline as save_pipeline
    from streamexit.playback import Replayed as Replayed
    from streamexit.playback import replay as replay
    from streamexit.preprocessing import InputConverter as InputConverter
    from streamexit.preprocessing import Preprocessing as Preprocessing
    from streamexit.scheduling.evidence import Calibration as Calibration
    from streamexit.scheduling.evidence import Evidence as Evidence
    from streamexit.scheduling.policy import ExitPolicy as ExitPolicy
    from streamexit.scheduling.policy import fit_policy as fit_policy
    from streamexit.scheduling.policy import load_policy as load_policy
    from streamexit.scheduling.policy import save_policy as save_policy
    from streamexit.scheduling.scorers import Scorer as Scorer
    from streamexit.scheduling.thresholds import ThresholdTable as ThresholdTable
    from streamexit.sinks.additional import Sink as Sink
    from streamexit.sources.opening import open_source as open_source
    from streamexit.sources.source import Picture as Picture
    from streamexit.sources.source import Source as Source
    from streamexit.sources.source import Watch as Watch
    from streamexit.wire.messages import Result as Result

_HOMES = {
    "Budget": "exits",
    "BudgetController": "budget.controller",
    "Calibration": "scheduling.evidence",
    "CostTable": "exits",
    "Evidence": "scheduling.evidence",
    "ExitPolicy": "scheduling.policy",
    "ExitRecord": "exits",
    "InputConverter": "preprocessing",
    "InputError": "errors",
    "MultiExitNetwork": "models.network",
    "OperationError": "errors",
    "Picture": "sources.source",
    "Pipeline": "models.pipeline",
    "Preprocessing": "preprocessing",
    "Replayed": "playback",
    "Result": "wire.messages",
    "Scorer": "scheduling.scorers",
    "Sink": "sinks.additional",
    "Source": "sources.source",
    "SourceError": "errors",
    "Stage": "models.network",
    "StageOutput": "models.network",
    "StreamExitError": "errors",
    "Terms": "budget.terms",
    "ThresholdTable": "scheduling.thresholds",
    "Watch": "sources.source",
    "fit_policy": "scheduling.policy",
    "load_pipeline": "models.pipeline",
    "load_policy": "scheduling.policy",
    "open_source": "sources.opening",
    "replay": "playback",
    "save_pipeline": "models.pipeline",
    "save_policy": "scheduling.policy",
}
"""Name -> the module that it is imported from."""

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("streamexit")
    if name not in _HOMES:
        raise AttributeError(f"module 'streamexit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"streamexit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
