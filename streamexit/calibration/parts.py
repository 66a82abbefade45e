"""The parts of the data set that a pipeline was made from."""

from __future__ import annotations

from pathlib import Path

from streamexit.errors import ConfigurationError, DataError, PipelineError
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
        DataError: The data is not there, or is not what the network was trained on.
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
    if spec.trained_on and pictures.trained_on not in (None, spec.trained_on):
        raise DataError(
            f"{root or spec.root}: holds other training pictures of {spec.dataset} than {pipeline.name} was "
            f"trained on, so that those of the {part} part may be among them. Files were added, removed "
            "or renamed, or the set lies there in another format, with another order; restore it, or "
            f"delete {pipeline.folder / '.training'} and train anew"
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
