"""The images of a training: encoded as they came, each once, in one flat file; as pixels only in a batch.

Letters: N rows of a set, M images shown by all rows (one that two rows show counts twice), P images, B bytes of them,
I images of a batch, of C channels, H high and W wide.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcgemma.rows.conversation import Image
from hpcgemma.rows.images import content_of, decode, digest_of
from hpcgemma.train.data.processor import image_tokens
from hpcgemma.train.failures import DataError

IMAGES_NAME = "images.bin"
ENDS_NAME = "images.ends.bin"
SHOWN_NAME = "images.shown.bin"

_INDEX = {"image_starts_N": np.int64, "image_counts_N": np.int64}


@dataclass(frozen=True)
class Images:
    """Encoded images, and how they become pixels."""

    encoded_B: NDArray[np.uint8]
    ends_P: NDArray[np.int64]
    """Where each image ends in ``encoded_B``; it begins where the one before ends."""
    shown_M: NDArray[np.int64]
    """The image of each place in a row that shows one, row by row."""
    soft_token: int
    """The token that stands for a piece of an image."""
    tokens: int
    """How many of them stand for an image."""
    processor_dir: Path
    """Where the model's image processor is, as from_pretrained loads it."""

    @classmethod
    def open(cls, folder: Path, soft_token: int, processor_dir: Path) -> Images:
        """Map the images of a folder into memory."""
        encoded_B = np.memmap(folder / IMAGES_NAME, np.uint8, "r")
        ends_P, shown_M = (np.fromfile(folder / name, np.int64) for name in (ENDS_NAME, SHOWN_NAME))
        return cls(encoded_B, ends_P, shown_M, soft_token, image_tokens(processor_dir) or 0, processor_dir)

    @classmethod
    def of(cls, images: Sequence[Image], soft_token: int, processor_dir: Path) -> Images:
        """Keep images in memory."""
        contents = [content_of(image) for image in images]
        ends_P = np.cumsum([len(content) for content in contents], dtype=np.int64)
        encoded_B = np.frombuffer(b"".join(contents), np.uint8)
        shown_M = np.arange(len(contents))
        return cls(encoded_B, ends_P, shown_M, soft_token, image_tokens(processor_dir) or 0, processor_dir)

    def __len__(self) -> int:
        return len(self.ends_P)

    def encoded(self, number: int) -> bytes:
        """Return an image as it was encoded."""
        begin = int(self.ends_P[number - 1]) if number else 0
        return self.encoded_B[begin : self.ends_P[number]].tobytes()

    def pixels(self, numbers: Sequence[int]) -> NDArray[np.float32]:
        """Return images as the model takes them, of shape I x C x H x W, by its own image processor."""
        decoded = [decode(self.encoded(number)) for number in numbers]
        found: NDArray[np.float32] = self._processor(images=decoded, return_tensors="np")["pixel_values"]
        return found

    def blank(self) -> NDArray[np.float32]:
        """Return a batch of one image that shows nothing, of shape 1 x C x H x W."""
        from PIL import Image as Pillow

        found: NDArray[np.float32] = self._processor(images=[Pillow.new("RGB", (64, 64))], return_tensors="np")[
            "pixel_values"
        ]
        return found

    @cached_property
    def _processor(self) -> Any:
        return load_image_processor(self.processor_dir)


@dataclass(frozen=True, slots=True)
class RowImages:
    """Which images each row of a set shows."""

    images: Images
    image_starts_N: NDArray[np.int64]
    """The place in ``images.shown_M`` of each row's first image."""
    image_counts_N: NDArray[np.int64]
    """Images of each row."""

    def of(self, row: int) -> list[int]:
        """Return the images of a row, in their order."""
        start = int(self.image_starts_N[row])
        shown: list[int] = self.images.shown_M[start : start + int(self.image_counts_N[row])].tolist()
        return shown

    def save_index(self, folder: Path, name: str) -> None:
        """Write which images the rows show into the folder of the images."""
        for field in _INDEX:
            np.save(folder / f"{name}.{field}.npy", getattr(self, field))

    @classmethod
    def open(cls, folder: Path, name: str, images: Images) -> RowImages:
        """Map that of a set's rows into memory."""
        return cls(images, *(np.load(folder / f"{name}.{field}.npy", mmap_mode="r") for field in _INDEX))


class ImageWriter:
    """Appends images to the files of a folder; one that comes again is written once.

    Args:
        folder: A folder without images.
    """

    def __init__(self, folder: Path) -> None:
        self._files: list[io.BufferedWriter] = [
            (folder / name).open("xb") for name in (IMAGES_NAME, ENDS_NAME, SHOWN_NAME)
        ]
        self._numbers: dict[bytes, int] = {}
        self._bytes = 0
        self.shown = 0
        """Places in rows that show an image, so far."""

    def __len__(self) -> int:
        return len(self._numbers)

    def append(self, images: Sequence[Image]) -> None:
        """Write the images that some rows show, in their order.

        Raises:
            DataError: A file has changed since it was looked at.
        """
        encoded, ends, shown = self._files
        for image in images:
            number = self._numbers.get(image.digest)
            if number is None:
                content = content_of(image)
                if digest_of(content) != image.digest:
                    raise DataError(f"{image.path} changed while the data were prepared", "start again")
                encoded.write(content)
                self._bytes += len(content)
                ends.write(np.int64(self._bytes).tobytes())
                number = self._numbers[image.digest] = len(self._numbers)
            shown.write(np.int64(number).tobytes())
            self.shown += 1

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()


def load_image_processor(folder: Path) -> Any:
    """Return the image processor of a folder: the one on Pillow, which computes the same on every machine."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    make: Any = Gemma3ImageProcessorPil
    return make.from_pretrained(str(folder), local_files_only=True)
