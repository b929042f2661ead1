"""What takes a place of this machine says so of one in a bucket; `Path` would make a folder gs: of it."""

import pytest

from quecc_jax.commands.cli import execute
from quecc_jax.errors import UserError


@pytest.mark.parametrize(
    "line",
    [
        "convert import --from weights --out gs://bucket/run",
        "convert import --from gs://bucket/weights --out run",
        "convert export --checkpoint gs://bucket/run --to weights",
        "generate --checkpoint gs://bucket/run --question why",
        "evaluate --checkpoint run --tasks pope --data eval --out gs://bucket/eval",
    ],
)
def test_a_place_in_a_bucket_is_refused_by_name(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--\w+ gs://bucket/\w+ lies in a bucket"):
        command, *argv = line.split()
        execute(command, argv)
    assert not list(tmp_path.iterdir())
