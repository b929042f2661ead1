"""Reports of `launch.compile_pod`, one file each; those that are there are not compiled again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from quecc_jax.errors import UserError

ROOT = Path(__file__).parent.parent


def report_of(work: Path, name: str, command: list[str]) -> dict[str, Any]:
    """What a command line, from `python` on, writes as its --json; what does not fit has a report too.

    Args:
      work: directory of the reports.
      name: of the report's file.

    Raises:
      UserError: the command ended without a report.
    """
    target = work / f"{name}.json"
    if not target.exists():
        ran = subprocess.run(
            [sys.executable, *command[1:], "--json", str(target)], cwd=ROOT, capture_output=True, text=True
        )
        if not target.exists():
            raise UserError(f"{name}: {ran.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(target.read_text())
    return found
