"""What a run will read, as a person sees it: `python -m launch.inspect_data configs/NAME.py [--rows 10]`."""

import dataclasses
from pathlib import Path

from quecc_jax.commands.checks import check_file
from quecc_jax.commands.options import RunSettings
from quecc_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Takes the first batches that training would get and shows their rows on the terminal and in a page of its
    own: images as the tower sees them, text with its visual slots, which tokens carry loss, each image's
    query, lengths, and where packed conversations meet. CONFIG.py gives the settings; options override them."""

    config: RunSettings
    rows: int = 10
    """How many rows to show."""
    page: Path = Path("runs/inspect_data.html")
    """The page to write."""


def run(options: Options) -> None:
    """Prints the rows and writes the page."""
    if options.rows < 1:
        raise UserError(f"--rows {options.rows} is no number of rows; give one from 1 on")
    if options.page.suffix != ".html":
        raise UserError(f"--page {options.page} is no page; give a path that ends in .html")
    if options.config.out.endswith(".html"):
        raise UserError(f"--out is the run's directory; say --page {options.config.out}")
    check_file("--page", options.page)
    # Imported late, so that --help and mistakes in the command line answer at once.
    from quecc_jax.data.preview.page import page
    from quecc_jax.data.preview.rows import look
    from quecc_jax.data.preview.terminal import show
    from quecc_jax.paths import write_text

    seen = look(options.config, options.rows)
    show(seen)
    write_text(options.page, page(seen))
    print(f"page: {options.page}")
