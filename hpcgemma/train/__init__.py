"""The trainer: one process per GPU, and the only place that imports torch.

``python -m hpcgemma.train.prepare RUN_FOLDER`` tokenizes once; ``python -m hpcgemma.train RUN_FOLDER`` is one rank.
Read ``loop.py`` first.
"""
