"""Commands that run others in many parts, here or on a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from w2vbert.cli.options import Config, Force, LmFolders, Lodr, Model, Set, app
from w2vbert.stages import skipping_what_is_done

Option = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="OPT", help="Option of sbatch (--time=60); may be repeated."),
]
Gpus = Annotated[int, typer.Option(min=0, metavar="N", help="GPUs on each node.")]
Cpus = Annotated[int, typer.Option(min=1, metavar="N", help="Processor cores on each node.")]


@app.command()
def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="{part} becomes the part's number.")],
    log: Annotated[Path, typer.Option(metavar="DIR", help="Folder for logs.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the job.")] = "w2vbert",
    parts: Annotated[int | None, typer.Option(min=1, metavar="N", help="Submit an array of N.")] = None,
    nodes: Annotated[int, typer.Option(min=1, metavar="N", help="Machines for each; above 1: w2vbert-launch.")] = 1,
    gpus: Gpus = 0,
    cpus: Cpus = 1,
    option: Option = None,
) -> None:
    """Run any command as a Slurm job, or an array, and wait for its end."""
    from w2vbert.tasks.parts import Work
    from w2vbert.tasks.slurm import Resources, submit_command

    submit_command(Work(name, tuple(command), log, parts), Resources(nodes, gpus, cpus, tuple(option or [])))


@app.command()
def merge(
    parts: Annotated[list[Path], typer.Argument(metavar="PART...", help="All files NAME.I-of-N.jsonl of one NAME.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="File to write.")],
    manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Manifest (.jsonl.gz) whose ids must all be there.")
    ] = None,
) -> None:
    """Join the parts of a job, after a check that nothing is missing."""
    from w2vbert.tasks import merge as task

    task.merge_parts(parts, out, manifest)


@app.command("batch-score")
@skipping_what_is_done
def batch_score(
    model: Model,
    manifest: Annotated[Path, typer.Option(metavar="PATH", help="Manifest of cuts (.jsonl.gz), or folder of audio.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="Folder to write.")],
    nj: Annotated[int, typer.Option("--nj", min=1, metavar="N", help="Parts to split into.")] = 1,
    cmd: Annotated[str, typer.Option(metavar="NAME", help="Where they run: local, or slurm.")] = "local",
    lm: LmFolders = None,
    lodr: Lodr = None,
    gpus: Gpus = 0,
    cpus: Cpus = 1,
    option: Option = None,
    config: Config = None,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Recognise many recordings in parts, on a cluster or here, and score.

    Started again it goes on: with what is missing, and with jobs that are still in the queue.
    """
    from w2vbert.config import load_config
    from w2vbert.tasks import batch_score as task
    from w2vbert.tasks.decode import DecodeConfig
    from w2vbert.tasks.fusion import LanguageModels
    from w2vbert.tasks.slurm import Resources

    place = task.Place(cmd, nj, Resources(1, gpus, cpus, tuple(option or [])))
    lms = LanguageModels(tuple(lm or ()), lodr)
    task.batch_score(model, manifest, out, lms, load_config(DecodeConfig, config, set_ or []), place, force)
