from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from streamexit.exits import ExitRecord
from streamexit.frame import FrameInfo
from streamexit.prediction import Classification
from streamexit.wire import asyncapi
from streamexit.wire.encoding import (
    ResultEncoder,
    as_historical,
    encode_answer,
    encode_state,
    wire_thresholds,
)
from streamexit.wire.messages import (
    MESSAGES,
    ClassificationAnswer,
    ClassShare,
    Result,
    SegmentationAnswer,
    timestamp,
)
from streamexit.wire.schema import json_schema, write_schemas
from streamexit.wire.topics import Topics
from tests.conftest import ROOT

SCHEMAS = ROOT / "docs" / "schemas"


def record(**changes: object) -> ExitRecord:
    """An answered frame."""
    values: dict[str, object] = {
        "frame": FrameInfo("gate", 7, 1.25, 1_700_000_000.5, None, 2, 3),
        "seq": 5,
        "exit": 1,
        "score": 0.75,
        "cost": 0.0474,
        "prediction": Classification("bee", 1, 0.9, (("bee", 0.9), ("ant", 0.05))),
        "answered_at": 2.0,
        "latency_seconds": 0.0125,
    }
    return ExitRecord(**{**values, **changes})  # type: ignore[arg-type]


ENCODE = ResultEncoder(node="lab", boot_id="b00t", pipeline="toy", num_exits=3)


def test_result_says_everything() -> None:
    """A result carries what the contract names; exits count from 1."""
    message = json.loads(ENCODE(record(), 1_700_000_001.0).encode())
    assert message == {
        "schema": "streamexit.result/1",
        "node": "lab",
        "boot_id": "b00t",
        "stream": "gate",
        "epoch": 2,
        "seq": 5,
        "frame": 7,
        "pts_s": 1.25,
        "captured_at": "2023-11-14T22:13:20.500Z",
        "published_at": "2023-11-14T22:13:21.000Z",
        "pipeline": "toy",
        "exit": 2,
        "exits": 3,
        "score": 0.75,
        "cost": {"value": 0.0474, "unit": "gflops"},
        "latency_ms": 12.5,
        "answer": {
            "task": "classification",
            "label": "bee",
            "index": 1,
            "probability": 0.9,
            "top": [
                {"label": "bee", "probability": 0.9},
                {"label": "ant", "probability": 0.05},
            ],
        },
        "dropped_since_last": 3,
        "unpublished_since_last": 0,
        "historical": False,
    }


@given(
    seq=st.integers(0, 2**40),
    score=st.one_of(st.floats(0, 1), st.just(float("nan"))),
    pts=st.floats(0, 1e6),
    label=st.text(max_size=20),
)
def test_every_result_matches_its_schema(seq: int, score: float, pts: float, label: str) -> None:
    """Whatever is answered, the message is valid JSON without NaN and fits the published schema."""
    made = ENCODE(
        record(
            seq=seq,
            score=score,
            frame=FrameInfo("gate", seq, pts, pts),
            prediction=Classification(label, 0, 1.0, ((label, 1.0),)),
        ),
        pts,
    )
    message = json.loads(made.encode(), parse_constant=pytest.fail)
    jsonschema.validate(message, json_schema("result"))
    assert Result.model_validate(message) == made


@pytest.mark.parametrize("leaf", MESSAGES)
def test_committed_schemas_are_those_of_the_models(leaf: str) -> None:
    """docs/schemas is what `python -m streamexit.wire.schema docs/schemas` writes today."""
    assert json.loads((SCHEMAS / f"{leaf}.json").read_text(encoding="utf-8")) == json_schema(leaf)


def test_schemas_are_written_one_per_message(tmp_path: Path) -> None:
    """As they are committed, byte for byte, into a folder that is made."""
    write_schemas(tmp_path / "new" / "schemas")
    written = {path.name: path.read_bytes() for path in (tmp_path / "new" / "schemas").iterdir()}
    assert written == {path.name: path.read_bytes() for path in SCHEMAS.glob("*.json")}


def test_no_schema_without_a_message() -> None:
    """The folder holds nothing that is not published any more."""
    assert {path.stem for path in SCHEMAS.glob("*.json")} == set(MESSAGES)


def test_nan_is_refused() -> None:
    """A message that would hold NaN is not made."""
    with pytest.raises(ValidationError):
        ENCODE(record(cost=float("nan")), 0.0)


def test_infinite_thresholds_have_wire_values() -> None:
    """Always is null, never is 2: JSON knows no infinity."""
    assert wire_thresholds((float("-inf"), 0.5, float("inf"))) == [None, 0.5, 2.0]


def test_topics() -> None:
    """Topics follow the contract; a prefix may have several levels."""
    topics = Topics("site/a", "lab")
    assert topics.availability == "site/a/lab/availability"
    assert topics.stream("gate", "result") == "site/a/lab/stream/gate/result"


def test_timestamps_are_utc_milliseconds() -> None:
    """RFC 3339 with a Z."""
    assert timestamp(0) == "1970-01-01T00:00:00.000Z"


def test_asyncapi_document_is_current() -> None:
    """What is committed is what the models make; each reference leads somewhere."""
    content = (ROOT / "docs" / "asyncapi.json").read_text(encoding="utf-8")
    assert content == asyncapi.text(), "python -m streamexit.wire.asyncapi docs/asyncapi.json"
    document = json.loads(content)
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', content):
        target = document
        for part in reference.split("/"):
            target = target[part]
    for message in document["components"]["messages"].values():
        jsonschema.Draft202012Validator.check_schema(message["payload"])


def test_a_late_result_says_so_and_changes_nothing_else() -> None:
    """Numbers keep their digits, text its letters."""
    result = ENCODE(record(), 1_700_000_001.0).encode()
    late = as_historical(result, 1_700_000_100.0)
    before, after = Result.model_validate_json(result), Result.model_validate_json(late)
    assert after.historical
    assert after.published_at == "2023-11-14T22:15:00.000Z"
    same = {"historical", "published_at"}
    assert after.model_dump(exclude=same) == before.model_dump(exclude=same)


def test_a_score_that_is_no_number_is_sent_as_0() -> None:
    """An overflowing network must not stop its stream; nobody may take its answer for a sure one."""
    message = ENCODE(record(score=float("nan")), 0.0)
    assert message.score == 0.0


def test_answers_in_short() -> None:
    """For a live table: one label, or the three largest shares."""
    short = [
        ClassificationAnswer(label="bee", index=1, probability=0.904, top=[]).in_short(),
        SegmentationAnswer(
            width=4,
            height=2,
            shares=[
                ClassShare(label=label, share=share)
                for label, share in (("sky", 0.5), ("road", 0.3), ("car", 0.15), ("tree", 0.05))
            ],
            dominant=[],
        ).in_short(),
    ]
    assert short == ["bee 90%", "sky 50%, road 30%, car 15%"]


def test_an_answer_of_an_unknown_kind_is_a_defect() -> None:
    """A task without a message of its own is noticed at its first answer."""
    frame = FrameInfo("gate", 0, 0.0, 0.0)
    with pytest.raises(TypeError, match="no message for object"):
        encode_answer(object(), frame, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no message for object"):
        encode_state(object(), 0.0)  # type: ignore[arg-type]


def test_the_state_of_a_classification() -> None:
    """Its label, how probable it is, and since when."""
    state = encode_state(Classification("bee", 1, 0.9, ()), 1_700_000_000.5)
    assert (state.label, state.probability, state.since) == (
        "bee",
        0.9,
        "2023-11-14T22:13:20.500Z",
    )
