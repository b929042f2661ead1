"""What a run will read, as a person sees it: `python -m launch.inspect_data configs/NAME.py [--rows 10]`.

Takes the first batches that training would get and shows their rows on the terminal and in a page of its
own: pictures as the tower sees them, text with its visual slots, which tokens carry loss, each picture's
query, lengths, and where packed conversations meet. Any setting of the config may be overridden, as in
`launch.train`. --out names the page, --rows how many rows it shows.
"""

import sys
from pathlib import Path

from quecc_jax.commands.cli import parse_run
from quecc_jax.data.preview.page import page
from quecc_jax.data.preview.rows import Seen, look
from quecc_jax.data.preview.terminal import show
from quecc_jax.errors import UserError
from quecc_jax.paths import write_text


def main() -> None:
    """Parses the command line, prints the rows and writes the page."""
    argv, rows, out = _own_options(sys.argv[1:])
    config = parse_run(argv, "python -m launch.inspect_data")
    seen: Seen = look(config, rows)
    show(seen)
    write_text(out, page(seen))
    print(f"page: {out}")


def _own_options(argv: list[str]) -> tuple[list[str], int, Path]:
    """(the other arguments, rows to show, where the page goes)"""
    rest, rows, out = list[str](), 10, Path("runs/inspect_data.html")
    pending = iter(argv)
    for argument in pending:
        name, _, given = argument.partition("=")
        if name not in ("--rows", "--out"):
            rest.append(argument)
            continue
        given = given or next(pending, "")
        if name == "--rows" and not (given.isdigit() and int(given)):
            raise UserError(f"--rows {given or 'nothing'} is no number of rows; give one from 1 on")
        if name == "--out" and not given.endswith(".html"):
            raise UserError(f"--out {given or 'nothing'} is no page; give a path that ends in .html")
        rows, out = (int(given), out) if name == "--rows" else (rows, Path(given))
    if any(argument in ("-h", "--help") for argument in argv):
        print(__doc__)
    return rest, rows, out
