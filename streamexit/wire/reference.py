"""The messages and commands as a page of tables, made from the models.

python -m streamexit.wire.reference docs/reference/wire.md
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from streamexit.wire.asyncapi import SENT, SETTINGS, STREAM_WORD, WORD
from streamexit.wire.commands import VERBS
from streamexit.wire.messages import MESSAGES, Timestamp
from streamexit.wire.topics import ID_PATTERN

Schema = dict[str, Any]

COMMON = {
    "boot_id": "Of the node's start: another one after each start.",
    "error": "Why not; null if the command was carried out.",
    "format": "The message's form and its major version.",
    "height": "Likewise.",
    "label": "The name of a class.",
    "message": "A sentence for people.",
    "node": "The node's id.",
    "persist": "Whether it holds after a restart.",
    "pipeline": "The pipeline's name.",
    "policy": "The exit policy's name.",
    "since": "When that began.",
    "stream": "The stream's id.",
}
"""Field -> its meaning in whichever message."""

MEANINGS = {
    "Cost.value": "How much.",
    "Cost.unit": "Of what: milliseconds where the stream's budget is in milliseconds.",
    "TopClass.probability": "What the network gives it.",
    "ClassificationAnswer.task": "Which form of answer this is.",
    "ClassificationAnswer.label": "The most probable class.",
    "ClassificationAnswer.index": "Its place among the pipeline's labels.",
    "ClassificationAnswer.probability": "What the network gives it.",
    "ClassificationAnswer.top": "The most probable classes, it among them.",
    "ClassShare.share": "How much of the area is of it.",
    "Region.name": "Its key under `regions`.",
    "Mask.encoding": "Which of `png` and `rle` is filled.",
    "Mask.width": "Of the map, in pixels.",
    "Mask.rle": "One entry per class that occurs.",
    "SegmentationAnswer.task": "Which form of answer this is.",
    "SegmentationAnswer.regions": "One per polygon under the stream's `regions`.",
    "SegmentationAnswer.mask": "The map itself, where the stream has a `mask` section and one is due.",
    "Result.epoch": "Counts reconnections, and clocks of the source that were set.",
    "Result.seq": "Number of the result in this stream and boot: a gap is a loss.",
    "Result.frame": "Number of the frame in its stream.",
    "Result.pts_s": "The frame's time on the stream's own line, which starts at 0 and rises.",
    "Result.captured_at": "When the frame was taken: for live streams its arrival less its lag.",
    "Result.published_at": "When the message was made; of a late one, when it was sent.",
    "Result.exit": "The exit that answered, from 1.",
    "Result.exits": "How many exits there are.",
    "Result.score": "What the exit's scorer gave the answer; compared with the threshold.",
    "Result.cost": "What the frame cost, heads of passed exits included.",
    "Result.latency_ms": "From entering the engine to the answer.",
    "Result.answer": "What is in the picture; `task` says which form it has.",
    "Result.dropped_since_last": "Frames of the stream that were dropped just before this one.",
    "MediaInfo.codec": "FFmpeg's name of it.",
    "MediaInfo.interlaced": "Whether frames are made of fields, which are not deinterlaced.",
    "Status.state": "Where the stream is in its life ([states](../sources.md#the-life-of-a-stream)).",
    "Status.fps": "Frames per second that are answered now.",
    "Status.decoder": "What decoded the latest frame.",
    "Status.reconnects": "How often the source was opened again.",
    "Status.frames": "Frames that entered: answered, dropped or under way.",
    "Status.answered": "Frames that were answered.",
    "Status.dropped": "Frames that were dropped, by reason.",
    "Status.media": "What the source sends; null until that is known.",
    "Status.last_result_at": "When the latest answer was given; null before the first.",
    "Agreement.value": "Share of the answers that are the full network's.",
    "Agreement.high": "Of the 95% interval.",
    "Budget.state": "Whether the budget is kept, and if not, why ([states](../wire.md#budget)).",
    "Budget.target_fraction": "The mean cost per frame that is aimed at.",
    "Budget.mean_fraction": "The mean cost per frame of the last window; null before the first frame.",
    "Budget.window_frames": "Frames that the mean is held over.",
    "Budget.frames_in_window": "How many of them there are yet.",
    "Budget.exit_shares": "Which share of the window's frames left at each exit.",
    "Budget.thresholds_version": "Rises with every change of the thresholds.",
    "Budget.full_cost": "What a frame costs that goes through the whole network.",
    "Budget.strict": "Whether no window may cost more.",
    "Budget.mean_per_second": "What is spent per second, where the budget is one per second.",
    "Budget.changed_at": "When that was.",
    "Fairness.worst_stream": "The stream whose answers agree least with its full network's.",
    "Fairness.worst_agreement": "How often they do.",
    "Info.version": "Of streamexit.",
    "Info.started_at": "When the node started.",
    "Info.device": "What the networks run on.",
    "Info.pipelines": "Names of its pipelines.",
    "Info.streams": "Ids of its streams.",
    "Info.schemas": "Forms of the messages that it sends.",
    "Stats.at": "When this was counted.",
    "Stats.uptime_s": "Seconds since the node's start.",
    "Stats.frames": "Frames that entered, of all streams.",
    "Stats.answered": "Frames that were answered.",
    "Stats.dropped": "Frames that were dropped, by reason.",
    "Stats.rows_waiting": "Frames that wait for a stage of a network.",
    "Stats.outbox_length": "Results that wait to be taken out of the engine.",
    "Stats.results_lost": "Results that will not arrive, by [reason](../wire.md#results).",
    "Stats.outbox": "Results on their way; null without a broker.",
    "Stats.networks": "One entry per pipeline and policy.",
    "OutboxLoad.spool_bytes": "What topics and payloads take in it.",
    "Fault.code": "For programs.",
    "Response.verb": "The command that is answered.",
    "Response.status": "Whether it was carried out.",
    "SetFrameRate.frame_rate": "Frames per second; null: all.",
}
"""Model.field -> its meaning, where the model says nothing under the field itself."""

WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}
"""Type of JSON Schema -> the same for people."""

KNOWN = {ID_PATTERN: "id", TypeAdapter(Timestamp).json_schema()["pattern"]: "time"}
"""Pattern of a text -> what such a text is called."""

LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "{} character or more",
    "maxLength": "at most {} characters",
    "minItems": "{} or more entries",
    "maxItems": "at most {} entries",
    "minProperties": "{} or more entries",
    "pattern": "matches `{}`",
}
"""Keyword of JSON Schema -> the same for people."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def in_words(schema: Schema, named: Callable[[str], str]) -> str:
    """The type that a JSON Schema describes, for people.

    Args:
        schema: Of a field.
        named: What to write for a definition that the schema refers to.
    """
    if "$ref" in schema:
        return named(schema["$ref"].rpartition("/")[2])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(in_words(one, named) for one in schema[several])
    if "const" in schema or "enum" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{one if isinstance(one, str) else json.dumps(one)}`" for one in allowed)
    if schema.get("type") == "array":
        return _list_in_words(schema, named)
    return _plain_in_words(schema, named)


def _list_in_words(schema: Schema, named: Callable[[str], str]) -> str:
    if "prefixItems" in schema:
        inside = ", ".join(in_words(one, named) for one in schema["prefixItems"])
        return f"[{inside}]"
    return f"list of {in_words(schema['items'], named)}"


def _plain_in_words(schema: Schema, named: Callable[[str], str]) -> str:
    kind: str = schema.get("type", "anything")
    values = _values(schema)
    if values:
        return f"mapping of name to {in_words(values, named)}"
    words = KNOWN.get(schema.get("pattern", ""), WORDS.get(kind, kind))
    return f"{words} (secret)" if schema.get("format") == "password" else words


def _values(schema: Schema) -> Schema | None:
    """What a mapping holds, where all that it holds is alike."""
    values = next(iter(schema.get("patternProperties", {}).values()), None)
    values = values or schema.get("additionalProperties")
    return values if isinstance(values, dict) else None


def limits(schema: Schema) -> str:
    """What a JSON Schema demands beyond the type, for people."""
    own = [key for key in LIMITS if key in schema and "prefixItems" not in schema]
    found = [LIMITS[key].format(schema[key]) for key in own if schema[key] not in KNOWN]
    found += [limits(one) for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ()))]
    inside = [schema.get("items"), _values(schema), *schema.get("prefixItems", ())]
    said = [limits(one) for one in inside if isinstance(one, dict)]
    found += [f"each: {bound.replace('each: ', '')}" for bound in said if bound]
    for pattern in schema.get("patternProperties", ()):
        found.append(f"each name: {KNOWN.get(pattern, f'matches `{pattern}`')}")
    return "; ".join(dict.fromkeys(bound for bound in found if bound))


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the text that stands under it in the model's source, or in its base's."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match text:
                    case ast.Expr(value=ast.Constant(value=str() as said)):
                        found[field.target.id] = inspect.cleandoc(said)
    return found


def meaning(model: type[BaseModel], field: str) -> str:
    """What a field says.

    Raises:
        KeyError: Nobody has written it down.
    """
    name = f"{model.__name__}.{field}"
    said = docstrings(model).get(field) or MEANINGS.get(name) or COMMON.get(field)
    if not said:
        raise KeyError(f"{name}: write a sentence under the field, or into MEANINGS")
    return said


def fields(model: type[BaseModel], *, without: Sequence[str] = ()) -> str:
    """The table of a model's fields."""
    schema = model.model_json_schema(mode="validation")
    required = schema.get("required", [])
    by_name = {field.alias or name: name for name, field in model.model_fields.items()}
    rows = []
    for key, its in schema.get("properties", {}).items():
        if key not in without:
            kind, bound = in_words(its, _part), limits(its)
            says = meaning(model, by_name[key])
            rows.append((f"`{key}`", kind, "yes" if key in required else "no", bound, says))
    return table(("field", "type", "required", "bounds", "meaning"), rows)


def _part(name: str) -> str:
    return f"[{name}](#{slug(name)})"


def parts() -> dict[str, type[BaseModel]]:
    """The models that messages are made of, by name, each once."""
    found: dict[str, type[BaseModel]] = {}

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if annotation.__name__ in found:
                return
            found[annotation.__name__] = annotation
            for field in annotation.model_fields.values():
                visit(field.annotation)
        for inside in getattr(annotation, "__args__", ()):
            visit(inside)

    for message in MESSAGES.values():
        visit(message)
    return {name: model for name, model in found.items() if model not in MESSAGES.values()}


INTRODUCTION = """# Wire reference

Written by `python -m streamexit.wire.reference docs/reference/wire.md` from the models; do not edit it.
[The wire contract](../wire.md) says in prose what the numbers mean and what may be relied on. The same as
JSON Schemas: [schemas](../schemas/result.json), and as an AsyncAPI document: [asyncapi.json](../asyncapi.json).

`{prefix}` is `node.prefix` of the configuration, `{node}` is `node.id`, `{stream}` a stream's `id`. A field that
is not required may be missing, and then has its default. Within a major version changes only add: ignore
fields that you do not know. An id matches `[A-Za-z0-9_-]{1,64}`; a time is a text as RFC 3339 has it, in UTC
with milliseconds: `2026-11-22T08:15:00.250Z`.
"""

ASKED = """## Commands

Published by you as JSON under `{prefix}/{node}/request/{verb}`, never retained, or sent over HTTP as
`POST /api/commands/{verb}`. The answer is a [Response](#response);
[operations](../operations.md#commands) says what its `data` holds. Unknown fields are refused. Each command
may carry a `transaction` (text, at most 200 characters), which comes back in the answer.
"""

SHORT = """## Commands in short

For automations, as bare payloads under `{prefix}/{node}/stream/{stream}/{setting}/set`.
"""


def text() -> str:
    """The page as it is written."""
    return "\n".join([INTRODUCTION, _sent(), *_messages(), *_parts(), *_commands(), _settings()])


def _sent() -> str:
    rows = [
        (
            f"`{sent.address}`",
            _part(sent.message),
            "yes" if sent.retained else "no",
            "as `mqtt.qos` says" if sent.qos == "configured" else str(sent.qos),
            sent.said,
        )
        for sent in SENT.values()
    ]
    return "## Topics\n\n" + table(("topic", "message", "retained", "QoS", "what"), rows)


def _messages() -> Iterable[str]:
    yield "## Messages\n"
    for name, words in (("Availability", WORD), ("StreamAvailability", STREAM_WORD)):
        yield f"### {name}\n\nA bare word, not JSON: {in_words(words, _part)}.\n"
    for model in MESSAGES.values():
        yield f"### {model.__name__}\n\n{inspect.getdoc(model)}\n\n{fields(model)}"


def _parts() -> Iterable[str]:
    yield "## Parts of messages\n"
    for name, model in parts().items():
        yield f"### {name}\n\n{inspect.getdoc(model)}\n\n{fields(model)}"


def _commands() -> Iterable[str]:
    yield ASKED
    for verb, command in VERBS.items():
        says = f"### `{verb}`\n\n{inspect.getdoc(command)}\n"
        own = set(command.model_fields) - {"transaction"}
        yield f"{says}\n{fields(command, without=['transaction'])}" if own else says


def _settings() -> str:
    rows = []
    for setting, (said, schema) in SETTINGS.items():
        kinds = schema.get("oneOf") or [{"type": kind} for kind in schema.get("type", ())]
        payload = in_words({"anyOf": kinds} if kinds else schema, _part)
        rows.append((f"`{setting}`", payload, said))
    return SHORT + "\n" + table(("setting", "payload", "what"), rows)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
