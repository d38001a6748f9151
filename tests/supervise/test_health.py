"""What a node says of itself, and what follows from the answers of all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcgemma.plan import Plan, make_plan
from hpcgemma.profiles import load_profile
from hpcgemma.recipes import load_recipe
from hpcgemma.runs.folder import RunFolder
from hpcgemma.supervise import health, probe
from hpcgemma.supervise.allocation import Allocation
from hpcgemma.supervise.health import Health, HealthCheck, NodeFault, probe_command, verdict, wanted_gpus

NODES = ("node1", "node2")
LISTED = "GPU 0: NVIDIA A100-SXM-64GB (UUID: GPU-1)\nGPU 1: NVIDIA A100-SXM-64GB (UUID: GPU-2)\n"
LOST = (
    "Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost.  Reboot the system to recover this GPU\n"
)
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
    "driver is installed and running.\n"
)
MIG = (
    "GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb Device  0: (UUID: MIG-1)\n  MIG 1g.10gb Device  1: (UUID: MIG-2)\n"
)


@pytest.mark.parametrize(
    ("listed", "fault"),
    [
        (LISTED, ""),
        (MIG, ""),
        ("GPU 0: NVIDIA A100 (UUID: GPU-1)\n", "nvidia-smi lists 1 of the 2 GPUs of the job"),
        (LISTED.replace("GPU 1", LOST + "GPU 1"), f"nvidia-smi lists 2 of the 2 GPUs of the job: {LOST.strip()}"),
        (NO_DRIVER, f"nvidia-smi lists 0 of the 2 GPUs of the job: {NO_DRIVER.strip()}"),
        ("No devices were found\n", "nvidia-smi lists 0 of the 2 GPUs of the job"),
    ],
)
def test_gpus_that_are_missing_or_lost_are_told_from_nvidia_smis_list(listed: str, fault: str) -> None:
    assert probe.listing_fault(listed, 2) == fault


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ("00000000:3B:00.0, No, No\n00000000:AF:00.0, No, No\n", ""),
        ("00000000:3B:00.0, [N/A], [N/A]\n", ""),
        ("ERROR: Option --query-remapped-rows=… is not recognized. Please run 'nvidia-smi -h'.\n", ""),
        (
            "00000000:3B:00.0, No, No\n00000000:AF:00.0, Yes, No\n",
            "rows of the memory of GPU 00000000:AF:00.0 are broken and wait for a reset of the GPU to be remapped",
        ),
        (
            "00000000:3B:00.0, No, Yes\n",
            "rows of the memory of GPU 00000000:3B:00.0 are broken and could not be remapped",
        ),
    ],
)
def test_memory_that_is_broken_is_told_from_its_remapped_rows(table: str, fault: str) -> None:
    assert probe.rows_fault(table) == fault


def tool(folder: Path, words: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{words}\n")
    (folder / "nvidia-smi").chmod(0o755)


def test_without_the_tool_nothing_is_known_and_one_that_hangs_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe.gpu_fault(2) == ""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(probe, "_GPU_TOOL_TIMEOUT_S", 0.3)
    tool(tmp_path, "exec sleep 5")
    assert probe.gpu_fault(2) == "nvidia-smi does not answer within 0 s"
    assert probe.gpu_fault(0) == ""


def test_a_folder_that_cannot_be_written_is_a_fault_and_a_full_disk_is_none_of_one_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe.folder_fault(tmp_path, "node1") == ""
    assert list(tmp_path.iterdir()) == []
    assert probe.folder_fault(tmp_path / "none", "node1").endswith("there: No such file or directory")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    assert probe.temporary_fault() == ""
    monkeypatch.setattr(os, "fsync", refuse)
    assert probe.folder_fault(tmp_path, "node1") == ""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert probe.temporary_fault() == f"its temporary folder {tmp_path} cannot be written: No space left on device"


def doing(node: str, what: str = "writing into the run folder") -> dict[str, Any]:
    return {"node": node, "doing": what}


def answer(node: str, **faults: str) -> dict[str, Any]:
    return {"node": node, "faults": faults, "seconds": 0.5}


@pytest.mark.parametrize(
    ("answers", "timed_out", "faults"),
    [
        ([answer("node1"), answer("node2")], False, []),
        ([answer("node1"), answer("node2", gpu="gone")], False, [("node2", "gpu", "gone")]),
        (
            [answer("node1"), doing("node2")],
            True,
            [("node2", "silent", "it hangs for 60 s, writing into the run folder")],
        ),
        ([doing("node1")], True, [("node1", "silent", "it hangs for 60 s, writing into the run folder")]),
        ([answer("node1")], True, [("node2", "silent", "it starts no process within 60 s")]),
        ([doing("node1")], False, []),
        ([answer("node1"), answer("node2", folder="no")], False, [("node2", "folder", "no")]),
    ],
)
def test_a_node_is_sick_by_its_own_word_or_by_its_silence_beside_others(
    answers: list[dict[str, Any]], timed_out: bool, faults: list[tuple[str, str, str]]
) -> None:
    found = verdict(answers, NODES, timed_out=timed_out, words="")
    assert list(found.faults) == [NodeFault(*fault) for fault in faults]
    assert found.unknown == ""


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        ("srun: error: node2: task 1: Exited with exit code 1", ["a process there ends without a word"]),
        ("srun: error: node[2-3]: tasks 1-2: Exited with exit code 127", ["a process there ends without a word"]),
        ("slurmstepd: error: *** STEP 7.0 ON node1 CANCELLED *** srun: error: node2: task 1: Terminated", []),
        ("", []),
    ],
)
def test_a_probe_that_fails_by_itself_is_its_nodes_fault_and_one_that_was_killed_is_not(
    words: str, sentences: list[str]
) -> None:
    found = verdict([answer("node1")], NODES, timed_out=False, words=words)
    assert [fault.sentence for fault in found.faults] == sentences


@pytest.mark.parametrize("timed_out", [True, False])
def test_where_no_probe_was_heard_nothing_is_known_and_nobody_is_sick(timed_out: bool) -> None:
    found = verdict([], NODES, timed_out=timed_out, words="srun: error: Unable to create step")
    assert found == Health(unknown="the nodes could not be checked: srun: error: Unable to create step")


@pytest.mark.parametrize("kind", ["gpu", "folder", "temporary"])
def test_what_all_of_several_nodes_say_is_no_nodes_fault(kind: str) -> None:
    found = verdict(
        [answer("node1", **{kind: "no"}), answer("node2", **{kind: "no"})], NODES, timed_out=False, words=""
    )
    assert found.faults == ()
    assert found.unknown == "no fault of one node, since others have it too: no"


def test_a_run_folder_that_one_node_after_another_cannot_write_is_no_nodes_fault() -> None:
    only = [answer("node1", folder="no")]
    assert verdict(only, ["node1"], timed_out=False, words="", met=[("folder", "node1")]).faults
    assert not verdict(only, ["node1"], timed_out=False, words="", met=[("folder", "node9")]).faults
    gpu = [answer("node1", gpu="gone")]
    assert verdict(gpu, ["node1"], timed_out=False, words="", met=[("gpu", "node9")]).faults


def plan_of(profile: str, *settings: str) -> Plan:
    return make_plan(
        load_profile(profile), load_recipe("gemma2_9b_lora", settings), run_name="r", run_id="x", account="a"
    )


def allocation(*, on_slurm: bool, node_list: str = "lrdn[0009-0010]") -> Allocation:
    return Allocation(job_id="1", on_slurm=on_slurm, host="lrdn0009", node_list=node_list, restarts=0)


def test_a_job_of_several_nodes_is_probed_by_one_light_step_and_one_of_one_node_without_slurm(tmp_path: Path) -> None:
    folder, several = RunFolder(tmp_path), plan_of("leonardo", "resources.nodes=2")
    words = probe_command(several, folder, allocation(on_slurm=True))
    assert words[:5] == ["srun", "--overlap", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert words[-3:] == ["hpcgemma.supervise.probe", str(tmp_path), "2"]
    assert probe_command(plan_of("leonardo"), folder, allocation(on_slurm=True)) == words[8:]


def test_gpus_are_counted_where_the_job_asks_for_them_or_the_profile_demands_them() -> None:
    assert wanted_gpus(plan_of("leonardo")) == 2
    assert wanted_gpus(plan_of("local")) == 0


def test_a_rank_is_on_the_node_that_its_number_says() -> None:
    here = allocation(on_slurm=True)
    assert [here.node_of(rank, 4) for rank in (0, 3, 4, 7)] == ["lrdn0009"] * 2 + ["lrdn0010"] * 2
    assert here.node_of(8, 4) is None
    assert here.node_of(None, 4) is None


def test_this_machine_is_checked_in_a_moment_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.attempt_dir(1).mkdir(parents=True)
    place = dict(os.environ) | {"SLURMD_NODENAME": "here"}
    check = HealthCheck(plan_of("local"), folder, 1, allocation(on_slurm=False), place)
    check._process.wait(timeout=30)
    found = check.result([])
    assert (found.faults, found.unknown) == ((), "")
    assert 0 < found.slowest_s < found.seconds < health.LIMIT_S
    last = json.loads(folder.health_log(1).read_text().splitlines()[-1])
    assert last["node"] == "here"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempts"]


def test_a_probe_needs_no_library_that_is_slow_to_load() -> None:
    code = "import hpcgemma.supervise.probe, sys; print(sorted(m for m in sys.modules if 'hpcgemma' in m))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "['hpcgemma', 'hpcgemma.processes', 'hpcgemma.supervise', 'hpcgemma.supervise.probe']"
