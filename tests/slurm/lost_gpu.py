"""A node whose GPU is lost, as nvidia-smi would tell it: all nodes are this machine, but for their names."""

from __future__ import annotations

import os
from pathlib import Path

LOST = "Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost."
SENTENCE = f"node node2 is sick: nvidia-smi lists 0 of the 1 GPUs of the job: {LOST}"


class LostGpu:
    """The GPU of node2, lost as long as there is a file that says so.

    Args:
        folder: Where the file, and what stands for nvidia-smi, are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._sign = folder / "lost"
        self._sign.touch()
        tool = folder / "nvidia-smi"
        tool.write_text(
            f'#!/bin/sh\nif [ "$1" != -L ]; then echo "00000000:3B:00.0, No, No"; exit; fi\n'
            f'if [ "$SLURMD_NODENAME" = node2 ] && [ -e "{self._sign}" ]; then echo "{LOST}"; exit 15; fi\n'
            'echo "GPU 0: NVIDIA A100-SXM-64GB (UUID: GPU-1)"\n'
        )
        tool.chmod(0o755)
        self.environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
        """What a terminal needs for its jobs to ask this nvidia-smi."""

    def find(self) -> None:
        """Let the GPU be there again."""
        self._sign.unlink()
