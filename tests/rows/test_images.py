"""Images come out of files that others may have written: what is none is said, and nothing else happens."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image as Pillow

from hpcgemma.rows.bad_rows import BadRowError
from hpcgemma.rows.conversation import Conversation, Document, Image, Turn
from hpcgemma.rows.images import content_of, decode, digest_of, with_images_read
from tests.train.pictures import draw


def shown(*images: Image) -> Conversation:
    return Conversation((Turn("user", "Look", images), Turn("model", "A thing")))


def bomb() -> bytes:
    """Return a small PNG that says it is very large."""
    png = bytearray(draw(0))
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_each_format_of_pixels_is_decoded(kind: str) -> None:
    image = decode(draw(1, kind))
    assert (image.mode, image.size) == ("RGB", (40, 30))


def test_an_image_is_turned_as_its_camera_says() -> None:
    encoded = io.BytesIO()
    exif = Pillow.Exif()
    exif[0x0112] = 6  # lies on its side
    Pillow.new("RGB", (40, 30)).save(encoded, "JPEG", exif=exif)
    assert decode(encoded.getvalue()).size == (30, 40)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no image", "cannot be decoded"),
        (b"", "cannot be decoded"),
        (draw(0)[:200], "cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be decoded"),  # Ghostscript would run it
        (bomb(), "pixels"),
    ],
    ids=["text", "empty", "cut off", "postscript", "bomb"],
)
def test_what_is_no_image_is_a_corrupt_one(content: bytes, said: str) -> None:
    with pytest.raises(BadRowError, match=said) as raised:
        decode(content)
    assert raised.value.reason == "corrupt_image"


def test_an_image_that_cannot_be_read_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BadRowError, match="cannot be read: No such file") as raised:
        content_of(Image(path=str(tmp_path / "none.png")))
    assert raised.value.reason == "missing_image"


def test_a_read_image_has_the_digest_of_its_content_wherever_it_lies(tmp_path: Path) -> None:
    content = draw(2)
    (tmp_path / "a.png").write_bytes(content)
    read = with_images_read(shown(Image(path=str(tmp_path / "a.png"), at=4), Image(content=content)))
    assert isinstance(read, Conversation)
    assert [(image.digest, image.at) for image in read.images] == [(digest_of(content), 4), (digest_of(content), 0)]
    assert with_images_read(Document("text")) == Document("text")
