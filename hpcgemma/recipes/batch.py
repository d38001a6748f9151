"""The arithmetic of the global batch."""

from __future__ import annotations

from hpcgemma.errors import InputError


def accumulation_steps(*, global_batch: int, micro_batch: int, world_size: int) -> int:
    """Return how many micro-batches each rank adds up before one optimizer step.

    Args:
        global_batch: Rows per optimizer step over all ranks.
        micro_batch: Rows per rank and forward pass.
        world_size: Ranks.

    Raises:
        InputError: The global batch is no multiple of micro_batch x world_size; the hint names the nearest
            global batches that are.
    """
    rows = micro_batch * world_size
    if global_batch % rows == 0:
        return global_batch // rows
    below = global_batch // rows * rows
    nearest = " or ".join(str(batch) for batch in (below, below + rows) if batch)
    raise InputError(
        f"training.global_batch {global_batch} is not a multiple of {rows} "
        f"(micro_batch {micro_batch} x {world_size} ranks)",
        f"--set training.global_batch={below or rows}  (the nearest that fit: {nearest})",
    )
