"""Commands that run others in many parts, here or on a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from w2vbert.cli.options import app

Option = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="OPT", help="Option of sbatch (--time=60); may be repeated."),
]
Gpus = Annotated[int, typer.Option(min=0, metavar="N", help="GPUs on each node.")]


@app.command()
def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="{part} becomes the part's number.")],
    log: Annotated[Path, typer.Option(metavar="DIR", help="Folder for logs.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the job.")] = "w2vbert",
    parts: Annotated[int | None, typer.Option(min=1, metavar="N", help="Submit an array of N.")] = None,
    nodes: Annotated[int, typer.Option(min=1, metavar="N", help="Machines for each; above 1: w2vbert-launch.")] = 1,
    gpus: Gpus = 0,
    cpus: Annotated[int, typer.Option(min=1, metavar="N", help="Processor cores on each node.")] = 1,
    option: Option = None,
) -> None:
    """Run any command as a Slurm job, or an array, and wait for its end."""
    from w2vbert.tasks.parts import Work
    from w2vbert.tasks.slurm import Resources, submit_command

    submit_command(Work(name, tuple(command), log, parts), Resources(nodes, gpus, cpus, tuple(option or [])))
