"""Shards in S3: a real server of its protocol on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shards.errors import ShardError
from shards.format.index import ShardIndex
from shards.pack import pack
from shards.reader import ShardReader
from shards.remote.files import open_shards
from tests.shards.images import contents, png, write_tar, write_zip
from tests.shards.servers import QUICK

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "ignore::ResourceWarning")
FILES = {f"{name}/{number}.png": png(number) for number in range(6) for name in "ab"}


@pytest.fixture
def bucket(packed: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket that holds the packed shards, and a tar and a zip of other images."""
    moto_server = pytest.importorskip(
        "moto.server", reason="moto is not installed: pip install 'moto[server]'"
    )
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 's3fs'")
    import boto3

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": host,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="faces")
    for path in packed.path.iterdir():
        client.upload_file(str(path), "faces", f"some/prefix/{path.name}")
    for write, name in ((write_tar, "images.tar"), (write_zip, "images.zip")):
        client.upload_file(str(write(tmp_path / name, FILES)), "faces", name)
    client.close()
    yield "s3://faces/some/prefix"
    server.stop()


def test_shards_in_a_bucket(bucket: str, packed: ShardIndex, tmp_path: Path) -> None:
    """Images and labels equal the folder's; a missing or changed file is an error of one line."""
    index, files = open_shards(bucket, cache=tmp_path / "cache", retry=QUICK)
    reader, everything = ShardReader(index, files=files), np.arange(250)
    assert np.array_equal(reader.gather(everything), ShardReader(packed).gather(everything))
    assert np.array_equal(reader.labels(everything), ShardReader(packed).labels(everything))
    for place in ("s3://faces/nothing", "s3://nowhere/x"):
        with pytest.raises(
            ShardError, match=f"cannot fetch {place}/index.json, tried once: there is no such file"
        ):
            open_shards(place, cache=tmp_path / "cache", retry=QUICK)

    import boto3

    boto3.client("s3").put_object(Bucket="faces", Key="some/prefix/000001.tar", Body=b"other")
    index, files = open_shards(bucket, cache=tmp_path / "another", retry=QUICK)
    with pytest.raises(
        ShardError, match=r"s3://faces/some/prefix/000001.tar, tried 3 times: 5 of [\d,]+ bytes"
    ) as caught:
        ShardReader(index, files=files).gather(everything)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["images.tar", "images.zip"])
def test_archives_in_a_bucket_are_packed_in_place(bucket: str, tmp_path: Path, name: str) -> None:
    """The shards are those of the local archive; a missing one is an error of one line."""
    root = bucket.removesuffix("/some/prefix")
    pack(tmp_path / name, tmp_path / "local", size=8, workers=1)
    index = pack(f"{root}/{name}", tmp_path / "remote", size=8, workers=1)
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")
    assert index.class_names == ("a", "b")
    with pytest.raises(ShardError, match=r"s3://faces/gone.tar.*there is no such file") as caught:
        pack(f"{root}/gone.tar", tmp_path / "none", size=8)
    assert "\n" not in str(caught.value) and "hunter2" not in str(caught.value)
