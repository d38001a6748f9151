"""The summary of prepared data: written last, it says what there is, and tells a whole folder from a broken one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpcgemma.errors import HpcGemmaError
from hpcgemma.train.data.bad_row_report import REPORT_NAME

SUMMARY_NAME = "summary.json"


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the summary of a prepared folder.

    Raises:
        HpcGemmaError: It, or a file, is missing or cut short.
    """
    if (summary := present_summary(folder)) is None:
        raise HpcGemmaError(f"the prepared data in {folder} are damaged", f"rm -r {folder}, and start again")
    return summary


def present_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a prepared folder; None where it, or a file, is missing or cut short."""
    try:
        summary: dict[str, Any] = json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if summary.get("files") == file_sizes(folder) else None


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file of a prepared folder, but for its summary."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMMARY_NAME)
    return {str(path.relative_to(folder)): path.stat().st_size for path in paths}


def describe(summary: dict[str, Any]) -> list[str]:
    """Return what there is to say of prepared data."""
    train, held_out, counts, left_out = (summary[name] for name in ("train", "eval", "counts", "left_out"))
    lines = [
        f"data: {train['rows']} training rows of {train['tokens']} tokens ({train['target_tokens']} learned, longest "
        f"row {train['longest_row_tokens']}); {held_out['rows']} held-out rows of {held_out['tokens']} tokens; "
        f"vocabulary {summary['vocab_size']}; tokenized in {summary['seconds']} s"
    ]
    if left_out:
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items(), key=lambda item: -item[1]))
        lines.append(f"data: left out: {listed}; prepared/{REPORT_NAME} lists them with file and line")
    if counts.get("truncated_rows"):
        lines.append(f"data: {counts['truncated_rows']} rows cut off at {summary['max_length']} tokens")
    if counts.get("further_pieces"):
        lines.append(f"data: long rows were split, which gave {counts['further_pieces']} rows more")
    if counts["eval_rows_in_training"] or counts["eval_questions_in_training"]:
        lines.append(
            f"data: WARNING: {counts['eval_rows_in_training']} held-out rows are in the training rows too, and "
            f"{counts['eval_questions_in_training']} ask what a training row asks: the held-out loss is too low"
        )
    return lines
