"""The application, and the options that several commands share."""

# No `from __future__ import annotations` in this package: Typer reads the annotations of the commands.
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
prepare = typer.Typer(help="Make a synthetic corpus, or the manifests of any corpus.", rich_markup_mode=None)
app.add_typer(prepare, name="prepare")

Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="YAML file with settings.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting (train.max_steps=500); may be repeated."),
]
Force = Annotated[bool, typer.Option("--force", help="Do it again even if OUT is up to date.")]
Jobs = Annotated[int, typer.Option("--nj", min=1, help="Processes to use.")]
ShardOf = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Make part I of N alone; a call without this joins them."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")]
Manifests = Annotated[Path, typer.Argument(metavar="MANIFESTS", help="Folder made by `prepare corpus`.")]
Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder made by `features`.")]
Tokenizer = Annotated[Path, typer.Option("--tokenizer", metavar="DIR", help="Folder made by `tokenizer`.")]
Model = Annotated[Path, typer.Option("--model", metavar="DIR", help="Folder made by `finetune`.")]
LmFolders = Annotated[
    list[Path] | None,
    typer.Option("--lm", metavar="DIR", help="Folder made by `lm`; may be repeated for other kinds."),
]
Lodr = Annotated[
    Path | None, typer.Option("--lodr", metavar="DIR", help="Low-order n-gram model that is subtracted (LODR).")
]
SplitNames = Annotated[str, typer.Option(metavar="NAME,...", help="Subset folders of CORPUS, separated by commas.")]
MaxHours = Annotated[
    float | None,
    typer.Option("--max-hours", metavar="H", min=0.0, help="Save and stop after H hours, with exit code 75."),
]


def print_json(value: object) -> None:
    """Prints indented JSON; what JSON does not know, such as paths, as text."""
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
