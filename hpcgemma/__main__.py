"""`python -m hpcgemma` is `hpcgemma`."""

from hpcgemma.cli.main import main

main()
