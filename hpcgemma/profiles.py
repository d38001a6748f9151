"""Cluster profiles: what a site offers, and how it wants to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hpcgemma import assets, configfile
from hpcgemma.configfile import Section, Walltime

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")]
"""Names of partitions, QOS, modules' files and the like: nothing that could end a directive."""


class VerifiedSpec(Section):
    """When these facts were last true. Site limits are data that ages."""

    date: str = Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")
    """Year and month, or the day."""
    source: str
    """Where they were read."""


class NodeSpec(Section):
    """One node of the GPU partition."""

    gpus: int | None = Field(None, ge=0)
    """GPUs (on `device: cpu`: ranks) per node; null is not known, and Slurm is asked at submission."""
    gpu_model: str | None = None
    """Model of the GPU, for people."""
    gpu_memory_gib: float | None = Field(None, gt=0)
    """Memory of one GPU in GiB, as the driver reports it."""
    gpu_type: Identifier | None = None
    """Slurm's name of the GPU type, where a request must carry it."""
    cpus: int | None = Field(None, gt=0)
    """CPUs as Slurm counts them."""
    memory_mb: int | None = Field(None, gt=0)
    """Memory that a job may request, in Slurm's MB (MiB)."""


class RequestSpec(Section):
    """How a job is asked for at this site."""

    gpu_style: Literal["gres", "gpus_per_node", "none"] = "gres"
    """The one GPU directive that is written; Slurm 26.05 refuses two kinds in one script."""
    cpus_per_gpu: int | None = Field(None, gt=0)
    """CPUs of each rank; null leaves the site's default."""
    memory_per_gpu_mb: int | None = Field(None, gt=0)
    """Memory per GPU in MB; null writes no --mem, where it is forbidden or ignored."""
    constraint: str | None = Field(None, pattern=r"^[A-Za-z0-9_&|*\[\]()-]+$")
    """Node feature that GPU jobs must ask for."""
    exclusive: bool = False
    """Ask for whole nodes."""


class AccountSpec(Section):
    """The account that pays. It is never part of a shipped profile."""

    required: bool = False
    """Refuse a submission without one."""
    discover: str | None = None
    """Command with which a user finds the names of theirs."""


class QueueSpec(Section):
    """A partition with a QOS. The first queue that is large enough is taken, the default one before others."""

    name: Identifier
    """Short name, for `--set queue=` and messages."""
    partition: Identifier | None = None
    """Slurm partition; null is the site's default."""
    qos: Identifier | None = None
    """Slurm QOS; null is the account's default."""
    max_walltime: Walltime | None = None
    """Longest time limit; null is not known."""
    min_nodes: int = Field(1, gt=0)
    """Fewest nodes of a job."""
    max_nodes: int | None = Field(None, gt=0)
    """Most nodes of a job; null is not known."""
    default: bool = False
    """Try this queue first."""


class CpuQueueSpec(Section):
    """Where jobs without a GPU run, such as one that only prepares data."""

    partition: Identifier | None = None
    """Slurm partition; null is the site's default."""
    qos: Identifier | None = None
    """Slurm QOS; null is the account's default."""
    max_walltime: Walltime | None = None
    """Longest time limit, and what is asked for unless --time says less; null is not known."""
    cpus: int = Field(4, gt=0)
    """CPUs of a job, as Slurm counts them."""
    memory_mb: int | None = Field(None, gt=0)
    """Memory of a job in MB; null writes no --mem."""


class ContinuationSpec(Section):
    """How a run goes on when its job must end before it is finished."""

    mode: Literal["auto", "successor", "requeue", "chain"] = "auto"
    """successor: the job submits the next one, which starts when it ends; requeue: `scontrol requeue`; chain: the next
    job always waits ahead; auto: what fits the site, by what Slurm says of it (`hpcgemma doctor` shows it)."""
    signal: Literal["USR1", "USR2"] = "USR2"
    """Warning signal. NCCL may use USR1."""
    lead_s: int = Field(300, ge=1, le=65535)
    """Seconds before the time limit at which Slurm warns, until the run has measured what its saves take; it may come
    up to 60 s early (sbatch --signal)."""
    max_relaunches: int = Field(3, ge=0)
    """Relaunches in the same allocation without a new checkpoint between them, before the run is given up."""
    interruption_every_h: float = Field(24.0, gt=0)
    """Mean hours between interruptions that nothing announces, such as a lost node or preemption without grace, to be
    assumed until the run has seen some; for `checkpoint.every_steps: auto`."""


class NetworkSpec(Section):
    """What compute nodes can reach."""

    compute_internet: Literal["none", "proxy", "yes", "unknown"] = "unknown"
    """Internet on the compute nodes. none: hub libraries are set offline, and inputs are checked for."""
    socket_interface: str | None = Field(None, pattern=r"^[A-Za-z0-9_.,^=:-]+$")
    """Interface for the ranks' first contact (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)."""


class ModulesSpec(Section):
    """Environment modules loaded in the job. One that is absent is reported, not fatal."""

    purge: bool = False
    """`module purge` first."""
    load: list[str] = []
    """Modules to load, in order."""
    unset: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] = []
    """Variables to unset afterwards, such as a PYTHONPATH that a module set."""


class StorageSpec(Section):
    """Where files go. `$NAME` is taken from the environment, `{account}` from the account."""

    runs: str = "runs"
    """Folder of run folders; it must be seen by login and compute nodes. Relative: below the working folder."""


class Profile(Section):
    """What a cluster offers."""

    name: Identifier
    """Name of the profile, as its file is called."""
    site: str
    """The machine, for people."""
    verified: VerifiedSpec | None = None
    """When its facts were last true."""
    scheduler: Literal["slurm", "none"] = "slurm"
    """none: jobs run on this machine."""
    device: Literal["cuda", "cpu", "auto"] = "cuda"
    """cuda: a rank that sees no GPU refuses to train; auto: GPUs where there are any."""
    node: NodeSpec = NodeSpec()
    """One node."""
    request: RequestSpec = RequestSpec()
    """How a job is asked for."""
    account: AccountSpec = AccountSpec()
    """The account."""
    queues: list[QueueSpec] = Field(min_length=1)
    """Where jobs can be queued."""
    cpu_queue: CpuQueueSpec | None = None
    """Where jobs without a GPU can be queued; null: nowhere."""
    continuation: ContinuationSpec = ContinuationSpec()
    """How a run goes on."""
    network: NetworkSpec = NetworkSpec()
    """Networks."""
    modules: ModulesSpec = ModulesSpec()
    """Environment modules."""
    storage: StorageSpec = StorageSpec()
    """Folders."""
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = {}
    """Environment of the job that belongs to the site, such as NCCL tuning."""
    poll_interval_s: float = Field(30.0, gt=0)
    """Seconds between questions to the scheduler while waiting; some sites ask for 60."""

    @model_validator(mode="after")
    def _queue_names_differ(self) -> Profile:
        names = [queue.name for queue in self.queues]
        if len(set(names)) != len(names):
            raise ValueError(f"queues: two have the same name: {', '.join(names)}")
        return self


def profile_names() -> list[str]:
    """Return the names of all profiles, the user's own and the shipped ones."""
    return assets.names("profile")


def load_profile(name: str, settings: Sequence[str] = ()) -> Profile:
    """Return a profile by name or path, with settings applied.

    Raises:
        InputError: No such profile.
        ConfigError: It has problems; all are listed.
    """
    path = assets.find("profile", name)
    document = configfile.with_settings(configfile.read_document(path, "profile"), settings)
    return configfile.build(Profile, document, subject=f"profile {name!r}")
