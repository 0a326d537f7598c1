"""``python -m vapo_fast``: the command line."""

from vapo_fast.cli.app import main

main()
