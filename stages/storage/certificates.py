"""Whom HTTPS connections trust."""

import os
import ssl
from pathlib import Path

import httpx2

from stages.running.errors import InputError


def certificates(trusted: str | None = None, own: str | None = None) -> ssl.SSLContext | bool:
    """The certificates to trust and to show; True stands for the system's, or those that SSL_CERT_FILE names.

    Args:
        trusted: a file or directory of them; by default what the environment's REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE is.
        own: a file with the certificate, and its key, to show.

    Raises:
        InputError: they cannot be read.
    """
    trusted = trusted or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or None
    if trusted is None and own is None:
        return True
    try:
        if trusted is None:
            context = httpx2.create_ssl_context()
        elif Path(trusted).is_dir():
            context = ssl.create_default_context(capath=trusted)
        else:
            context = ssl.create_default_context(cafile=trusted)
        if own is not None:
            context.load_cert_chain(own)
    except OSError as error:  # ssl's errors are of this kind
        named = " or ".join(file for file in (trusted, own) if file is not None)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{named}: no certificates that can be used: {reason}") from None
    return context
