"""Whatever happens to whichever file of a checkpoint is found before use, and the checkpoint before is used."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcgemma import checkpoints

SHARD = "state/shard-{:05d}-model-00001-of-00001.safetensors"
SHAPES = {
    "one rank": 1,
    "ddp": 2,
    "fsdp": 2,
    "zero": 4,
}
"""Ranks, each of which writes one file under every strategy; tests/train/test_strategies.py holds that true."""

NEWEST, BEFORE = 20, 10
HOLE = 4096


def contents(step: int, ranks: int) -> dict[str, bytes]:
    """Return the files of a checkpoint without its manifest: as large as makes a hole of 4 KB a hole."""
    noise = random.Random(step)
    files = {SHARD.format(rank + 1): noise.randbytes(3 * HOLE + rank) for rank in range(ranks)}
    return files | {"trainer_state.json": b'{"progress": %d}\n' % step}


@pytest.fixture(params=SHAPES)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with two sound checkpoints."""
    for step in (BEFORE, NEWEST):
        staging = checkpoints.stage(tmp_path, step)
        for name, content in contents(step, SHAPES[request.param]).items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(content)
        checkpoints.commit(
            staging, step=step, samples=step, run_id="run", recipe_fingerprint="f", world_size=SHAPES[request.param]
        )
    return tmp_path


def files_of(directory: Path) -> list[str]:
    newest = directory / f"step-{NEWEST}"
    return sorted(str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file())


def flip(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def hole(content: bytes) -> bytes:
    start = max(0, len(content) // 2 - HOLE // 2)
    return content[:start] + bytes(min(HOLE, len(content) - start)) + content[start + HOLE :]


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "half of it": lambda content: content[: len(content) // 2],
    "all but its last byte": lambda content: content[:-1],
    "empty": lambda content: b"",
    "its first bit flipped": lambda content: flip(content, 0, 7),
    "a bit in its middle flipped": lambda content: flip(content, len(content) // 2, 0),
    "its last bit flipped": lambda content: flip(content, len(content) - 1, 0),
    "a hole of 4 KB": hole,
    "all zeros": lambda content: bytes(len(content)),
    "a byte more": lambda content: content + b"\n",
}


def assert_found(directory: Path, *names: str) -> None:
    """Assert that the newest is set aside with a sentence that names the files, and that the one before is used."""
    told: list[tuple[str, str]] = []
    latest = checkpoints.latest_checkpoint(
        directory, lambda checkpoint, problem: told.append((checkpoint.path.name, problem))
    )
    assert latest is not None
    assert latest.step == BEFORE
    [(aside, problem)] = told
    assert aside == f"bad-step-{NEWEST}"
    assert any(Path(name).name in problem for name in names), problem
    shutil.rmtree(directory / aside)


def each_file(directory: Path, damage: Callable[[Path], tuple[str, ...]]) -> None:
    """Damage each file of the newest checkpoint in turn, and assert that it is found."""
    sound = directory.parent / f"{directory.name}-sound"
    shutil.copytree(directory / f"step-{NEWEST}", sound)
    for name in files_of(directory):
        assert_found(directory, name, *damage(directory / f"step-{NEWEST}" / name))
        shutil.copytree(sound, directory / f"step-{NEWEST}")
    assert checkpoints.latest_checkpoint(directory) == checkpoints.checkpoint_at(directory, NEWEST)


@pytest.mark.parametrize("change", CHANGES)
def test_every_file_that_has_changed_is_found(directory: Path, change: str) -> None:
    def damage(path: Path) -> tuple[str, ...]:
        path.write_bytes(CHANGES[change](path.read_bytes()))
        return ()

    each_file(directory, damage)


def test_every_file_that_is_missing_is_found(directory: Path) -> None:
    def damage(path: Path) -> tuple[str, ...]:
        path.unlink()
        return ()

    each_file(directory, damage)


def test_every_file_that_has_become_a_folder_or_a_dead_link_is_found(directory: Path) -> None:
    def folder(path: Path) -> tuple[str, ...]:
        path.unlink()
        path.mkdir()
        return ()

    def link(path: Path) -> tuple[str, ...]:
        path.unlink()
        path.symlink_to("nowhere")
        return ()

    each_file(directory, folder)
    shutil.rmtree(directory.parent / f"{directory.name}-sound")
    each_file(directory, link)


def test_every_file_that_is_another_checkpoints_is_found(directory: Path) -> None:
    def damage(path: Path) -> tuple[str, ...]:
        name = path.relative_to(directory / f"step-{NEWEST}")
        shutil.copyfile(directory / f"step-{BEFORE}" / name, path)
        return ()

    each_file(directory, damage)


def test_every_file_that_has_changed_places_with_another_is_found(directory: Path) -> None:
    def damage(path: Path) -> tuple[str, ...]:
        newest = directory / f"step-{NEWEST}"
        names = files_of(directory)
        other = newest / names[names.index(str(path.relative_to(newest))) - 1]
        mine, others = path.read_bytes(), other.read_bytes()
        path.write_bytes(others)
        other.write_bytes(mine)
        return (other.name,)

    each_file(directory, damage)


def test_a_file_that_was_added_is_found(directory: Path) -> None:
    shutil.copyfile(directory / f"step-{BEFORE}" / SHARD.format(1), directory / f"step-{NEWEST}" / SHARD.format(1000))
    assert_found(directory, f"{SHARD.format(1000)} is not listed")


def test_what_a_file_system_hides_in_a_folder_is_no_fault(directory: Path) -> None:
    (directory / f"step-{NEWEST}" / "state" / ".nfs000000000000002a").touch()
    assert checkpoints.latest_checkpoint(directory) == checkpoints.checkpoint_at(directory, NEWEST)


def test_every_flipped_bit_of_a_manifest_is_found(directory: Path) -> None:
    path = directory / f"step-{NEWEST}" / checkpoints.MANIFEST_NAME
    sound = path.read_bytes()
    for place in range(len(sound)):
        path.write_bytes(flip(sound, place, place % 8))
        damaged = checkpoints.checkpoint_at(directory, NEWEST)
        assert damaged is not None
        assert checkpoints.verify(damaged), place


def test_checkpoints_that_have_changed_names_are_found(directory: Path) -> None:
    (directory / f"step-{NEWEST}").rename(directory / "other")
    (directory / f"step-{BEFORE}").rename(directory / f"step-{NEWEST}")
    (directory / "other").rename(directory / f"step-{BEFORE}")
    told: list[str] = []
    assert checkpoints.latest_checkpoint(directory, lambda _, problem: told.append(problem)) is None
    assert told == [
        f"manifest.json says step {BEFORE}; the folder is step-{NEWEST}",
        f"manifest.json says step {NEWEST}; the folder is step-{BEFORE}",
    ]
