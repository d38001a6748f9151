"""Images of rows: read, and proved to be images. Needs Pillow.

They come out of data files that others may have written. Only formats of pixels are decoded (Pillow would hand an EPS
file to Ghostscript), and neither a huge file nor one that unpacks into a huge image reaches the memory.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpcgemma.errors import InputError
from hpcgemma.rows.bad_rows import BadRowError
from hpcgemma.rows.conversation import Content, Conversation, Image, Turn

if TYPE_CHECKING:
    from PIL import Image as Pillow

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is decoded; of an animation the first image."""

LARGEST_BYTES = 64 << 20
"""Of an encoded image."""

LARGEST_PIXELS = 89_478_485
"""Width times height; where Pillow begins to speak of a decompression bomb: 256 MiB of RGB."""


def check_pillow() -> None:
    """Refuse to go on without Pillow.

    Raises:
        InputError: It is not installed.
    """
    try:
        import PIL  # noqa: F401 - only whether it is there
    except ImportError:
        raise InputError(
            "rows with images need the package pillow, which is not installed", "pip install 'hpcgemma[vision]'"
        ) from None


def with_images_read(content: Content) -> Content:
    """Return a row whose images have their digests; each was read and decoded once.

    Raises:
        BadRowError: One of them is not there, or cannot be decoded.
    """
    if not isinstance(content, Conversation) or not content.images:
        return content
    turns = tuple(Turn(turn.role, turn.text, tuple(map(_read, turn.images))) for turn in content.turns)
    return Conversation(turns, content.system)


def content_of(image: Image) -> bytes:
    """Return an image as it is encoded.

    Raises:
        BadRowError: It cannot be read, or is too large.
    """
    if image.content is not None:
        content = image.content
    else:
        path = Path(image.path or "")
        try:
            with path.open("rb") as file:
                content = file.read(LARGEST_BYTES + 1)
        except OSError as error:
            raise BadRowError("missing_image", f"its image {path!s:.200} cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_BYTES:
        raise BadRowError("corrupt_image", f"its image is larger than {LARGEST_BYTES >> 20} MiB")
    return content


def decode(content: bytes) -> Pillow.Image:
    """Return an encoded image as RGB, turned as its EXIF data say.

    Raises:
        BadRowError: It cannot be decoded, or has too many pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which play no part
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
                width, height = opened.size
                if width * height > LARGEST_PIXELS:
                    raise BadRowError("corrupt_image", f"its image has {width} x {height} pixels, which is too many")
                return ImageOps.exif_transpose(opened).convert("RGB")
    except BadRowError:
        raise
    except UnidentifiedImageError:
        raise BadRowError("corrupt_image", f"its image cannot be decoded: it is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # noqa: BLE001 - what a decoder of foreign bytes may end in has no end
        raise BadRowError("corrupt_image", f"its image cannot be decoded: {error!s:.200}") from None


def digest_of(content: bytes) -> bytes:
    """Return the hash by which images are told apart."""
    return hashlib.blake2b(content, digest_size=16).digest()


def _read(image: Image) -> Image:
    content = content_of(image)
    decode(content)
    return replace(image, digest=digest_of(content))
