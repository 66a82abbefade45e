"""Pipelines that come with the package."""

from __future__ import annotations

from pathlib import Path

from streamexit.models.pipeline import FILE, WEIGHTS


def shipped_pipelines() -> dict[str, Path]:
    """Name -> folder. In the wheel they lie in the package, in a checkout beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "pipelines"
    room = inside if inside.is_dir() else package.parent / "pipelines"
    found = (file.parent for file in sorted(room.glob(f"*/{FILE}")))
    return {folder.name: folder for folder in found if (folder / WEIGHTS).is_file()}


def find_pipeline(named: str | Path, base: Path = Path()) -> Path:
    """The folder that a user means: a path, or the bare name of one that ships.

    Args:
        named: As written.
        base: Relative paths start here.
    """
    folder = base / named
    return folder if folder.is_dir() else shipped_pipelines().get(str(named), folder)
