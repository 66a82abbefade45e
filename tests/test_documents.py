from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from pydantic import BaseModel, ConfigDict, SecretStr

from streamexit.documents import Document, load_document
from streamexit.errors import ConfigurationError
from streamexit.redact import redact


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Camera(Strict):
    name: str
    width: int = 640


class House(Strict):
    address: str
    secrets: str | None = None
    password: SecretStr | None = None
    cameras: list[Camera] = []
    rooms: dict[str, Camera] = {}
    door: Camera | None = None


def load(folder: Path, text: str | bytes) -> Document[House]:
    """Load `text` as a house."""
    file = folder / "house.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_document(file, House, error=ConfigurationError)


def refusal(folder: Path, text: str | bytes) -> str:
    """The message that `text` is refused with."""
    with pytest.raises(ConfigurationError) as caught:
        load(folder, text)
    return str(caught.value)


def test_valid_file_gives_the_model_and_tells_where_each_value_stands(tmp_path: Path) -> None:
    """A valid file becomes the model, and any of its values can be located for later messages."""
    document = load(tmp_path, "address: here\n\ncameras:\n  - name: a\n  - name: b\n    width: 3\n")
    assert document.value.cameras == [Camera(name="a"), Camera(name="b", width=3)]
    path = tmp_path / "house.yaml"
    assert document.where("cameras", 1, "width") == f"{path}, line 6, cameras[1].width"
    assert document.where("cameras", 0, "width") == f"{path}, line 4, cameras[0].width"
    assert document.where() == f"{path}, line 1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("address: x\nadress: y\n", ["line 2, adress", "unknown key", "did you mean 'address'?"]),
        (
            "address: x\ncameras:\n  - name: a\n  - name: b\n    widht: 3\n",
            ["line 5, cameras[1].widht", "unknown key", "did you mean 'width'?"],
        ),
        (
            "address: x\nrooms:\n  hall:\n    name: a\n    widht: 3\n",
            ["line 5, rooms.hall.widht", "did you mean 'width'?"],
        ),
        ("address: x\ndoor: {name: a, nmae: b}\n", ["line 2, door.nmae", "did you mean 'name'?"]),
        ("address: x\nzzzz: y\n", ["line 2, zzzz", "known are address, cameras, door"]),
        ("# nothing\ncameras: []\n", ["line 2", "'address' is missing"]),
        ("address: x\ncameras:\n  - width: 3\n", ["line 3, cameras[0]", "'name' is missing"]),
        (
            "address: x\ncameras:\n  - {name: a, width: broad}\n",
            ["line 3, cameras[0].width", "'broad'", "valid integer"],
        ),
        ("address: x\ncameras: 7\n", ["line 2, cameras", "7", "is a list: begin"]),
        ("address: x\naddress: y\n", ["line 2", "address stands twice", "first on line 1"]),
        (
            "address: x\ncameras:\n  - name: a\n    name: b\n",
            ["line 4", "cameras[0].name stands twice", "first on line 3"],
        ),
        ('address: "x\\0y"\n', ["line 1", "address holds a NUL character"]),
        ("address: x\ncameras: [\n", ["line 3", "not valid YAML"]),
        ("address: x\n\tcameras: 1\n", ["line 2", "not valid YAML"]),
        (b"address: \xff\xfe\n", ["cannot be read", "UTF-8"]),
        ("", ["line 1", "'address' is missing"]),
        ("- address\n", ["line 1"]),
        ("address\n", ["line 1", "'address'"]),
    ],
)
def test_wrong_file_is_refused_with_place_value_and_remedy(
    tmp_path: Path, text: str | bytes, expected: list[str]
) -> None:
    """Whatever is wrong with a file, the message names file, line, key path, value and remedy."""
    message = refusal(tmp_path, text)
    for part in (str(tmp_path / "house.yaml"), *expected):
        assert part in message


@pytest.mark.parametrize(
    "text",
    [
        "address: !tag x\n",
        "address: \x01\n",
        "address: 2024-13-45\n",
        "? [a, b]\n: x\n",
        "address: &x [*x]\n",
        "door: &d {name: a}\n<<: *d\n",
    ],
    ids=["unknown tag", "control character", "impossible date", "list key", "recursion", "merge"],
)
def test_odd_yaml_is_refused_and_never_a_traceback(tmp_path: Path, text: str) -> None:
    """YAML that cannot become plain values is refused as the user's error, naming the file."""
    assert str(tmp_path / "house.yaml") in refusal(tmp_path, text)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """A file with two mistakes gets one line for each."""
    message = refusal(tmp_path, "cameras:\n  - name: a\n    width: broad\n")
    assert len(message.splitlines()) == 2
    assert "'address' is missing" in message
    assert "cameras[0].width" in message


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there is refused with its path and the system's reason."""
    with pytest.raises(ConfigurationError, match=r"no\.yaml: cannot be read: No such file"):
        load_document(tmp_path / "no.yaml", House, error=ConfigurationError)


def test_variables_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every ${VARIABLE} inside a value is replaced, also in the middle and where a number goes."""
    monkeypatch.setenv("STREET", "Elm")
    monkeypatch.setenv("WIDTH", "320")
    text = "address: ${STREET} 1, $5 {x}\ndoor:\n  name: a${STREET}${STREET}\n  width: ${WIDTH}\n"
    house = load(tmp_path, text).value
    assert house.address == "Elm 1, $5 {x}"
    assert house.door == Camera(name="aElmElm", width=320)


def test_unset_variable_is_named_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ${VARIABLE} that is not set is refused with line, key path and what to export."""
    monkeypatch.delenv("STREET", raising=False)
    message = refusal(tmp_path, "cameras: []\naddress: ${STREET}\n")
    assert "line 2, address" in message
    assert "export STREET=" in message


@pytest.mark.parametrize(
    ("line", "variable"),
    [
        ("password: hunter2", None),
        ("password: ${PASSWORD}", "hunter2"),
        ("password: 987654321", None),
        ("password: [hunter2]", None),
    ],
)
def test_secret_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, variable: str | None
) -> None:
    """Neither an error message nor the printed document shows the value of a secret."""
    if variable:
        monkeypatch.setenv("PASSWORD", variable)
    message = refusal(tmp_path, f"{line}\naddres: x\n")
    for secret in ("hunter2", "987654321"):
        assert secret not in message
    if "hunter2" in (line.removeprefix("password: "), variable):
        document = load(tmp_path, f"{line}\naddress: x\n")
        assert document.value.password is not None
        assert document.value.password.get_secret_value() == "hunter2"
        assert "hunter2" not in f"{document!r} {document.value}"


@pytest.mark.parametrize(
    "line",
    [
        "address: http://cam/${A_TOKEN}/1",
        "address: x\npassword: ${LOGGED_IN_BY}",
        "address: http://cam/live?pw=${LOGGED_IN_BY}",
        "address: http://cam/user=me_password=${LOGGED_IN_BY}_channel=1",
        "address: http://viewer:${LOGGED_IN_BY}@cam/1",
        "address: http://cam/${KEPT}/1",
    ],
)
@pytest.mark.parametrize("value", ["correct horse", "battery/staple"])
def test_what_is_secret_is_hidden_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, value: str
) -> None:
    """By the variable's name, by the key, by its place in a URL, or because `secrets` has it."""
    monkeypatch.setattr("streamexit.redact._known", ())
    for name in ("A_TOKEN", "LOGGED_IN_BY"):
        monkeypatch.setenv(name, value)
    (tmp_path / "s.env").write_text(f"KEPT={value}\n")
    load(tmp_path, f"secrets: s.env\n{line}\n")
    assert redact(f"{value}: {quote(value, safe='')}") == "***: ***"


def test_what_is_not_secret_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts and folders, by other names and in other places."""
    monkeypatch.setenv("CAMERA_HOST", "camera.example")
    monkeypatch.setenv("FOLDER", "/srv/recordings")
    monkeypatch.setenv("CAMERA_USER", "root")
    load(tmp_path, "address: rtsp://${CAMERA_USER}:x@${CAMERA_HOST}/1?file=${FOLDER}\n")
    text = "camera.example /srv/recordings /root/chroot"
    assert redact(text) == text
