"""The one place where credentials are taken out of URLs before anybody sees them."""

from __future__ import annotations

import re

_CREDENTIALS = re.compile(r"(?<=://)\S*@")  # to the last @: a password may hold / and @ itself


_QUERY = re.compile(
    r"(?i)([?&][^=&\s]*(?:user|usr|login|pass|pwd|auth|token|key|secret|sig|jwt|session|cred)"
    r"[^=&\s]*=)[^&\s]*"
)


def redact(text: str) -> str:
    """`text` with user and password of any URL, also among its query values, replaced by ***."""
    return _QUERY.sub(r"\1***", _CREDENTIALS.sub("***@", text))
