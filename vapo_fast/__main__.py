"""``python -m vapo_fast``: the command line."""

from vapo_fast.cli import main

main()
