"""Chunks of zarr arrays, decoded only where what comes out has the size that the array declares.

A compressed chunk says itself how large it becomes, and a decoder believes it: 64 KB of zeros can stand for 6.5 GB. :class:`Bounded` is
zarr's own pipeline with a look at each chunk before; importing this module makes it the one that this process reads arrays with, unless
another than zarr's default was chosen.
"""

import bz2
import lzma
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import zarr
from zarr.codecs._v2 import V2Codec
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_pipeline

from dopr_robot.errors import DamagedError

LARGE = 512 * 1024**2
"""Bytes above which a chunk, a text chunk decoded, a member of an archive, or rows without files under them are looked at twice."""
SLACK = 128 * 1024
FILTERED = 8
"""How many times larger than its array a chunk may be between compressor and filters (which can change the dtype)."""
PACKED = 1100
"""Largest ratio of deflate, which is 1032."""
SPARSE = 100_000
"""Largest ratio of rows to what is stored of them."""
_BLOCK = 128 * 1024


class Bounded(BatchedCodecPipeline):
    """zarr's pipeline, with a look at each chunk's header first. Raises DamagedError for one that becomes larger than declared."""

    async def decode_batch(self, chunk_bytes_and_specs: Iterable[tuple[Any, Any]]) -> Iterable[Any]:
        chunks = list(chunk_bytes_and_specs)
        names = [name for name in _names(self) if name in DECODED]
        if len(names) > 1:
            raise DamagedError(f"is compressed {len(names)} times over ({', '.join(names)})")
        for content, spec in chunks if names else ():
            if content is not None:
                item = spec.dtype.to_native_dtype()
                limit = (
                    LARGE if item.hasobject or item.kind == "T" else FILTERED * math.prod(spec.shape) * item.itemsize
                )
                data = memoryview(content.as_numpy_array()).cast("B")
                if DECODED[names[0]](data, limit + SLACK) > limit + SLACK:
                    raise DamagedError(f"{len(data):,} bytes become more than their array declares")
        return await super().decode_batch(chunks)


def check_array(array: zarr.Array, rows: slice | None = None) -> None:
    """Raise DamagedError where a chunk of an array, or ``rows`` of it, would take memory that nothing stored stands for."""
    item = 1 if array.dtype.hasobject or array.dtype.kind == "T" else array.dtype.itemsize
    whole = math.prod(array.shape) * item
    chunk = math.prod(array.shards or array.chunks) * item
    if chunk > max(LARGE, 2 * whole):
        raise DamagedError(f"a chunk is declared as {chunk:,} bytes, the array as {whole:,}")
    start, stop, _ = (rows or slice(None)).indices(array.shape[0] if array.ndim else 1)
    asked = (stop - start) * math.prod(array.shape[1:]) * item
    if asked > LARGE and asked > SPARSE * (stored := int(array.nbytes_stored())):
        raise DamagedError(f"{asked:,} bytes are declared and {stored:,} stored")


def check_members(archive: zipfile.ZipFile) -> None:
    """Raise DamagedError where a member of an archive becomes larger than its compression allows."""
    for member in archive.infolist():
        if member.file_size > LARGE and member.file_size > PACKED * member.compress_size:
            raise DamagedError(
                f"{member.filename} is declared as {member.file_size:,} bytes of {member.compress_size:,} packed"
            )


def _names(pipeline: BatchedCodecPipeline) -> list[str]:
    """The compressors in a pipeline, without the name of the package that wrote them."""
    if isinstance(pipeline.array_bytes_codec, V2Codec):
        whole = pipeline.array_bytes_codec
        return [each.codec_id for each in (whole.compressor, *(whole.filters or ())) if each is not None]
    return [str(codec.to_dict()["name"]).removeprefix("numcodecs.") for codec in pipeline.bytes_bytes_codecs]


def _blosc(data: memoryview, limit: int) -> int:
    return int.from_bytes(data[4:8], "little")


def _lz4(data: memoryview, limit: int) -> int:
    return int.from_bytes(data[:4], "little")


def _zstd(data: memoryview, limit: int) -> int:
    """The size in the frame's header, or a bound by its blocks (RFC 8878, 3.1.1)."""
    if len(data) < 6:
        return 0
    flags = data[4]
    single, dictionary = bool(flags & 0x20), (0, 1, 2, 4)[flags & 3]
    width = (1 if single else 0, 2, 4, 8)[flags >> 6]
    at = 5 + (not single) + dictionary
    if width:
        return int.from_bytes(data[at : at + width], "little") + 256 * (width == 2)
    size, last = 0, False
    while not last and size <= limit and at + 3 <= len(data):
        header = int.from_bytes(data[at : at + 3], "little")
        last, kind, length = bool(header & 1), header >> 1 & 3, header >> 3
        size += _BLOCK if kind == 2 else length
        at += 3 + (1 if kind == 1 else length)
    return size


def _streamed(decompressor: Callable[[], Any]) -> Callable[[memoryview, int], int]:
    """The size found by decoding, a piece at a time and no further than the limit."""

    def size(data: Any, limit: int) -> int:
        found, stream = 0, decompressor()
        try:
            while found <= limit and not stream.eof:
                piece = stream.decompress(data, 1024**2)
                found += len(piece)
                data = getattr(stream, "unconsumed_tail", b"")
                if not piece and not data:
                    break
        except (zlib.error, OSError, EOFError, lzma.LZMAError):
            pass  # the decoder will say so
        return found

    return size


DECODED: dict[str, Callable[[memoryview, int], int]] = {
    "blosc": _blosc,
    "lz4": _lz4,
    "zstd": _zstd,
    "gzip": _streamed(lambda: zlib.decompressobj(47)),
    "zlib": _streamed(lambda: zlib.decompressobj(47)),
    "bz2": _streamed(bz2.BZ2Decompressor),
    "lzma": _streamed(lzma.LZMADecompressor),
}
"""What says how large compressed bytes become, or how far beyond a limit, by the compressor's name."""

register_pipeline(Bounded)
if zarr.config.get("codec_pipeline.path") == "zarr.core.codec_pipeline.BatchedCodecPipeline":
    zarr.config.set({"codec_pipeline.path": f"{Bounded.__module__}.{Bounded.__qualname__}"})
