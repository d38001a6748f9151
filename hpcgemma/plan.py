"""The plan: every number of a run, computed from a profile and a recipe. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hpcgemma.errors import ConfigError, HpcGemmaError, InputError, Problem
from hpcgemma.fate import Way
from hpcgemma.job_plan import JobPlan, name_problems
from hpcgemma.memory import StrategyName
from hpcgemma.profiles import Profile, QueueSpec
from hpcgemma.recipes.batch import accumulation_steps
from hpcgemma.recipes.types import Recipe
from hpcgemma.shapes import shape_of
from hpcgemma.strategy import Processes, choose_strategy
from hpcgemma.walltime import MAX_WALLTIME_MIN, format_walltime, parse_walltime

_STEP_COMPILES_S = 300.0
"""A step that meets a new shape is compiled anew; taken generously, not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(JobPlan):
    """What one run asks of one machine, with nothing left to compute."""

    scheduler: Literal["slurm", "none"]
    device: Literal["cuda", "cpu", "auto"]
    continue_by: Way
    """How the run goes on in another job. What `continuation.mode: auto` means only Slurm can say: until it was asked,
    a successor."""
    signal: str
    """Name of the warning signal without SIG."""
    signal_lead_s: int
    max_relaunches: int
    interruption_every_h: float
    """Mean hours between unannounced interruptions, as assumed before any were seen."""
    silent_training_s: float | None
    """Least seconds without a sign of life after which ranks that take steps hang; None: never."""
    silent_elsewhere_s: float | None
    """The same in any other phase."""
    accumulation_steps: int
    strategy: StrategyName
    strategy_reason: str
    """One sentence: why this strategy."""

    @property
    def stacks_signal(self) -> str:
        """Name without SIG of the signal on which ranks write their stacks: the other one that srun forwards."""
        return "USR2" if self.signal == "USR1" else "USR1"

    @property
    def world_size(self) -> int:
        """Ranks of the run."""
        return self.nodes * self.ranks_per_node

    def as_mapping(self) -> dict[str, Any]:
        """Return the plan as plain values for run.yaml."""
        values = dataclasses.asdict(self)
        return values | {
            "modules_load": list(self.modules_load),
            "unset": list(self.unset),
            "env": dict(self.env),
        }

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> Plan:
        """Return the plan that `as_mapping` wrote.

        Raises:
            HpcGemmaError: Another version of hpcgemma wrote it.
        """
        try:
            tuples = {
                "modules_load": tuple(values["modules_load"]),
                "unset": tuple(values["unset"]),
                "env": tuple(values["env"].items()),
            }
            return cls(**values | tuples)
        except (AttributeError, KeyError, TypeError) as error:
            raise HpcGemmaError(
                f"the run's plan was written by another version of hpcgemma: {error}", "use that version for this run"
            ) from error


def make_plan(
    profile: Profile,
    recipe: Recipe,
    *,
    run_name: str,
    run_id: str,
    account: str | None = None,
    walltime: str | None = None,
    model_config: Mapping[str, Any] | None = None,
) -> Plan:
    """Return the plan of a run.

    Args:
        profile: What the cluster offers.
        recipe: What the run wants.
        run_name: Name of the run and of its folder.
        run_id: Identity of the run, letters and digits.
        account: Account that pays; None where the site needs none.
        walltime: Time limit of one job in sbatch's forms; None takes the recipe's, and none without a scheduler.
        model_config: The model's transformers config, as far as it is known; None takes what the recipe says of it.

    Raises:
        ConfigError: Everything about the run that this cluster cannot do, each with what it can.
    """
    problems: list[Problem] = []
    resources = recipe.resources
    place = f"recipe {recipe.name!r}"
    problems += name_problems(run_name, account, profile)

    unlimited = profile.scheduler == "none" and walltime is None
    try:
        walltime_min = MAX_WALLTIME_MIN if unlimited else parse_walltime(walltime or resources.walltime)
    except ValueError as error:
        problems.append(Problem(place="--time", field="", message=str(error)))
        walltime_min = parse_walltime(resources.walltime)
    problems += _node_problems(profile, recipe)
    queue = _choose_queue(profile, resources.nodes, walltime_min, problems)

    world_size = resources.nodes * resources.gpus_per_node
    accumulation = 1
    try:
        accumulation = accumulation_steps(
            global_batch=recipe.training.global_batch,
            micro_batch=recipe.training.micro_batch,
            world_size=world_size,
        )
    except InputError as error:
        problems.append(Problem(place=place, field="", message=error.problem, hint=error.hint))
    lead_s = profile.continuation.lead_s
    if profile.scheduler == "slurm" and lead_s >= walltime_min * 60:
        problems.append(
            Problem(
                place="--time",
                field="",
                message=f"{format_walltime(walltime_min)} is not longer than the warning lead of {lead_s} s",
                hint=f"ask for more than {lead_s // 60 + 1} minutes",
            )
        )
    if problems:
        raise ConfigError(
            f"recipe {recipe.name!r} does not fit profile {profile.name!r}",
            problems,
            _hint(profile, problems),
        )

    shape = shape_of(recipe.model.config if model_config is None else model_config, recipe.model.kind)
    choice = choose_strategy(recipe, shape, _processes(profile, recipe))
    on_slurm = profile.scheduler == "slurm"
    memory_per_gpu_mb = resources.memory_per_gpu_mb or profile.request.memory_per_gpu_mb
    asks_gpus = on_slurm and profile.request.gpu_style != "none"
    return Plan(
        run_name=run_name,
        run_id=run_id,
        profile=profile.name,
        recipe=recipe.name,
        scheduler=profile.scheduler,
        device=profile.device,
        account=account,
        partition=queue.partition,
        qos=queue.qos,
        constraint=profile.request.constraint,
        exclusive=profile.request.exclusive,
        nodes=resources.nodes,
        ranks_per_node=resources.gpus_per_node,
        gpus_per_node=resources.gpus_per_node if asks_gpus else 0,
        gpu_style=profile.request.gpu_style,
        gpu_type=profile.node.gpu_type,
        cpus_per_rank=profile.request.cpus_per_gpu,
        memory_mb_per_node=memory_per_gpu_mb * resources.gpus_per_node if memory_per_gpu_mb else None,
        walltime_min=walltime_min,
        continue_by="successor" if profile.continuation.mode == "auto" else profile.continuation.mode,
        signal=profile.continuation.signal,
        signal_lead_s=lead_s,
        max_relaunches=profile.continuation.max_relaunches,
        interruption_every_h=profile.continuation.interruption_every_h,
        silent_training_s=_silent_training_s(recipe, choice.name),
        silent_elsewhere_s=recipe.watch.elsewhere_s or None,
        accumulation_steps=accumulation,
        strategy=choice.name,
        strategy_reason=choice.reason,
        offline=profile.network.compute_internet == "none",
        socket_interface=profile.network.socket_interface,
        modules_purge=profile.modules.purge,
        modules_load=tuple(profile.modules.load),
        unset=tuple(profile.modules.unset),
        env=tuple(profile.env.items()),
        poll_interval_s=profile.poll_interval_s,
    )


def plan_job_about(plan: Plan, profile: Profile, *, name: str, job_identity: str, walltime: str | None) -> JobPlan:
    """Return the plan of a job of one command about a run: on one node, with the GPUs that the run has of one.

    Args:
        plan: The run's.
        profile: The run's.
        name: Name of the job.
        job_identity: Identity of the job, letters and digits.
        walltime: Time limit in sbatch's forms; None takes that of the run's jobs.

    Raises:
        ConfigError: No queue takes it.
    """
    problems: list[Problem] = []
    walltime_min = plan.walltime_min
    try:
        walltime_min = parse_walltime(walltime) if walltime else walltime_min
    except ValueError as error:
        problems.append(Problem(place="--time", field="", message=str(error)))
    queue = _choose_queue(profile, 1, walltime_min, problems)
    if problems:
        raise ConfigError(f"the job does not fit profile {profile.name!r}", problems, _hint(profile, problems))
    of_run = {field.name: getattr(plan, field.name) for field in dataclasses.fields(JobPlan)}
    of_job = {
        "run_name": name,
        "run_id": job_identity,
        "partition": queue.partition,
        "qos": queue.qos,
        "nodes": 1,
        "walltime_min": walltime_min,
        "env": (*plan.env, ("HPCGEMMA_DEVICE", plan.device)),
    }
    return JobPlan(**of_run | of_job)


def _silent_training_s(recipe: Recipe, strategy: StrategyName) -> float | None:
    """Return the least seconds of a hang; None: never."""
    training_s = recipe.watch.training_s
    if training_s and (recipe.training.compile or strategy == "xla"):
        return max(training_s, _STEP_COMPILES_S)
    return training_s or None


def _processes(profile: Profile, recipe: Recipe) -> Processes:
    resources, gpu_memory_gib = recipe.resources, profile.node.gpu_memory_gib
    on_gpus = profile.device == "cuda" or (profile.device == "auto" and gpu_memory_gib is not None)
    host_memory_mb = resources.memory_per_gpu_mb or profile.request.memory_per_gpu_mb
    host_memory_gib = host_memory_mb / 1024 if host_memory_mb else None
    return Processes(
        nodes=resources.nodes,
        per_node=resources.gpus_per_node,
        memory_gib=gpu_memory_gib if on_gpus else host_memory_gib,
        on_gpus=on_gpus,
    )


def _node_problems(profile: Profile, recipe: Recipe) -> list[Problem]:
    resources, node = recipe.resources, profile.node
    place = f"recipe {recipe.name!r}"
    problems: list[Problem] = []
    if node.gpus is not None and resources.gpus_per_node > node.gpus:
        whole_nodes = -(-resources.nodes * resources.gpus_per_node // node.gpus) if node.gpus else 0
        problems.append(
            Problem(
                place=place,
                field="resources.gpus_per_node",
                message=f"asks for {resources.gpus_per_node} GPUs a node; {profile.name!r} has {node.gpus}",
                hint=f"--set resources.gpus_per_node={node.gpus} --set resources.nodes={whole_nodes}",
            )
        )
        return problems  # memory and CPUs follow from the GPUs
    if profile.scheduler == "none" and resources.nodes > 1:
        problems.append(
            Problem(
                place=place,
                field="resources.nodes",
                message=f"asks for {resources.nodes} nodes; {profile.name!r} is one machine",
                hint="--set resources.nodes=1",
            )
        )
    memory_per_gpu_mb = resources.memory_per_gpu_mb or profile.request.memory_per_gpu_mb
    if memory_per_gpu_mb and node.memory_mb and memory_per_gpu_mb * resources.gpus_per_node > node.memory_mb:
        problems.append(
            Problem(
                place=place,
                field="resources.memory_per_gpu_mb",
                message=f"{memory_per_gpu_mb} MB x {resources.gpus_per_node} GPUs; a node of {profile.name!r} "
                f"gives at most {node.memory_mb} MB",
                hint=f"--set resources.memory_per_gpu_mb={node.memory_mb // resources.gpus_per_node}",
            )
        )
    cpus = profile.request.cpus_per_gpu
    if cpus and node.cpus and cpus * resources.gpus_per_node > node.cpus:
        problems.append(
            Problem(
                place=f"profile {profile.name!r}",
                field="request.cpus_per_gpu",
                message=f"{cpus} CPUs x {resources.gpus_per_node} GPUs; a node has {node.cpus}",
                hint=f"at most {node.cpus // resources.gpus_per_node} fit",
            )
        )
    return problems


def _choose_queue(profile: Profile, nodes: int, walltime_min: int, problems: list[Problem]) -> QueueSpec:
    ordered = sorted(profile.queues, key=lambda queue: not queue.default)
    reasons = []
    for queue in ordered:
        longest_min = parse_walltime(queue.max_walltime) if queue.max_walltime else None
        if longest_min is not None and walltime_min > longest_min:
            reasons.append(f"{queue.name}: at most {format_walltime(longest_min)}")
        elif queue.max_nodes is not None and nodes > queue.max_nodes:
            reasons.append(f"{queue.name}: at most {queue.max_nodes} nodes")
        elif nodes < queue.min_nodes:
            reasons.append(f"{queue.name}: at least {queue.min_nodes} nodes")
        else:
            return queue
    problems.append(
        Problem(
            place=f"profile {profile.name!r}",
            field="queues",
            message=f"no queue takes {nodes} nodes for {format_walltime(walltime_min)}",
            hint="; ".join(reasons),
        )
    )
    return ordered[0]


def _hint(profile: Profile, problems: list[Problem]) -> str:
    if len(problems) == 1 and problems[0].field == "account":
        return f"hpcgemma submit --profile {profile.name} --account NAME ..."
    return "change what is named; nothing was submitted"
