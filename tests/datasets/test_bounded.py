"""Arrays that would become larger than they say: refused before they are decoded."""

import json
import os
import resource
import signal
import time
import zipfile
import zlib
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr

from dopr_robot.cli import main
from dopr_robot.datasets import Store, check
from dopr_robot.datasets.bounded import DECODED, SLACK
from dopr_robot.errors import DamagedError

ROWS = 20


@pytest.fixture
def little_memory():
    """256 MiB beyond what is used: a chunk that is decoded to a gigabyte is a MemoryError."""
    data = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(data.split()[1]) * 1024 + 2**28, hard))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def foreign_store(path, zarr_format, compressor, rows=ROWS):
    group = zarr.create_group(path, zarr_format=zarr_format)
    group.create_group("meta").create_array("episode_ends", data=np.array([rows]))
    data = group.create_group("data")
    data.create_array("action", data=np.ones((rows, 2)))
    data.create_array("state", data=np.ones((rows, 3)), chunks=(rows, 3), compressors=compressor)
    return path


def zeros(name):
    """Half a gigabyte of zeros and more, by each compressor."""
    if name in ("zlib", "gzip"):
        stream = zlib.compressobj(1, zlib.DEFLATED, 31 if name == "gzip" else 15)
        return b"".join([*(stream.compress(bytes(2**20)) for _ in range(600)), stream.flush()])
    if name == "zstd-unknown":  # 5000 blocks that repeat a zero 128 KiB times, in a frame that does not say its size
        block = (2**17 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
        return b"\x28\xb5\x2f\xfd\x00\x58" + block * 5000 + (1).to_bytes(3, "little")
    if name == "zstd":
        return b"\x28\xb5\x2f\xfd\xa0" + (2**30).to_bytes(4, "little") + bytes(100)
    codec = numcodecs.Blosc() if name == "blosc" else numcodecs.LZ4()
    content = bytearray(codec.encode(np.zeros(2**20, np.uint8)))
    at = 4 if name == "blosc" else 0
    content[at : at + 4] = (2**30).to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize(
    ("zarr_format", "codec", "name"),
    [
        (3, zarr.codecs.ZstdCodec(), "zstd"), (3, zarr.codecs.ZstdCodec(), "zstd-unknown"), (3, zarr.codecs.GzipCodec(), "gzip"),
        (3, zarr.codecs.BloscCodec(), "blosc"), (2, numcodecs.Zstd(), "zstd"), (2, numcodecs.Zlib(), "zlib"), (2, numcodecs.LZ4(), "lz4"),
        (2, numcodecs.Blosc(), "blosc"),
    ],
)  # fmt: skip
def test_a_chunk_that_becomes_larger_than_its_array_says(tmp_path, zarr_format, codec, name, little_memory):
    path = foreign_store(tmp_path / "s.zarr", zarr_format, codec)
    assert check(path).damage == []
    (chunk,) = [file for file in (path / "data" / "state").rglob("*") if file.name in ("0", "0.0") and file.is_file()]
    chunk.write_bytes(zeros(name))
    with pytest.raises(
        DamagedError, match=r"state: cannot be read \(DamagedError: .* become more than their array declares"
    ):
        Store.open(path).episode(0)
    assert [finding.key for finding in check(path).damage] == ["state"]


@pytest.mark.parametrize("name", ["zstd", "blosc", "lz4", "gzip", "zlib", "bz2", "lzma"])
def test_what_compressors_write_is_never_refused(name):
    codec = numcodecs.get_codec({"id": name})
    for size in (0, 1, 100, 300, 70_000, 300_000):
        for content in (bytes(size), np.random.default_rng(0).bytes(size)):
            if name != "lz4" or size:
                assert DECODED[name](memoryview(bytes(codec.encode(content))), size + SLACK) <= size + SLACK


def test_rows_and_chunks_that_nothing_stored_stands_for(tmp_path, little_memory):
    path = foreign_store(tmp_path / "s.zarr", 3, zarr.codecs.ZstdCodec())
    for name, field, value in (("meta/episode_ends", "shape", [10**10]), ("data/state", "chunk_shape", [10**9, 3])):
        about = json.loads((path / name / "zarr.json").read_text())
        spoiled = json.loads(json.dumps(about))
        (spoiled if field == "shape" else spoiled["chunk_grid"]["configuration"])[field] = value
        (path / name / "zarr.json").write_text(json.dumps(spoiled))
        (finding,) = check(path).damage
        assert "declared" in finding.what and name.endswith(finding.key), finding
        (path / name / "zarr.json").write_text(json.dumps(about))


def test_a_member_of_an_archive_that_is_larger_than_it_can_be(tmp_path, capsys):
    path = tmp_path / "s.zarr.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zarr.json", "{}")
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02") + 24  # uncompressed size in the central directory
    path.write_bytes(content[:at] + (2**31).to_bytes(4, "little") + content[at + 4 :])
    assert main(["info", str(path), "--check"]) == 1
    assert "zarr.json is declared as 2,147,483,648 bytes" in "".join(capsys.readouterr())


@pytest.mark.parametrize("name", ["zarr.json", "data/zarr.json", "meta/zarr.json", "data/state/zarr.json", "meta/episode_ends/zarr.json",
                                  "meta/seed/zarr.json"])  # fmt: skip
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"zarr_format": 3, "node_type": "array"}', b"null"])
def test_zarrs_own_files_damaged_are_damage(tmp_path, capsys, name, content):
    path = tmp_path / "s.zarr"
    with Store.create(path) as store:
        store.append({"state": np.ones((4, 3)), "action": np.zeros((4, 2))}, seed=1)
    (path / name).write_bytes(content)
    assert main(["info", str(path), "--check"]) in ((1, 2) if name == "zarr.json" else (1,))
    out, err = capsys.readouterr()
    assert "unexpected" not in err and len(out.splitlines() + err.splitlines()) >= 1


def test_a_store_is_there_whole_or_not_at_all(tmp_path):
    """Killed at many moments of its making, it can be made by the same call afterwards, and nothing of the killed one is left."""
    path, whole = tmp_path / "s.zarr", 0
    for moment in range(30):
        child = os.fork()
        if child == 0:
            try:
                with Store.create(path) as store:
                    store.append({"action": np.zeros((2, 2))})
            finally:
                os._exit(0)
        time.sleep(0.004 * moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if path.exists():
            whole += 1
            assert check(path).damage == []
            assert Store.open(path).num_episodes in (0, 1)
        else:
            Store.create(path).close()
            assert [each.name for each in tmp_path.iterdir()] == ["s.zarr"]
        for file in sorted(tmp_path.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
    assert whole < 30
