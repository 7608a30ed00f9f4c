from pathlib import Path

import pytest

from stages.running.errors import InputError
from stages.storage.digests import CONTENTS, verify_contents, write_contents


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "heads").mkdir()
    (tmp_path / "card.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    (tmp_path / "heads/books.safetensors").write_bytes(bytes(3_000_000))
    write_contents(tmp_path, besides="model*.safetensors")
    return tmp_path


def test_what_is_as_it_was_written_passes(directory: Path) -> None:
    verify_contents(directory)
    verify_contents(directory, ["card.json"])
    write_contents(directory, besides="model*.safetensors")  # does not list itself
    verify_contents(directory)


@pytest.mark.parametrize("name", ["card.json", "heads/books.safetensors"])
def test_a_flipped_bit_is_refused(directory: Path, name: str) -> None:
    content = bytearray((directory / name).read_bytes())
    content[-1] ^= 1
    (directory / name).write_bytes(content)
    for names in (None, [name]):
        with pytest.raises(InputError, match=rf"{name}: its contents are not .*; make or fetch .* again"):
            verify_contents(directory, names)
    verify_contents(directory, {"card.json", "heads/books.safetensors"} - {name})


def test_what_has_a_fingerprint_elsewhere_is_left_to_its_reader(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"x")
    verify_contents(directory)
    (directory / "foreign.json").write_text("{}")
    verify_contents(directory)
    with pytest.raises(InputError, match=r"foreign\.json"):
        verify_contents(directory, ["foreign.json"])


def test_a_foreign_directory_has_nothing_to_compare(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text("{}")
    verify_contents(tmp_path, ["card.json"])


def test_a_damaged_list_is_refused(directory: Path) -> None:
    for content, message in (("{", "not valid JSON"), ('{"files": 3}', "lists no files")):
        (directory / CONTENTS).write_text(content)
        with pytest.raises(InputError, match=message):
            verify_contents(directory)
