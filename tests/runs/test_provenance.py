from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpcgemma.changes import accepted, refusal_of, refused
from hpcgemma.recipes import Recipe, load_recipe
from hpcgemma.recipes.fingerprint import needs_a_new_run, recipe_changes
from hpcgemma.recipes.libraries import library_versions
from hpcgemma.runs.provenance import Provenance, changes_since, provenance_of

LIBRARIES = {"python": "3.11.2", "torch": "2.13.0", "tokenizers": "0.22.1"}


def recipe(*settings: str) -> Recipe:
    return load_recipe("svg_captions_tiny", settings)


def provenance(**facts: Any) -> Provenance:
    known: dict[str, Any] = {"recipe": recipe(), "data": "d" * 64, "code": "c" * 64, "libraries": LIBRARIES}
    return Provenance(**known | facts)


def test_every_difference_is_a_line_from_before_to_now() -> None:
    other = provenance(
        recipe=recipe("optimizer.learning_rate=0.5", "data.max_length=100", "strategy.name=fsdp"),
        data="e" * 64,
        code="f" * 64,
        libraries={"python": "3.12.0", "torch": "2.14.0", "tokenizers": "0.23.0"},
    )
    changes = changes_since(provenance(), other)
    before = recipe()
    assert [str(each) for each in changes] == [
        f"data.max_length: {before.data.max_length} -> 100",
        f"optimizer.learning_rate: {before.optimizer.learning_rate} -> 0.5",
        f"strategy.name: {before.strategy.name} -> fsdp (does not change the result)",
        "data: dddddddddddd -> eeeeeeeeeeee",
        "hpcgemma's code: cccccccccccc -> ffffffffffff",
        "python: 3.11.2 -> 3.12.0",
        "tokenizers: 0.22.1 -> 0.23.0 (does not change the result)",
        "torch: 2.13.0 -> 2.14.0",
    ]
    assert [each.field for each in refused(changes, {"recipe", "code"})] == [
        "data.max_length",
        "data",
        "python",
        "torch",
    ]


def test_a_patch_of_python_and_a_library_that_only_one_knows_are_no_reason_to_refuse() -> None:
    now = provenance(libraries={"python": "3.11.9", "torch": "2.13.0", "deepspeed": "0.19"})
    [change] = changes_since(provenance(), now)
    assert str(change) == "python: 3.11.2 -> 3.11.9 (does not change the result)"
    assert refused([change], ()) == []


def test_what_is_not_known_is_not_compared() -> None:
    assert changes_since(Provenance(libraries={}), provenance()) == []
    assert changes_since(provenance(), Provenance(libraries={})) == []


def test_a_checkpoint_says_what_it_was_made_with(tmp_path: Path) -> None:
    made_with = provenance()
    (tmp_path / "trainer_state.json").write_text(json.dumps({"made_with": made_with.to_json()}))
    assert provenance_of(tmp_path) == made_with
    assert provenance_of(tmp_path / "nowhere") == Provenance(libraries={})
    (tmp_path / "trainer_state.json").write_text(json.dumps({"made_with": made_with.to_json() | {"recipe": {}}}))
    assert provenance_of(tmp_path) == provenance(recipe=None)


def test_a_refusal_names_what_changed_and_the_options_that_accept_it() -> None:
    other = provenance(recipe=recipe("optimizer.learning_rate=0.5"), libraries=LIBRARIES | {"torch": "2.14.0"})
    problem, hint = refusal_of(changes_since(provenance(), other), step=40, run="x")
    rate = recipe().optimizer.learning_rate
    assert problem == (
        f"what decides the result has changed since step 40 was saved: optimizer.learning_rate: {rate} -> 0.5; "
        "torch: 2.13.0 -> 2.14.0"
    )
    assert hint == (
        "restore it, or accept that the result changes: hpcgemma resume x --allow-change recipe "
        "--allow-change libraries"
    )


def test_an_allowance_ends_with_the_checkpoint_for_which_it_was_given() -> None:
    allowed = {"libraries": 40, "code": 60}
    assert accepted(allowed, 40) == {"libraries", "code"}
    assert accepted(allowed, 41) == {"code"}


def test_what_a_checkpoint_is_made_of_cannot_be_changed_at_all() -> None:
    settings = ("model.config.hidden_size=64", "optimizer.name=adafactor", "model.attention=eager", "training.seed=7")
    changed = needs_a_new_run(recipe_changes(recipe(), recipe(*settings)))
    assert changed == ["model.config.hidden_size", "optimizer.name"]


def test_the_libraries_of_a_recipe_are_those_it_uses() -> None:
    assert library_versions(recipe("strategy.name=ddp")).keys() >= {"python", "torch", "transformers", "accelerate"}
    assert library_versions(recipe()).keys().isdisjoint({"peft", "deepspeed", "bitsandbytes"})
    assert "deepspeed" in library_versions(recipe("strategy.name=deepspeed", "strategy.zero_stage=2"))
