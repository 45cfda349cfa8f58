"""Credentials as the administrators of a NATS server make them: nkeys, and accounts signed by an operator."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import nkeys


def nkey_user(folder: Path) -> tuple[str, Path]:
    """The public key of a user, and the file with its seed."""
    pair = _pair(nkeys.PREFIX_BYTE_USER)
    path = folder / "user.nk"
    path.write_bytes(pair.seed)
    return _public(pair), path


def operator_mode() -> tuple[list[str], Any]:
    """Lines of a server's configuration that trust an operator, and the keys of its one account beside the system's."""
    operator, account, system = _pair(nkeys.PREFIX_BYTE_OPERATOR), *(_pair(nkeys.PREFIX_BYTE_ACCOUNT) for _ in "ab")
    unbounded = dict.fromkeys(("subs", "conn", "leaf", "imports", "exports", "data", "payload"), -1)
    stored = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    lines = [
        f"operator: {_signed(operator, operator, {'type': 'operator'})}",
        f"system_account: {_public(system)}",
        "resolver: MEMORY",
        "resolver_preload: {",
        f"  {_public(account)}: {_signed(operator, account, {'type': 'account', 'limits': {**unbounded, **stored}})}",
        f"  {_public(system)}: {_signed(operator, system, {'type': 'account', 'limits': unbounded})}",
        "}",
    ]
    return lines, account


def creds_file(folder: Path, account: Any) -> Path:
    """The file a user of this account logs in with."""
    user = _pair(nkeys.PREFIX_BYTE_USER)
    claims = _signed(account, user, {"type": "user", "subs": -1, "data": -1, "payload": -1})
    path = folder / "user.creds"
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{claims}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    return path


def _pair(kind: int) -> Any:
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), kind))


def _public(pair: Any) -> str:
    return str(pair.public_key.decode())


def _signed(issuer: Any, subject: Any, about: dict[str, Any]) -> str:
    claims = {
        "jti": os.urandom(8).hex(),
        "iat": int(time.time()),
        "iss": _public(issuer),
        "name": "test",
        "sub": _public(subject),
        "nats": {**about, "version": 2},
    }
    text = ".".join(_encoded(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, claims))
    return f"{text}.{_encoded(issuer.sign(text.encode()))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
