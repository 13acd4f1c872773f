"""Models on the Hugging Face Hub, by name: `USER/NAME`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distgan.errors import UserError
from distgan.text import first_line

REPO_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def can_be_on_hub(path: Path) -> bool:
    """Return whether a path that does not exist may be a name on the Hub.

    If its folder exists, it is rather a mistyped path.
    """
    return bool(REPO_NAME.fullmatch(str(path))) and not path.parent.exists()


def check_repo_name(name: str) -> None:
    """Raise UserError if a name cannot be one on the Hub."""
    if not REPO_NAME.fullmatch(name):
        raise UserError(f"--push {name}: give your name on the Hub and the model's, as USER/NAME")


def download(name: str, files: list[str]) -> Path:
    """Return a folder with those of the files that a model on the Hub has.

    They are kept in the cache of huggingface_hub. Raises UserError.
    """
    hub = import_hub(f"no such file or folder: {name}; to look for it on the Hugging Face Hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=files))
    except hub.errors.RepositoryNotFoundError:
        raise UserError(
            f"no such file or folder: {name}, and no such model on the Hugging Face Hub; "
            "to use a private one, type: hf auth login"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"no such file or folder: {name}; cannot fetch a model of that name from the "
            f"Hugging Face Hub: {first_line(error).removeprefix('Got: ')}"
        ) from None


def create_repo(name: str, *, private: bool, is_space: bool = False) -> str:
    """Create the place for a model, or for a static page (a Space), unless it exists.

    Return its address. A Space may have the name of a model. Raises UserError if it should be
    private, but exists and is public, which creating it again would not change.
    """
    kind, repo_type, sdk = ("Space", "space", "static") if is_space else ("model", None, None)
    with hub_errors(name) as api:
        url = api.create_repo(
            name, repo_type=repo_type, space_sdk=sdk, private=private or None, exist_ok=True
        )
        is_public = private and not api.repo_info(name, repo_type=repo_type).private
    if is_public:
        raise UserError(
            f"--private: the {kind} {name} is there already, and public; make it private in its "
            f"settings ({url}/settings), or give another name"
        )
    return str(url)


def upload(name: str, folder: Path, files: list[str], *, is_space: bool = False) -> None:
    """Upload files of a folder to a model or a Space."""
    with hub_errors(name) as api:
        repo_type = "space" if is_space else None
        api.upload_folder(
            repo_id=name, repo_type=repo_type, folder_path=folder, allow_patterns=files
        )


@contextmanager
def hub_errors(name: str) -> Iterator[Any]:
    """Yield the library's client; convert its errors into a UserError."""
    hub = import_hub(f"to upload {name}")
    try:
        yield hub.HfApi()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot upload {name} to the Hugging Face Hub: {first_line(error)}; "
            "have you logged in? Type: hf auth login"
        ) from None


def import_hub(purpose: str) -> Any:
    """Return the library; raises UserError with the purpose if it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise UserError(f"{purpose}, type: pip install 'distgan[hub]'") from None
    return huggingface_hub
