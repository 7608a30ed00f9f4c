"""The error that says which part of a model stands in the way."""


class UnsupportedModelError(ValueError):
    """No exact Fisher can be had from the model; the message names the part that stands in the way."""
