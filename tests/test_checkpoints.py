from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hpcgemma import checkpoints
from hpcgemma.checkpoints import Checkpoint


def save(directory: Path, step: int, *, run_id: str = "run") -> Checkpoint:
    staging = checkpoints.stage(directory, step)
    (staging / "model.safetensors").write_bytes(f"weights of step {step}".encode() * 100)
    (staging / "optimizer").mkdir()
    (staging / "optimizer" / "state.pt").write_bytes(b"momentum")
    return checkpoints.commit(staging, step=step, samples=8 * step, run_id=run_id, recipe_fingerprint="f", world_size=2)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_committed_checkpoint_verifies_and_says_what_it_is(tmp_path: Path) -> None:
    saved = save(tmp_path, 20)
    assert names(tmp_path) == ["step-20"]
    assert checkpoints.verify(saved) == []
    assert (saved.step, saved.samples, saved.run_id, saved.recipe_fingerprint) == (20, 160, "run", "f")
    assert saved.manifest["world_size"] == 2
    assert sorted(saved.manifest["files"]) == ["model.safetensors", "optimizer/state.pt"]
    assert saved.total_bytes == 18 * 100 + 8


def test_checkpoints_are_ordered_by_step_and_never_by_file_times(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(tmp_path, step)
    os.utime(tmp_path / "step-9", (2e9, 2e9))
    assert [each.step for each in checkpoints.find_checkpoints(tmp_path)] == [9, 20, 100]
    latest = checkpoints.latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.step == 100


def test_a_folder_without_checkpoints_has_no_latest(tmp_path: Path) -> None:
    assert checkpoints.find_checkpoints(tmp_path / "missing") == []
    assert checkpoints.latest_checkpoint(tmp_path / "missing") is None


def test_what_is_still_being_staged_is_no_checkpoint(tmp_path: Path) -> None:
    staging = checkpoints.stage(tmp_path, 5)
    (staging / "model.safetensors").write_bytes(b"half")
    assert checkpoints.find_checkpoints(tmp_path) == []
    assert checkpoints.latest_checkpoint(tmp_path) is None


def test_leftovers_of_a_killed_save_are_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".staging-step-5.123").mkdir()
    save(tmp_path, 10)
    assert names(tmp_path) == ["step-10"]


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "hole", "remove", "grow"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer/state.pt", "manifest.json"])
def test_every_damage_to_every_file_is_seen(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 10)
    path = tmp_path / "step-10" / name
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "truncate":
        path.write_bytes(content[:middle])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flip":
        content[middle] ^= 0x80
        path.write_bytes(content)
    elif damage == "hole":
        path.write_bytes(content[:middle] + bytes(len(content) - middle))
    elif damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content + b"x")
    assert checkpoints.latest_checkpoint(tmp_path) is None
    assert names(tmp_path) == ["step-10"]  # without a callback nothing is renamed


def test_a_damaged_newest_is_set_aside_with_its_problem_and_the_one_before_is_latest(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    (tmp_path / "step-20" / "optimizer" / "state.pt").write_bytes(b"momentuM")
    told: list[tuple[str, str]] = []
    latest = checkpoints.latest_checkpoint(
        tmp_path, lambda checkpoint, problem: told.append((checkpoint.path.name, problem))
    )
    assert latest is not None
    assert latest.step == 10
    assert told == [("bad-step-20", "state.pt has changed: its SHA-256 is another")]
    assert names(tmp_path) == ["bad-step-20", "step-10"]


def test_a_second_damaged_checkpoint_of_a_step_gets_a_name_of_its_own(tmp_path: Path) -> None:
    for _ in range(3):
        save(tmp_path, 10)
        (tmp_path / "step-10" / "manifest.json").write_text("{}")
        assert checkpoints.latest_checkpoint(tmp_path, lambda *_: None) is None
    assert names(tmp_path) == ["bad-step-10", "bad-step-10-2", "bad-step-10-3"]


def test_a_checkpoint_under_another_name_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / "step-10").rename(tmp_path / "step-30")
    found = checkpoints.find_checkpoints(tmp_path)
    assert checkpoints.verify(found[0]) == ["manifest.json says step 10; the folder is step-30"]


def test_a_manifest_of_a_later_format_is_not_guessed_at(tmp_path: Path) -> None:
    saved = save(tmp_path, 10)
    (saved.path / "manifest.json").write_text(json.dumps(saved.manifest | {"format": 2}))
    found = checkpoints.find_checkpoints(tmp_path)
    assert checkpoints.verify(found[0])[0] == "manifest.json has format 2; this version reads 1"


def test_a_manifest_that_lies_about_the_samples_is_seen(tmp_path: Path) -> None:
    saved = save(tmp_path, 10)
    (saved.path / "manifest.json").write_text(json.dumps(saved.manifest | {"samples": 81}))
    found = checkpoints.find_checkpoints(tmp_path)
    assert checkpoints.verify(found[0]) == ["manifest.json has changed: its SHA-256 is another"]


def test_pruning_keeps_the_newest_and_what_is_protected(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step)
    deleted = checkpoints.prune(tmp_path, keep=2, protect={20})
    assert [each.step for each in deleted] == [10, 30]
    assert names(tmp_path) == ["step-20", "step-40", "step-50"]


def test_pruning_never_goes_below_two_that_verify(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
    (tmp_path / "step-40" / "model.safetensors").unlink()
    checkpoints.prune(tmp_path, keep=1)
    assert names(tmp_path) == ["step-20", "step-30", "step-40"]


def test_what_is_known_to_verify_is_not_read_again_when_pruning(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    (tmp_path / "step-30" / "model.safetensors").unlink()
    checkpoints.prune(tmp_path, keep=2, verified={tmp_path / f"step-{step}" for step in (10, 20, 30)})
    assert names(tmp_path) == ["step-20", "step-30"]


def test_a_step_saved_again_replaces_the_old_folder_which_is_kept_under_another_name(tmp_path: Path) -> None:
    save(tmp_path, 10)
    saved = save(tmp_path, 10, run_id="other")
    assert names(tmp_path) == ["bad-step-10", "step-10"]
    assert saved.run_id == "other"


def test_what_does_not_read_back_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "verify", lambda checkpoint: ["model.safetensors has changed"])
    with pytest.raises(OSError, match=r"does not read back as it was written: model\.safetensors has changed"):
        save(tmp_path, 10)
    assert names(tmp_path) == ["bad-step-10"]
