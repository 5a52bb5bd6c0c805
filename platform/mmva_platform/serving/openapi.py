"""The API's description: FastAPI's, with the bodies that routes read by themselves, the key, and the errors of all."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mmva_platform.serving.gate import PUBLIC

_REF: Final = "#/components/schemas/{model}"
_ERRORS: Final = {
    "400": "not a request that can be understood",
    "401": "no valid key",
    "403": "the key lacks the scope, or the place is outside the roots",
    "404": "no such thing",
    "408": "the body did not arrive",
    "409": "in the way of something else",
    "413": "body too large, or too many items",
    "415": "a Content-Type that this route does not take",
    "422": "a body or parameter that is not as described",
    "429": "this key asks for too much now; see Retry-After",
    "503": "busy, or no model answers now; see Retry-After",
}
_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}


def takes(json_body: type[BaseModel], form: dict[str, Any] | None = None) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body itself.

    Args:
        json_body: The model of a JSON body; `describe` adds it to the components.
        form: Properties of a multipart form, if it takes one.
    """
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": _REF.format(model=json_body.__name__)}}}
    if form is not None:
        content["multipart/form-data"] = {"schema": {"type": "object", "properties": form}}
    return {"requestBody": {"required": True, "content": content}}


def describe(app: FastAPI, bodies: list[type[BaseModel]]) -> None:
    """Make the application's description, once, at its start."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, found = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF)
    components = schema.setdefault("components", {})
    components["schemas"] = {**found["$defs"], **components.get("schemas", {}), "Error": _ERROR}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    error = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if path in PUBLIC:
                continue
            operation["security"] = [{"key": []}]
            for status, text in _ERRORS.items():
                operation["responses"][status] = {"description": text, "content": error}
    app.openapi_schema = schema
