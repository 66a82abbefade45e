"""From a command as it came to its response: checked, carried out one at a time, and answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from pydantic import ValidationError

from streamexit.errors import CommandError, InputError, OperationError
from streamexit.redact import redact
from streamexit.wire.commands import VERBS, Command
from streamexit.wire.messages import Fault, Response

log = logging.getLogger(__name__)

LARGEST = 64 * 1024
"""Bytes of a command."""

MOST_WAITING = 50
"""Commands that wait for their turn; what comes beyond is told to try later."""

HARMLESS = ("info", "list_streams", "snapshot")
"""They change nothing, and do not wait for those that do."""


class Operations(Protocol):
    """What a node can be asked to do. A method per verb of `VERBS`, with the checked command."""

    async def carry_out(self, verb: str, command: Command, *, cause: str) -> Any:
        """Do it; what is returned is the response's data, as JSON.

        Raises:
            CommandError: With a code for programs.
            InputError: What was asked for is wrong.
            OperationError: It cannot be done now.
        """
        ...


class Dispatcher:
    """See the module.

    Args:
        node: Its id.
        operations: Carry the commands out.
    """

    def __init__(self, node: str, operations: Operations) -> None:
        self._node = node
        self._operations = operations
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def answer(
        self,
        verb: str,
        payload: bytes | Mapping[str, Any],
        *,
        cause: str,
        allowed: Collection[str] | None = None,
    ) -> Response:
        """Carry a command out; whatever is wrong with it is in the response.

        Args:
            verb: Of `VERBS`.
            payload: JSON, or what it says.
            cause: Who asked, for the log: "MQTT", "HTTP".
            allowed: Verbs that this one may use; None allows all.
        """
        transaction: str | None = None
        try:
            content = _content(payload)
            transaction = _transaction(content)
            command = _checked(verb, content, allowed)
            data = await self._in_turn(verb, command, cause)
        except CommandError as error:
            return self._fault(verb, error.code, str(error), transaction)
        except InputError as error:
            return self._fault(verb, "invalid", str(error), transaction)
        except OperationError as error:
            return self._fault(verb, "unavailable", str(error), transaction)
        except Exception as error:  # a defect of ours must not end the node
            log.exception("command %s failed", verb)
            what = f"{type(error).__name__}: this is a defect of the node; its log has more"
            return self._fault(verb, "internal", what, transaction)
        return Response(node=self._node, verb=verb, status="ok", data=data, transaction=transaction)

    def refuse(self, verb: str, error: CommandError, payload: bytes = b"") -> Response:
        """The response to a command that is none, or is not looked at any closer."""
        with contextlib.suppress(CommandError):
            return self._fault(verb, error.code, str(error), _transaction(_content(payload)))
        return self._fault(verb, error.code, str(error), None)

    async def _in_turn(self, verb: str, command: Command, cause: str) -> Any:
        if verb in HARMLESS:
            return await self._operations.carry_out(verb, command, cause=cause)
        if self._waiting >= MOST_WAITING:
            raise CommandError("busy", f"{self._waiting} commands wait already; try again later")
        self._waiting += 1
        try:
            async with self._turn:
                return await self._operations.carry_out(verb, command, cause=cause)
        finally:
            self._waiting -= 1

    def _fault(self, verb: str, code: Any, message: str, transaction: str | None) -> Response:
        fault = Fault(code=code, message=_plain(redact(message)))
        return Response(
            node=self._node,
            verb=_plain(verb[:80]),
            status="error",
            error=fault,
            transaction=transaction,
        )


def _checked(verb: str, content: Mapping[str, Any], allowed: Collection[str] | None) -> Command:
    if verb not in VERBS:
        known = ", ".join(VERBS)
        raise CommandError("unknown_verb", f"{verb[:80]!r} is no command; known are {known}")
    if allowed is not None and verb not in allowed:
        raise CommandError(
            "not_allowed", f"{verb} is not among the commands that are taken here (mqtt.commands)"
        )
    try:
        return VERBS[verb].model_validate(content)
    except ValidationError as error:
        raise CommandError("bad_request", _in_words(error)) from error


def _content(payload: bytes | Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(payload, bytes):
        return payload
    if len(payload) > LARGEST:
        raise CommandError(
            "bad_request",
            f"{len(payload)} bytes are more than the {LARGEST} that a command may have",
        )
    try:
        content = json.loads(payload) if payload.strip() else {}
    except (ValueError, RecursionError) as error:
        raise CommandError("bad_request", "the payload is not JSON") from error
    if not isinstance(content, dict):
        raise CommandError(
            "bad_request", 'the payload must be a JSON object, as in {"stream": "gate"}'
        )
    return content


def _transaction(content: Mapping[str, Any]) -> str | None:
    """Also of a command that is otherwise wrong, so that its sender knows which."""
    value = content.get("transaction")
    return _plain(value) if isinstance(value, str) and len(value) <= 200 else None


def _plain(text: str) -> str:
    """Without the halves of characters that JSON may hold and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode()


def _in_words(error: ValidationError) -> str:
    """Each problem with its field, and without its value, which may be a secret."""
    problems = []
    for one in error.errors(include_url=False, include_input=False):
        field = ".".join(str(part) for part in one["loc"])
        message = one["msg"].removeprefix("Value error, ")
        problems.append(f"{field}: {message}" if field else message)
    return "; ".join(problems)[:1000]
