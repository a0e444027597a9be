"""Routes as they are asked: the key is checked, the parameters are read by one validator, the function is called.

FastAPI declares the routes and writes the document of them. Asked through its own layers, a route without any work
took five times a bare one: each parameter is looked up, inspected and validated by itself, at each request. Here that
is made once, from the same signatures; tests hold the answers against the document.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic
from fastapi import Request, params
from fastapi.routing import APIRoute
from starlette.routing import Route, Router

from runlore import errors
from runlore.lookup.http import callers

PROJECT = "project"
ERRORS_TOLD_MAX = 3
_KINDS: tuple[tuple[type, str], ...] = (
    (params.Path, "path"),
    (params.Query, "query"),
    (params.Header, "header"),
)


def router(routes: Iterable[Any]) -> Router:
    """What answers these routes, in their order; the first that fits. Raises `errors.NotFound` where none does."""
    made = []
    for one in routes:
        assert isinstance(one, APIRoute), one
        route = Route(one.path, Endpoint(one.path, one.endpoint), methods=list(one.methods))
        # Without HEAD, which Starlette adds: a stream would be read for nothing.
        route.methods = set(one.methods)
        made.append(route)
    return Router(made, redirect_slashes=False, default=_nothing)


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    raise errors.NotFound("there is nothing here", hint="docs/HTTP.md lists the routes")


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """Where a parameter comes from, and what it is called there."""

    kind: str
    called: str


class Endpoint:
    """A route's function as an ASGI application."""

    def __init__(self, path: str, call: Any) -> None:
        self.path, self._call = path, call
        self._scope: str | None = None
        self._fixed: dict[str, Any] = {}
        self._parameters: dict[str, _Parameter] = {}
        fields: dict[str, Any] = {}
        for name, one in inspect.signature(call, eval_str=True).parameters.items():
            metadata = getattr(one.annotation, "__metadata__", ())
            if one.annotation is Request:
                continue
            if security := [told for told in metadata if isinstance(told, params.Security)]:
                self._scope = next(iter(security[0].scopes or ()), None)
                self._fixed[name] = None
                continue
            kind, told = _declared(metadata)
            called = told.alias or (name.replace("_", "-") if kind == "header" else name)
            self._parameters[name] = _Parameter(kind, called)
            fields[name] = (one.annotation, ... if one.default is inspect.Parameter.empty else one.default)
        self._paths, self._queries, self._headers = (
            {one.called: name for name, one in self._parameters.items() if one.kind == kind}
            for _, kind in _KINDS
        )
        settings = pydantic.ConfigDict(validate_by_name=True, loc_by_alias=False, extra="ignore")
        self._validator = pydantic.create_model(call.__name__, __config__=settings, **fields)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive, send)
        if self._scope is None:
            await self._answer(request, send)
            return
        # Before anything is read, and whatever else may be wrong with the request.
        try:
            project = callers.unquoted(scope["path_params"][PROJECT])
        except UnicodeDecodeError:
            raise errors.InvalidInput("the project is not UTF-8") from None
        await callers.check(request, project, self._scope)
        with callers.service_of(request).requests.entered(project):
            await self._answer(request, send)

    async def _answer(self, request: Request, send: Any) -> None:
        answer = await self._call(request=request, **self._fixed, **self.read(request))
        await answer(request.scope, request.receive, send)

    def read(self, request: Request) -> Mapping[str, Any]:
        """The parameters as the function takes them. Raises `errors.InvalidInput`."""
        scope = request.scope
        given: dict[str, Any] = {name: scope["path_params"][called] for called, name in self._paths.items()}
        if self._queries and scope["query_string"]:
            raw = scope["query_string"].decode("latin-1")
            for called, value in urllib.parse.parse_qsl(raw, keep_blank_values=True):
                if name := self._queries.get(called):
                    given[name] = value
        for called, name in self._headers.items():
            if (value := request.headers.get(called)) is not None:
                given[name] = value
        try:
            return vars(self._validator.model_validate(given))
        except pydantic.ValidationError as exc:
            # Their values are not told: one may be a secret.
            raise errors.InvalidInput("; ".join(self._told(exc))) from None

    def _told(self, exc: pydantic.ValidationError) -> list[str]:
        found = exc.errors(include_url=False, include_context=False, include_input=False)
        parameters = [self._parameters[str(one["loc"][0])] for one in found]
        return [
            f"{one.kind}.{one.called}: {error['msg']}"
            for one, error in list(zip(parameters, found, strict=True))[:ERRORS_TOLD_MAX]
        ]


def _declared(metadata: Iterable[Any]) -> tuple[str, Any]:
    for told in metadata:
        for kind, name in _KINDS:
            if isinstance(told, kind):
                return name, typing.cast("Any", told)
    raise TypeError("a parameter of a route says where it comes from: Path, Query or Header")
