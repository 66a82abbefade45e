from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from streamexit.config.load import load_configuration
from streamexit.errors import ConfigurationError
from streamexit.exits import Budget
from streamexit.wire.commands import VERBS

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


@pytest.mark.parametrize("name", ["off", "12", "1.5", "2027-01-01", "~"])
def test_an_id_that_is_no_text_to_yaml_is_refused_with_the_remedy(
    tmp_path: Path, name: str
) -> None:
    """It looks like one."""
    message = refusal(write(tmp_path, id=name))
    assert "line 4, streams[0].id" in message
    assert "write it in quotes" in message


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
        ("mqtt://me:my hunter2@broker", "username and password"),
        ("mqtt:/me:hunter2@broker", "mqtt://host"),
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


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://192.0.2.1:554/cam@1",
        "https://192.0.2.1:8443/@user/live.m3u8",
        "rtsp://[2001:db8::1]/cam@1",
    ],
)
def test_a_path_with_an_at_sign_is_no_password(tmp_path: Path, url: str) -> None:
    """What stands before it is a host."""
    document = load_configuration(write(tmp_path, source=f"'{url}'"))
    assert document.value.streams[0].source.url == url


def test_a_password_that_spoils_its_url_is_refused(tmp_path: Path) -> None:
    """It is one, though the URL cannot be split."""
    message = refusal(write(tmp_path, source="'rtsp://viewer:alpha/omega@cam/1'"))
    assert "a password does not belong into this file" in message


def test_what_a_variable_stands_for_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it was put: messages show what is written."""
    monkeypatch.setenv("SECRET_OF_MINE", "alpha omega")
    for top in ("http: {host: '${SECRET_OF_MINE}'}", "node: {id: '${SECRET_OF_MINE}'}"):
        message = refusal(write(tmp_path, top=top))
        assert "alpha" not in message
        assert "${SECRET_OF_MINE}" in message


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


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ("node: {timezone: Mars/Base}", "write an IANA name"),
        ("mqtt: {url: [mqtt://a, embedded]}", "mqtts://host:8883 or embedded"),
        ("mqtt: {url: 5}", "a list of these or embedded"),
        ("mqtt: {url: [5]}", "a list of these or embedded"),
        ("mqtt: {url: []}", "a list of these or embedded"),
        ("mqtt: {url: mqtts://a, tls: {key_file: k.pem}}", "key_file goes with cert_file"),
        ("mqtt: {url: mqtt://a, tls: {ca_file: c.pem}}", "write mqtts:// in url"),
        ("mqtt: {url: [mqtt://a, mqtt://b], tls: {}}", "write mqtts:// in url"),
        ("mqtt: {url: embedded, tls: {}}", "tls means nothing to the embedded broker"),
        ("mqtt: {url: embedded, username: a}", "username means nothing to the embedded broker"),
        ("mqtt: {url: embedded, spool: {}}", "spool means nothing to the embedded broker"),
        ("mqtt: {url: embedded, password: a}", "password means nothing to the embedded broker"),
        ("mqtt: {url: mqtt://a, password: a}", "password goes with username"),
        ("homeassistant: {}", "homeassistant: is told over MQTT; add mqtt"),
        (
            "mqtt: {url: mqtt://a, commands: [info, fly]}",
            "write true, false or a list of these: info",
        ),
        ("mqtt: {url: mqtt://a, commands: all}", "write true, false or a list of these: info"),
        ("http: {host: 0.0.0.0}", "can be reached by others: give a token"),
        ("secrets: s.env\nhttp: {token: '${SHORT}'}", "16 characters at least"),
        ("http: {token: pässword-of-the-page}", "16 characters at least, of ASCII"),
        (
            "http: {token: password of the page}",
            "16 characters at least, of ASCII and without spaces",
        ),
    ],
)
def test_a_wrong_section_is_refused_with_the_remedy(
    tmp_path: Path, top: str, expected: str
) -> None:
    """What would not work, or not be safe, is said before anything is started."""
    (tmp_path / "s.env").write_text("SHORT=" + "x" * 15)
    assert expected in refusal(write(tmp_path, top=top))


def test_sections_that_are_right_are_taken(tmp_path: Path) -> None:
    """A time zone, several brokers, some commands, and HTTP for others with a token of 16 characters."""
    (tmp_path / "s.env").write_text("LONG=" + "x" * 16)
    top = (
        "node: {timezone: Europe/Berlin}\nsecrets: s.env\n"
        "mqtt: {url: [mqtt://a, 'mqtts://b:8884'], commands: [info, snapshot],"
        " tls: {cert_file: c.pem, key_file: k.pem}}\n"
        "http: {host: 0.0.0.0, token: '${LONG}'}"
    )
    file = tmp_path / "node.yaml"
    file.write_text(f"{top}\npipelines: {{toy: p}}\nstreams: [{STREAM}]\n")
    value = load_configuration(file).value
    assert value.node.timezone == "Europe/Berlin"
    assert value.mqtt is not None
    assert value.mqtt.urls == ["mqtt://a", "mqtts://b:8884"]
    assert value.mqtt.commands == ["info", "snapshot"]
    assert value.http is not None


@pytest.mark.parametrize("commands", ["true", "false", f"[{', '.join(VERBS)}]", "[]"])
def test_commands_over_mqtt_are_all_none_or_named(tmp_path: Path, commands: str) -> None:
    """Every verb that there is can be named."""
    top = f"mqtt: {{url: embedded, commands: {commands}}}"
    mqtt = load_configuration(write(tmp_path, top=top)).value.mqtt
    assert mqtt is not None
    assert mqtt.urls == ["embedded"]
    expected = {"true": True, "false": False, "[]": []}.get(commands, list(VERBS))
    assert mqtt.commands == expected


@pytest.mark.parametrize(
    ("publish", "seconds"),
    [("{every: 2s}", 2.0), ("{every: 500ms}", 0.5), ("{every: 0.25}", 0.25), ("{every: '3'}", 3.0)],
)
def test_results_can_be_rarer(tmp_path: Path, publish: str, seconds: float) -> None:
    """One in so much time, as people write it or as a number of seconds."""
    chosen = load_configuration(write(tmp_path, publish=publish)).value.streams[0].publish
    assert not isinstance(chosen, str)
    assert chosen.seconds == seconds


@pytest.mark.parametrize(
    ("publish", "expected"),
    [
        ("sometimes", "write every_frame, on_change or {every: 2s}"),
        ("5", "write every_frame, on_change or {every: 2s}"),
        ("{every: 2 weeks}", "'2 weeks' is not a duration; write 30s"),
        ("{every: 0}", "0"),
        ("{every: -1}", "-1"),
    ],
)
def test_a_wrong_rule_of_publishing_is_refused(tmp_path: Path, publish: str, expected: str) -> None:
    """With the forms that there are."""
    message = refusal(write(tmp_path, publish=publish))
    assert "line 7, streams[0].publish: " in message
    assert expected in message


def test_a_floor_above_the_cap_is_refused(tmp_path: Path) -> None:
    """No budget could keep both; equal ones are fine."""
    wrong = write(tmp_path, budget="{fraction: 0.5, floor: 0.6, cap: 0.5}")
    assert "floor 0.6 is above cap 0.5" in refusal(wrong)
    right = write(tmp_path, budget="{fraction: 0.5, floor: 0.5, cap: 0.5}")
    assert load_configuration(right).value.streams[0].budget.floor == 0.5


def test_a_node_that_could_do_nothing_is_refused(tmp_path: Path) -> None:
    """Without streams there must be a way to add one."""
    file = tmp_path / "node.yaml"
    file.write_text("pipelines: {toy: p}\n")
    assert "neither mqtt nor http to add one with" in refusal(file)
    for way in ("mqtt: {url: embedded, spool: null}", "http: {}"):
        file.write_text(f"pipelines: {{toy: p}}\n{way}\n")
        assert load_configuration(file).value.streams == []


def test_a_file_of_secrets_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """In a folder of secrets each file is one; the message names it, and not its content."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "KEY").write_bytes(b"\xff\xfe")
    top = "secrets: secrets\nmqtt: {url: mqtt://a, username: u, password: '${KEY}'}"
    with pytest.raises(ConfigurationError, match=r"secrets/KEY: cannot be read as UTF-8 text"):
        load_configuration(write(tmp_path, top=top))


def test_a_value_of_the_wrong_kind_in_a_list_is_named(tmp_path: Path) -> None:
    """With its place in the list."""
    message = refusal(write(tmp_path, active_hours="[{from: 7}]"))
    assert "line 7, streams[0].active_hours[0]: Input should be a valid string" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("streams:\n  - id: a\n    source: b\n   pipeline: c\n", "line 4: .*like its neighbours"),
        ("streams:\n  - id: a\n     source: b\n", "line 3: .*like its neighbours"),
        ("streams:\n\t- id: a\n", "line 2: .*with spaces, not with tabs"),
        ("mqtt: {password: ${KEY}}\n", 'line 1: .*inside braces write it in quotes: "\\${NAME}"'),
        ("streams:\n  id: a\n  id: b\n", r"line 3: streams.id .*item of a list begins with '- '"),
        ("streams: {id: a}\n", r"line 1, streams: is a list: begin each item with '- '"),
        ("pipelines:\n", "line 1, pipelines: is empty; indent what belongs to it"),
        ("http: true\n", "line 1, http: true: is a section: write its keys below it"),
        ("node: gatehouse\n", "line 1, node: 'gatehouse': is a section"),
    ],
)
def test_mistakes_of_form_have_a_remedy(tmp_path: Path, text: str, expected: str) -> None:
    """In words for people who do not know how YAML is read."""
    (tmp_path / "node.yaml").write_text(text)
    assert re.search(expected, refusal(tmp_path / "node.yaml"))


@pytest.mark.parametrize(
    ("key", "written", "expected"),
    [
        ("id", "12", "12: text is needed here; write it in quotes"),
        ("id", "off", "false: YAML reads on, off, yes and no as true or false; write it in quotes"),
        (
            "id",
            "back yard",
            "'back yard': write up to 64 letters, digits, _ and -, as in back_yard",
        ),
        ("budget", "{fraction: 40%}", "'40%': write a number: 0.4"),
        ("frame_rate", "10 fps", "'10 fps': write a number: 10"),
        ("frame_rate", "often", "'often': Input should be a valid number"),
        ("budget", "{fraction:0.4}", "a space belongs behind the colon: 'fraction: 0.4'"),
    ],
)
def test_mistakes_in_values_have_a_remedy(
    tmp_path: Path, key: str, written: str, expected: str
) -> None:
    """What is meant is mostly plain."""
    assert expected in refusal(write(tmp_path, **{key: written}))
