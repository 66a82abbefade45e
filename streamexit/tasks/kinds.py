"""The tasks by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamexit.errors import PipelineError
from streamexit.preprocessing import Preprocessing
from streamexit.tasks.classification import ClassificationTask
from streamexit.tasks.readout import Task
from streamexit.tasks.segmentation import SegmentationTask

TASKS: dict[str, tuple[type[ClassificationTask] | type[SegmentationTask], frozenset[str]]] = {
    ClassificationTask.kind: (ClassificationTask, frozenset({"top_k"})),
    SegmentationTask.kind: (SegmentationTask, frozenset({"confidence_floor"})),
}
"""Kind -> class and the options that it knows."""


def build_task(spec: dict[str, Any], labels: Sequence[str], preprocessing: Preprocessing) -> Task:
    """Build a task from a pipeline's `task` mapping.

    Raises:
        PipelineError: Unknown kind or option.
    """
    options = dict(spec)
    kind = options.pop("kind", None)
    if kind not in TASKS:
        raise PipelineError(f"task.kind: {kind!r} is unknown; known are {', '.join(TASKS)}")
    build, known = TASKS[kind]
    for name in sorted(set(options) - known):
        raise PipelineError(f"task.{name}: unknown option; known is {', '.join(sorted(known))}")
    return build.from_options(options, labels, preprocessing)
