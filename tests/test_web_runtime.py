"""ONNX Runtime Web for `distgan demo --offline`: from npm, from the CDN, from the cache."""

import io
import tarfile
from pathlib import Path

import pytest

from distgan.commands import web_runtime
from distgan.errors import UserError
from tests.browser import served

FILES = {"a.mjs": b"script", "b.wasm": b"wasm"}


@pytest.fixture
def small_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the runtime's files by two small ones; return the path of its cache."""
    for name, (file, content) in zip(("SCRIPT", "WASM"), FILES.items(), strict=True):
        small = web_runtime.RuntimeFile(file, len(content), web_runtime.integrity(content))
        monkeypatch.setattr(web_runtime, name, small)
    monkeypatch.setattr(web_runtime, "CDN", "http://127.0.0.1:9/")
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "cache" / "onnxruntime-web-1.30.0"


def copied(out: Path) -> dict[str, bytes]:
    """Return the files that `copy_runtime` writes."""
    out.mkdir()
    web_runtime.copy_runtime(out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_runtime_comes_from_npm(tmp_path: Path, small_runtime: Path) -> None:
    """The files of the package `npm pack` makes are copied, and the second time not fetched."""
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as tar:
        for name, content in FILES.items():
            header = tarfile.TarInfo(f"package/dist/{name}")
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f'#!/bin/sh\n[ "$2" = onnxruntime-web@1.30.0 ] && /bin/cp {package} .\n')
    npm.chmod(0o755)
    assert copied(tmp_path / "out") == FILES
    npm.unlink()
    assert copied(tmp_path / "again") == FILES


def test_runtime_comes_from_the_cdn_without_npm(
    tmp_path: Path, small_runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged file in the cache is fetched again."""
    (tmp_path / "cdn").mkdir()
    for name, content in FILES.items():
        (tmp_path / "cdn" / name).write_bytes(content)
    small_runtime.mkdir(parents=True)
    (small_runtime / "a.mjs").write_bytes(b"damaged")
    with served(tmp_path / "cdn") as url:
        monkeypatch.setattr(web_runtime, "CDN", url)
        assert copied(tmp_path / "out") == FILES


def test_runtime_with_another_hash_is_refused(
    tmp_path: Path, small_runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed file is not copied."""
    (tmp_path / "cdn").mkdir()
    for name in FILES:
        (tmp_path / "cdn" / name).write_bytes(b"other")
    with served(tmp_path / "cdn") as url:
        monkeypatch.setattr(web_runtime, "CDN", url)
        with pytest.raises(UserError, match="other hashes"):
            copied(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_network_is_one_line(tmp_path: Path, small_runtime: Path) -> None:
    """The error names both ways that failed and what to do."""
    with pytest.raises(
        UserError, match=r"no npm on this machine; .*refused.*copy .*cache"
    ) as error:
        copied(tmp_path / "out")
    assert "\n" not in str(error.value)
