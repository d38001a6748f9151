"""Fields that belong to one strategy, optimizer or schedule only, and were set beside another. Pure.

A field counts as set where it differs from its default: run.yaml writes every field down.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hpcgemma.configfile import Section
from hpcgemma.findings import Finding
from hpcgemma.recipes.types import Recipe

_ADAMW = ("adamw", "adamw_8bit")
# Section, field -> the names of that section's `name` that have it.
ONLY_FOR: dict[str, dict[str, tuple[str, ...]]] = {
    "strategy": {
        "zero_stage": ("deepspeed",),
        "offload_optimizer": ("deepspeed",),
        "offload_parameters": ("fsdp", "deepspeed"),
        "reduce_bucket_size": ("deepspeed",),
        "allgather_bucket_size": ("deepspeed",),
        "reshard_after_forward": ("fsdp",),
        "hybrid_shard": ("fsdp",),
        "prefetch_layers": ("fsdp",),
        "layer_class": ("fsdp",),
    },
    "optimizer": {
        "betas": _ADAMW,
        "eps": _ADAMW,
        "fused": ("adamw",),
        "clip_threshold": ("adafactor",),
        "decay_exponent": ("adafactor",),
    },
    "schedule": {"num_cycles": ("cosine_with_restarts",), "decay": ("wsd",)},
}


def strays(recipe: Recipe) -> Iterator[Finding]:
    """Yield a finding for all fields of one owner that are set beside a name that does not have them."""
    for section_name, fields in ONLY_FOR.items():
        section: Section = getattr(recipe, section_name)
        name = str(getattr(section, "name"))  # noqa: B009 - sections have no common type with a name
        by_owner: dict[tuple[str, ...], list[str]] = {}
        for field, owners in fields.items():
            if name not in owners and getattr(section, field) != _default(section, field):
                by_owner.setdefault(owners, []).append(field)
        for owners, strayed in by_owner.items():
            named = " and ".join(f"{section_name}.{field}" for field in strayed)
            back = " ".join(_setting_back(section_name, section, field) for field in strayed)
            yield Finding(
                f"{named} {'is' if len(strayed) == 1 else 'are'} only for {section_name}.name {' and '.join(owners)}, "
                f"and it is {name}",
                f"{back}, or {switching(recipe, section_name, owners[0])}",
            )


def switching(recipe: Recipe, section_name: str, name: str) -> str:
    """Return the settings that give a section another name, and set back what that name does not have."""
    section: Section = getattr(recipe, section_name)
    fields = [
        field
        for field, owners in ONLY_FOR[section_name].items()
        if name not in owners and getattr(section, field) != _default(section, field)
    ]
    return " ".join(
        [f"--set {section_name}.name={name}", *(_setting_back(section_name, section, each) for each in fields)]
    )


def _setting_back(section_name: str, section: Section, field: str) -> str:
    return f"--set {section_name}.{field}={_written(_default(section, field))}"


def _default(section: Section, field: str) -> Any:
    return type(section).model_fields[field].default


def _written(value: Any) -> str:
    """Return a default as `--set` takes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value).replace(" ", "")
