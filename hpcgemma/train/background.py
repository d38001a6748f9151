"""Saving beside the training: a copy of the state in host memory, and the thread that writes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor


class HostCopy:
    """A copy of a state in host memory, whose buffers are used again by the next.

    Args:
        device: Where the state is; what is copied from a GPU goes into pinned memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_pinned = device.type == "cuda"
        self._buffers: dict[str, torch.Tensor] = {}

    def of(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a copy of tensors, by key; a DTensor is copied as this rank's part of one."""
        copies = {key: self._copy(key, tensor.detach()) for key, tensor in tensors.items()}
        if self._is_pinned:
            torch.cuda.synchronize()
        return copies

    def _copy(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (local.shape, local.dtype):
            buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=self._is_pinned)
            self._buffers[key] = buffer
        buffer.copy_(local, non_blocking=self._is_pinned)
        if not isinstance(tensor, DTensor):
            return buffer
        from_local: Any = DTensor.from_local
        return cast(
            torch.Tensor,
            from_local(
                buffer,
                tensor.device_mesh,
                tensor.placements,
                run_check=False,
                shape=tensor.shape,
                stride=tensor.stride(),
            ),
        )


class BackgroundWrite:
    """One write beside the training, of one step.

    Args:
        step: The step that is written.
        write: Writes it and returns why the disk refused, or None.
    """

    def __init__(self, step: int, write: Callable[[], str | None]) -> None:
        self.step = step
        self._write = write
        self._problem: str | None = None
        self._bug: BaseException | None = None
        # A daemon: a rank that has lost its peers must be able to end while it waits for them.
        self._thread = threading.Thread(target=self._run, name=f"save of step {step}", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until it is done, or for some seconds."""
        self._thread.join(timeout_s)

    def result(self) -> str | None:
        """Wait until it is done; return why the disk refused, or None; raise what was not the disk's fault."""
        self.wait()
        if self._bug is not None:
            raise self._bug
        return self._problem

    def _run(self) -> None:
        try:
            self._problem = self._write()
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that trains
            self._bug = error
