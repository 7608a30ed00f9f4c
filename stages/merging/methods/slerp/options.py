"""Options of spherical interpolation."""

from typing import ClassVar, Literal

from stages.merging.options import MethodOptions


class Slerp(MethodOptions):
    """Options of spherical interpolation, for two models: none. λ says how far along the arc."""

    least_models: ClassVar[int] = 2
    most_models: ClassVar[int | None] = 2

    method: Literal["slerp"] = "slerp"
