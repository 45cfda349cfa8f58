"""A self-signed certificate for loopback, for servers that are tested with TLS."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .process import find


@dataclass(frozen=True, slots=True)
class Certificate:
    """`file` is the server's certificate, and what a client has to trust."""

    file: Path
    key: Path

    def trusted(self) -> ssl.SSLContext:
        """What a client needs to believe the server."""
        return ssl.create_default_context(cafile=self.file)


def make_certificate(folder: Path) -> Certificate:
    """Make one in this folder, good for `127.0.0.1` and `localhost`."""
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    command = [find("openssl"), "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    # Python 3.13 refuses an authority that does not say what its key is for.
    for extension in ("subjectAltName=DNS:localhost,IP:127.0.0.1", "keyUsage=critical,digitalSignature,keyCertSign"):
        command += ["-addext", extension]
    command += ["-keyout", str(made.key), "-out", str(made.file)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return made
