"""Commands that show what there is."""

from pathlib import Path
from typing import Annotated

import typer

from w2vbert.cli.options import Config, Json, Set, app, print_json
from w2vbert.errors import UserError


@app.command()
def report(
    out: Annotated[Path, typer.Argument(metavar="OUT.md", help="File to write.")],
    row: Annotated[list[str], typer.Option(metavar="NAME=DIR", help="Row of the table: a folder of `decode --out`.")],
    curve: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Picture of WER against hours of pre-training.")
    ] = None,
) -> None:
    """Gather results into a table, with the curves of their trainings."""
    rows = []
    for text in row:
        name, equals, folder = text.rpartition("=")
        if not equals or not name or not folder:
            raise UserError(f"--row {text}: write NAME=DIR")
        rows.append((name, Path(folder)))
    from w2vbert.tasks import report as task

    task.write_report(out, rows, curve)


@app.command()
def plot(
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of trainings, finished or not.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.png", help="Picture to write.")],
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Metric to draw (wer); may be repeated.")
    ] = None,
) -> None:
    """Draw the curves of several trainings over one another."""
    from w2vbert.tasks import plot as task

    task.plot_runs(run, out, metric or [])


@app.command()
def info(
    target: Annotated[Path | None, typer.Argument(metavar="DIR", help="Folder made by any command.")] = None,
    config: Config = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Describe a folder made by w2vbert, or what a config gives."""
    from w2vbert.tasks import info as task

    description = task.describe(target, config, set_ or [])
    if json:
        print_json(description)
    else:
        import yaml

        print(yaml.safe_dump(description, sort_keys=False, allow_unicode=True), end="")


@app.command()
def settings(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="Command, such as finetune or lm train.")],
    config: Config = None,
    set_: Set = None,
) -> None:
    """Print all settings of a command with their meanings, as YAML for --config."""
    from w2vbert.tasks import settings as task

    print(task.render_settings(" ".join(command), config, set_ or []), end="")


@app.command()
def doctor(json: Json = False) -> None:
    """Show versions, devices, and how to get what is missing."""
    from w2vbert.tasks import doctor as task

    diagnosis = task.diagnose()
    if json:
        print_json(diagnosis)
    else:
        print(task.render(diagnosis))
