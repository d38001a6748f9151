"""The documents keep up with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpcgemma.cli.main import COMMANDS, cli
from hpcgemma.runs.failure_signs import SIGNS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text())
    broken = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme_and_shows_an_example(name: str) -> None:
    assert f"`hpcgemma {name}" in (ROOT / "README.md").read_text()
    command = cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    assert command.help is not None
    assert command.help.splitlines()[0].endswith(".") or "." in command.help
    assert f"hpcgemma {name}" in command.help


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_can_be_pasted_as_help_prints_it(name: str) -> None:
    printed = CliRunner().invoke(cli, [name, "--help"], terminal_width=80).output
    command = cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    assert "\\b" not in printed
    examples = [line.strip() for line in (command.help or "").splitlines() if line.strip().startswith("hpcgemma ")]
    lines = [line.strip() for line in printed.splitlines()]
    assert examples or name == "data"
    assert [each for each in examples if each not in lines] == []


def test_every_option_of_every_command_has_help() -> None:
    for name in COMMANDS:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        silent = [
            option.name
            for option in command.params
            if option.param_type_name == "option" and not getattr(option, "help", None)
        ]
        assert silent == [], name


def test_help_shows_every_command_and_its_line() -> None:
    text = CliRunner().invoke(cli, ["--help"]).output
    for name, line in COMMANDS.items():
        assert re.search(rf"{name} +{re.escape(line)}", text)


# The sentences that users meet, as the code writes them; each has a heading.
MESSAGES = [
    "there is no profile named",
    "unknown field",
    "this site needs an account and none was given",
    "is not a run name",
    "asks for GPUs a node",
    "no queue takes",
    "is not a multiple of",
    "does not exist",
    "is not JSON",
    "its rows show images",
    "is not in the Hugging Face cache",
    "is only for",
    "cannot be set beside",
    "shards over processes, and is one process",
    "strategy.expected_world_size is",
    "training.precision fp16 is refused",
    "needs the package",
    "the trainer's packages are not installed",
    "exists already",
    "cannot be created",
    "cannot be written into a job script",
    "has no queue to submit to",
    "names no queue for jobs without a GPU",
    "were not found on this machine",
    "does not answer",
    "its answer was lost",
    "no queue in which links could wait",
    "has no partitions",
    "links are queued",
    "links ended before it was finished",
    "gives a preempted job",
    "is cancelled without grace",
    "with a grace that is not known",
    "what becomes of a preempted job is not known",
    "does not requeue a job here whose node is lost",
    "this cluster has no partition",
    "this cluster has no QOS",
    "has no hard links",
    "no job may be submitted from a compute node",
    "no run of hpcgemma",
    "exists and is no report of hpcgemma",
    "the report cannot be written to",
    "was not submitted by hpcgemma",
    "is no longer known to the scheduler",
    "another job works on this run",
    "has taken this run over",
    "attempt goes on with this run",
    "was killed by SIGKILL",
    "was killed by SIGBUS",
    "rank hangs",
    "the ranks hang",
    "the preparation of the data hangs",
    "rank is slow: its part of a step takes",
    "rank is slow: reading the rows of a step takes",
    "a rank lost its peers",
    "node is sick",
    "did not start within",
    "no answer to the first contact within",
    "the first computation failed",
    "the sum over all ranks came to",
    "the ranks cannot add up a number within",
    "attempts in a row failed there first",
    "is left out for its strikes",
    "left out for their strikes",
    "the run cannot go on without",
    "is no strike and is passed over",
    "so no node is left out for its strikes",
    "nothing is held against a node",
    "cluster's node is meant was not said",
    "the nodes could not be checked",
    "ended with exit code and no word of why",
    "nothing more could be written",
    "a process that tokenizes was killed",
    "step could not be saved",
    "old checkpoints could not be deleted",
    "the checkpoint is damaged",
    "attempts in a row made no new checkpoint",
    "torch cannot see a GPU",
    "the loss is not finite",
    "heads look at one token only",
    "monitors: nothing is measured",
    "monitors read attention scores",
    "monitors.measure names",
    "what decides the result has changed since step was saved",
    "decides what the weights become",
    "decides what the checkpoints are made of",
    "the copy of hpcgemma with which run began is gone",
    "was written by another version of hpcgemma",
    "the data or its settings changed since this run began",
    "there is no act in a drill",
    "has no GPU (device: cpu)",
    "it was refused",
    "steps were lost, where should be",
    "steps that were made twice have another loss",
    "the run stood still until it was resumed by hand",
    "the run did not come back",
    "nothing came of it: the run trained on",
    "not done, since the run ended before",
    "stopped in the moment of",
]


MESSAGES += sorted({sign.sentence for sign in SIGNS if sign.kind != "communication"})


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_has_a_heading_in_troubleshooting(message: str) -> None:
    headings = [
        line.removeprefix("## ")
        for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines()
        if line.startswith("## ")
    ]
    words = message.split()
    assert any(all(word in heading for word in words) for heading in headings), message
