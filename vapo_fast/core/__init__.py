"""Checks of arguments, memory, threads, transfers and the optional back-ends. Imports nothing else of the package."""
