"""Sizes of files, as people write them."""

import re

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def bytes_of(size: str | int) -> int:
    """A number of bytes, given as such or as for example `5GB` (10⁹ bytes each, as Hugging Face counts).

    Raises:
        ValueError: it is no such size, or not positive.
    """
    found = re.fullmatch(r"([0-9]+)(KB|MB|GB|TB|)", str(size))
    if not found or int(found[1]) == 0:
        raise ValueError(f"{size!r} is no size; give bytes, or for example 500MB or 5GB")
    return int(found[1]) * _UNITS[found[2]]
