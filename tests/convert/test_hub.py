"""Models of the Hub in and out, against a stand-in for it on this machine (`tests.hub`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save

from quecc_jax.commands.convert import Export, Import, run
from quecc_jax.convert.hub import check_push, locate
from quecc_jax.convert.sidecar_files import kept_origins
from quecc_jax.errors import UserError
from quecc_jax.records import write_record
from tests.convert.test_published import tensors, told
from tests.hub import COMMITS, TOKEN, Hub, stand_in

NAME = "maker/mini"


def published() -> dict[str, bytes]:
    """A repository: weights and tower, and much that is not read."""
    config = told("m3")["config.json"]
    held = save(tensors("m3"))
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": held,
        "pytorch_model.bin": b"pickle",
        "optimizer.pt": b"pickle",
        ".gitattributes": b"",
        "README.md": b"of the maker",
        "images/demo.json": b"{}",
    }


def tower() -> dict[str, bytes]:
    within = "model.vision_tower.vision_tower."
    held = {k.removeprefix(within): v for k, v in tensors("m3").items() if k.startswith(within)}
    return {
        "config.json": json.dumps(told("m3")["clip/config.json"]).encode(),
        "model.safetensors": save(held),
        "tf_model.h5": b"other",
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with stand_in() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.chdir(tmp_path)
        server.repositories |= {
            NAME: {"main": published(), "old": published()},
            "maker/clip": {"main": tower()},
        }
        yield server


def test_a_model_of_the_hub_comes_in_pinned_and_only_what_is_read_is_fetched(hub, tmp_path, capsys):
    run(Import(Path(NAME), tmp_path / "run", vision=Path("maker/clip")))
    assert hub.fetched() == {"config.json", "model.safetensors", "README.md"}
    origins = {"model": f"{NAME}@{COMMITS['main']}", "vision": f"maker/clip@{COMMITS['main']}"}
    assert kept_origins(tmp_path / "run") == origins
    said = capsys.readouterr().out
    assert f"model: {NAME}@{COMMITS['main']}" in said and "visual tokens: 576 of an image" in said


def test_a_revision_is_the_one_that_is_named_and_stays_it(hub, tmp_path):
    found = locate(Path(f"{NAME}@old"), "--from")
    assert found.origin == f"{NAME}@{COMMITS['old']}" and found.path.name == COMMITS["old"]
    again = locate(Path(found.origin), "--from")
    assert again == found


def test_offline_the_cache_answers_and_nobody_is_asked(hub, monkeypatch):
    online = locate(Path(NAME), "--from")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert locate(Path(NAME), "--from") == online
    with pytest.raises(
        UserError, match="maker/clip is no path here and not in the Hub's cache, and HF_HUB_OFFLINE"
    ):
        locate(Path("maker/clip"), "--vision")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE says not to ask"):
        check_push("me/new")
    assert not hub.asked


def test_a_path_counts_before_the_hub_and_with_a_revision_it_is_asked_which(hub):
    Path(NAME).mkdir(parents=True)
    assert locate(Path(NAME), "--from").path == Path(NAME)
    with pytest.raises(UserError, match=f"names a revision, but {NAME} is a folder here; give ./{NAME}"):
        locate(Path(f"{NAME}@main"), "--from")
    assert locate(Path("one"), "--from").path == Path("one")
    for path in ("../a/b", "a/b/c", "/a/b", "stage/mm_projector.bin", "a/b.gguf"):
        assert locate(Path(path), "--from").path == Path(path)
    with pytest.raises(
        UserError, match=r"maker/clip is not there, though maker is; .* or maker/clip@main for the Hub's"
    ):
        locate(Path("maker/clip"), "--from")
    assert not [line for line in hub.asked if NAME in line]


def pickles(hub: Hub) -> None:
    for revision in hub.repositories[NAME].values():
        del revision["model.safetensors"]


def adapter(hub: Hub) -> None:
    hub.repositories[NAME]["main"]["adapter_config.json"] = b"{}"


def two(hub: Hub) -> None:
    hub.repositories[NAME]["main"]["extra.safetensors"] = b""


@pytest.mark.parametrize(
    "name, change, said",
    [
        (
            "maker/none",
            lambda hub: None,
            "maker/none is no path here and no model of the Hub that may be read",
        ),
        (f"{NAME}@lost", lambda hub: None, "has no revision lost"),
        (NAME, lambda hub: hub.gated.add(NAME), "is gated; accept its terms"),
        (NAME, pickles, "has its weights as pickles alone .pytorch_model.bin.; add --allow-pickle"),
        (NAME, adapter, f"{NAME} holds an adapter .adapter_config.json."),
        (NAME, two, f"{NAME} holds extra.safetensors beside model.safetensors"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_sentence_before_weights_are_fetched(hub, name, change, said):
    change(hub)
    with pytest.raises(UserError, match=said) as error:
        locate(Path(name), "--from")
    assert "\n" not in str(error.value)
    assert not hub.fetched() & {"model.safetensors", "pytorch_model.bin"}


def test_pickles_are_fetched_on_demand_and_an_adapter_brings_its_own_files(hub):
    pickles(hub)
    assert (locate(Path(NAME), "--from", allow_pickle=True).path / "pytorch_model.bin").is_file()
    hub.repositories["maker/lora"] = {
        "main": {
            "adapter_config.json": b"{}",
            "adapter_model.safetensors": b"",
            "adapter_model.bin": b"",
            "non_lora_trainables.bin": b"",
        }
    }
    with pytest.raises(UserError, match=r"non_lora_trainables\.bin"):
        locate(Path("maker/lora"), "--adapter", role="adapter")
    held = locate(Path("maker/lora"), "--adapter", True, "adapter").path
    names = {"adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"}
    assert {file.name for file in held.iterdir()} == names
    with pytest.raises(UserError, match=r"has no adapter_config\.json"):
        locate(Path("maker/clip"), "--adapter", role="adapter")


def test_without_a_connection_one_sentence_says_so(hub):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(UserError, match="maker/mini is no path here, and the Hub cannot be asked") as error:
        locate(Path(NAME), "--from")
    assert "\n" not in str(error.value)


def scores(folder: Path, checkpoint: Path) -> Path:
    folder.mkdir()
    metric = {"value": 85.94, "standard_error": 0.4}
    scored = {
        "about": "",
        "questions": 9,
        "units": 9,
        "unread": 0,
        "scorer": {"name": "official", "follows": "", "others": []},
        "headline": "F1",
        "metrics": {"F1": metric},
        "cut_questions": 0,
        "seconds": 1.0,
        "reuse": {},
    }
    results = {
        "model": "mini",
        "checkpoint": str(checkpoint),
        "visual_tokens": 9,
        "weights": "run",
        "image_decoding": "upright",
        "limit": None,
        "resamples": 1000,
        "seed": 0,
        "tasks": {"pope": scored},
    }
    write_record(folder / "results.json", results)
    return folder


def test_a_push_is_the_export_and_a_page_in_which_nothing_is_invented(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    made = tmp_path / "run"
    run(Import(Path(NAME), made, vision=Path("maker/clip")))
    told_scores = scores(tmp_path / "eval", made)
    run(Export(made, tmp_path / "out", push="me/new", license="apache-2.0", scores=(told_scores,)))
    there = hub.repositories["me/new"]["main"]
    assert {k: v for k, v in there.items() if k != "README.md"} == {
        str(file.relative_to(tmp_path / "out")): file.read_bytes()
        for file in (tmp_path / "out").rglob("*")
        if file.is_file() and file.name != "README.md"
    }
    page = there["README.md"].decode()
    assert (
        page.startswith('---\nlicense: "apache-2.0"\n') and 'base_model: ["maker/clip", "maker/mini"]' in page
    )
    assert "| pope (F1) | 85.9 | 0.4 | 9 | 9 |" in page and "nothing was trained" in page
    assert f"Began with {NAME}@{COMMITS['main']}" in page
    assert "me/new/commit/" in capsys.readouterr().out
    back = locate(Path("me/new"), "--from").path
    given = load_file(back / "model.safetensors")
    assert all(np.array_equal(given[k], v) for k, v in tensors("m3").items())
    with pytest.raises(UserError, match=r"--push me/new holds .* already"):
        run(Export(made, tmp_path / "again", push="me/new", license="mit"))
    with pytest.raises(UserError, match="are of elsewhere, not of"):
        other = scores(tmp_path / "other", Path("elsewhere"))
        run(Export(made, tmp_path / "again", push="me/two", license="mit", scores=(other,)))
    with pytest.raises(UserError, match="--license '' is no licence"):
        run(Export(made, tmp_path / "again", push="me/two"))
    with pytest.raises(UserError, match=r"--license .*goes with --push"):
        run(Export(made, tmp_path / "again", license="mit"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(UserError, match=r"401.*the export is whole, and goes there with: hf upload me/two"):
        run(Export(made, tmp_path / "again", push="me/two", license="mit"))
    assert (tmp_path / "again" / "model.safetensors").is_file()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="there is no token"):
        run(Export(made, tmp_path / "third", push="me/two", license="mit"))


def test_the_command_reads_the_hubs_own_variables(hub, tmp_path):
    env = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    root = str(Path(__file__).parents[2])
    made = subprocess.run(
        [
            sys.executable,
            "-m",
            "launch.convert",
            "import",
            "--from",
            "maker/clip@main",
            "--out",
            str(tmp_path / "run"),
        ],
        env={**env, "PYTHONPATH": root},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert kept_origins(tmp_path / "run") == {"model": f"maker/clip@{COMMITS['main']}"}
