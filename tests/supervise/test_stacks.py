from __future__ import annotations

from hpcgemma.supervise.stacks import suspect

# Inner calls of the main thread, as faulthandler writes them; SENDING_BUFFERS was recorded with torch 2.13.
SENDING_BUFFERS = """\
Current thread 0x00007f318786eb80 (most recent call first):
  File "/env/site-packages/torch/nn/parallel/distributed.py", line 2363 in _distributed_broadcast_coalesced
  File "/env/site-packages/torch/nn/parallel/distributed.py", line 2451 in _default_broadcast_coalesced
  File "/env/site-packages/torch/nn/parallel/distributed.py", line 2429 in _sync_module_buffers
"""
AGREEING = """\
Current thread 0x00007f0b5c1ff740 (most recent call first):
  File "/env/lib/python3.13/site-packages/torch/distributed/distributed_c10d.py", line 3149 in all_reduce
  File "/env/lib/python3.13/site-packages/torch/distributed/c10d_logger.py", line 83 in wrapper
  File "/runs/r/code/hpcgemma/train/ranks.py", line 68 in highest
  File "/runs/r/code/hpcgemma/train/loop.py", line 391 in _stop_is_agreed
"""
IN_BACKWARD = """\
Thread 0x00007f9a2bfff6c0 (most recent call first):
  <no Python frame>

Current thread 0x00007f9a3c1ff740 (most recent call first):
  File "/env/lib/python3.13/site-packages/torch/autograd/graph.py", line 869 in _engine_run_backward
  File "/env/lib/python3.13/site-packages/torch/autograd/__init__.py", line 354 in backward
  File "/env/lib/python3.13/site-packages/torch/_tensor.py", line 640 in backward
"""
LOADING_ROWS = """\
Current thread 0x00007f51c81ff740 (most recent call first):
  File "/usr/lib/python3.13/selectors.py", line 398 in select
  File "/usr/lib/python3.13/multiprocessing/connection.py", line 1136 in wait
  File "/env/lib/python3.13/site-packages/torch/utils/data/dataloader.py", line 1275 in _try_get_data
"""


def test_the_rank_that_cannot_write_its_stack_is_waited_for() -> None:
    assert suspect({0: AGREEING, 1: "", 2: IN_BACKWARD}) == 1


def test_of_ranks_that_can_the_one_that_waits_for_nobody_is_waited_for() -> None:
    assert suspect({0: IN_BACKWARD, 1: AGREEING, 2: LOADING_ROWS, 3: SENDING_BUFFERS}) == 2


def test_a_stopped_rank_counts_more_than_a_busy_one() -> None:
    assert suspect({0: AGREEING, 1: "a line of a log\n", 2: LOADING_ROWS}) == 1


def test_where_stacks_do_not_tell_nobody_is_accused() -> None:
    assert suspect({0: AGREEING, 1: IN_BACKWARD}) is None
    assert suspect({0: "", 1: ""}) is None
    assert suspect({0: LOADING_ROWS, 1: LOADING_ROWS, 2: AGREEING}) is None
    assert suspect({0: LOADING_ROWS}) is None
