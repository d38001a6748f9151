"""Write the golden scripts anew after a change that is meant: `python -m tests.golden.record`; look at the diff."""

from __future__ import annotations

from tests.test_render import GOLDEN, SCRIPTS, golden_script


def main() -> None:
    """Write a script for each cluster and recipe."""
    for profile, recipe in SCRIPTS:
        (GOLDEN / f"{profile}-{recipe}.sbatch").write_text(golden_script(profile, recipe))


if __name__ == "__main__":
    main()
