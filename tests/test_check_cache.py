"""DVC's cache against its own checksums."""

from hashlib import md5
from pathlib import Path

from stages.check_cache import remove_damaged


def test_what_differs_from_its_name_is_removed(tmp_path: Path) -> None:
    files = []
    for number, suffix in enumerate(("", ".dir", "")):
        content = f"content {number}".encode()
        name = md5(content).hexdigest()
        file = tmp_path / "files/md5" / name[:2] / (name[2:] + suffix)
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        files.append(file)
    unfinished = files[0].with_name("unfinished.tmp")
    unfinished.write_bytes(b"con")
    assert remove_damaged(tmp_path) == []
    files[1].write_bytes(b"contenT 1")
    files[2].write_bytes(b"")
    assert remove_damaged(tmp_path) == sorted(files[1:])
    assert [file for file in sorted(tmp_path.rglob("*")) if file.is_file()] == sorted([files[0], unfinished])
