from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hpcgemma.errors import InputError
from hpcgemma.job_plan import plan_cpu_job
from hpcgemma.plan import Plan, make_plan
from hpcgemma.profiles import load_profile
from hpcgemma.recipes import load_recipe, recipe_names
from hpcgemma.render import directive, render_command_script, render_script

GOLDEN = Path(__file__).parent / "golden"
PROFILES = ["leonardo", "generic_slurm"]
RECIPES = [name for name in recipe_names() if not name.endswith("_tiny")] + ["svg_captions_tiny"]
# Each cluster with each recipe that fits it: a TPU's eight cores are no node of Leonardo.
SCRIPTS = [
    (profile, recipe) for profile in PROFILES for recipe in RECIPES if "tpu" not in recipe or profile != "leonardo"
]
COMMAND = [
    "/opt/python",
    "-P",
    "-u",
    "/scratch/runs/r/code/hpcgemma/start.py",
    "submitit.core._submit",
    "/scratch/runs/r/submitit",
]


WORKER = ["/opt/python", "-P", "-u", "-m", "submitit.core._submit", "/scratch/runs/.jobs/prepare-r-1/submitit"]
"""Of a job that is no run's."""


def plan_of(profile: str, recipe: str) -> Plan:
    return make_plan(load_profile(profile), load_recipe(recipe), run_name="r", run_id="0123456789ab", account="EUHPC_1")


def golden_script(profile: str, recipe: str) -> str:
    return render_script(plan_of(profile, recipe), run_folder=Path("/scratch/runs/r"), command=COMMAND)


@pytest.mark.parametrize(("profile", "recipe"), SCRIPTS)
def test_the_script_of_each_cluster_and_recipe_is_the_golden_one(profile: str, recipe: str) -> None:
    golden = GOLDEN / f"{profile}-{recipe}.sbatch"
    assert golden_script(profile, recipe) == golden.read_text(), "if it is meant: python -m tests.golden.record"


def preparation_script(profile: str) -> str:
    plan = plan_cpu_job(
        load_profile(profile),
        name="prepare-r-1",
        job_identity="0123456789ab",
        recipe="r",
        account="EUHPC_1",
        walltime=None,
    )
    return render_command_script(plan, job_folder=Path("/scratch/runs/.jobs/prepare-r-1"), command=WORKER)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_script_of_a_job_that_only_prepares_data_is_the_golden_one(profile: str) -> None:
    golden = GOLDEN / f"{profile}-data_prepare.sbatch"
    assert preparation_script(profile) == golden.read_text(), "if it is meant: python -m tests.golden.record"


def parses(script: str) -> bool:
    return subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


HOSTILE_FOLDERS = [
    "/scratch/a b",
    "/scratch/a'b",
    "/scratch/a;touch x",
    "/scratch/$(touch x)",
    "/scratch/`touch x`",
    "/scratch/%j %u",
    "/scratch/a#b",
    "/scratch/é",
    "/scratch/&& rm",
]


@pytest.mark.parametrize("folder", HOSTILE_FOLDERS)
def test_a_hostile_folder_is_quoted_for_bash_and_for_sbatch(folder: str) -> None:
    run_folder = Path(folder)
    script = render_script(
        plan_of("leonardo", "gemma2_9b_lora"), run_folder=run_folder, command=[*COMMAND[:-1], str(run_folder)]
    )
    assert parses(script)
    lines = script.splitlines()
    exported = next(line for line in lines if line.startswith("export HPCGEMMA_RUN="))
    assert shlex.split(exported) == ["export", f"HPCGEMMA_RUN={folder}"]
    assert shlex.split(lines[-1])[-1] == folder
    output = next(line for line in lines if line.startswith("#SBATCH --output="))
    path = output.removeprefix("#SBATCH --output=").strip('"')
    assert path == folder.replace("%", "%%") + "/submitit/%j_0_log.out"


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\0b", "a\\b", 'a"b', "a\tb"])
def test_what_could_end_a_directive_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="cannot be written into a job script"):
        directive(text)
    with pytest.raises(InputError, match="cannot be written into a job script"):
        render_script(plan_of("leonardo", "gemma2_9b_lora"), run_folder=Path("/scratch") / text, command=COMMAND)


def test_a_plan_that_was_tampered_with_is_refused_too() -> None:
    plan = replace(plan_of("leonardo", "gemma2_9b_lora"), account='x"\n#SBATCH --uid=0')
    with pytest.raises(InputError, match="cannot be written into a job script"):
        render_script(plan, run_folder=Path("/scratch/r"), command=COMMAND)


def test_modules_and_variables_of_a_profile_are_quoted() -> None:
    plan = replace(
        plan_of("leonardo", "gemma2_9b_lora"),
        modules_purge=True,
        modules_load=("cuda/12.2", "x; rm -rf /"),
        env=(("NAME", "$(id) 'x'"),),
    )
    script = render_script(plan, run_folder=Path("/scratch/r"), command=COMMAND)
    assert parses(script)
    assert "module load 'x; rm -rf /' ||" in script
    assert shlex.split(next(line for line in script.splitlines() if "NAME=$" in line or "NAME='" in line)) == [
        "export",
        "NAME=$(id) 'x'",
    ]
