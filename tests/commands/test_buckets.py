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


@pytest.mark.parametrize(
    "address", ["http://a.example/c.png", "https://a.example/c.png", "ftp://a.example/c"]
)
@pytest.mark.parametrize(
    "line", ["generate --checkpoint run --question why --image {}", "generate --checkpoint {} --question why"]
)
def test_an_address_is_refused_as_what_it_is(address, line):
    with pytest.raises(UserError) as caught:
        command, *argv = line.format(address).split()
        execute(command, argv)
    assert f"{address} is an address" in str(caught.value) and "download" in str(caught.value)
    assert "gcloud" not in str(caught.value) and "bucket" not in str(caught.value)
