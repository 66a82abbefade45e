"""The commands: what may be asked of a node, over MQTT and HTTP alike."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streamexit.errors import BudgetError
from streamexit.exits import Budget
from streamexit.wire.messages import Id

Rate = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]


class Command(BaseModel):
    """Base of all: unknown fields are errors, because somebody expects them to have an effect."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    transaction: Annotated[str, Field(max_length=200)] | None = None
    """Of the sender's choosing; the response carries it, too."""


class Info(Command):
    """What this node is: the `info` message, and the broker's state."""


class ListStreams(Command):
    """All streams with source, pipeline, status and budget."""


class AddStream(Command):
    """Attach a stream; the same one again is no change."""

    stream: dict[str, Any]
    """As under `streams` in a configuration file. Paths are relative to that file; ${NAME} is not replaced."""
    persist: bool = False
    """Whether it is there after a restart."""


class OfStream(Command):
    """Base of those that name a stream."""

    stream: Id


class RemoveStream(OfStream):
    """Detach a stream; its retained topics are cleared."""

    persist: bool = False


class EnableStream(OfStream):
    """Open the source of a stream again."""

    persist: bool = False


class DisableStream(OfStream):
    """Let go of the source of a stream; for live sources."""

    persist: bool = False


class SetBudget(OfStream):
    """Give a stream another budget."""

    budget: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    """One of the units, as in {"fraction": 0.4}; a bare number is a fraction."""
    persist: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        amount = value.get("budget", {}) if isinstance(value, dict) else {}
        if isinstance(amount, int | float) and not isinstance(amount, bool):
            return {**value, "budget": {"fraction": amount}}
        if not isinstance(amount, dict):
            raise ValueError('budget: write a number, which is a fraction, or {"fraction": 0.4}')
        return value

    @model_validator(mode="after")
    def _one_unit(self) -> SetBudget:
        if len(self.budget) != 1 or not set(self.budget) <= set(Budget.UNITS):
            raise ValueError(f"budget: give one of {', '.join(Budget.UNITS)}")
        try:
            self.build()
        except BudgetError as error:
            raise ValueError(str(error)) from error
        return self

    def build(self) -> Budget:
        """The checked value."""
        ((unit, amount),) = self.budget.items()
        return Budget(amount, unit)


class SetFrameRate(OfStream):
    """Frames per second that are analysed at most; null for all."""

    frame_rate: Rate | None
    persist: bool = False


class Reload(Command):
    """Read the configuration file again, as SIGHUP does."""


class Snapshot(OfStream):
    """The latest frame with its answer drawn in, as a JPEG."""

    width: Annotated[int, Field(ge=16, le=4096)] | None = None
    """Pixels; as the source sends it, up to 1280, when left out."""


VERBS: dict[str, type[Command]] = {
    "info": Info,
    "list_streams": ListStreams,
    "add_stream": AddStream,
    "remove_stream": RemoveStream,
    "enable_stream": EnableStream,
    "disable_stream": DisableStream,
    "set_budget": SetBudget,
    "set_frame_rate": SetFrameRate,
    "reload": Reload,
    "snapshot": Snapshot,
}
