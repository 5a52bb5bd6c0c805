"""API keys with scopes. Only their SHA-256 is stored, and they are compared in constant time.

The middleware finds the caller before the body is read. Each route names its scope with `Needs`; the application does
not start if one does not.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as ASGIScope

from mmva.errors import UsageError
from mmva_platform.serving.errors import ApiError, answer_of
from mmva_platform.settings import Config, KeySettings, Scope, Settings, load_config

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S: Final = 2.0
_BASIC_METHODS: Final = frozenset({"GET", "HEAD"})
# Answered without a key: health, and the page, which holds no data and asks for a key.
PUBLIC: Final = frozenset({"/healthz", "/readyz", "/"})
_PUBLIC_FILES: Final = "/static/"
_FOR_BROWSERS: Final = ("/docs", "/openapi.json")


@dataclass(frozen=True)
class Caller:
    """The sender of a request."""

    name: str
    scopes: frozenset[Scope]


class KeysFile(Config):
    """The YAML file of keys that `mmva serve --new-key` writes."""

    keys: tuple[KeySettings, ...] = ()


class Keyring:
    """The keys of the settings and of a file, which is read again when it changes: revoking needs no restart."""

    def __init__(self, keys: Sequence[KeySettings], file: Path | None = None) -> None:
        self._fixed, self._file = tuple(keys), file
        self._keys, self._stamp, self._looked = self._fixed, (0, 0), -_LOOK_AGAIN_S
        self._lock = threading.Lock()

    def find(self, authorization: str, method: str) -> Caller | None:
        """The owner of the key in an Authorization header; None if it is not valid.

        Programs use Bearer. Basic, with the key as password, lets a browser open pages; only GET and HEAD accept it,
        because browsers also send it with requests from other sites.
        """
        secret = _secret(authorization, method)
        if secret is None:
            return None
        presented = hashlib.sha256(secret.encode()).hexdigest()
        found = None
        for key in self._current():  # compare all, so that the time does not reveal which one matched
            if hmac.compare_digest(presented, key.sha256):
                found = Caller(key.name, frozenset(key.scopes))
        return found

    def _current(self) -> tuple[KeySettings, ...]:
        if self._file is not None and monotonic() - self._looked > _LOOK_AGAIN_S:
            with self._lock:
                self._looked = monotonic()
                self._read(self._file)
        return self._keys

    def _read(self, file: Path) -> None:
        try:
            stat = file.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            if stamp != self._stamp:
                self._keys = (*self._fixed, *load_config(KeysFile, file).keys)
                self._stamp = stamp
        except FileNotFoundError:
            self._keys, self._stamp = self._fixed, (0, 0)
        except (OSError, UsageError) as error:
            logger.warning("API keys: using the previous ones: %s", error)


def keys_file(settings: Settings) -> Path:
    """The file of keys."""
    return settings.serving.keys_file or settings.home.resolve() / "serving" / "keys.yaml"


class Needs(HTTPBearer):
    """A dependency: requires a scope of the caller's key; `admin` includes all. In OpenAPI it is a bearer token."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(scheme_name="key")
        self.scope: Final = scope

    async def __call__(self, request: Request) -> Caller:  # type: ignore[override] # the caller, not the header
        """The caller. Raises ApiError 403 if the key lacks the scope."""
        caller: Caller = request.state.caller  # set by the middleware, which every request has passed
        if not caller.scopes & {self.scope, "admin"}:
            raise ApiError(403, "forbidden", f"this key does not have the scope {self.scope!r}")
        return caller


READ: Final = Needs("read")
ANNOTATE: Final = Needs("annotate")


class Authentication:
    """Middleware: answers 401 unless the path is public or the request has a valid key."""

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self._app, self._keyring = app, keyring

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Find the caller, or refuse, without reading the body."""
        path = route_path(scope)
        if scope["type"] == "http" and not _is_public(path):
            caller = self._keyring.find(Headers(scope=scope).get("authorization", ""), scope["method"])
            if caller is None:
                await answer_of(_unauthorized(path))(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)


def route_path(scope: ASGIScope) -> str:
    """A request's path below the application's route_prefix."""
    path, root = str(scope.get("path", "")), str(scope.get("root_path", "")).rstrip("/")
    inside = path == root or path.startswith(f"{root}/")
    return (path[len(root) :] or "/") if root and inside else path


def refuse_open_routes(routers: Iterable[APIRouter]) -> None:
    """Raises AssertionError if a route neither names a scope nor is public, which would be our mistake."""
    for route in (route for router in routers for route in router.routes):
        assert isinstance(route, APIRoute), f"{route} is not a route that could name a scope"
        scoped = any(isinstance(dependency.call, Needs) for dependency in route.dependant.dependencies)
        assert scoped or route.path in PUBLIC, f"{route.path} names no scope"


def _is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith(_PUBLIC_FILES)


def _unauthorized(path: str) -> ApiError:
    browser = path.startswith(_FOR_BROWSERS)  # on other paths the browser's own dialog would cover the page's
    headers = {"WWW-Authenticate": 'Basic realm="mmva"' if browser else "Bearer"}
    return ApiError(401, "unauthorized", "send a valid key as 'Authorization: Bearer KEY'", headers=headers)


def _secret(authorization: str, method: str) -> str | None:
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic" and method in _BASIC_METHODS:
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None
