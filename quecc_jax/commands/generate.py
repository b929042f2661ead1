"""Answers one question: `python -m launch.generate --checkpoint RUN --image a.png --question TEXT`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from quecc_jax.commands.checks import check_file, refuse_unread
from quecc_jax.commands.generation_options import Answering
from quecc_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Answering):
    """Answers one question, about one or more images or about none."""

    checkpoint: Path
    """Directory of a trained run."""
    question: str
    """The question. Images come first, in order, unless it places each with `<image>`."""
    image: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Image that the question is about; repeat the option for several images."""
    explain: Annotated[Path | None, tyro.conf.arg(metavar="PNG")] = None
    """Plot the compressor's attention for this question beside that for --other-question."""
    other_question: str = "image"
    """The second question of --explain; `image` is what the compressor reads where no question is asked."""


def run(options: Options) -> None:
    """Prints the answer while it comes, and draws."""
    limits = options.limits()
    if options.explain is None:
        refuse_unread(options, ("other_question",), "goes with --explain; add it or leave this out")
    elif not options.image:
        raise UserError("--explain draws on an image; give one with --image")
    elif options.explain.suffix.lower() != ".png":
        raise UserError(f"--explain {options.explain}: a PNG is drawn; give a name that ends in .png")
    else:
        check_file("--explain", options.explain)
    # Imported late, so that --help and mistakes in the command line answer at once.
    import jax

    from quecc_jax.data.references import check_reference
    from quecc_jax.distributed import joined, notice
    from quecc_jax.generate.questions import Question
    from quecc_jax.load import load_engine

    with joined(preemption=False):
        engine = load_engine(
            options.checkpoint, options.mesh, options.visual_tokens, options.template, options.weights
        )
        for image in options.image:
            check_reference(str(image))
        images = tuple(engine.image(image) for image in options.image)
        question = Question(options.question, images)
        if options.explain is not None:
            from quecc_jax.evaluate.explain import explain, look

            look(engine, question)
        answers = engine.run([question], limits)
        first = jax.process_index() == 0
        for _, piece in answers:
            print(piece if first else "", end="", flush=True)
        print(end="\n" if first else "")
        if told := answers.usage[0].told():
            notice(told)
        if options.explain is not None:
            explain(engine, question, options.other_question, limits, options.explain)
