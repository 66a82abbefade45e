"""The one place where credentials are taken out of URLs before anybody sees them.

Others decide how long the texts are: everything here takes time in proportion to their length.
"""

from __future__ import annotations

import re

HIDDEN = "***"

_WORD = re.compile(r"\S+")
_OPENING = re.compile(r"['\"(]")
_SECRET = re.compile(
    "user|usr|login|pass|pwd|auth|token|key|secret|sig|jwt|session|cred", re.IGNORECASE
)


def redact(text: str) -> str:
    """`text` with user and password of any URL, also among its query values, replaced by ***."""
    return _WORD.sub(lambda word: _without_secrets(_without_credentials(word[0])), text)


def redact_address(text: str) -> str:
    """The same for a text that is a URL and nothing else: white space in a password does not end it."""
    joined = "".join(text.split())
    return redact(joined) if redact(joined) != joined else text


def _without_credentials(word: str) -> str:
    """To the last @: a password may hold / and @ itself."""
    end = word.rfind("@")
    slash = word.find(":/", 0, end) if end >= 0 else -1
    if slash < 0:
        return _without_scheme(word)
    if word.startswith("://", slash) and slash + 3 <= end:
        begin = slash + 3
    elif word.find(":", slash + 2, end) >= 0:  # a slash was forgotten
        begin = slash + 2
    else:
        return _without_scheme(word)
    return f"{_without_scheme(word[:slash])}{word[slash:begin]}{HIDDEN}{word[end:]}"


def _without_scheme(word: str) -> str:
    """Where the scheme was forgotten, too, no slash can be told from that of a path."""
    return "/".join(map(_without_user, word.split("/"))) if "@" in word else word


def _without_user(part: str) -> str:
    end = part.rfind("@")
    colon = part.find(":", 0, max(0, end))
    if colon < 0:
        return part
    begin = max((opening.end() for opening in _OPENING.finditer(part, 0, colon)), default=0)
    return f"{part[:begin]}{HIDDEN}{part[end:]}"


def _without_secrets(word: str) -> str:
    """Values of a query whose names say that they are secret."""
    first, *others = word.split("&")
    begun = [_without_value(first, in_query=False)]
    return "&".join(begun + [_without_value(other, in_query=True) for other in others])


def _without_value(part: str, *, in_query: bool) -> str:
    """Of a part of a query; before its first &, a name begins behind a question mark."""
    pieces = part.split("=")
    for n, piece in enumerate(pieces[:-1]):
        _, mark, name = piece.partition("?")
        name = piece if in_query and n == 0 else name if mark else ""
        if _SECRET.search(name):
            return "=".join([*pieces[: n + 1], HIDDEN])
    return part
