"""Every error that streamexit raises on purpose.

StreamExitError
├── InputError              what the user gave is wrong; the message names field, value and remedy
│   ├── ConfigurationError  a configuration or recipe file
│   ├── PipelineError       a pipeline folder: missing, altered or mismatched
│   ├── SourceError         a video, folder or stream that cannot be read
│   ├── DataError           a training or calibration data set
│   ├── BudgetError         a budget that cannot be understood
│   ├── PluginError         a part of another package that is missing or broken
│   └── CommandError        a command that cannot be carried out
└── OperationError          the input was right, but the world was not
    ├── BrokerError         the MQTT broker refused or is away
    ├── SpoolError          the file of unsent results cannot be used
    └── EngineError         an invariant of the engine was broken
"""

from __future__ import annotations


class StreamExitError(Exception):
    """Base of all; catch this to catch everything that is ours."""


class InputError(StreamExitError):
    """What the user gave is wrong. The command line exits with 2."""


class ConfigurationError(InputError):
    """A configuration or recipe file is wrong."""


class PipelineError(InputError):
    """A pipeline folder is missing, altered or does not fit together."""


class SourceError(InputError):
    """A source cannot be opened or read.

    Attributes:
        reason: One word of the documented list, for status messages and counters.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class DataError(InputError):
    """A training or calibration data set is missing or malformed."""


class BudgetError(InputError):
    """A budget that cannot be understood."""


class PluginError(InputError):
    """A part of another package is missing, or cannot be used."""


class CommandError(InputError):
    """A command that cannot be carried out.

    Attributes:
        code: For programs; see `Fault` in the wire messages.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class OperationError(StreamExitError):
    """The input was right, but the world was not. The command line exits with 1."""


class BrokerError(OperationError):
    """The MQTT broker refused us or is away."""


class SpoolError(OperationError):
    """The file of unsent results cannot be used.

    Attributes:
        reason: disk_full, disk_error, locked, unwritable or damaged.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class EngineError(OperationError):
    """An invariant of the engine was broken: a defect of ours, never of the input."""
