"""Credentials in addresses stay out of everything that people and logs see."""

from __future__ import annotations

import pytest

from streamexit.errors import SourceError
from streamexit.redact import MOST_SECRETS, hide, redact, redact_address
from streamexit.sources.addresses import parse_address
from streamexit.sources.video import VideoSource
from streamexit.testing import TOY_PREPROCESSING

PASSWORDS = ["alpha", "alpha@omega", "alpha:omega", "alpha/omega", "alpha#omega", "alpha?omega"]


@pytest.mark.parametrize("password", [*PASSWORDS, "alpha@/:#?omega", "@alpha@", "//alpha"])
@pytest.mark.parametrize("around", ["{}", "cannot open '{}': refused", "{} and http://a:alpha@b/"])
def test_no_part_of_a_password_is_shown(password: str, around: str) -> None:
    """User and password go, hostile characters or not; host and path stay."""
    shown = redact(around.format(f"rtsp://root:{password}@camera.example:554/stream1"))
    assert "alpha" not in shown
    assert "omega" not in shown
    assert "root" not in shown
    assert "camera.example:554/stream1" in shown


@pytest.mark.parametrize("url", ["rtsp:/root:alpha@camera/1", "root:alpha@camera/1"])
@pytest.mark.parametrize("around", ["{}", "'{}': no such file (/etc/{})", "no file {}"])
def test_a_mistyped_url_is_one(url: str, around: str) -> None:
    """Without a slash, or without its scheme, it has a password all the same."""
    shown = redact(around.format(url, url))
    assert "alpha" not in shown
    assert "camera/1" in shown


def test_white_space_does_not_end_a_password() -> None:
    """Where the text is the URL and nothing else."""
    assert redact_address("rtsp://root:alpha omega@camera/1") == "rtsp://***@camera/1"
    assert redact_address("a clip.mp4") == "a clip.mp4"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rtsp://camera:554/a/b?c=d",
        "/videos/me@home.mp4",
        "a: b",
        "watch:/videos/me@home",
        "a: b@c",
    ],
)
def test_text_without_credentials_is_left_alone(text: str) -> None:
    """Nothing is taken away where there is nothing to hide."""
    assert redact(text) == text


@pytest.mark.parametrize("piece", [":/", "://", "?", "?user", "a:", "'a:", "(", "a=", "://a=", ";"])
@pytest.mark.parametrize("end", ["", "@"])
def test_a_long_text_takes_no_hours(piece: str, end: str) -> None:
    """Strangers decide what is in an error's text; this one would stop all threads meanwhile."""
    text = piece * 100_000 + end
    assert len(redact(text)) <= len(text) + 3


@pytest.mark.parametrize("password", ["alpha", "alpha@omega", "alpha:omega"])
@pytest.mark.parametrize("scheme", ["http", "rtsp", "tcp"])
def test_errors_of_a_camera_do_not_show_its_password(scheme: str, password: str) -> None:
    """A camera that cannot be reached is named by its host, without its password."""
    source = VideoSource(
        parse_address(f"{scheme}://root:{password}@127.0.0.1:1/stream1"), TOY_PREPROCESSING
    )
    with pytest.raises(SourceError) as caught:
        next(source.pictures(lambda _: None))
    assert caught.value.reason == "refused"
    assert "127.0.0.1:1/stream1" in str(caught.value)
    assert "alpha" not in str(caught.value)
    assert "omega" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["pw", "pwd", "access_token", "api_key", "apikey", "X-Amz-Signature", "sig", "jwt", "user"],
)
def test_secrets_among_query_values_are_hidden(name: str) -> None:
    """Whatever they are called; other values stay."""
    shown = redact(f"http://cam/v?x=1&{name}=alpha&y=2")
    assert "alpha" not in shown
    assert "x=1" in shown
    assert "y=2" in shown


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://cam:554/user=root_password=alpha_channel=1_stream=0.sdp?real_stream",
        "rtsp://cam:554/live;pw=alpha",
        "rtsp://cam:554/live/password=alpha/1",
    ],
)
def test_secrets_in_a_path_are_hidden(url: str) -> None:
    """Many cameras are logged in to so."""
    shown = str(parse_address(url))
    assert "alpha" not in shown
    assert shown.startswith("rtsp://cam:554/")


@pytest.mark.parametrize("text", ["rtsp://cam/channel=1_stream=0.sdp", "user=me", "/a/user=me.mp4"])
def test_other_values_in_a_path_stay(text: str) -> None:
    """Nor are files URLs."""
    assert redact(text) == text


def test_what_is_known_to_be_secret_is_hidden_anywhere() -> None:
    """Whole, where one is a part of another; what is short would be found inside of words."""
    hide(["opensesame", "opensesame-street", "abc"])
    assert redact("live/opensesame-street/1 of opensesame") == "live/***/1 of ***"
    assert redact("abc abcd") == "abc abcd"


def test_only_so_many_secrets_are_known() -> None:
    """The oldest are forgotten."""
    hide(f"<{n:06}>" for n in range(MOST_SECRETS + 1))
    assert redact("<000000> <000001>") == "<000000> ***"
