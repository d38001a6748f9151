"""The report of a run: one HTML file with all that is known of it, which needs no server and no internet.

Read ``content.py`` first. ``attempts.py``, ``charts.py``, ``scores.py`` and ``incidents.py`` each make one of its parts
from what lies in the run folder, and are pure; ``page.py`` makes the file, of what is in ``page/``.
"""
