"""YAML files read into pydantic models, with errors that say where, what and what would be right."""

from __future__ import annotations

import difflib
import os
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import yaml
from pydantic import BaseModel, ValidationError

from streamexit import remedies
from streamexit.errors import InputError
from streamexit.redact import SHORTEST_SECRET, hide, redact, redact_address, says_secret

Model = TypeVar("Model", bound=BaseModel)
KeyPath = tuple[str | int, ...]

SECRET_KEYS = frozenset({"password", "token", "key_password"})
"""What ${VARIABLES} stand for there is hidden everywhere."""

_MARK = "\N{REPLACEMENT CHARACTER}"

_TEXT = "tag:yaml.org,2002:str"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Document(Generic[Model]):
    """A checked file.

    Attributes:
        path: Where it was read from.
        value: Its content.
        lines: Line (from 1) of every key.
        written: Text of the values that ${VARIABLES} were put into, as it stands in the file.
        elsewhere: Key paths of values that are not in the file -> what messages call them.
        variables: What ${VARIABLES} stood for -> the variable.
    """

    path: Path
    value: Model
    lines: dict[KeyPath, int] = field(repr=False)
    written: dict[KeyPath, str] = field(default_factory=dict, repr=False)
    elsewhere: dict[KeyPath, str] = field(default_factory=dict, repr=False)
    variables: dict[str, str] = field(default_factory=dict, repr=False)

    def as_written(self, message: str) -> str:
        """A message with ${VARIABLES} in place of what they stand for, which may be secret."""
        return _as_written(message, self.variables)

    def where(self, *key_path: str | int) -> str:
        """As in "file.yaml, line 3, streams[0].budget", for messages about a value that parsed."""
        for n in range(len(key_path), 0, -1):
            if key_path[:n] in self.elsewhere:
                rest = dotted(key_path[n:])
                return f"{self.elsewhere[key_path[:n]]}{'.' if rest else ''}{rest}"
        return _where(self.path, self.lines, key_path)


def load_document(path: Path, model: type[Model], *, error: type[InputError]) -> Document[Model]:
    """Read, substitute ${VARIABLES} from the environment or the file's `secrets`, and validate.

    In the credentials of a URL (`scheme://user:${VARIABLE}@host`) the value is percent-encoded (RFC 3986,
    section 3.2.1), so that any password may be used as it is. What is secret is hidden from now on, see
    `redact`.

    Args:
        path: A YAML file.
        model: What it should be.
        error: Class of what is raised.

    Raises:
        InputError: As `error`; the message names file, line, key path, value and remedy.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else "it is not UTF-8 text"
        raise error(f"{path}: cannot be read: {reason}") from cause
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as cause:
        line = cause.problem_mark.line + 1 if cause.problem_mark else 1
        said = remedies.of_syntax(cause.problem or "")
        raise error(f"{path}, line {line}: not valid YAML: {said}") from cause
    except yaml.YAMLError as cause:
        raise error(f"{path}: not valid YAML: {cause}") from cause
    reader = _Reader(path, error, _secrets(path, node, error))
    data = reader.read(node, ()) if node is not None else {}
    try:
        value = model.model_validate(data)
    except ValidationError as cause:
        problems = [_explain(path, reader.lines, model, e) for e in cause.errors()]
        message = "\n".join(dict.fromkeys(problems))
        raise error(_as_written(message, reader.variables)) from cause
    finally:
        hide(reader.secrets)  # only now, so that the message says their names
    return Document(path, value, reader.lines, reader.written, variables=reader.variables)


class _Reader:
    """Turns YAML nodes into plain values and notes the line of each key."""

    def __init__(
        self, path: Path, error: type[InputError], secrets: Callable[[str], str | None]
    ) -> None:
        self._path = path
        self._secrets = secrets
        self.written: dict[KeyPath, str] = {}
        self.variables: dict[str, str] = {}
        self.secrets: list[str] = []
        self._error = error
        self.lines: dict[KeyPath, int] = {}
        self._open: list[yaml.Node] = []

    def read(self, node: yaml.Node, at: KeyPath) -> Any:
        self.lines.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            value = self._scalar(node)
            return self._text(value, node, at) if isinstance(value, str) else value
        if node in self._open:
            raise self._fault(node, f"{dotted(at)} contains itself")
        self._open.append(node)
        content = (
            self._read_mapping(node, at)
            if isinstance(node, yaml.MappingNode)
            else [self.read(item, (*at, i)) for i, item in enumerate(node.value)]
        )
        self._open.pop()
        return content

    def _text(self, written: str, node: yaml.Node, at: KeyPath) -> str:
        text = self._substitute(written, at)
        if "\0" in text:
            raise self._fault(node, f"{dotted(at)} holds a NUL character; leave it out")
        return text

    def _read_mapping(self, node: yaml.MappingNode, at: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TEXT:
                raise self._fault(key_node, f"a key {_under(at)} must be plain text")
            key = key_node.value
            here = (*at, key)
            if key in result:
                first = self.lines[here]
                what = f"{dotted(here)} stands twice (first on line {first}); keep one"
                raise self._fault(key_node, f"{what} (each item of a list begins with '- ')")
            self.lines[here] = key_node.start_mark.line + 1
            result[key] = self.read(value_node, here)
        return result

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError, TypeError) as cause:
            raise self._fault(
                node, f"{node.value!r} cannot be read as YAML's {node.tag}"
            ) from cause

    def _fault(self, node: yaml.Node, what: str) -> InputError:
        return self._error(f"{self._path}, line {node.start_mark.line + 1}: {what}")

    def _substitute(self, text: str, at: KeyPath) -> str:
        def value_of(match: re.Match[str]) -> str:
            name = match.group(1)
            kept = self._secrets(name)
            value = os.environ.get(name, kept)
            if value is None:
                raise self._error(
                    f"{_where(self._path, self.lines, at)}: the environment variable {name} "
                    f"is not set; export {name}=..., or put it into the file named by `secrets`"
                )
            self.written[at] = text
            begin, end = text.find("://"), text.rfind("@")
            in_credentials = 0 <= begin < match.start() < end
            quoted = quote(value, safe="")
            self.variables |= {value: match[0], quoted: match[0]}
            if value == kept or _is_secret(match, at):
                self.secrets += (value, quoted)
            return quoted if in_credentials else value

        return _VARIABLE.sub(value_of, text)


def _is_secret(variable: re.Match[str], at: KeyPath) -> bool:
    """By its name, by the key, or because it stands where URLs have what is secret.

    A user's name is not: hidden everywhere, "root" or "gate" would leave holes in other texts.
    """
    text = variable.string
    if text[: variable.start()].endswith("://") and text[variable.end() :].startswith(":"):
        return says_secret(variable[1])
    shown = redact_address(f"{text[: variable.start()]}{_MARK}{text[variable.end() :]}")
    return says_secret(variable[1]) or not SECRET_KEYS.isdisjoint(at[-1:]) or _MARK not in shown


def _secrets(
    path: Path, node: yaml.Node | None, error: type[InputError]
) -> Callable[[str], str | None]:
    """Where to look up names that the environment does not have."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    named = [
        value.value
        for key, value in pairs
        if key.value == "secrets" and value.tag == _TEXT and value.value
    ]
    if not named:
        return lambda name: None
    where = path.parent / named[0]
    try:
        if where.is_dir():
            files = {file.name: file for file in where.iterdir() if file.is_file()}
            return lambda name: _content(files[name], error) if name in files else None
        return _assignments(where.read_text(encoding="utf-8"), where, error).get
    except (OSError, ValueError) as cause:  # of UTF-8, or of a path
        reason = cause.strerror if isinstance(cause, OSError) else "it is not UTF-8 text"
        raise error(f"{path}: secrets: {str(where)!r} cannot be read: {reason}") from cause


def _content(file: Path, error: type[InputError]) -> str:
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{file}: cannot be read as UTF-8 text") from cause


def _assignments(text: str, where: Path, error: type[InputError]) -> dict[str, str]:
    """NAME=value, one per line; everything behind the = belongs to the value."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not _NAME.fullmatch(name.strip()):
            raise error(f"{where}, line {number}: is not NAME=value")
        found[name.strip()] = value
    return found


def dotted(key_path: KeyPath) -> str:
    """("streams", 0, "id") as "streams[0].id"."""
    text = ""
    for part in key_path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """A remedy for a word that is not among `known`."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"


def _where(path: Path, lines: dict[KeyPath, int], at: KeyPath) -> str:
    line = next((lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in lines), 1)
    return f"{path}, line {line}, {dotted(at)}" if at else f"{path}, line {line}"


def _as_written(message: str, variables: dict[str, str]) -> str:
    for value in sorted(variables, key=len, reverse=True):
        if len(value) >= SHORTEST_SECRET:
            message = message.replace(value, variables[value])
    return message


def _explain(path: Path, lines: dict[KeyPath, int], model: type[BaseModel], error: Any) -> str:
    at: KeyPath = tuple(error["loc"])
    kind, value = error["type"], error["input"]
    if kind not in ("extra_forbidden", "missing"):  # pydantic adds the alternatives of a union
        at = next(at[:n] for n in range(len(at), -1, -1) if at[:n] in lines or not n)
    if kind == "extra_forbidden":
        fields = _fields_at(model, at[:-1])
        remedy = remedies.of_key(str(at[-1])) or did_you_mean(str(at[-1]), fields)
        return f"{_where(path, lines, at)}: unknown key; {remedy}"
    if kind == "missing":
        return f"{_where(path, lines, at[:-1])}: {at[-1]!r} is missing"
    message = remedies.of_value(kind, value, error.get("ctx", {})) or error["msg"]
    message = message.removeprefix("Value error, ")
    secret = "SecretStr" in str(_annotation_at(model, at))
    plain = isinstance(value, (str, int, float))
    written = str(value).lower() if isinstance(value, bool) else redact_address(repr(value))
    shown = f"{written}: " if plain and not secret else ""
    return f"{_where(path, lines, at)}: {shown}{redact(message)}"


def _fields_at(model: type[BaseModel], at: KeyPath) -> list[str]:
    """The keys that are known at a place inside `model`."""
    here = _model_in(_annotation_at(model, at))
    return list(here.model_fields) if here else []


def _annotation_at(annotation: Any, at: KeyPath) -> Any:
    """The type that is declared for a place."""
    for part in at:
        model = _model_in(annotation)
        if typing.get_origin(annotation) in (list, dict):
            annotation = typing.get_args(annotation)[-1]
        elif model is not None and str(part) in model.model_fields:
            annotation = model.model_fields[str(part)].annotation
        else:
            return None
    return annotation


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Model itself, or the one inside Model | None."""
    options = (annotation, *typing.get_args(annotation))
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _under(at: KeyPath) -> str:
    return f"under {dotted(at)}" if at else "at the top"
