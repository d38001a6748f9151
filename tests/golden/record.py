"""Write the golden scripts anew after a change that is meant: `python -m tests.golden.record`; look at the diff."""

from __future__ import annotations

from tests.test_render import GOLDEN, PROFILES, SCRIPTS, golden_script, preparation_script


def main() -> None:
    """Write a script for each cluster and recipe, and for each cluster that of a job without a GPU."""
    for profile, recipe in SCRIPTS:
        (GOLDEN / f"{profile}-{recipe}.sbatch").write_text(golden_script(profile, recipe))
    for profile in PROFILES:
        (GOLDEN / f"{profile}-data_prepare.sbatch").write_text(preparation_script(profile))


if __name__ == "__main__":
    main()
