"""Where the rows of a recipe come from: files of several kinds and formats, or a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import DataSpec, MixturePart, Recipe, RowFormat
from hpcgemma.rows.bad_rows import BadRowError
from hpcgemma.rows.conversation import Content, Conversation
from hpcgemma.rows.conversion import Converter
from hpcgemma.rows.files import Chunk, container_of, find_files, first_records, parse_chunk, read_chunks
from hpcgemma.rows.formats import Layout, detect
from hpcgemma.rows.images import with_images_read
from hpcgemma.rows.records import Record
from hpcgemma.train.data.drawn_images import png_of
from hpcgemma.train.data.pipeline import Piece
from hpcgemma.train.data.svg_captions import Drawing, draw_rows
from hpcgemma.train.data.tokenizing import HELD_OUT, SourceFile, digests_of, held_out_limit

LOOKED_AT = 200
"""Rows of each file from which its format is told."""

_CHUNK_BYTES = 1 << 20
_CHUNK_BYTES_OF_IMAGE_ROWS = 16 << 10  # a row that names a file is short, and its image takes long to decode


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that a recipe names."""

    path: Path
    part: int
    """Which part of the mixture it belongs to; HELD_OUT."""


@dataclass(frozen=True, slots=True)
class Sources:
    """All rows of a recipe."""

    spec: DataSpec
    files: list[SourceFile]
    weights: list[float]
    """Of each part of the mixture."""
    drawn: list[list[Record]]
    """Rows that a generator drew, for each of `files`; empty where they are real."""

    @property
    def shows_images(self) -> bool:
        """Whether the first rows of a file show images."""
        return any(file.layout.shows_images for file in self.files)

    @property
    def holds_out_share(self) -> bool:
        """Whether some of the training rows are held out."""
        return all(file.part != HELD_OUT for file in self.files)

    def pieces(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Piece]:
        """Yield all rows, file by file, in pieces.

        Args:
            on_bytes: Told how many bytes of the files have been read.
        """
        if self.drawn:
            yield from enumerate(self.drawn)
            return
        before = 0
        for number, file in enumerate(self.files):
            path = Path(file.path)
            chunk: Chunk
            size = _CHUNK_BYTES_OF_IMAGE_ROWS if self.shows_images else _CHUNK_BYTES
            for chunk in read_chunks(path, container_of(path), sample_by=self.spec.sample_by, chunk_bytes=size):
                on_bytes(before + chunk.end)
                yield number, chunk
            before += path.stat().st_size

    def training_contents(self) -> Iterator[Content]:
        """Yield what the training rows mean, without those that are bad or held out."""
        limit = held_out_limit(self.spec.eval_share) if self.holds_out_share else 0
        for number, content in self._contents():
            if self.files[number].part == HELD_OUT:
                continue
            with suppress(BadRowError):
                read = with_images_read(content)
                if digests_of(read)[0] >= limit:
                    yield read

    def image_files(self) -> Iterator[tuple[Path, Path]]:
        """Yield the files of the images that rows show, each with the folder of the rows that name it."""
        if not self.shows_images or self.drawn:
            return
        for number, content in self._contents():
            for image in content.images if isinstance(content, Conversation) else ():
                if image.path is not None:
                    yield Path(self.files[number].path).parent, Path(image.path)

    def _contents(self) -> Iterator[tuple[int, Content]]:
        """Yield what the good rows of each file mean; their images are not read."""
        converters = [Converter(file.layout, self.spec, Path(file.path).parent) for file in self.files]
        for number, piece in self.pieces():
            for row in parse_chunk(piece) if isinstance(piece, Chunk) else piece:
                if isinstance(row, Record):
                    with suppress(BadRowError):
                        yield number, converters[number](row.fields)

    def described(self) -> list[str]:
        """Return a sentence on each file: what it is taken for, and why."""
        return [f"{Path(file.path).name}: {file.layout.format} ({file.layout.evidence})" for file in self.files]


def data_files(data: DataSpec) -> list[DataFile]:
    """Return the files that a recipe names, each once, training files first.

    Raises:
        InputError: One is not there.
    """
    found: list[DataFile] = []
    for part, entry in enumerate(_parts(data)):
        found += [DataFile(path, part) for path in find_files([entry.path], "data.train")]
    if data.eval is not None:
        patterns = [data.eval] if isinstance(data.eval, str) else data.eval
        found += [DataFile(path, HELD_OUT) for path in find_files(patterns, "data.eval")]
    return found


def open_sources(recipe: Recipe) -> Sources:
    """Return the rows of a recipe; of each file the first are looked at.

    Raises:
        InputError: There are none, or it cannot be told what they are.
    """
    data = recipe.data
    if data.generator is not None:
        spec = data.generator
        drawn = draw_rows(spec.train_rows, spec.eval_rows, spec.seed)
        made, fields, record = _GENERATORS[spec.name]
        names = {name: name for name in fields}
        layout = Layout(made, names, "hpcgemma has drawn them", shows_images="image" in fields)
        return Sources(
            # What was asked for is given, also a drawing that came twice.
            data.model_copy(update={"deduplicate": False}),
            [SourceFile("drawings", 0, layout), SourceFile("held-out drawings", HELD_OUT, layout)],
            [1.0],
            [[Record(number, record(drawing)) for number, drawing in enumerate(some, start=1)] for some in drawn],
        )
    if not _parts(data):
        raise InputError("the recipe has no rows: data.train and data.generator are null", "--set data.train=FILE")
    files = []
    for file in data_files(data):
        records = first_records([file.path], LOOKED_AT, data.sample_by)
        files.append(SourceFile(str(file.path), file.part, detect(records, data, str(file.path))))
    return Sources(data, files, [part.weight for part in _parts(data)], [])


def check_formats(recipe: Recipe, sources: Sources) -> None:
    """Refuse rows that cannot be trained on as the recipe wants it.

    Raises:
        InputError: They show images to a model of text, or are plain text that is asked for an answer.
    """
    images = [file.path for file in sources.files if file.layout.shows_images]
    if images and recipe.model.kind == "text":
        raise InputError(
            f"the rows of {images[0]} show images, and model.kind text sees none",
            "--set model.kind=vision, or data.train=FILE of rows without images",
        )
    if recipe.evaluation.generation is None:
        return
    texts = [file.path for file in sources.files if file.layout.format == "text"]
    if texts:
        raise InputError(
            f"evaluation.generation asks for answers, and the rows of {texts[0]} are plain text, which asks nothing",
            "--set evaluation.generation=null",
        )


def _parts(data: DataSpec) -> list[MixturePart]:
    entries = [] if data.train is None else [data.train] if isinstance(data.train, str) else data.train
    return [entry if isinstance(entry, MixturePart) else MixturePart(path=entry) for entry in entries]


_GENERATORS: dict[str, tuple[RowFormat, tuple[str, str], Callable[[Drawing], dict[str, Any]]]] = {
    "svg_captions": ("svg_caption", ("svg", "caption"), lambda each: {"svg": each.svg, "caption": each.caption}),
    "image_captions": (
        "image_caption",
        ("image", "caption"),
        lambda each: {"image": png_of(each), "caption": each.caption},
    ),
}
"""Of each generator the format of its rows, their fields, and a row of a drawing."""
