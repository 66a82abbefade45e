from __future__ import annotations

import stat
from pathlib import Path

import pytest

from streamexit.config.load import load_configuration
from streamexit.config.overlay import OverlayFile, overlay_path, parse_section, with_stream
from streamexit.config.schema import NodeConfiguration
from streamexit.documents import Document
from streamexit.errors import ConfigurationError

TEXT = """
pipelines: {toy: x}
streams:
  - {id: a, source: a.mp4, pipeline: toy, budget: {fraction: 0.5}}
  - {id: b, source: b.mp4, pipeline: toy, budget: {fraction: 0.6, strict: true}}
  - {id: c, source: c.mp4, pipeline: toy, budget: {fraction: 0.7}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration without an overlay yet."""
    path = tmp_path / "node.yaml"
    path.write_text(TEXT)
    return path


def overlay(file: Path) -> OverlayFile:
    """Of the file."""
    return OverlayFile(overlay_path(file, load_configuration(file).value))


def ids(document: Document[NodeConfiguration]) -> list[str]:
    """Of its streams."""
    return [section.id for section in document.value.streams]


NEW = {"id": "d", "source": {"url": "rtsp://c/1", "username": "v", "password": "se cret"},
       "pipeline": "toy", "budget": {"fraction": 0.9}}  # fmt: skip


def test_what_commands_changed_is_there_after_a_restart(file: Path) -> None:
    """Streams added, removed and changed; the user's file stays as it is."""
    changes = overlay(file)
    changes.note_added(NEW, configured=False)
    changes.note_removed("a", configured=True)
    changes.note_changed("b", "budget", {"fraction": 0.8})
    changes.note_changed("b", "enabled", False)
    changes.note_changed("d", "frame_rate", 5.0)
    document = load_configuration(file)
    assert ids(document) == ["b", "c", "d"]
    assert f"{file.with_suffix('.overlay.yaml')}, removed: a" in document.elsewhere.values()
    b, _, d = document.value.streams
    assert (b.budget.fraction, b.enabled, b.budget.strict) == (0.8, False, False)
    assert d.frame_rate == 5.0
    assert d.source.password
    assert d.source.password.get_secret_value() == "se cret"
    assert file.read_text() == TEXT


def test_changes_can_be_taken_back(file: Path) -> None:
    """An added stream that is removed leaves nothing; one that comes again replaces itself."""
    changes = overlay(file)
    for _ in range(2):
        changes.note_added(NEW, configured=False)
    assert ids(load_configuration(file)) == ["a", "b", "c", "d"]
    changes.note_removed("d", configured=False)
    assert ids(load_configuration(file)) == ["a", "b", "c"]
    assert "removed" not in overlay_path(file, load_configuration(file).value).read_text()[200:]


def test_only_its_owner_may_read_it(file: Path) -> None:
    """It may hold passwords of cameras."""
    overlay(file).note_added(NEW, configured=False)
    mode = stat.S_IMODE((file.parent / "node.overlay.yaml").stat().st_mode)
    assert mode == 0o600


def test_names_in_it_are_not_replaced(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may send commands could otherwise read the environment."""
    monkeypatch.setenv("TOP_SECRET", "hunter2")
    overlay(file).note_added({**NEW, "source": "rtsp://evil/${TOP_SECRET}"}, configured=False)
    assert load_configuration(file).value.streams[-1].source.url == "rtsp://evil/${TOP_SECRET}"


def test_messages_say_which_file_is_meant(file: Path) -> None:
    """Lines of the configuration are right although a stream was left out before."""
    changes = overlay(file)
    changes.note_removed("a", configured=True)
    changes.note_changed("b", "budget", {"fraction": 0.1})
    changes.note_added(NEW, configured=False)
    document = load_configuration(file)
    assert document.where("streams", 0, "source").endswith("node.yaml, line 5, streams[0].source")
    assert document.where("streams", 0, "budget").endswith("node.overlay.yaml, changed.b.budget")
    assert document.where("streams", 2, "source").endswith("node.overlay.yaml, added[0].source")


@pytest.mark.parametrize("content", ["[", "added: 5", "what: 1", "changed: {b: {nonsense: 1}}"])
def test_a_broken_one_is_named(file: Path, content: str) -> None:
    """It is not passed over in silence."""
    (file.parent / "node.overlay.yaml").write_text(content)
    with pytest.raises(ConfigurationError, match=r"node\.overlay\.yaml"):
        load_configuration(file)


def test_an_unwritable_one_is_explained(tmp_path: Path, file: Path) -> None:
    """The change holds, but not over a restart."""
    file.write_text(TEXT + "overlay_file: no/such/folder/o.yaml\n")
    with pytest.raises(ConfigurationError, match="until the next restart only; name a file"):
        overlay(file).note_removed("a", configured=True)


def test_a_stream_may_take_the_place_of_a_configured_one(file: Path) -> None:
    """Else there would be two of its name at the next start."""
    changes = overlay(file)
    changes.note_added({**NEW, "id": "a"}, configured=True)
    document = load_configuration(file)
    assert ids(document) == ["b", "c", "a"]
    changes.note_removed("a", configured=True)
    assert ids(load_configuration(file)) == ["b", "c"]


def test_one_that_cannot_be_read_is_told_apart_from_a_broken_one(file: Path) -> None:
    """A folder in its place is not to be mended or deleted as a file."""
    (file.parent / "node.overlay.yaml").mkdir()
    with pytest.raises(ConfigurationError, match=r"node\.overlay\.yaml cannot be read: Is a dir"):
        load_configuration(file)


def test_a_stream_more_is_the_last_and_has_its_own_place(file: Path) -> None:
    """Messages about it say where it came from; those about the others do not change."""
    before = load_configuration(file)
    after = with_stream(before, parse_section(NEW, "the command"), "the command")
    assert ids(after) == ["a", "b", "c", "d"]
    assert ids(before) == ["a", "b", "c"]
    assert after.where("streams", 3, "budget") == "the command.budget"
    assert after.where("streams", 2) == before.where("streams", 2)
