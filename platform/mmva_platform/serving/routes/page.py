"""The page itself and its files: no data in them, so they need no key; nothing from elsewhere, nothing inline."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

STATIC: Final = Path(__file__).parents[1] / "page"
# d3 places SVG through attributes and CSSOM, which a policy without 'unsafe-inline' allows.
PAGE_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> Response:
    """The page; from memory, because load balancers ask for it, too."""
    return HTMLResponse(_html(), headers=PAGE_HEADERS)


@cache
def _html() -> str:
    return (STATIC / "explorer.html").read_text(encoding="utf-8")


class _Files(StaticFiles):
    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """A file, with the page's headers."""
        answer = super().file_response(*arguments, **options)
        answer.headers.update(PAGE_HEADERS)
        return answer


PAGE: Final = _Files(directory=STATIC)
