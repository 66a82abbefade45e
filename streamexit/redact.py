"""The one place where credentials are taken out of URLs before anybody sees them."""

from __future__ import annotations

import re

_CREDENTIALS = re.compile(r"(?<=://)\S*@")  # to the last @: a password may hold / and @ itself


def redact(text: str) -> str:
    """`text` with user and password of any URL replaced by ***."""
    return _CREDENTIALS.sub("***@", text)
