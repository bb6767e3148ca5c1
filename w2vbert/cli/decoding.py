"""Commands that recognise speech."""

from pathlib import Path
from typing import Annotated

import typer

from w2vbert.cli.options import Config, Force, LanguageModel, Model, Set, app
from w2vbert.errors import UserError
from w2vbert.stages import skipping_what_is_done


@app.command()
@skipping_what_is_done
def decode(
    model: Model,
    inputs: Annotated[
        list[Path] | None, typer.Argument(metavar="INPUT", help="Audio files, folders, manifests of cuts.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Score splits of this folder of features.")] = None,
    split: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Split of --data; may be repeated.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="PATH", help="JSONL file, or folder for --data, to write.")
    ] = None,
    lm: LanguageModel = None,
    config: Config = None,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Recognise audio files, or score the splits of a data set.

    The text of each INPUT goes to the terminal; with --data, results and scores of each --split go to --out.
    """
    if data is None:
        if not inputs or split or force:
            raise UserError("name audio to decode, or all of --data, --split and --out (try w2vbert decode --help)")
    elif inputs or not split or out is None:
        raise UserError("--data needs --split and --out, and no INPUT (try w2vbert decode --help)")
    from w2vbert.tasks import decode as task

    if data is None:
        task.decode_files(model, inputs or [], lm, out, config, set_ or [])
    elif split and out:
        task.decode_splits(model, data, split, out, lm, config, set_ or [], force)
