"""`hpcgemma nodes`: what is held against nodes, and taking it back."""

from __future__ import annotations

import click

from hpcgemma.cli import options


@click.command()
@click.option("--profile", "profile_name", metavar="NAME", help="Only this cluster profile's. Default: all.")
@click.option("--forget", metavar="NODE", help="Take back all strikes of a node; needs --profile.")
@options.dry_run
@options.json_output
def nodes(profile_name: str | None, forget: str | None, dry_run: bool, as_json: bool) -> None:
    """Show the nodes that failed your runs; a node with two strikes is left out of every later job.

    \b
    hpcgemma nodes
    hpcgemma nodes --profile leonardo --forget lrdn0123
    """
    import dataclasses

    from hpcgemma import strikes
    from hpcgemma.cli import console
    from hpcgemma.errors import InputError
    from hpcgemma.profiles import load_profile

    if profile_name is not None and profile_name not in strikes.clusters():
        profile_name = load_profile(profile_name).name
    if forget is not None:
        if profile_name is None:
            raise InputError("which cluster's node is meant was not said", f"add --profile NAME to --forget {forget}")
        held = strikes.read_strikes(profile_name).of(forget)
        if not held:
            raise InputError(
                f"nothing is held against a node {forget!r} of {profile_name!r}", "hpcgemma nodes  lists all strikes"
            )
        what = f"{len(held)} strike{'s' if len(held) > 1 else ''} against {forget}"
        if dry_run:
            console.say(f"{what} would be taken back")
            return
        strikes.forget(profile_name, forget)
        console.say(f"{what} taken back; jobs may have it again")
        return
    lists = {name: strikes.read_strikes(name) for name in ([profile_name] if profile_name else strikes.clusters())}
    for known in lists.values():
        if known.problem:
            console.say(f"Warning: {known.problem}")
    found = [(name, known, node) for name, known in lists.items() for node in known.nodes]
    if as_json:
        console.result_json(
            [
                {
                    "profile": name,
                    "node": node,
                    "left_out": node in known.left_out,
                    "strikes": [dataclasses.asdict(strike) for strike in known.of(node)],
                    "file": str(strikes.strikes_file(name)),
                }
                for name, known, node in found
            ]
        )
    elif not found:
        console.say("nothing is held against any node")
    else:
        rows = [
            [
                name,
                node,
                f"{len(known.of(node))}, left out" if node in known.left_out else f"{len(known.of(node))}",
                strike.time,
                f"{strike.run}/{strike.attempt}",
                strike.why,
            ]
            for name, known, node in found
            for strike in known.of(node)[-1:]
        ]
        console.table(["PROFILE", "NODE", "STRIKES", "LAST (UTC)", "RUN/ATTEMPT", "WHY"], rows)
        for name in dict.fromkeys(name for name, _, _ in found):
            console.say(
                f"to take one back: hpcgemma nodes --profile {name} --forget NODE, or edit {strikes.strikes_file(name)}"
            )
