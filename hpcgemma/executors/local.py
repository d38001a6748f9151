"""Running the supervisor on this machine, through submitit's local controller."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import Any

import submitit
from submitit.local.local import LocalJob

from hpcgemma.executors import supervisor_command
from hpcgemma.plan import Plan
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.tracking import write_local_job


class LocalExecutor(submitit.LocalExecutor):
    """submitit's local executor, whose controller outlives the terminal: a session of its own, output to a file.

    submitit starts the controller in the caller's process group, where Ctrl-C during `--wait` would end the run.

    Args:
        plan: What is asked for.
        folder: The run folder.
    """

    def __init__(self, plan: Plan, folder: RunFolder) -> None:
        super().__init__(folder.submitit_dir)
        self.plan = plan
        self.run_folder = folder

    @property
    def _submitit_command_str(self) -> str:
        return shlex.join(supervisor_command(self.run_folder))

    def _submit_command(self, command: str) -> LocalJob[Any]:
        """Start submitit's controller, which reads its orders from these variables (submitit/local/local.py)."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        environment |= {
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_NTASKS": "1",
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(self.plan.signal_lead_s),
            "SUBMITIT_LOCAL_TIMEOUT_S": str(self.plan.walltime_min * 60),
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "",
            "HPCGEMMA_RUN_ID": self.plan.run_id,
            "HPCGEMMA_RUN": str(self.run_folder.path),
            **dict(self.plan.env),
        }
        with (self.run_folder.submitit_dir / "controller.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "submitit.local._local", str(self.folder)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        write_local_job(self.run_folder, process.pid)
        return LocalJob(folder=self.folder, job_id=str(process.pid), process=process, tasks=[0])
