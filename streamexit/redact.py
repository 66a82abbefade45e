"""The one place where credentials are taken out of texts before anybody sees them.

Others decide how long the texts are: everything here takes time in proportion to their length.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable

HIDDEN = "***"

SHORTEST_SECRET = 4
"""Characters; what is shorter would be found inside of words, too."""

MOST_SECRETS = 1000
"""Known at a time: every text is searched for each. The oldest are forgotten."""

_WORD = re.compile(r"\S+")
_OPENING = re.compile(r"['\"(]")
_SECRET = re.compile("pass|pw|auth|token|key|secret|sig|jwt|session|cred", re.IGNORECASE)
_USER = re.compile("user|usr|login", re.IGNORECASE)

_known: tuple[str, ...] = ()  # replaced as a whole, so that readers need no lock
_adding = threading.Lock()


def hide(secrets: Iterable[str]) -> None:
    """From now on `redact` takes these out wherever they stand; short ones are not remembered."""
    global _known
    new = [secret for secret in secrets if len(secret) >= SHORTEST_SECRET]
    with _adding:
        old = [secret for secret in _known if secret not in new]
        _known = tuple(dict.fromkeys([*old, *new]))[-MOST_SECRETS:]


def says_secret(name: str) -> bool:
    """Whether what is called so is nobody's business."""
    return _SECRET.search(name) is not None


def redact(text: str) -> str:
    """`text` with *** for what is known to be secret, and for user and password of any URL, also in its query."""
    for secret in sorted(_known, key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, HIDDEN)
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
    """Values whose names, in a query or a URL's path, say that they are secret."""
    first, *others = word.split("&")
    begun = [_without_value(first, in_query=False)]
    return "&".join(begun + [_without_value(other, in_query=True) for other in others])


def _without_value(part: str, *, in_query: bool) -> str:
    """Of a part of a query; before its first &, names begin in a URL's path or behind a question mark."""
    pieces = part.split("=")
    for n, piece in enumerate(pieces[:-1]):
        in_query = in_query or "?" in piece or "://" in piece
        name = piece[max(map(piece.rfind, "/?;")) + 1 :]
        if in_query and (says_secret(name) or _USER.search(name)):
            return "=".join([*pieces[: n + 1], HIDDEN])
    return part
