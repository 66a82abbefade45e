"""Post-training quantisation of a pipeline's stages to 8-bit integers, and what it costs.

K: exits.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from streamexit.backends.opening import BackendOptions, open_backend
from streamexit.backends.openvino_int8 import convert_bare_stages
from streamexit.calibration.parts import load_part_of
from streamexit.errors import ConfigurationError
from streamexit.models.pipeline import Pipeline, load_pipeline, register_quantised
from streamexit.scheduling.policy import load_policy
from streamexit.tasks.readout import Task
from streamexit.training.labelled import LabelledImages

FOLDER = "int8"


def quantise_pipeline(folder: Path, *, data: Path | None, pictures: int) -> dict[str, Any]:
    """Quantise the network of a pipeline folder, enter the files, and judge them on the test part.

    Args:
        folder: With calibration data named in its `pipeline.yaml`.
        data: Where the data lies, instead of where `pipeline.yaml` says.
        pictures: How many of the calibration part are looked at.

    Returns:
        Files, and per exit the test figure of float32 and of int8.

    Raises:
        PipelineError: A pipeline that names no calibration data.
        ConfigurationError: NNCF is not installed.
    """
    pipeline = load_pipeline(folder)
    calibration = load_part_of(pipeline, "calibration", data)
    test = load_part_of(pipeline, "test", data)
    few = np.unique(np.linspace(0, len(calibration.labels) - 1, pictures).astype(int))
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{FOLDER}-") as place:
        written = _write(pipeline, [calibration.images[i] for i in few], Path(place))
        stages = tuple(file for file in written if file.suffix == ".xml")
        report = {
            "pictures": len(few),
            "test_figures_float32": figures_per_exit(pipeline, test, precision="float32"),
            "test_figures_int8": figures_per_exit(
                replace(pipeline, quantised=stages), test, precision="int8"
            ),
        }
        (folder / FOLDER).mkdir(exist_ok=True)
        files = [file.replace(folder / FOLDER / file.name) for file in written]
    register_quantised(folder, files, report)
    return {"pipeline": pipeline.name, "files": [str(file) for file in files], **report}


def figures_per_exit(pipeline: Pipeline, test: LabelledImages, *, precision: str) -> list[float]:
    """The task's figure of each exit, if all frames left there, as OpenVINO computes it."""
    task = pipeline.build_task()
    scorer = load_policy(pipeline.policy_file(None), pipeline.costs.fractions).scorer
    backend = open_backend(pipeline, scorer, BackendOptions("openvino", "cpu", precision, batch=8))
    tallies = [task.tally() for _ in range(backend.num_stages)]
    for begin in range(0, len(test.labels), 8):
        states: Sequence[Any] = list(test.images[begin : begin + 8])
        for k, tally in enumerate(tallies):
            result = backend.submit(k, states).result()
            _count(tally, task, result.answer, test.labels[begin : begin + 8])
            states = result.states
    return [round(float(next(iter(tally.figures().values()))), 5) for tally in tallies]


def _count(tally: Any, task: Task, answer: Any, labels: NDArray[Any]) -> None:
    for i, label in enumerate(labels):
        tally.add(task.prediction(answer, i), task.as_target(label))


def _write(pipeline: Pipeline, pictures: Sequence[NDArray[np.uint8]], folder: Path) -> list[Path]:
    """Each stage quantised on what the quantised stages before it give, into `folder`."""
    nncf = _load_nncf()
    inputs: list[tuple[NDArray[Any], ...]] = [(picture[None],) for picture in pictures]
    files = []
    for k, bare in enumerate(convert_bare_stages(pipeline.network.cpu().eval())):
        with contextlib.redirect_stdout(sys.stderr):  # where progress belongs
            quantised = nncf.quantize(
                bare,
                nncf.Dataset(inputs),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(inputs),
            )
        file = folder / f"stage{k}.xml"
        ov.save_model(quantised, file, compress_to_fp16=False)
        files += [file, file.with_suffix(".bin")]
        inputs = list(_features(quantised, inputs))
    return files


def _features(
    stage: ov.Model, inputs: Sequence[tuple[NDArray[Any], ...]]
) -> Iterator[tuple[NDArray[Any], ...]]:
    compiled = ov.Core().compile_model(stage, "CPU")
    places = [
        i
        for i, output in enumerate(compiled.outputs)
        if any(name.startswith("feature") for name in output.get_names())
    ]
    for given in inputs:
        outputs = compiled(list(given))
        yield tuple(outputs[i].copy() for i in places)


def _load_nncf() -> Any:
    try:
        import nncf
    except ImportError as error:
        raise ConfigurationError("quantising needs NNCF; pip install 'streamexit[int8]'") from error
    return nncf
