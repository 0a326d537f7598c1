"""The command line ``vapo-fast``."""

from vapo_fast.cli.app import main

__all__ = ["main"]
