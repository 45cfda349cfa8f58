"""The HTTP API of the management plugin, asked and told."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

from ...errors import AuthenticationError, ConnectError

TIMEOUT: Final = 5.0  # seconds for an answer

_RIGHTS: Final = {
    "Not management user": "give this user the tag management",
    "Not monitor user": "give this user the tag monitoring",
    "User not authorised to access virtual host": "give this user permissions in it (rabbitmqctl set_permissions)",
    "User not authorised to access object": "give this user the tag policymaker",
}


class ManagementApi:
    """Where it is, and who asks. Its statistics are some seconds old."""

    def __init__(self, url: str, vhost: str, user: str, password: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        user, password = unquote(parts.username or user), unquote(parts.password or password)
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._token = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.vhost = quote(vhost, safe="")

    async def get(self, path: str) -> Any:
        """Raises ConnectError, AuthenticationError; LookupError for what is not there."""
        return await self._asked("GET", path)

    async def put(self, path: str, body: Any) -> None:
        """Raises ConnectError, AuthenticationError."""
        await self._asked("PUT", path, json.dumps(body).encode())

    async def delete(self, path: str) -> None:
        """What is not there is gone. Raises ConnectError, AuthenticationError."""
        try:
            await self._asked("DELETE", path)
        except LookupError:
            pass

    async def _asked(self, method: str, path: str, body: bytes | None = None) -> Any:
        try:
            async with asyncio.timeout(TIMEOUT):  # a server that sends a byte now and then counts as silent
                return await asyncio.to_thread(self._ask, method, path, body)
        except TimeoutError:
            raise ConnectError(self.url, f"no answer within {TIMEOUT:g} s") from None

    def _ask(self, method: str, path: str, body: bytes | None) -> Any:
        headers = {"Authorization": f"Basic {self._token}", "Content-Type": "application/json"}
        request = Request(f"{self.url}/api/{path}", data=body, headers=headers, method=method)
        try:
            with urlopen(request, timeout=TIMEOUT) as answer:
                said = answer.read()
                return json.loads(said) if said else None
        except HTTPError as error:
            if error.code == 404:
                raise LookupError(path) from None
            raise self._refused(error) from None
        except TimeoutError:
            raise ConnectError(self.url, f"no answer within {TIMEOUT:g} s") from None
        except (URLError, OSError) as error:
            raise ConnectError(self.url, str(getattr(error, "reason", error))) from None

    def _refused(self, error: HTTPError) -> ConnectError:
        try:
            reason = str(json.load(error)["reason"])
        except (ValueError, LookupError, TypeError):
            reason = str(error.reason)
        if error.code not in (401, 403):
            return ConnectError(self.url, f"{error.code} {reason}")
        return AuthenticationError(self.url, f"{reason}: {_RIGHTS[reason]}" if reason in _RIGHTS else reason)
