"""The bytes of a file, compressed or not, as a stream that survives a file cut off."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from hpcgemma.errors import InputError

Compression = Literal["gzip", "zstd"]

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_INPUT_BYTES = 16 * 1024  # small, so that even a bomb's output stays in memory


def data_package(name: str, purpose: str) -> Any:
    """Import a package only some files need.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{purpose} needs the package {name}, which is not here", "pip install 'hpcgemma[data]'"
        ) from error


class Pieces:
    """The decompressed bytes of a file, piece by piece.

    Args:
        path: The file.
        compression: How it is compressed; None: not at all.
        piece_bytes: The most a piece of an uncompressed file has.
    """

    def __init__(self, path: Path, compression: Compression | None, piece_bytes: int) -> None:
        self._path = path
        self._compression = compression
        self._piece_bytes = piece_bytes
        self.end = 0
        """Bytes of the file read so far."""
        self.damage: str | None = None
        """Why the stream ended before the file's true end; None: it did not."""

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._plain() if self._compression is None else self._decompressed()
        except OSError as error:
            self.damage = f"cannot be read: {error.strerror}"

    def _plain(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while piece := file.read(self._piece_bytes):
                self.end += len(piece)
                yield piece

    def _decompressor(self) -> Any:
        if self._compression == "gzip":
            return zlib.decompressobj(wbits=31)
        return data_package("zstandard", f"{self._path}: a zstd file").ZstdDecompressor().decompressobj()

    def _decompressed(self) -> Iterator[bytes]:
        stream = self._decompressor()
        errors: tuple[type[Exception], ...] = (zlib.error,)
        if self._compression == "zstd":
            errors = (data_package("zstandard", f"{self._path}: a zstd file").ZstdError,)
        begun = False
        with self._path.open("rb") as file:
            while data := file.read(min(self._piece_bytes, _INPUT_BYTES)):
                self.end += len(data)
                while data:
                    if not begun and self._compression == "gzip" and not data.strip(b"\0"):
                        break  # gzip allows zeros as padding behind a member
                    begun = True
                    try:
                        piece = stream.decompress(data)
                    except errors as error:
                        self.damage = f"its {self._compression} stream is damaged: {error}"
                        return
                    if piece:
                        yield piece
                    if not stream.eof:
                        break
                    data = stream.unused_data
                    stream, begun = self._decompressor(), False
        if begun:
            self.damage = f"its {self._compression} stream is cut off"
