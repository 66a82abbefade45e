"""The one place where credentials are taken out of URLs before anybody sees them."""

from __future__ import annotations

import re

_CREDENTIALS = re.compile(
    r"(://)\S*@"  # to the last @: a password may hold / and @ itself
    r"|(:/)\S*:\S*@"  # a slash was forgotten
    r"|(?<![^\s'\"(/])[^\s'\"(/]*:[^\s/]*@"  # or the scheme
)

_QUERY = re.compile(
    r"(?i)([?&][^=&\s]*(?:user|usr|login|pass|pwd|auth|token|key|secret|sig|jwt|session|cred)"
    r"[^=&\s]*=)[^&\s]*"
)


def redact(text: str) -> str:
    """`text` with user and password of any URL, also among its query values, replaced by ***."""
    shown = _CREDENTIALS.sub(lambda match: f"{match[1] or match[2] or ''}***@", text)
    return _QUERY.sub(r"\1***", shown)


def redact_address(text: str) -> str:
    """The same for a text that is a URL and nothing else: white space in a password does not end it."""
    joined = "".join(text.split())
    return redact(joined) if redact(joined) != joined else text
