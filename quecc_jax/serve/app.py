"""All that a server replies to, as one ASGI application over a backend that may come later."""

import functools
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from quecc_jax.generate.questions import Limits
from quecc_jax.serve.answers import Answers
from quecc_jax.serve.backend import Backend
from quecc_jax.serve.images import Images
from quecc_jax.serve.metrics import CONTENT_TYPE, Metrics
from quecc_jax.serve.openai.chat import Desk, chat
from quecc_jax.serve.openai.description import description
from quecc_jax.serve.openai.replies import Health, Model, Models
from quecc_jax.serve.web.bounds import Bounds, Room
from quecc_jax.serve.web.fetch import Fetcher
from quecc_jax.serve.web.guards import LEFT, Access, Gate
from quecc_jax.serve.web.refusals import Refused, refusal

WORDS = {
    404: "there is nothing here; see /openapi.json",
    405: "this address takes another method; see /openapi.json",
}


class Front:
    """What a server is, apart from its connections.

    Args:
      model: its name for clients.
      own: how answers are chosen where a request leaves it open.
      fetcher: gets images over http; None for none.
    """

    def __init__(
        self,
        model: str,
        own: Limits,
        bounds: Bounds | None = None,
        access: Access | None = None,
        fetcher: Fetcher | None = None,
    ):
        bounds = bounds or Bounds()
        self.bounds, self.access = bounds, access or Access()
        self.metrics = Metrics()
        self.answers = Answers(bounds.answer_seconds, self.metrics)
        images = Images(bounds, fetcher)
        self.desk = Desk(model, own, bounds, Room(bounds.held_bytes), images, self.answers)
        self._backend: Backend | None = None
        self._began = int(time.time())

    @property
    def backend(self) -> Backend:
        """Who answers.

        Raises:
          Refused: nobody yet.
        """
        if self._backend is None:
            raise Refused(503, "the model is still being loaded; ask again soon", code="loading", again=5)
        return self._backend

    def ready(self, backend: Backend) -> None:
        """From now on this backend answers."""
        self._backend = self.metrics.backend = backend

    def routes(self) -> list[Route]:
        """Of the API."""
        described = msgspec.json.encode(description(bool(self.access.keys)))

        async def openapi(request: Request) -> Response:
            return Response(described, media_type="application/json")

        return [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/healthz", self._healthz, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
        ]

    async def _chat(self, request: Request) -> Response:
        return await chat(request, self.desk, self.backend)

    async def _models(self, request: Request) -> Response:
        found = Models([Model(self.desk.model, self._began)])
        return Response(msgspec.json.encode(found), media_type="application/json")

    async def _healthz(self, request: Request) -> Response:
        loading, stopping = self._backend is None, self.answers.closing
        health = Health("stopping" if stopping else "loading" if loading else "ok")
        status = 503 if stopping or loading else 200
        return Response(msgspec.json.encode(health), status, media_type="application/json")

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def application(front: Front, pages: Sequence[Route] = ()) -> ASGIApp:
    """The API of a front, and pages beside it."""

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = WORDS.get(error.status_code, error.detail)
        return Refused(error.status_code, said, headers=error.headers).response()

    routes = [_answering(route) for route in (*front.routes(), *pages)]
    app = Starlette(routes=routes, exception_handlers={HTTPException: unknown})
    app.router.redirect_slashes = False
    return Gate(app, front.access, front.metrics, [route.path for route in routes])


def _answering(route: Route) -> Route:
    """A route whose exceptions are replies."""
    endpoint: Callable[[Request], Awaitable[Response]] = route.endpoint

    @functools.wraps(endpoint)
    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            # Nobody hears it.
            return Response(status_code=LEFT)
        except Exception as error:
            return refusal(error).response()

    methods = [method for method in route.methods or () if method != "HEAD"]
    return Route(route.path, guarded, methods=methods)
