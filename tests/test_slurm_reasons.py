"""Every reason and state of Slurm is put into plain words, and an unknown one is no crash."""

from __future__ import annotations

import pytest

from hpcgemma.slurm.reasons import explain_reason, explain_state, is_final, is_pending, is_running

KINDS = {
    "transient": ["None", "", "Cleaning", "Prolog", "SchedDefer", "FedJobLock"],
    "wait": [
        *("Priority", "Resources", "Dependency", "BeginTime", "Reservation", "JobArrayTaskLimit", "Licenses"),
        *("QOSMaxJobsPerUserLimit", "AssocMaxJobsLimit", "QOSGrpJobsLimit", "QOSMaxSubmitJobPerUserLimit"),
        *("AssocMaxSubmitJobLimit", "MaxSubmitJobsPerAccount", "QOSMaxGRESPerUser", "QOSMaxCpuPerUserLimit"),
        *("QOSMaxNodePerUserLimit", "MaxGRESPerAccount", "MaxCpuPerAccount", "AssocGrpGRES"),
        *("AssocGrpNodeLimit", "AssocGrpCpuLimit", "QOSGrpNodeLimit", "AssocGrpGRESRunMinutes"),
        *("AssocGrpCPURunMinutesLimit", "QOSGrpCPURunMinutesLimit"),
        *("MaxPoweredUpNodes", "NvidiaImexChannels", "MpiPortsBusy"),
    ],
    "action": [
        *("JobHeldUser", "JobHeldAdmin", "JobHoldMaxRequeue", "launch failed requeued held", "JobLaunchFailure"),
        *("RaisedSignal:53(Real-time_signal_19)", "ReqNodeNotAvail", "ReqNodeNotAvail, UnavailableNodes:lrdn0001"),
        "ReqNodeNotAvail, Reserved for maintenance",
    ],
    "dead": [
        *("DependencyNeverSatisfied", "QOSMaxGRESPerJob", "QOSMaxNodePerJobLimit", "QOSMaxCpuPerJobLimit"),
        *("QOSMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit", "QOSMinGRES", "QOSMinNode"),
        *("QOSMinCpuNotSatisfied", "InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed"),
        *("PartitionTimeLimit", "PartitionNodeLimit", "PartitionConfig", "BadConstraints", "Constraints"),
        *("AssocMaxCpuMinutesPerJobLimit", "MaxMemPerLimit", "ReservationDeleted", "ReservationInvalid", "DeadLine"),
    ],
    "budget": ["AssocGrpBillingMinutes", "AssocGrpGRESMinutes", "AssocGrpCPUMinutesLimit"],
    "site": ["PartitionDown", "PartitionInactive", "NodeDown", "BurstBufferStageIn"],
    "terminal": ["OutOfMemory", "NonZeroExitCode", "TimeLimit", "SystemFailure", "InactiveLimit"],
}
PENDING = ["PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"]
RUNNING = ["RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"]
FINAL = [
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"),
    *("OUT_OF_MEMORY", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"),
]


@pytest.mark.parametrize(("kind", "reason"), [(kind, reason) for kind, reasons in KINDS.items() for reason in reasons])
def test_a_known_reason_is_explained(kind: str, reason: str) -> None:
    explanation = explain_reason(reason)

    assert explanation.kind == kind
    assert explanation.sentence.endswith(".")
    if kind in ("action", "dead", "budget"):
        assert explanation.remedy


def test_parentheses_as_in_squeues_node_list_do_not_matter() -> None:
    assert explain_reason("(Priority)") == explain_reason("Priority")


def test_an_unknown_reason_is_named_and_admitted() -> None:
    explanation = explain_reason("MoonIsFull")

    assert explanation.kind == "unknown"
    assert explanation.sentence == "Slurm gives the reason 'MoonIsFull', which hpcgemma does not know."
    assert explanation.remedy


@pytest.mark.parametrize("state", [*PENDING, *RUNNING, *FINAL])
def test_a_known_state_is_explained_and_belongs_to_one_phase(state: str) -> None:
    assert explain_state(state).kind != "unknown"
    assert (is_pending(state), is_running(state), is_final(state)) == (
        state in PENDING,
        state in RUNNING,
        state in FINAL,
    )


def test_an_unknown_state_is_named_and_belongs_to_no_phase() -> None:
    explanation = explain_state("LEVITATING")

    assert explanation.kind == "unknown"
    assert "'LEVITATING'" in explanation.sentence
    assert not any(phase("LEVITATING") for phase in (is_pending, is_running, is_final))
