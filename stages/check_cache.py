"""`make check-cache`: compare every file in DVC's cache with its name, which is its MD5, and remove those that differ.

DVC takes a read-only file in its cache for what it was when it was written, and so would hand on what a disk has
damaged. What is removed here, `dvc repro` makes again; `dvc repro --pull` takes it from the remote.
"""

from hashlib import md5
from pathlib import Path

from stages.pipeline.client import dvc
from stages.running.command import run_stage

BLOCK = 1 << 20


def check_cache() -> None:
    """Check the cache that the project uses, and say what is gone."""
    damaged = remove_damaged(Path(dvc("cache", "dir").strip()))
    for file in damaged:
        print(f"removed: {file}")
    print(
        f"{len(damaged)} damaged; now run `dvc repro`, with --pull if there is a remote" if damaged else "all is well"
    )


def remove_damaged(cache: Path) -> list[Path]:
    """Remove files whose contents do not belong to their names; returns which."""
    damaged = []
    for file in sorted((cache / "files/md5").glob("??/*")):
        name = file.parent.name + file.name.removesuffix(".dir")
        if len(name) == md5().digest_size * 2 and _md5(file) != name:  # others are not finished yet
            file.unlink()
            damaged.append(file)
    return damaged


def _md5(path: Path) -> str:
    digest = md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    run_stage(check_cache)
