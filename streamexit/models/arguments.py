"""Checks of what a recipe says of a network; each refusal names the field, the value, what is right."""

from __future__ import annotations

from streamexit.errors import PipelineError


def require_whole(least: int, **fields: object) -> None:
    """Refuse fields that are no whole numbers from `least` on."""
    for field, value in fields.items():
        if not _is_whole(value, least):
            raise PipelineError(
                f"network.{field}: {value!r} must be a whole number, {least} or more"
            )


def require_wholes(least: int, shortest: int, **fields: object) -> None:
    """Refuse fields that are no lists of at least `shortest` whole numbers from `least` on."""
    for field, value in fields.items():
        if not isinstance(value, list) or len(value) < shortest:
            raise PipelineError(f"network.{field}: {value!r} must be a list of {shortest} or more")
        if not all(_is_whole(item, least) for item in value):
            raise PipelineError(
                f"network.{field}: {value} must be whole numbers, each {least} or more"
            )


def require_share(**fields: object) -> None:
    """Refuse fields that do not lie in (0, 1]."""
    for field, value in fields.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
            raise PipelineError(
                f"network.{field}: {value!r} must lie between 0 (not 0 itself) and 1"
            )


def require_flags(**fields: object) -> None:
    """Refuse fields that are neither true nor false."""
    for field, value in fields.items():
        if not isinstance(value, bool):
            raise PipelineError(f"network.{field}: {value!r} must be true or false")


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
