"""`make share DIR=… GROUP=…`: make a directory one that a group can have as its DVC remote or cache, and mend it.

DVC gives what it makes there the modes that its user's umask leaves, so that with most people's only the first could
write. Here every directory belongs to the group, passes that on, and has a default access control list (acl(5)), which
takes the umask's place. DVC makes its directories, `files/md5/00` to `ff`, with modes of its own: they are made before.
No stage of the pipeline.
"""

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from grp import getgrnam
from pathlib import Path

from stages.running.command import run_stage
from stages.running.errors import InputError

PREFIXES = [f"{place}/{number:02x}" for place in ("files/md5", "runs") for number in range(256)]
DEFAULT_ACL = "system.posix_acl_default"
NOT_SUPPORTED = (errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def share(directory: str, group: str) -> None:
    """Make the directory, if it is not there, and let the group write in all of it that is this user's.

    Args:
        directory: where a remote or a cache is, or will be.
        group: a name or a number.

    Raises:
        InputError: there is no such group, this user cannot give things to it, or some things are other users'.
    """
    number = _group_number(group)
    root = Path(directory).expanduser().absolute()
    root.mkdir(parents=True, exist_ok=True)
    if not open_to(root, number):
        raise InputError(
            f"{root}: its owner, {_owner(root)}, as a member of the group {group}, has to give it to the group"
        )
    for prefix in PREFIXES:
        (root / prefix).mkdir(parents=True, exist_ok=True)
    closed = [entry for entry in _entries(root) if not open_to(entry, number)]
    if closed:
        owners = sorted({_owner(entry) for entry in closed})
        raise InputError(
            f"{root}: {len(closed)} things in it, {closed[0]} for example, are closed to the group and belong to "
            f"{', '.join(owners)}; they have to run `make share DIR={directory} GROUP={group}` too"
        )
    print(f"{root}: everybody in the group {group} can read it and write in it")
    if not _has_default_acl(root):
        print("this file system has no default ACLs: put `umask 002` into everybody's ~/.profile")


def open_to(entry: Path, group: int) -> bool:
    """Let the group read a file, or write in a directory and pass that on; returns whether it can now.

    Everybody else's permissions stay as they are.
    """
    wanted = stat.S_ISGID | stat.S_IRWXG if entry.is_dir() else stat.S_IRGRP
    status = entry.stat()
    with suppress(PermissionError):  # somebody else's
        if status.st_gid != group:
            os.chown(entry, -1, group)
        if status.st_mode & wanted != wanted:
            entry.chmod(stat.S_IMODE(status.st_mode) | wanted)
        if entry.is_dir():
            _set_default_acl(entry)
    status = entry.stat()
    return status.st_gid == group and status.st_mode & wanted == wanted


def _set_default_acl(directory: Path) -> None:
    """Give what is made in a directory the directory's own permissions, whatever the umask, if that is possible."""
    mode = directory.stat().st_mode
    owner, group, other = 0x01, 0x04, 0x20  # tags of linux/posix_acl.h; the version is 2, and no entry has an id
    entries = ((owner, 7), (group, 7), (other, mode & 7))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, rights, 0xFFFFFFFF) for tag, rights in entries)
    if hasattr(os, "setxattr"):  # on Linux
        try:
            os.setxattr(directory, DEFAULT_ACL, acl)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise


def _has_default_acl(directory: Path) -> bool:
    with suppress(OSError, AttributeError):
        return bool(os.getxattr(directory, DEFAULT_ACL))
    return False


def _entries(root: Path) -> Iterator[Path]:
    """The directory and all that is in it, but for links, which are others' affair."""
    yield root
    for folder, names, files in os.walk(root):
        yield from (path for name in (*names, *files) if not (path := Path(folder, name)).is_symlink())


def _group_number(group: str) -> int:
    if group.isdecimal():
        return int(group)
    try:
        return getgrnam(group).gr_gid
    except KeyError:
        raise InputError(f"{group}: there is no such group; `id -Gn` says which are yours") from None


def _owner(entry: Path) -> str:
    try:
        return entry.owner()
    except KeyError:  # of another machine
        return str(entry.stat().st_uid)


if __name__ == "__main__":
    run_stage(share, "dir", "group")
