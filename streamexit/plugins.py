"""Parts that other packages bring along, found by their entry points."""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from streamexit.errors import PluginError

Group = Literal[
    "streamexit.networks", "streamexit.scorers", "streamexit.sources", "streamexit.sinks"
]
"""See the PyPA's entry points specification; docs/plugins.md says what each group's entries are."""


@functools.cache
def plugins(group: Group) -> dict[str, EntryPoint]:
    """What is installed, by name; nothing of it is imported yet.

    Raises:
        PluginError: Two packages bring different parts of the same name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        if found.setdefault(entry.name, entry).value != entry.value:
            both = f"{found[entry.name].value} and {entry.value}"
            raise PluginError(f"{group}: {entry.name!r} is both {both}; uninstall one of the two")
    return found


def load_plugin(group: Group, name: str) -> Any:
    """Import what an entry point names.

    Raises:
        PluginError: It is not installed, or cannot be imported.
    """
    entry = plugins(group).get(name)
    if entry is None:
        known = ", ".join(sorted(plugins(group))) or "none"
        raise PluginError(f"{group}: {name!r} is not installed; installed are: {known}")
    try:
        return entry.load()
    except Exception as error:
        raise PluginError(
            f"{group}: {name!r} ({entry.value}) cannot be imported: {type(error).__name__}: {error}"
        ) from error
