from __future__ import annotations

from pathlib import Path

import pytest

from streamexit.errors import DataError, InputError
from streamexit.governor.state_file import BEGINNING, StateFile


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """No file is no memory; a second file sees what the first wrote; nothing else is left behind."""
    path = tmp_path / "kept.json"
    assert StateFile(path).read() == {}
    StateFile(path).write({"a": {"trim": 0.25}})
    assert StateFile(path).read() == {"a": {"trim": 0.25}}
    assert [file.name for file in tmp_path.iterdir()] == ["kept.json"]


def test_unchanged_content_is_not_written_again(tmp_path: Path) -> None:
    """So that an SD card lives."""
    path = tmp_path / "kept.json"
    file = StateFile(path)
    file.write({"a": {}})
    path.unlink()
    file.write({"a": {}})
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    ["", BEGINNING, f'{BEGINNING}2","streams":{{}}}}', f'{BEGINNING}1"}}']
    + [f'{BEGINNING}1","streams":{streams}}}' for streams in ("[]", '{"a":1}', '{"a":')],
)
def test_a_damaged_file_can_be_set_aside(tmp_path: Path, content: str) -> None:
    """It is named, kept under another name, and the next run begins anew."""
    path = tmp_path / "kept.json"
    path.write_text(content)
    file = StateFile(path)
    with pytest.raises(DataError, match=r"state_file: .*kept\.json cannot be used"):
        file.read()
    assert file.set_aside().read_text() == content
    assert file.read() == {}


def test_somebody_elses_file_is_left_alone(tmp_path: Path) -> None:
    """A wrong path must not cost anybody a file, or a folder."""
    results = tmp_path / "results.jsonl"
    results.write_text('{"schema": "streamexit.result/1"}\n')
    with pytest.raises(InputError, match="another kind of file") as caught:
        StateFile(results).read()
    assert not isinstance(caught.value, DataError)
    with pytest.raises(InputError, match="cannot be read"):
        StateFile(tmp_path).read()
    assert [file.name for file in tmp_path.iterdir()] == ["results.jsonl"]


def test_a_folder_that_is_away_is_an_error_of_the_system(tmp_path: Path) -> None:
    """The caller says it; nothing is pretended."""
    with pytest.raises(OSError, match="away"):
        StateFile(tmp_path / "away" / "kept.json").write({})
