from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from streamexit.config.load import load_configuration
from streamexit.errors import ConfigurationError
from streamexit.exits import Budget

ROOT = Path(__file__).resolve().parents[2]
STREAM = "{id: a, source: 'synthetic:seed=1', pipeline: toy, budget: {fraction: 0.5}}"


def write(folder: Path, *, top: str = "", pipelines: str = "{toy: p}", **stream: str) -> Path:
    """A configuration whose one stream is on lines 4 to 7 and can be changed by key."""
    keys = {"id": "a", "source": "'synthetic:seed=1'", "pipeline": "toy", **stream}
    keys.setdefault("budget", "{fraction: 0.5}")
    lines = [f"    {key}: {value}" for key, value in keys.items()]
    lines[0] = lines[0].replace("    ", "  - ", 1)
    file = folder / "node.yaml"
    file.write_text("\n".join([top, f"pipelines: {pipelines}", "streams:", *lines]) + "\n")
    return file


def refusal(file: Path) -> str:
    """The message that `file` is refused with."""
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(file)
    assert str(file) in str(caught.value)
    return str(caught.value)


def test_smallest_file_is_enough(tmp_path: Path) -> None:
    """Pipelines and streams suffice; everything else has a default."""
    configuration = load_configuration(write(tmp_path)).value
    assert configuration.pipelines == {"toy": "p"}
    (stream,) = configuration.streams
    assert (stream.id, stream.pipeline, stream.source.url) == ("a", "toy", "synthetic:seed=1")
    assert stream.budget.build() == Budget(0.5, "fraction")
    assert configuration.mqtt is None


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda f: f.name)
def test_every_example_configuration_loads(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configurations in the repository are valid once their variables are set."""
    for name in re.findall(r"\$\{(\w+)\}", file.read_text()):
        monkeypatch.setenv(name, "x")
    assert load_configuration(file).value.streams


@pytest.mark.parametrize("text", ["", "streams: []\npipelines: {}\n", f"streams: [{STREAM}]\n"])
def test_file_without_streams_or_pipelines_is_refused(tmp_path: Path, text: str) -> None:
    """A node with nothing to run is refused, and the message names what is missing."""
    (tmp_path / "node.yaml").write_text(text)
    assert "pipelines" in refusal(tmp_path / "node.yaml")


def test_duplicate_id_is_refused_with_both_places(tmp_path: Path) -> None:
    """Two streams of one id are refused; the message names the second and the first."""
    file = tmp_path / "node.yaml"
    file.write_text(f"pipelines: {{toy: p}}\nstreams:\n  - {STREAM}\n  - {STREAM}\n")
    message = refusal(file)
    assert "line 4, streams[1].id" in message
    assert "'a' is already the id of streams[0]" in message


@pytest.mark.parametrize("name", ["a/b", "a+b", "'#'", "''", "a b", "x" * 65, "'a\\n'", "ä"])
def test_ill_formed_id_is_refused(tmp_path: Path, name: str) -> None:
    """An id that would mean something in an MQTT topic, or is too long, is refused."""
    assert "line 4, streams[0].id" in refusal(write(tmp_path, id=name))
    assert "node.id" in refusal(write(tmp_path, top=f"node: {{id: {name}}}"))


def test_longest_id_is_accepted(tmp_path: Path) -> None:
    """An id of 64 letters, digits, dashes and underscores is fine."""
    name = "aZ0-_" + "x" * 59
    assert load_configuration(write(tmp_path, id=name)).value.streams[0].id == name


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("{fraction: 0.5, gflops_per_frame: 1}", "give one of fraction"),
        ("{}", "give one of fraction"),
        ("{fraction: 0}", "fraction: 0: "),
        ("{fraction: -0.5}", "-0.5"),
        ("{gflops_per_frame: 0}", "greater than 0"),
        ("{fraction: .nan}", "nan"),
        ("{gflops_per_frame: .inf}", "inf"),
        ("{fraction: lots}", "'lots'"),
        ("{fractoin: 0.5}", "did you mean 'fraction'?"),
        ("0.5", "0.5"),
    ],
)
def test_wrong_budget_is_refused(tmp_path: Path, budget: str, expected: str) -> None:
    """A budget is one positive finite number in one known unit; all else is refused where it stands."""
    message = refusal(write(tmp_path, budget=budget))
    assert "line 7, streams[0].budget" in message
    assert expected in message


def test_budget_in_gflops(tmp_path: Path) -> None:
    """A budget can be given in GFLOPs per frame."""
    configuration = load_configuration(write(tmp_path, budget="{gflops_per_frame: 0.05}")).value
    assert configuration.streams[0].budget.build() == Budget(0.05, "gflops_per_frame")


@pytest.mark.parametrize(
    "url", ["mqtt://broker", "mqtt://10.0.0.1:1883", "mqtts://broker:8883", "embedded"]
)
def test_broker_url_is_accepted(tmp_path: Path, url: str) -> None:
    """Plain, TLS and embedded brokers can be named."""
    mqtt = load_configuration(write(tmp_path, top=f"mqtt: {{url: '{url}'}}")).value.mqtt
    assert mqtt is not None
    assert mqtt.url == url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://broker", "mqtts://"),
        ("broker:1883", "mqtt://"),
        ("mqtt://", "mqtt://host"),
        ("mqtt://broker:port", "port must be a number"),
        ("mqtt://broker:70000", "port must be a number"),
        ("mqtt://broker:0", "port must be a number"),
        ("mqtt://me:hunter2@broker", "username and password"),
        ("mqtt://me@broker", "username and password"),
    ],
)
def test_wrong_broker_url_is_refused(tmp_path: Path, url: str, expected: str) -> None:
    """A broker URL of another form is refused with what to write, and never shows a password."""
    message = refusal(write(tmp_path, top=f"mqtt: {{url: '{url}'}}"))
    assert "line 1, mqtt.url" in message
    assert expected in message
    assert "hunter2" not in message


def test_unknown_pipeline_is_refused_with_the_nearest(tmp_path: Path) -> None:
    """A stream that names no pipeline of the file gets the most similar name as the remedy."""
    message = refusal(write(tmp_path, pipelines="{toys: p, other: q}"))
    assert "line 6, streams[0].pipeline: 'toy'" in message
    assert "did you mean 'toys'?" in message


PASSWORDS = ["alpha", "a:b@c/d#e?f%41 &é", "'\"${X}"]


def test_a_password_in_the_file_is_refused(tmp_path: Path) -> None:
    """Files are copied and committed: the message names the place and the remedy, not the password."""
    message = refusal(write(tmp_path, source="rtsp://viewer:alpha@cam/1"))
    assert "line 5, streams[0].source" in message
    assert "${CAMERA_PASSWORD}" in message
    assert "alpha" not in message
    message = refusal(write(tmp_path, source="{url: 'rtsp://cam/1', username: v, password: alpha}"))
    assert "streams[0].source.password" in message
    assert "alpha" not in message


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("where", ["environment", "file", "folder"])
def test_passwords_come_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str, where: str
) -> None:
    """Any password, from the environment, a file of assignments or a folder; encoded where it must be."""
    top = ""
    if where == "environment":
        monkeypatch.setenv("CAMERA_PASSWORD", password)
    elif where == "file":
        (tmp_path / "s.env").write_text(f"# cameras\n\nCAMERA_PASSWORD={password}\n", "utf-8")
        top = "secrets: s.env"
    else:
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets" / "CAMERA_PASSWORD").write_text(password + "\n", "utf-8")
        top = "secrets: secrets"
    url = "rtsp://viewer:${CAMERA_PASSWORD}@cam/1"
    source = load_configuration(write(tmp_path, top=top, source=url)).value.streams[0].source
    assert unquote(urlsplit(source.url).password or "") == password
    mapping = "{url: 'rtsp://cam/1', username: viewer, password: '${CAMERA_PASSWORD}'}"
    document = load_configuration(write(tmp_path, top=top, source=mapping))
    section = document.value.streams[0].source
    assert section.password is not None
    assert section.password.get_secret_value() == password
    assert password not in repr(document)


def test_the_environment_comes_before_the_file_of_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a test can override it."""
    (tmp_path / "s.env").write_text("HOST=file\nOTHER=elsewhere\n")
    monkeypatch.setenv("HOST", "environment")
    document = load_configuration(
        write(tmp_path, top="secrets: s.env", source="'rtsp://${HOST}/${OTHER}'")
    )
    assert document.value.streams[0].source.url == "rtsp://environment/elsewhere"


@pytest.mark.parametrize("value", ["8", "12345678", "[a]"])
def test_a_password_of_the_wrong_type_is_not_shown(tmp_path: Path, value: str) -> None:
    """Whatever is wrong with it."""
    message = refusal(
        write(tmp_path, source=f"{{url: 'rtsp://c/1', username: v, password: {value}}}")
    )
    assert "streams[0].source.password" in message
    assert value not in message.replace(str(tmp_path), "").replace("password", "")


def test_a_misspelt_option_of_a_source_has_its_remedy(tmp_path: Path) -> None:
    """As any other key."""
    message = refusal(write(tmp_path, source="{url: 'rtsp://c/1', transprt: udp}"))
    assert "streams[0].source.transprt: unknown key; did you mean 'transport'?" in message


@pytest.mark.parametrize("secrets", ["null", "''"])
def test_no_file_of_secrets_is_none(tmp_path: Path, secrets: str) -> None:
    """An empty key is as good as no key."""
    document = load_configuration(write(tmp_path, top=f"secrets: {secrets}"))
    assert not document.value.secrets


@pytest.mark.parametrize("content", [None, "no assignment\n", "1A=b\n"])
def test_a_bad_file_of_secrets_is_refused(tmp_path: Path, content: str | None) -> None:
    """Missing, or not made of NAME=value; no value is shown."""
    if content is not None:
        (tmp_path / "s.env").write_text(content)
    file = write(tmp_path, top="secrets: s.env")
    with pytest.raises(ConfigurationError, match=r"s\.env") as caught:
        load_configuration(file)
    assert content is None or "line 1" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("window", "0"),
        ("buffer", "0"),
        ("rate", ".nan"),
        ("rate", "-1"),
        ("pace", "slow"),
        ("loop", "often"),
    ],
)
def test_option_out_of_range_is_refused(tmp_path: Path, key: str, value: str) -> None:
    """Stream options outside their range are refused where they stand."""
    message = refusal(write(tmp_path, budget="{fraction: 1}", **{key: value}))
    assert f"line 8, streams[0].{key}: " in message


def test_misspelt_stream_option_gets_the_nearest_name(tmp_path: Path) -> None:
    """A misspelt option of a stream is refused and the right name proposed."""
    assert "did you mean 'policy'?" in refusal(write(tmp_path, polcy="eenet"))
