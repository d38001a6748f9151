"""Plan -> job script. Every value is quoted or refused; the templates hold no arithmetic."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from hpcgemma import assets
from hpcgemma.errors import InputError
from hpcgemma.job_plan import JobPlan
from hpcgemma.plan import Plan
from hpcgemma.walltime import format_walltime

RUN_TEMPLATE = "supervisor"
COMMAND_TEMPLATE = "command"
_BARE = re.compile(r"[A-Za-z0-9_./:,@%+=&|*\[\]()-]*")
_FORBIDDEN = re.compile(r"""[\x00-\x1f\x7f\\"]""")


class _Verbatim(str):
    """Text that is shell code already."""

    __slots__ = ()


def directive(value: object) -> _Verbatim:
    """Return a value for an ``#SBATCH`` line, in double quotes where it is more than plain characters.

    sbatch reads these lines itself, not the shell: quotes group, a backslash escapes, nothing is expanded
    (proc_args in Slurm's src/sbatch/opt.c). So a control character, a backslash or a double quote, which
    could end the value, is refused, and the rest is quoted.

    Raises:
        InputError: The value could break out of the directive.
    """
    text = str(value)
    bad = _FORBIDDEN.search(text)
    if bad:
        raise InputError(
            f"{text!r} cannot be written into a job script: it contains {bad.group()!r}",
            "choose a name or folder without control characters, backslashes and double quotes",
        )
    return _Verbatim(text if _BARE.fullmatch(text) else f'"{text}"')


def log_pattern(path: Path) -> str:
    """Return a path for ``--output``, where ``%`` starts a replacement symbol, with its own ``%`` doubled."""
    return str(path.parent).replace("%", "%%") + "/" + path.name


def _comment(value: object) -> _Verbatim:
    return _Verbatim(re.sub(r"[^A-Za-z0-9_.,@+=-]", "?", str(value)))


def _quoted(value: object) -> object:
    """Quote whatever a template prints without saying how (Jinja's `finalize`)."""
    if isinstance(value, (_Verbatim, jinja2.Undefined)):
        return value
    return shlex.quote(str(value))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([str(folder) for folder in assets.folders("template")]),
        undefined=jinja2.StrictUndefined,
        finalize=_quoted,
        autoescape=False,  # this is shell, not HTML: `finalize` quotes
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["directive"] = directive
    environment.filters["comment"] = _comment
    environment.filters["verbatim"] = _Verbatim
    return environment


def gpu_request(plan: JobPlan) -> str:
    """Return the one GPU option of a plan; empty where it asks for none."""
    if not plan.gpus_per_node:
        return ""
    typed = f"{plan.gpu_type}:{plan.gpus_per_node}" if plan.gpu_type else str(plan.gpus_per_node)
    return f"--gres=gpu:{typed}" if plan.gpu_style == "gres" else f"--gpus-per-node={typed}"


def job_environment(plan: JobPlan, identity: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what the job script exports: the job's identity and the site's settings. Never a secret."""
    environment = {"SUBMITIT_EXECUTOR": "slurm", **identity}
    if plan.offline:
        environment |= dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    if plan.socket_interface:
        environment |= dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), plan.socket_interface)
    return [*environment.items(), *plan.env]


def warning_signal(plan: Plan, lead_s: int) -> str:
    """Return the warning that a job asks for, in sbatch's form: to the batch host, so many seconds before the limit."""
    return f"B:{plan.signal}@{lead_s}"


def render_script(plan: Plan, *, run_folder: Path, command: Sequence[str], exclude: Sequence[str] = ()) -> str:
    """Return the job script of a run.

    Args:
        plan: What is asked for.
        run_folder: The run's folder; the batch log goes below it, where submitit expects it.
        command: The supervisor's command line, one word an item.
        exclude: Nodes that the job is not to have.

    Raises:
        InputError: A value could break out of its directive.
    """
    submitit_dir = run_folder / "submitit"
    identity = {"HPCGEMMA_RUN_ID": plan.run_id, "HPCGEMMA_RUN": str(run_folder)}
    return _render(
        RUN_TEMPLATE,
        plan,
        command,
        exclude=exclude,
        signal=warning_signal(plan, plan.signal_lead_s),
        stdout=log_pattern(submitit_dir / "%j_0_log.out"),
        stderr=log_pattern(submitit_dir / "%j_0_log.err"),
        environment=job_environment(plan, identity),
    )


def render_command_script(
    plan: JobPlan, *, job_folder: Path, command: Sequence[str], exclude: Sequence[str] = ()
) -> str:
    """Return the job script of one command, which is no run's.

    Args:
        plan: What is asked for.
        job_folder: The job's folder; its log goes there.
        command: The command line, one word an item.
        exclude: Nodes that the job is not to have.

    Raises:
        InputError: A value could break out of its directive.
    """
    log = log_pattern(job_folder / "%j.log")
    environment = job_environment(plan, {})
    return _render(COMMAND_TEMPLATE, plan, command, exclude=exclude, stdout=log, stderr=log, environment=environment)


def _render(template: str, plan: JobPlan, command: Sequence[str], *, exclude: Sequence[str], **values: Any) -> str:
    values |= {
        "exclude": ",".join(exclude),
        "plan": plan,
        "gpu_request": gpu_request(plan),
        "memory": f"{plan.memory_mb_per_node}M",
        "walltime": format_walltime(plan.walltime_min),
        "command": shlex.join(command),
    }
    return _environment().get_template(f"{template}.sbatch.j2").render(values)
