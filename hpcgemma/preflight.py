"""What would make a job fail, found before it is queued."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcgemma.findings import Finding
from hpcgemma.hub import hub_cache, is_cached
from hpcgemma.job_plan import JobPlan
from hpcgemma.plan import Plan
from hpcgemma.recipes.contradictions import Surroundings, cautions, contradictions
from hpcgemma.recipes.only_for import switching
from hpcgemma.recipes.types import DataSpec, Recipe
from hpcgemma.rows.bad_rows import BadRow, BadRowError
from hpcgemma.rows.records import Record
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.records import NodeGroup
from hpcgemma.walltime import format_walltime

if TYPE_CHECKING:
    from hpcgemma.rows.conversion import Converter
    from hpcgemma.rows.formats import Layout

_FILES_LOOKED_AT = 20
"""Files of a pattern whose first rows are looked at: a login node's disk is slow, and shared."""


def check_recipe(plan: Plan, recipe: Recipe, model_config: Mapping[str, Any]) -> list[Finding]:
    """Return everything about data, model and method that cannot work; it asks no scheduler.

    Args:
        plan: What is asked for.
        recipe: What is trained; its strategy is the plan's.
        model_config: What is known of the model's transformers config.
    """
    return [
        *check_method(plan, recipe, model_config),
        *_check_sources(recipe),
        *_check_data(recipe, model_config),
        *_check_place("model.path", recipe.model.path, plan),
    ]


def check_preparation(plan: JobPlan, recipe: Recipe, model_config: Mapping[str, Any]) -> list[Finding]:
    """Return what would make a job fail that only prepares a recipe's data; it asks no scheduler."""
    findings = [
        *_check_rows_named(recipe),
        *_check_data(recipe, model_config),
        *_check_packages(["transformers"]),
        *_check_optional_packages(recipe, among=("PIL",)),
    ]
    if recipe.tokenizer.train_vocab_size is not None:
        return findings
    field, path = (
        ("tokenizer.path", recipe.tokenizer.path) if recipe.tokenizer.path else ("model.path", recipe.model.path)
    )
    if path is None:
        problem = "the recipe has no tokenizer: model.path, tokenizer.path and tokenizer.train_vocab_size are null"
        return [*findings, Finding(problem, "--set tokenizer.path=FOLDER, or --set tokenizer.train_vocab_size=512")]
    return [*findings, *_check_place(field, path, plan, "tokenizer*")]


def check_method(plan: Plan, recipe: Recipe, model_config: Mapping[str, Any]) -> list[Finding]:
    """Return what cannot work whatever the data are, as of a run whose data are prepared: fields, and packages."""
    wanted = ["torch", "transformers", "accelerate"] + (["peft"] if recipe.lora is not None else [])
    return [
        *contradictions(recipe, _surroundings(plan, model_config)),
        *_check_packages(wanted),
        *_check_optional_packages(recipe),
    ]


def note_recipe(plan: Plan, recipe: Recipe, model_config: Mapping[str, Any]) -> list[Finding]:
    """Return what a person should know of a run that can be submitted all the same."""
    return cautions(recipe, _surroundings(plan, model_config))


def _surroundings(plan: Plan, model_config: Mapping[str, Any]) -> Surroundings:
    return Surroundings(
        nodes=plan.nodes, gpus_per_node=plan.ranks_per_node, device=plan.device, model_config=model_config
    )


def check_partition(plan: JobPlan, client: SlurmClient) -> list[Finding]:
    """Return what the partition cannot give, asked of Slurm itself.

    Raises:
        SchedulerError: Slurm does not answer.
    """
    if plan.partition is None:
        return []
    return compare_with_nodes(plan, client.partition(plan.partition))


def compare_with_nodes(plan: JobPlan, groups: list[NodeGroup]) -> list[Finding]:
    """Return what no group of a partition's nodes can give. Pure."""
    if not groups:
        return [Finding(f"this cluster has no partition {plan.partition!r}", "sinfo lists the partitions")]
    findings = []
    is_run = isinstance(plan, Plan)
    smaller = (
        "--set resources.nodes=, resources.gpus_per_node=, resources.memory_per_gpu_mb="
        if is_run or plan.gpus_per_node
        else f"cpu_queue.cpus and cpu_queue.memory_mb, in a profile that extends {plan.profile}"
    )
    limits = [group.max_time_min for group in groups]
    longest = None if None in limits else max(limit for limit in limits if limit is not None)
    if longest is not None and plan.walltime_min > longest:
        findings.append(
            Finding(
                f"{format_walltime(plan.walltime_min)} is asked for; partition {plan.partition!r} gives at most "
                f"{format_walltime(longest)}",
                f"--time {format_walltime(longest)}" + ("  (the run goes on in further jobs)" if is_run else ""),
            )
        )
    able = [
        group
        for group in groups
        if group.gpus >= plan.gpus_per_node
        and group.memory_mb >= (plan.memory_mb_per_node or 0)
        and group.cpus >= plan.ranks_per_node * (plan.cpus_per_rank or 1)
    ]
    nodes = sum(group.count for group in able)
    if nodes < plan.nodes:
        most = max(groups, key=lambda group: (group.gpus, group.memory_mb))
        findings.append(
            Finding(
                f"{plan.nodes} nodes with {plan.gpus_per_node} GPUs, {plan.memory_mb_per_node or 'any'} MB and "
                f"{plan.ranks_per_node * (plan.cpus_per_rank or 1)} CPUs each are asked for; partition "
                f"{plan.partition!r} has {nodes} such nodes (its largest: {most.gpus} GPUs, {most.memory_mb} MB, "
                f"{most.cpus} CPUs)",
                f"ask for less with {smaller}",
            )
        )
    return findings


def _check_sources(recipe: Recipe) -> list[Finding]:
    findings = _check_rows_named(recipe)
    if recipe.model.path is None and "model_type" not in recipe.model.config:
        findings.append(
            Finding(
                "model.path is not set, and model.config names no model_type for a random start",
                "--set model.path=FOLDER_OR_HUB_NAME",
            )
        )
    return findings


def _check_rows_named(recipe: Recipe) -> list[Finding]:
    if recipe.data.generator is None and recipe.data.train is None:
        return [Finding("data.train is not set", "--set data.train=FILE.jsonl")]
    return []


def describe_data(recipe: Recipe) -> list[str]:
    """Return a line on the training rows and one on the held-out ones: what they are taken for, and why.

    What cannot be told is left out here; ``check_recipe`` finds it.
    """
    from hpcgemma.errors import InputError
    from hpcgemma.rows.files import find_files

    lines = []
    for name, patterns in _data_patterns(recipe):
        told: dict[str, int] = {}
        with contextlib.suppress(InputError, OSError):
            for path in find_files(patterns, name)[:_FILES_LOOKED_AT]:
                _, layout = _look_at(name, path, recipe.data)
                known = f"{layout.format} ({layout.evidence})"
                told[known] = told.get(known, 0) + 1
        for known, count in told.items():
            lines.append(f"{name}: {known}, as of {'1 file' if count == 1 else f'{count} files'}")
    return lines


def _data_patterns(recipe: Recipe) -> list[tuple[str, list[str]]]:
    """Return the files that a recipe names, by its field."""
    train = recipe.data.train
    entries = [] if train is None else train if isinstance(train, list) else [train]
    held_out = recipe.data.eval
    named = [
        ("data.train", [entry if isinstance(entry, str) else entry.path for entry in entries]),
        ("data.eval", [] if held_out is None else held_out if isinstance(held_out, list) else [held_out]),
    ]
    return [(name, patterns) for name, patterns in named if patterns]


def _look_at(name: str, path: Path, data: DataSpec) -> tuple[list[Record | BadRow], Layout]:
    """Return the first rows of a file and what they are taken for.

    Raises:
        InputError: It cannot be read, or it cannot be told what its rows are.
    """
    from hpcgemma.errors import InputError
    from hpcgemma.rows.files import first_rows
    from hpcgemma.rows.formats import LOOKED_AT, detect

    rows = first_rows(path, LOOKED_AT, data.sample_by)
    records = [row for row in rows if isinstance(row, Record)]
    if rows and not records:
        first = next(row for row in rows if isinstance(row, BadRow))
        raise InputError(
            f"{name} {path}: none of the first {len(rows)} rows can be read; the first, line {first.line}, is not "
            f"JSON or no row: {first.detail}",
            f"mend the file, or --set {name}=FILE",
        )
    return rows, detect(records, data, f"{name} {path}")


def _check_data(recipe: Recipe, model_config: Mapping[str, Any]) -> list[Finding]:
    return [
        finding
        for name, patterns in _data_patterns(recipe)
        for finding in _check_rows(name, patterns, recipe, model_config)
    ]


def _check_rows(name: str, patterns: list[str], recipe: Recipe, model_config: Mapping[str, Any]) -> list[Finding]:
    """Look at the first rows; the supervisor's preparation reads the rest."""
    from hpcgemma.errors import InputError
    from hpcgemma.rows.conversion import Converter
    from hpcgemma.rows.files import find_files
    from hpcgemma.rows.formats import VALID_ROWS

    try:
        paths = find_files(patterns, name)
    except InputError as error:
        return [Finding(error.problem, error.hint)]
    findings = []
    for path in paths[:_FILES_LOOKED_AT]:
        try:
            rows, layout = _look_at(name, path, recipe.data)
        except InputError as error:
            findings.append(Finding(error.problem, error.hint))
            continue
        except OSError as error:
            findings.append(Finding(f"{name}: {path} cannot be read: {error.strerror}", f"--set {name}=FILE"))
            continue
        if layout.shows_images and (finding := _unseen_images(f"{name} {path}", recipe, model_config)):
            findings.append(finding)
            continue
        bad = list(_bad_rows(rows, Converter(layout, recipe.data, path.parent)))
        if len(bad) > len(rows) / 2:
            line, first = bad[0]
            findings.append(
                Finding(
                    f"{name} {path}: {len(bad)} of the first {len(rows)} rows cannot be trained on as "
                    f"{layout.format}; the first, line {line}: {first}",
                    f"mend the file, or --set data.format=...; a valid row: {VALID_ROWS[layout.format]}",
                )
            )
    return findings


def _unseen_images(place: str, recipe: Recipe, model_config: Mapping[str, Any]) -> Finding | None:
    """Return why a recipe's model cannot be shown images; None where it can."""
    if recipe.model.kind == "text":
        return Finding(
            f"{place}: its rows show images, and model.kind text sees none",
            "--set model.kind=vision, or a file of rows without images",
        )
    model_type = model_config.get("model_type", "gemma3")
    if model_type != "gemma3":
        return Finding(
            f"{place}: its rows show images, which are trained on for Gemma 3 alone, and this model is a {model_type}",
            "--set model.path to a Gemma 3 of 4B or more, or a file of rows without images",
        )
    return None


def _bad_rows(rows: list[Record | BadRow], convert: Converter) -> Iterator[tuple[int, str]]:
    """Yield the line of each row that cannot be trained on, and what is wrong with it."""
    for row in rows:
        if isinstance(row, BadRow):
            yield row.line, row.detail
            continue
        try:
            convert(row.fields)
        except BadRowError as error:
            yield row.line, error.detail


def _check_place(field: str, path: str | None, plan: JobPlan, file: str = "config.json") -> list[Finding]:
    """Where compute nodes are offline, a hub name must already be in the cache, with a file of this name."""
    if path is None or Path(path).is_dir():
        return []
    if path.startswith(("/", "./", "../", "~")):
        return [Finding(f"{field} {path} is not a folder", f"--set {field}=FOLDER_OR_HUB_NAME")]
    if plan.offline and not is_cached(path, file):
        return [
            Finding(
                f"{field} {path!r} is not in the Hugging Face cache ({hub_cache()}), and the compute nodes of "
                f"{plan.profile!r} have no internet",
                f"hf download {path}  (on the login node, with HF_HOME on a file system the nodes see)",
            )
        ]
    return []


def _check_packages(wanted: list[str]) -> list[Finding]:
    missing = [name for name in wanted if not _is_installed(name)]
    if not missing:
        return []
    return [
        Finding(
            f"the trainer's packages are not installed beside hpcgemma: {', '.join(missing)}",
            "pip install 'hpcgemma[train]'",
        )
    ]


def _check_optional_packages(recipe: Recipe, among: Collection[str] | None = None) -> list[Finding]:
    return [
        Finding(f"{field} needs the package {package}, which is not installed beside hpcgemma", fix)
        for field, package, fix in _optional_packages(recipe)
        if not _is_installed(package) and (among is None or package in among)
    ]


def _optional_packages(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Yield what a recipe needs beyond the trainer's packages: the field, the package, and how to get or avoid it."""
    if recipe.strategy.name == "deepspeed":
        fix = f"pip install 'hpcgemma[deepspeed]', or {switching(recipe, 'strategy', 'fsdp')}"
        yield "strategy.name deepspeed", "deepspeed", fix
    if recipe.strategy.name == "xla":
        fix = "pip install 'hpcgemma[xla]', or without a TPU: --set strategy.name=auto"
        yield "strategy.name xla", "torch_xla", fix
    if recipe.model.quantization is not None:
        fix = "pip install 'hpcgemma[quantization]', or --set model.quantization=null"
        yield "model.quantization", "bitsandbytes", fix
    if recipe.optimizer.name == "adamw_8bit":
        fix = "pip install 'hpcgemma[quantization]', or --set optimizer.name=adamw"
        yield "optimizer.name adamw_8bit", "bitsandbytes", fix
    if recipe.model.kind == "vision":
        yield "model.kind vision", "PIL", "pip install 'hpcgemma[vision]', or --set model.kind=text"
    if recipe.training.liger_kernels:
        fix = "pip install 'hpcgemma[liger]', or --set training.liger_kernels=false"
        yield "training.liger_kernels", "liger_kernel", fix


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
