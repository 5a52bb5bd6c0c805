"""What a route asks of its caller. A route names a scope or is public by name; app.py refuses to start otherwise."""

from __future__ import annotations

from typing import Final

from fastapi import Request

from mmva_platform.serving.keys import Caller
from mmva_platform.serving.services import ApiError, Services
from mmva_platform.settings import Scope


class Needs:
    """A dependency: the caller's key has a scope; `admin` has all of them."""

    def __init__(self, scope: Scope) -> None:
        self.scope: Final = scope

    def __call__(self, request: Request) -> Caller:
        """The caller. ApiError 403 if the key may not."""
        caller: Caller = request.state.caller  # the gate put it there, or the request never came this far
        if not caller.scopes & {self.scope, "admin"}:
            raise ApiError(403, "forbidden", f"this key does not have the scope {self.scope!r}")
        return caller


READ: Final = Needs("read")
ANNOTATE: Final = Needs("annotate")
ADMIN: Final = Needs("admin")


def services_of(request: Request) -> Services:
    """What the application was built with."""
    services: Services = request.app.state.services
    return services
