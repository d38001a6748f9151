"""Steps on several of XLA's CPU devices, a thread for each: ``python -m tests.xla.cores FOLDER CORES``.

A TPU has a process for each core, and XLA's CPU device admits no second process; what a core does is the same. Prints
a line of JSON for each core: the gradient's norm of each step, and a hash of the weights after the last.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

STEPS = 3
PATIENCE_S = 8.0
"""XLA gives up a core that is alone in a sum after ten seconds."""


def main() -> None:
    from pathlib import Path

    folder, cores = Path(sys.argv[1]), int(sys.argv[2])
    os.environ |= {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(cores)}
    import torch_xla
    import torch_xla.runtime as xr
    from torch_xla._internal import pjrt
    from torch_xla.debug import metrics

    from hpcgemma.runs.folder import RunFolder
    from hpcgemma.train.data.batches import TrainingBatches
    from hpcgemma.train.data.prepared import PreparedData
    from hpcgemma.train.runfile import read_run
    from hpcgemma.train.strategies.xla import XlaStrategy

    _, recipe = read_run(RunFolder(folder))
    prepared = PreparedData.open(RunFolder(folder).prepared_dir)
    building = threading.Lock()
    begins = [threading.Event() for _ in range(STEPS)]

    def compiled() -> int:
        return int((metrics.metric_data("CompileTime") or [0])[0])  # counted once it is done

    def follow(step: int) -> None:
        """Enter a step once the first core has compiled it: two that compile at once make two programs of it.

        Processes have a program each; threads meet in one, and would wait for each other in two.
        """
        begins[step].wait()
        before, deadline = compiled(), time.monotonic() + PATIENCE_S / 2
        while compiled() == before and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)

    def train(number: int) -> None:
        device = torch_xla.device()
        ranks: Any = SimpleNamespace(
            world_size=cores, rank=number, local_rank=number, per_node=cores, is_first=number == 0
        )
        with building:
            strategy = XlaStrategy(recipe, prepared, ranks, device)
        batches = TrainingBatches(prepared, recipe, rank=number, world_size=cores)
        norms = []
        for step in range(STEPS):
            _, targets = batches.tokens_of_step(step)
            for place in range(batches.per_step):
                batch = strategy.shaped(batches[step * batches.per_step + place]).to(device)
                with strategy.accumulating(is_last=place == batches.per_step - 1):
                    strategy.backward(strategy.objective(*batch) * (cores / targets))
            if number == 0:
                begins[step].set()
            else:
                follow(step)
            norms.append(strategy.step(recipe.optimizer.learning_rate))
        weights = strategy.whole_weights(trained_only=True)
        digest = hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights)))
        said = {"core": number, "cores": xr.world_size(), "norms": [float(norm) for norm in norms]}
        print(json.dumps(said | {"weights": digest.hexdigest()}), flush=True)

    if cores == 1:
        train(0)
    else:
        pjrt.spawn_threads(train)


if __name__ == "__main__":
    main()
