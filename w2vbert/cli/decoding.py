"""Commands that recognise speech."""

from pathlib import Path
from typing import Annotated

import typer

from w2vbert.cli.options import Config, Force, LmFolders, Lodr, Model, Set, app
from w2vbert.errors import UserError
from w2vbert.stages import skipping_what_is_done

HELP = "(try w2vbert decode --help)"


@app.command()
@skipping_what_is_done
def decode(
    model: Model,
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="INPUT", help="Audio files, folders, patterns, Lhotse manifests, - for standard input."),
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Score splits of this folder of features.")] = None,
    split: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Split of --data; may be repeated.")] = None,
    watch: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Decode what appears in this folder, until stopped.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="PATH", help="File .jsonl, .ctm, .srt, .txt, .jsonl.gz; folder for --data, --watch."
        ),
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="jsonl, ctm, srt, txt or lhotse, whatever PATH says.")
    ] = None,
    channel: Annotated[int | None, typer.Option(metavar="N", min=0, help="This channel, from 0, not the mean.")] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Decode part I of N of the INPUTs.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 if an INPUT could not be decoded.")] = False,
    lm: LmFolders = None,
    lodr: Lodr = None,
    config: Config = None,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Recognise audio, or score the splits of a data set.

    The text of each INPUT goes to the terminal, and to --out in its format. With --data, results and scores of each
    --split go to --out; with --watch, a JSON file for each recording.
    """
    of_inputs: list[tuple[str, object]] = [("--format", format_), ("--shard", shard), ("--strict", strict)]
    if watch is None:
        of_inputs.append(("--channel", channel is not None))
    _check(inputs, data, split, watch, out, of_inputs, force)
    from w2vbert.tasks.fusion import LanguageModels

    lms, settings = LanguageModels(tuple(lm or ()), lodr), set_ or []
    if data is not None and split and out is not None:
        from w2vbert.tasks.decode import decode_splits

        decode_splits(model, data, split, out, lms, config, settings, force)
    elif watch is not None and out is not None:
        from w2vbert.tasks.recognize_files import Recognizer
        from w2vbert.tasks.watch import watch_folder

        watch_folder(watch, out, channel, lambda: Recognizer.load(model, lms, config, settings))
    else:
        from w2vbert.tasks.outputs import Output
        from w2vbert.tasks.recognize_files import decode_files
        from w2vbert.tasks.shards import parse_shard

        output = Output(out, format_, channel, parse_shard(shard) if shard else None)
        failures = decode_files(model, inputs or [], output, lms, config, settings)
        if strict and failures:
            raise typer.Exit(1)


def _check(
    inputs: list[Path] | None,
    data: Path | None,
    split: list[str] | None,
    watch: Path | None,
    out: Path | None,
    of_inputs: list[tuple[str, object]],
    force: bool,
) -> None:
    """Refuses options that do not go together; `of_inputs`: names and values of those that need INPUT."""
    given = [name for name, value in of_inputs if value]
    if data is not None:
        if inputs or not split or out is None or watch is not None:
            raise UserError(f"--data needs --split and --out, and no INPUT {HELP}")
    elif watch is not None:
        if inputs or split or force or out is None:
            raise UserError(f"--watch needs --out, a folder, and no INPUT {HELP}")
    elif not inputs or split or force:
        raise UserError(f"name audio to decode, or all of --data, --split and --out {HELP}")
    if given and not inputs:
        raise UserError(
            f"{given[0]} goes with INPUT: the manifests cuts_SPLIT.jsonl.gz of a data set are one, too {HELP}"
        )
