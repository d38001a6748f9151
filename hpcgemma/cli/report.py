"""`hpcgemma report`: all that is known of a run, as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from hpcgemma.cli import options


@click.command()
@options.run_argument
@click.option(
    "--to",
    "target",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where to write it; of a folder, RUN.html in it. Default: report.html in the run folder.",
)
@options.json_output
def report(run: str | None, target: Path | None, as_json: bool) -> None:
    """Write a page on the newest run, or on one by name, job id or folder: time, curves, interruptions, scores.

    It is one file that needs no server and no internet: copy it to where a browser is.

    \b
    hpcgemma report gemma2_9b_lora-3
    hpcgemma report 2584773 --to lora.html
    """
    from hpcgemma.cli import choosing, console
    from hpcgemma.reports.content import report_of
    from hpcgemma.reports.page import write_page
    from hpcgemma.runs import tracking
    from hpcgemma.slurm.client import SlurmClient

    entry = choosing.newest_run() if run is None else choosing.require_run(run)
    made = report_of(entry, tracking.track([entry], SlurmClient())[0])
    file = entry.folder.report_file if target is None else target.expanduser()
    if file.is_dir():
        file = file / f"{entry.name}.html"
    write_page(made, file)
    if as_json:
        console.result_json({"file": str(file.resolve())} | made.as_mapping())
    else:
        console.result(str(file.resolve()))
