"""Weights of the Hugging Face Hub: which names mean them, which files are read of them, and how a model goes there.

Only a name that is no path here asks the Hub. A model is that of one commit, whatever branch was named.
"""

import dataclasses
import glob
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from huggingface_hub import HfApi, get_token, snapshot_download
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from quecc_jax.convert.io.adapter_files import CONFIG, OTHERS, WEIGHTS
from quecc_jax.convert.io.adapters import refuse_adapter_files
from quecc_jax.convert.io.weight_files import choose
from quecc_jax.convert.rules import some
from quecc_jax.distributed import notice
from quecc_jax.errors import UserError

Role = Literal["model", "projector", "adapter"]
"""What is wanted of a repository: its weights, the original's mm_projector, or a LoRA."""

_NAME = re.compile(
    r"(?P<repository>\w[\w.-]*/(?!.*\.(gguf|safetensors|bin)$)\w[\w.-]*)(@(?P<revision>[^@]+))?"
)
_TEXTS = ("*.json", "*.jinja", "*.txt", "*.md", "*.model", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*")
"""Files beside weights, of the repository's own folder."""
_LOGIN = "give a token of an account that may, in HF_TOKEN or by `hf auth login`"


@dataclasses.dataclass(frozen=True)
class Located:
    """Weights that are here."""

    path: Path
    origin: str = ""
    """ORG/NAME@COMMIT of the Hub; empty for files of this machine."""


def locate(given: Path, option: str, allow_pickle: bool = False, role: Role = "model") -> Located:
    """A path as it is, or the files that are read of a model of the Hub, fetched into its cache.

    Args:
      given: a path, or ORG/NAME or ORG/NAME@REVISION; a path that exists counts.
      option: of the command line, for messages.
      allow_pickle: whether pickles may be read; they are not fetched without.
      role: what is wanted.

    Raises:
      UserError: the name could mean a folder, one that is there or a mistyped one; there is no such model or revision,
        or it may not or cannot be read; or it holds nothing that is read, or that an import would refuse.
    """
    found = _NAME.fullmatch(str(given))
    if given.exists() or found is None:
        return Located(given)
    repository, revision = found["repository"], found["revision"]
    if not revision and (folder := Path(repository).parent).is_dir():
        raise UserError(
            f"{option} {given} is not there, though {folder} is; give a path that exists, or {repository}@main for the "
            "Hub's model of that name"
        )
    if revision and Path(repository).exists():
        raise UserError(
            f"{option} {given} names a revision, but {repository} is a folder here; give ./{repository} for that, or "
            "run the command elsewhere for the Hub's"
        )
    try:
        path = _fetched(repository, revision, allow_pickle, role)
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(f"{option} {given} {_reason(error, revision)}") from None
    return Located(path, f"{repository}@{path.name}")


def _fetched(repository: str, revision: str | None, allow_pickle: bool, role: Role) -> Path:
    """The folder, called by its commit, of what is read of a repository."""
    path = Path(
        snapshot_download(repository, revision=revision, allow_patterns=list(_TEXTS), ignore_patterns=["*/*"])
    )
    if is_offline_mode():
        # What the cache holds was chosen when it was fetched.
        return path
    files = HfApi().model_info(repository, revision=path.name).siblings or []
    names = [one.rfilename for one in files]
    wanted = (
        _adapter_files(names, repository) if role == "adapter" else _weights(names, path, repository, role)
    )
    pickles = [name for name in wanted if not name.endswith(".safetensors")]
    if pickles and not allow_pickle:
        raise UserError(
            f"{repository} has its weights as pickles alone ({some(pickles, 3)}); add --allow-pickle to fetch and read "
            "them by torch's weights-only loader"
        )
    patterns = [glob.escape(name) for name in wanted]
    return Path(snapshot_download(repository, revision=path.name, allow_patterns=patterns))


def _weights(names: Sequence[str], texts: Path, repository: str, role: Role) -> list[str]:
    """The files that `open_checkpoint` would choose of a folder with these names.

    Raises:
      UserError: as it does, before anything large is fetched.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / repository
        root.mkdir(parents=True)
        for name in names:
            if ".." not in (parts := PurePosixPath(name).parts):
                (root / Path(*parts)).parent.mkdir(parents=True, exist_ok=True)
                (root / Path(*parts)).touch()
        for index in texts.glob("*.index.json"):
            shutil.copyfile(index, root / index.name)
        try:
            refuse_adapter_files(root)
            chosen = choose(root, role == "projector")
        except UserError as error:
            raise UserError(str(error).replace(str(root), repository)) from None
    if chosen.unread:
        notice(f"not fetched of {repository}: {some(chosen.unread, 20)}")
    return [file.name for file in chosen.files]


def _adapter_files(names: Sequence[str], repository: str) -> list[str]:
    if CONFIG not in names:
        raise UserError(f"{repository} has no {CONFIG}; name the repository of a LoRA, as PEFT writes it")
    both = [[f"{stem}.safetensors", f"{stem}.bin"] for stem in (WEIGHTS, OTHERS)]
    return [next(name for name in forms if name in names) for forms in both if {*forms} & {*names}]


def check_push(repository: str) -> None:
    """Checks what can be known of a push before anything is written.

    Raises:
      UserError: the name is none, there is no token, the Hub is not to be asked, or holds something there.
    """
    if (found := _NAME.fullmatch(repository)) is None or found["revision"]:
        raise UserError(f"--push {repository} is no name of a repository; give ORG/NAME")
    if is_offline_mode():
        raise UserError(f"--push {repository} needs the Hub, but HF_HUB_OFFLINE says not to ask it; unset it")
    if get_token() is None:
        raise UserError(f"--push {repository} writes, and there is no token; {_LOGIN}")
    try:
        there = HfApi().model_info(repository).siblings or []
    except RepositoryNotFoundError:
        return
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(f"--push {repository} {_reason(error, None)}") from None
    if held := [one.rfilename for one in there if one.rfilename not in (".gitattributes", "README.md")]:
        raise UserError(
            f"--push {repository} holds {some(held, 3)} already, which would stand beside the new weights; name a new "
            "repository"
        )


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Sends a folder as one commit of a repository, which is made if there is none; returns the commit's address.

    Raises:
      UserError: it cannot be written; the folder stays as it is.
    """
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder).commit_url)
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(
            f"--push {repository} {_reason(error, None)}; the export is whole, and goes there with: hf upload "
            f"{repository} {folder}"
        ) from None


def _reason(error: Exception, revision: str | None) -> str:
    """Why the Hub did not do what was asked, and what to do: the rest of a sentence."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if isinstance(error, GatedRepoError):
        return f"is gated; accept its terms on its page, and {_LOGIN}"
    if isinstance(error, RevisionNotFoundError):
        return f"has no revision {revision or 'main'}; name a branch, tag or commit of it"
    if isinstance(error, RepositoryNotFoundError):
        return f"is no path here and no model of the Hub that may be read; check the name, or {_LOGIN}"
    if isinstance(error, LocalEntryNotFoundError) and is_offline_mode():
        return "is no path here and not in the Hub's cache, and HF_HUB_OFFLINE says not to ask; unset it or give a path"
    if status in (401, 403):
        return f"may not be used with this token (the Hub answers {status}); {_LOGIN}"
    if status:
        return f"failed: the Hub answers {status}; try again later"
    first = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    lines = [line for line in str(first).splitlines() if line.strip()] or [type(first).__name__]
    return f"is no path here, and the Hub cannot be asked ({lines[0].strip()}); check the name and the connection"
