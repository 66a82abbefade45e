"""The parts of the data set that a pipeline was made from."""

from __future__ import annotations

from pathlib import Path

from streamexit.errors import ConfigurationError, PipelineError
from streamexit.models.pipeline import Pipeline
from streamexit.preprocessing import Preprocessing
from streamexit.training.datasets import Part, load_part
from streamexit.training.labelled import LabelledImages


def load_part_of(pipeline: Pipeline, part: Part, root: Path | None) -> LabelledImages:
    """Pictures of a part, at the network's input size.

    Args:
        pipeline: Names its data set.
        part: Which.
        root: Folder with the data, instead of the one that the pipeline names.

    Raises:
        PipelineError: The pipeline names no data set.
        DataError: The data is not there.
        ConfigurationError: It is of another size.
    """
    spec = pipeline.calibration
    if spec is None:
        raise PipelineError(
            f"{pipeline.folder}: pipeline.yaml names no data set, so there is no {part!r} part; name "
            "recordings or images:FOLDER where those will do, or give it `calibration: {dataset: ..., root: ...}`"
        )
    pictures = load_part(
        spec.dataset,
        root or Path(spec.root),
        part,
        calibration_size=spec.calibration_size,
        preprocessing=pipeline.network.preprocessing,
    )
    check_size(str(pipeline.folder), pipeline.network.preprocessing, pictures)
    return pictures


def check_size(where: str, preprocessing: Preprocessing, pictures: LabelledImages) -> None:
    """Pictures of another size would make the network learn on other pixels than it then sees.

    Raises:
        ConfigurationError: They are; `where` says what names the size.
    """
    height, width = pictures.images.shape[1:3]
    if (height, width) != (preprocessing.height, preprocessing.width):
        raise ConfigurationError(
            f"{where}: {preprocessing.width}x{preprocessing.height} is declared, but the data "
            f"set's pictures are {width}x{height}"
        )
