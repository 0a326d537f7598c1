"""The command line: ``vapo-fast train | sample | evaluate | plot | info``, and what a potential gives beyond samples:
``likelihood | ood | interpolate | compose | refine``.

Exit codes: 0 done, 1 failed, 2 wrong usage (flags, configuration, arguments), 130 stopped by Ctrl-C, 143 by SIGTERM,
129 by SIGHUP. Results go to standard output, everything else (progress, warnings, errors) to standard error.
"""

from __future__ import annotations

import typer

from vapo_fast.cli.applications import compose, interpolate, refine
from vapo_fast.cli.density import likelihood, ood
from vapo_fast.cli.evaluate import evaluate
from vapo_fast.cli.info import info, tune
from vapo_fast.cli.plot import plot_app
from vapo_fast.cli.sample import sample
from vapo_fast.cli.train import train

app = typer.Typer(
    name="vapo-fast",
    help="Potential-flow generative models: train a scalar potential, follow its gradient from noise to data.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Every command has --help.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (train, sample, evaluate, info, tune, likelihood, ood, interpolate, compose, refine):
    app.command()(command)
app.add_typer(plot_app, name="plot")


def main() -> None:
    """Run the command line and exit with its code."""
    app()
