"""ONNX Runtime Web for `distgan demo`: two files of an npm package, checked by their hashes.

cache of distgan --missing--> npm pack --fails--> CDN
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from distgan.errors import UserError
from distgan.text import first_line
from shards.files import cache_folder, write_atomic

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
CDN_HOST = "https://cdn.jsdelivr.net"
CDN = f"{CDN_HOST}/npm/{PACKAGE}@{VERSION}/dist/"
NPM_TIMEOUT_SEC, CDN_TIMEOUT_SEC = 300, 60


@dataclass(frozen=True)
class RuntimeFile:
    """A file in the package's folder dist/."""

    name: str
    num_bytes: int
    integrity: str  # the hash, as browsers check it


# The smallest build: it computes on the CPU, in WebAssembly.
SCRIPT = RuntimeFile(
    "ort.wasm.bundle.min.mjs",
    73054,
    "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
)
WASM = RuntimeFile(
    "ort-wasm-simd-threaded.wasm",
    14239897,
    "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
)


def copy_runtime(out: Path) -> None:
    """Write both files to a folder; fetch them first if the cache lacks them.

    Raises UserError if they cannot be had, and OSError.
    """
    cache = cache_folder() / f"{PACKAGE}-{VERSION}"
    if not all(is_intact(cache / file.name, file) for file in (SCRIPT, WASM)):
        fetch_runtime(cache)
    for file in (SCRIPT, WASM):
        write_atomic(out / file.name, (cache / file.name).read_bytes())


def fetch_runtime(cache: Path) -> None:
    """Fetch both files with npm, or else from the CDN; raises UserError."""
    problems = []
    for source in (fetch_with_npm, fetch_from_cdn):
        try:
            for name, content in source().items():
                cache.mkdir(parents=True, exist_ok=True)
                write_atomic(cache / name, content)
        except (OSError, subprocess.SubprocessError, tarfile.TarError, KeyError) as error:
            problems.append(first_line(error))
        else:
            if all(is_intact(cache / file.name, file) for file in (SCRIPT, WASM)):
                return
            problems.append("its files have other hashes than expected")
    raise UserError(
        f"cannot fetch {PACKAGE} {VERSION}: {'; '.join(problems)}; run this once on a machine with "
        f"a network and copy {cache} here, or leave out --offline"
    )


def fetch_with_npm() -> dict[str, bytes]:
    """Return both files from the npm package; raises OSError, TarError and SubprocessError."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("no npm on this machine")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [npm, "pack", f"{PACKAGE}@{VERSION}"],
            cwd=folder, check=True, capture_output=True, timeout=NPM_TIMEOUT_SEC,
        )  # fmt: skip
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as package:
            return {
                file.name: package.extractfile(f"package/dist/{file.name}").read()  # type: ignore[union-attr]
                for file in (SCRIPT, WASM)
            }


def fetch_from_cdn() -> dict[str, bytes]:
    """Return both files from the CDN; raises OSError."""
    contents = {}
    for file in (SCRIPT, WASM):
        with urllib.request.urlopen(CDN + file.name, timeout=CDN_TIMEOUT_SEC) as response:
            contents[file.name] = response.read()
    return contents


def is_intact(path: Path, file: RuntimeFile) -> bool:
    """Return whether a file has the expected hash."""
    return path.is_file() and integrity(path.read_bytes()) == file.integrity


def integrity(content: bytes) -> str:
    """Return the hash of a file's content as browsers check it (Subresource Integrity)."""
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()
