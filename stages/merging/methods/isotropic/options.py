"""Options of plain averaging."""

from typing import Literal

from stages.merging.options import MethodOptions


class Isotropic(MethodOptions):
    """Options of the isotropic merge: none. Every parameter weighs alike."""

    method: Literal["isotropic"] = "isotropic"
