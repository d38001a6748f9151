"""What would make a job fail, found before it is queued."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

from hpcgemma.errors import ConfigError, InputError, Problem
from hpcgemma.plan import Plan
from hpcgemma.recipes.types import Recipe
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.records import NodeGroup
from hpcgemma.walltime import format_walltime

_ROWS_LOOKED_AT = 50
ROW_FIELDS = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "svg_caption": ("svg", "caption"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that would make the job fail, and the remedy."""

    problem: str
    hint: str


def check_recipe(plan: Plan, recipe: Recipe) -> list[Finding]:
    """Return everything about data, model and method that cannot work; it asks no scheduler."""
    return [
        *_check_method(recipe),
        *_check_data(recipe),
        *_check_model(plan, recipe),
        *_check_packages(recipe),
    ]


def check_partition(plan: Plan, client: SlurmClient) -> list[Finding]:
    """Return what the partition cannot give, asked of Slurm itself.

    Raises:
        SchedulerError: Slurm does not answer.
    """
    if plan.partition is None:
        return []
    return compare_with_nodes(plan, client.partition(plan.partition))


def compare_with_nodes(plan: Plan, groups: list[NodeGroup]) -> list[Finding]:
    """Return what no group of a partition's nodes can give. Pure."""
    if not groups:
        return [Finding(f"this cluster has no partition {plan.partition!r}", "sinfo lists the partitions")]
    findings = []
    limits = [group.max_time_min for group in groups]
    longest = None if None in limits else max(limit for limit in limits if limit is not None)
    if longest is not None and plan.walltime_min > longest:
        findings.append(
            Finding(
                f"{format_walltime(plan.walltime_min)} is asked for; partition {plan.partition!r} gives at most "
                f"{format_walltime(longest)}",
                f"--time {format_walltime(longest)}  (the run goes on in further jobs)",
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
                "ask for less with --set resources.nodes=, resources.gpus_per_node=, resources.memory_per_gpu_mb=",
            )
        )
    return findings


def _check_method(recipe: Recipe) -> list[Finding]:
    findings = []
    if recipe.strategy.name != "ddp":
        findings.append(
            Finding(
                f"strategy.name {recipe.strategy.name!r} is not trained by this version yet",
                "--set strategy.name=ddp",
            )
        )
    if recipe.model.quantization is not None:
        findings.append(
            Finding("model.quantization is not trained by this version yet", "--set model.quantization=null")
        )
    if recipe.data.generator is None and recipe.data.train is None:
        findings.append(Finding("data.train is not set", "--set data.train=FILE.jsonl"))
    if recipe.data.generator is not None and recipe.data.train is not None:
        findings.append(
            Finding("data.train and data.generator are both set", "--set data.generator=null to use the file")
        )
    if recipe.model.path is None and "model_type" not in recipe.model.config:
        findings.append(
            Finding(
                "model.path is not set, and model.config names no model_type for a random start",
                "--set model.path=FOLDER_OR_HUB_NAME",
            )
        )
    return findings


def _check_data(recipe: Recipe) -> list[Finding]:
    files = [("data.train", recipe.data.train), ("data.eval", recipe.data.eval)]
    fields = ROW_FIELDS[recipe.data.format]
    return [
        finding
        for name, text in files
        if text is not None
        for finding in _check_rows(name, Path(text), recipe.data.format, fields)
    ]


def _check_rows(name: str, path: Path, row_format: str, fields: tuple[str, ...]) -> list[Finding]:
    """Look at the first rows; the supervisor's preparation reads the rest."""
    fix = f"--set {name}=FILE.jsonl"
    rows = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    return [Finding(f"{name} {path}, line {number}, is not JSON: {error}", "one JSON object a line")]
                missing = [f for f in fields if not isinstance(row, dict) or f not in row]
                if missing:
                    has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                    return [
                        Finding(
                            f"{name} {path}, line {number}: a {row_format!r} row needs {' and '.join(fields)}; "
                            f"this one has {has}",
                            f"--set data.format=... (valid: {', '.join(ROW_FIELDS)}), or mend the file",
                        )
                    ]
                rows += 1
                if rows >= _ROWS_LOOKED_AT:
                    break
    except FileNotFoundError:
        return [Finding(f"{name}: {path} does not exist", fix)]
    except (OSError, UnicodeDecodeError) as error:
        return [Finding(f"{name}: {path} cannot be read: {error}", fix)]
    return [] if rows else [Finding(f"{name}: {path} is empty", fix)]


def _check_model(plan: Plan, recipe: Recipe) -> list[Finding]:
    """Where compute nodes are offline, a hub name must already be in the cache."""
    path = recipe.model.path
    if path is None or Path(path).is_dir():
        return []
    if path.startswith(("/", "./", "../", "~")):
        return [Finding(f"model.path {path} is not a folder", "--set model.path=FOLDER_OR_HUB_NAME")]
    snapshots = hub_cache() / f"models--{path.replace('/', '--')}" / "snapshots"
    if plan.offline and not any(snapshots.glob("*/config.json")):
        return [
            Finding(
                f"model.path {path!r} is not in the Hugging Face cache ({hub_cache()}), and the compute nodes of "
                f"{plan.profile!r} have no internet",
                f"hf download {path}  (on the login node, with HF_HOME on a file system the nodes see)",
            )
        ]
    return []


def _check_packages(recipe: Recipe) -> list[Finding]:
    wanted = ["torch", "transformers", "accelerate"] + (["peft"] if recipe.lora is not None else [])
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if not missing:
        return []
    return [
        Finding(
            f"the trainer's packages are not installed beside hpcgemma: {', '.join(missing)}",
            "pip install 'hpcgemma[train]'",
        )
    ]


def hub_cache() -> Path:
    """Return the Hugging Face cache, as huggingface_hub finds it (HF_HUB_CACHE, HF_HOME)."""
    chosen = os.environ.get("HF_HUB_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(home).expanduser() / "hub"


def refuse(findings: list[Finding]) -> None:
    """Stop a submission that cannot work.

    Raises:
        ConfigError: There are findings; all are listed.
    """
    if not findings:
        return
    if len(findings) == 1:
        raise InputError(findings[0].problem, findings[0].hint)
    problems = [Problem(place="", field="", message=each.problem, hint=each.hint) for each in findings]
    raise ConfigError("this run would fail", problems, "mend what is listed; nothing was submitted")
