"""Serves a front from before its model is loaded until it is told to end."""

import webbrowser
from collections.abc import Callable

from quecc_jax.serve.app import Front, application
from quecc_jax.serve.backend import Backend
from quecc_jax.serve.chat_page import Page
from quecc_jax.serve.web.server import BoundedServer, address, listen, run


def serve(
    front: Front,
    page: Page | None,
    load: Callable[[], Backend],
    host: str,
    port: int,
    grace: float = 0.0,
    show: bool = False,
) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
      page: beside the API; None for the API alone.
      load: makes the backend, in a thread; until it is there, requests hear 503.
      port: 0 for a free one.
      grace: seconds that running answers may go on when the server is told to end.
      show: opens the page in the user's browser, where there is one.

    Raises:
      UserError: the address cannot be listened at, or as `load`.
      KeyboardInterrupt: by Ctrl-C.
    """
    listener = listen(host, port)

    def loaded() -> None:
        backend = load()
        if page is not None:
            page.check(backend)
        front.ready(backend)
        print(f"{where}  (Ctrl-C ends)", flush=True)
        if show:
            webbrowser.open(where)

    where = address(listener)
    app = application(front, page.routes() if page is not None else ())
    run(BoundedServer(app, front.bounds, loaded, lambda: front.answers.stop(grace)), listener)
