"""Going on with a run under other resources, or another strategy: what `hpcgemma resume --set` changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from hpcgemma.findings import Finding
from hpcgemma.plan import Plan
from hpcgemma.runs.store import RunEntry
from hpcgemma.slurm.client import SlurmClient


def changed(
    entry: RunEntry,
    content: dict[str, Any],
    settings: Sequence[str],
    walltime: str | None,
    client: SlurmClient,
    allowed: Collection[str] = (),
) -> tuple[dict[str, Any], Plan, list[Finding]]:
    """Return the content of run.yaml under new settings, the new plan, and what is worth knowing of it.

    Args:
        entry: The run.
        content: Its run.yaml.
        settings: As after ``--set``.
        walltime: Time limit of one job; None keeps it.
        client: Asks Slurm what the partition gives.
        allowed: Kinds of changes that may change the result.

    Raises:
        ConfigError: A setting is wrong, contradicts another, or does not fit the cluster.
        InputError: A setting would change what the weights become, and that is not allowed or cannot be; or the
            run's own copy of hpcgemma would not understand what this one writes.
        SchedulerError: Slurm does not answer.
    """
    from hpcgemma import configfile, hub, preflight
    from hpcgemma.changes import refused
    from hpcgemma.cli import differences
    from hpcgemma.errors import InputError
    from hpcgemma.findings import refuse
    from hpcgemma.plan import make_plan
    from hpcgemma.profiles import Profile
    from hpcgemma.recipes.fingerprint import free_fields, needs_a_new_run, recipe_changes
    from hpcgemma.recipes.foreign_names import FOREIGN_NAMES
    from hpcgemma.recipes.types import Recipe
    from hpcgemma.strategy import with_strategy
    from hpcgemma.walltime import format_walltime

    before = Recipe.model_validate(content["recipe"])
    profile = Profile.model_validate(content["profile"])
    old_plan = Plan.from_mapping(content["plan"])
    document = configfile.with_settings(configfile.Document(content["recipe"]), settings)
    subject = f"recipe {before.name!r}"
    recipe = configfile.build(Recipe, document, subject=subject, foreign_names=FOREIGN_NAMES)
    if "code" not in allowed and before.model_dump(mode="json") != content["recipe"]:
        own = differences.own_command(entry.folder, "resume", entry.name, *(f"--set={each}" for each in settings))
        raise InputError(
            "the run's recipe was written by another version of hpcgemma, whose copy in the run folder would not "
            "understand this one's",
            f"use that copy: {own}, or with --allow-change code this version",
        )
    changes = recipe_changes(before, recipe)
    if fixed := needs_a_new_run(changes):
        raise InputError(
            f"{', '.join(fixed)} decides what the checkpoints of run {entry.name} are made of",
            f"start a new run (hpcgemma submit); a resumed one may change {', '.join(free_fields())}",
        )
    if deciding := refused(changes, allowed):
        kinds = " ".join(f"--allow-change {kind}" for kind in sorted({each.kind for each in deciding}))
        raise InputError(
            f"{'; '.join(map(str, deciding))} decides what the weights become: run {entry.name} keeps what it began "
            "with",
            f"add {kinds} if that is meant, or start a new run (hpcgemma submit); a resumed one may change "
            f"{', '.join(free_fields())}",
        )
    model_config = hub.model_config(recipe)
    is_unlimited = profile.scheduler == "none" and walltime is None
    keeps_walltime = walltime is None and recipe.resources.walltime == before.resources.walltime
    plan = make_plan(
        profile,
        recipe,
        run_name=entry.name,
        run_id=entry.run_id,
        account=old_plan.account,
        walltime=format_walltime(old_plan.walltime_min) if keeps_walltime and not is_unlimited else walltime,
        model_config=model_config,
    )
    plan = dataclasses.replace(plan, continue_by=old_plan.continue_by)  # as the site decided when it was submitted
    recipe = with_strategy(recipe, plan.strategy)
    findings = preflight.check_method(plan, recipe, model_config)
    if plan.scheduler == "slurm":
        findings += preflight.check_partition(plan, client)
    refuse(findings)
    new = content | {"plan": plan.as_mapping(), "recipe": recipe.model_dump(mode="json")}
    return new, plan, preflight.note_recipe(plan, recipe, model_config)
