"""SVG drawings as images, drawn by a process that can do nothing else.

A drawing comes out of a data file that others may have written. resvg runs no script, but it does read a file that an
``<image>`` names, and a few nested ``<use>`` make it draw for hours. So a process of its own draws: once it has started
it may open no file and no socket, has little memory and little time, and is ended and started anew when one drawing
costs too much. It has no fonts: an image is the same on every machine, and text in a drawing is not shown.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

SIDE_PX = 224
"""Width and height of an image, as CLIP takes it."""

SECONDS = 5
"""How long one drawing may take."""

MEMORY_MIB = 1024
"""Address space of the process that draws."""

LONGEST_BYTES = 1 << 20
"""Of a drawing; a longer one is not drawn."""

_STARTING_S = 60
"""How long the process may take to start, on a file system that many read from."""

_SVG = re.compile(r"<svg\b.*</svg\s*>", re.DOTALL | re.IGNORECASE)

_PROGRAM = f"""
import base64, json, resource, sys
from resvg_py import svg_to_bytes
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_MIB} << 20,) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
print(flush=True)
for line in sys.stdin:
    try:
        png = svg_to_bytes(svg_string=json.loads(line), skip_system_fonts=True, background="#ffffff",
                           width={SIDE_PX}, height={SIDE_PX})
        print(base64.b64encode(bytes(png)).decode(), flush=True)
    except BaseException:
        print(flush=True)
"""


def svg_in(text: str) -> str | None:
    """Return the SVG drawing in a text; None where there is none."""
    found = _SVG.search(text)
    return found[0] if found else None


class Drawer:
    """Draws SVGs; used as a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Drawer:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def draw(self, svg: str) -> Any | None:
        """Return a square RGB image of Pillow, the drawing in its middle on white; None where it cannot be drawn."""
        from PIL import Image

        if len(svg.encode()) > LONGEST_BYTES:
            return None
        line = self._ask(svg)
        try:
            with Image.open(io.BytesIO(base64.b64decode(line, validate=True)), formats=["PNG"]) as drawn:
                image = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")
                image.paste(drawn.convert("RGB"), ((SIDE_PX - drawn.width) // 2, (SIDE_PX - drawn.height) // 2))
        except (OSError, ValueError, binascii.Error):
            return None
        return image

    def _ask(self, svg: str) -> bytes:
        """Return what the process answers to a drawing; nothing where it failed or took too long."""
        process = self._process or self._start()
        if process is None or process.stdin is None:
            return b""
        try:
            process.stdin.write(json.dumps(svg).encode() + b"\n")
            process.stdin.flush()
            line = _read_line(process, SECONDS)
        except OSError:
            line = None
        if line is None:
            self._end()
        return line or b""

    def _start(self) -> subprocess.Popen[bytes] | None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", "")},
        )
        if _read_line(self._process, _STARTING_S) is None:
            self._end()
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                _close(pipe)
        process.wait()


def images_of(svgs: Sequence[str]) -> list[Any | None]:
    """Return an image of each drawing, as ``Drawer.draw`` does."""
    with Drawer() as drawer:
        return [drawer.draw(svg) for svg in svgs]


def _read_line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """Return the next line of a process without its end; None where it ended or took too long."""
    if process.stdout is None:
        return None
    descriptor, found = process.stdout.fileno(), b""
    while not found.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], seconds)
        piece = os.read(descriptor, 1 << 16) if ready else b""
        if not piece:
            return None
        found += piece
    return found.rstrip(b"\n")


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except OSError:
        return  # what was still to be written can go nowhere
