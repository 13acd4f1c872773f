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


def upload(
    name: str, folder: Path, files: list[str], *, private: bool, is_space: bool = False
) -> str:
    """Upload files of a folder, and create the place for them if needed; return its address.

    It is a model, or a static page (a Space), which may have the same name.
    """
    repo_type, sdk = ("space", "static") if is_space else (None, None)
    with hub_errors(name) as api:
        url = api.create_repo(
            name, repo_type=repo_type, space_sdk=sdk, private=private or None, exist_ok=True
        )
        api.upload_folder(
            repo_id=name, repo_type=repo_type, folder_path=folder, allow_patterns=files
        )
        return str(url)


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
