"""Talks about images: `python -m launch.chat --checkpoint RUN`, or with `--web` in the browser."""

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from quecc_jax.commands.checks import check_least, refuse_unread
from quecc_jax.commands.generation_options import Answering
from quecc_jax.data.references import check_reference
from quecc_jax.errors import UserError

if TYPE_CHECKING:
    from quecc_jax.generate.engine import Engine
    from quecc_jax.generate.questions import Limits, ReadImage, Usage

HELP = """\
/image FILE   begin a new conversation about an image
/add FILE     a further image, before the first question
/reset        begin anew, with the same images
/help         this list
/quit         leave (so does Ctrl-D)
Anything else is said to the model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Answering):
    """Holds a conversation about images, in the terminal or in the browser."""

    checkpoint: Path
    """Directory of a trained run."""
    image: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Image to start the conversation with; the page of --web is shown with it."""
    query: Literal["own", "latest"] = "own"
    """Question that the compressor reads: `own`, that of the turn that shows the image, as in training.
    Or `latest`, for which the image is compressed again at every turn."""
    web: bool = False
    """Serve a web page instead of chatting in the terminal."""
    suggest: Annotated[tuple[str, ...], tyro.conf.arg(metavar="QUESTION")] = ()
    """Questions that the page of --web offers to click."""
    open: bool = False
    """Open the page of --web in the browser."""
    host: str = "127.0.0.1"
    """Address that --web listens on; any other than this machine's own opens it to the network."""
    port: int = 7860
    """Port that --web listens on; 0 picks a free one."""
    max_upload_mb: float = 10.0
    """Largest image file that --web accepts, in megabytes."""
    max_pixels: int = 25_000_000
    """Largest image that --web accepts, in pixels."""


class Chat:
    """A conversation with an engine: what was said about which images."""

    def __init__(self, engine: "Engine", limits: "Limits", query: Literal["own", "latest"]):
        self.engine, self.limits, self.query = engine, limits, query
        self.images: tuple[ReadImage, ...] = ()
        self.history: tuple[str, ...] = ()
        self.usage: Usage | None = None
        """Of the newest answer."""

    def ask(self, text: str) -> Iterator[str]:
        """Pieces of the answer; the turn counts once they are complete.

        Raises:
          UserError: the question does not fit, in this process or another.
        """
        from quecc_jax.generate.questions import Question
        from quecc_jax.groups import together

        question = Question(text, self.images, self.history, self.query)
        run = together(lambda: self.engine.run([question], self.limits))
        for _, piece in run:
            yield piece
        self.usage = run.usage[0]
        self.history = (*self.history, text, run.texts()[0])


def describe(usage: "Usage") -> str:
    """One line about what an answer took."""
    after = usage.seconds - usage.first_token_seconds
    more = usage.new_tokens > 1 and after > 0
    rate = f", then {(usage.new_tokens - 1) / after:.1f} tokens/s" if more else ""
    told = f"; {usage.told()}" if usage.told() else ""
    return (
        f"{usage.new_tokens} tokens after {usage.prompt_tokens} ({usage.visual_tokens} visual); "
        f"first after {usage.first_token_seconds:.2f} s{rate}{told}"
    )


def command(line: str, talk: Chat) -> str | None:
    """Carries out a line that begins with a slash, in all processes or in none; what to print, or None to leave.

    Raises:
      UserError: an unknown command, or an image that cannot be read or has no room.
    """
    from quecc_jax.groups import together

    before = talk.images, talk.history
    try:
        return together(lambda: _command(line, talk))
    except UserError:
        talk.images, talk.history = before
        raise


def _command(line: str, talk: Chat) -> str | None:
    name, _, rest = line.partition(" ")
    file = rest.strip().strip("'\"")
    if name in ("/quit", "/exit"):
        return None
    if name == "/help":
        return HELP
    if name == "/reset":
        talk.history = ()
        return "a new conversation" + (" about the same images" if talk.images else "")
    if name not in ("/image", "/add"):
        raise UserError(f"{name} is not a command; /help lists them")
    if not file:
        raise UserError(f"{name} needs a file, as in {name} image.png")
    if name == "/add" and talk.history:
        raise UserError("the conversation has begun; /image begins another, /reset begins anew")
    room = talk.engine.config.data.images_per_row
    if name == "/add" and len(talk.images) >= room > 0:
        raise UserError(f"the model was trained with at most {room} images a question; /image replaces them")
    check_reference(file)
    image = talk.engine.image(Path(file).expanduser())
    talk.images = (*talk.images, image) if name == "/add" else (image,)
    talk.history = ()
    return f"{file} is image {len(talk.images)}; ask about it"


def read_first(read: Callable[[str], str]) -> str | None:
    """What the first process reads, in all of them; None at the end of input."""
    import jax

    from quecc_jax.groups import gathered

    line = None
    if jax.process_index() == 0:
        with contextlib.suppress(EOFError):
            line = read("> ").strip()
    return gathered(line)[0]


def chat(talk: Chat, read: Callable[[str], str] = input) -> None:
    """Reads lines until the end of input; a mistake is said and the conversation goes on."""
    import jax

    while True:
        if (line := read_first(read)) is None:
            print()
            return
        if not line:
            continue
        try:
            if line.startswith("/"):
                if (said := command(line, talk)) is None:
                    return
                print(said)
                continue
            for piece in talk.ask(line):
                print(piece, end="", flush=True)
            print()
            assert talk.usage is not None
            print(f"[{describe(talk.usage)}]", file=sys.stderr)
        except UserError as error:
            more = "; /reset begins anew" if talk.history and not line.startswith("/") else ""
            print(f"error: {error}{more}", file=sys.stderr)
        except KeyboardInterrupt:
            if jax.process_count() > 1:
                # The others go on with this answer.
                raise
            print("\ninterrupted; what was said of this turn is forgotten", file=sys.stderr)


def run(options: Options) -> None:
    """Talks, in the terminal or in a page."""
    limits = options.limits()
    check(options)
    # Imported late, so that --help and mistakes in the command line answer at once.
    import jax

    from quecc_jax.distributed import joined

    with joined(preemption=False), contextlib.ExitStack() as stack:
        if options.web and jax.process_count() > 1:
            raise UserError(
                f"--web answers on the devices of one process, and {jax.process_count()} are here; start one "
                "alone, or leave it out"
            )
        if jax.process_index():
            # All say the same; the first is heard.
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        talk_or_serve(options, limits)


def talk_or_serve(options: Options, limits: "Limits") -> None:
    """Loads the model, and talks until the end of input or serves the page."""
    from quecc_jax.load import load_engine

    def engine() -> "Engine":
        return load_engine(
            options.checkpoint, options.mesh, options.visual_tokens, options.template, options.weights
        )

    if options.web:
        serve_page(options, limits, engine)
        return
    talk = Chat(engine(), limits, options.query)
    if options.image is not None:
        print(command(f"/image {options.image}", talk))
    print("Ask something; /help lists the commands.")
    chat(talk)


def serve_page(options: Options, limits: "Limits", engine: "Callable[[], Engine]") -> None:
    """Serves the page until Ctrl-C, from before the model is loaded."""
    from quecc_jax.serve.app import Front
    from quecc_jax.serve.chat_page import Page
    from quecc_jax.serve.own_backend import own_backend
    from quecc_jax.serve.run import serve
    from quecc_jax.serve.web.bounds import Bounds
    from quecc_jax.serve.web.guards import Access

    bounds = Bounds(image_bytes=int(options.max_upload_mb * 1e6), pixels=options.max_pixels)
    front = Front(options.checkpoint.name, limits, bounds, Access((options.host,)))
    page = Page(front, options.query, first_image(options), options.suggest)
    longest = max(1024, limits.max_new_tokens)
    serve(
        front,
        page,
        lambda: own_backend(engine(), longest_answer=longest),
        options.host,
        options.port,
        show=options.open,
    )


def first_image(options: Options) -> bytes:
    """The file of --image, for the page; nothing without.

    Raises:
      UserError: it cannot be read.
    """
    if options.image is None:
        return b""
    check_reference(str(options.image))
    try:
        return options.image.expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"image {options.image} cannot be read ({error.strerror})") from None


def check(options: Options) -> None:
    """Numbers out of range and options that would do nothing are mistakes."""
    if not options.web:
        names = ("host", "port", "max_upload_mb", "max_pixels", "suggest", "open")
        refuse_unread(options, names, "goes with --web; add it or leave this out")
        return
    if not 1 <= options.max_upload_mb * 1e6 < math.inf:
        raise UserError(f"--max-upload-mb is {options.max_upload_mb:g}; give a positive size")
    check_least(options, {"max_pixels": 1})
