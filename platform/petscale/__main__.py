"""``python -m petscale``."""

from petscale.cli import main

main()
