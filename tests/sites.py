"""Sites as the recorded Slurm describes them, and as they would be if a setting were another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpcgemma.destination import Destination
from hpcgemma.preemption import preemption_of
from hpcgemma.slurm import commands
from hpcgemma.slurm.qos import Qos, parse_show_qos, qos_of
from hpcgemma.slurm.site import Partition, Site, partition_of, site_of

_RECORDED = Path(__file__).parent / "slurm_outputs" / "slurm-22.05.8.json"


def recorded(case: str) -> str:
    """Return what the recorded command printed."""
    cases: dict[str, dict[str, Any]] = json.loads(_RECORDED.read_text(encoding="utf-8"))
    return str(cases[case]["stdout"])


def recorded_site(**config: str) -> Site:
    """Return the recorded site with some of its configuration replaced."""
    return site_of(commands.parse_show_config(recorded("show_config")) | config)


def recorded_partitions(**fields: str) -> dict[str, Partition]:
    """Return the recorded partitions by name, with some fields of all of them replaced."""
    found = [partition_of(each | fields) for each in commands.parse_show_partitions(recorded("show_partitions"))]
    return {each.name: each for each in found}


def recorded_qos() -> list[Qos]:
    """Return the QOS of the recorded site where the QOS decides who preempts whom."""
    return [qos_of(each) for each in parse_show_qos(recorded("show_preempting_qos"))]


def qos_destination(
    name: str | None, mode: str = "REQUEUE", known: list[Qos] | None = None, **config: str
) -> Destination:
    """Return a place where the QOS decides who preempts whom, for a job of a QOS; no QOS: the accounting is silent."""
    site = recorded_site(PreemptType="preempt/qos", PreemptMode=mode, **config)
    found = None if name is None else known or recorded_qos()
    return destination("boost_usr_prod", site, name, found)


def destination(
    name: str, site: Site | None = None, qos: str | None = None, known: list[Qos] | None = None, **fields: str
) -> Destination:
    """Return a partition of the recorded site as a place where a job goes; fields replace those of this partition."""
    site = site or recorded_site()
    partitions = recorded_partitions()
    partition = recorded_partitions(**fields)[name] if fields else partitions[name]
    return Destination(
        site=site,
        partition=partition,
        preemption=preemption_of(site, partition, list(partitions.values()), qos, known),
        qos=qos,
    )
