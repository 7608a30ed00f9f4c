"""The errors of an estimation: what cannot be used, and the part of a model that stands in the way."""


class CurvatureError(ValueError):
    """A model, a batch or an argument cannot be used; the message says which, and why."""


class UnsupportedModelError(CurvatureError):
    """No exact Fisher can be had from the model; the message names the part that stands in the way."""
