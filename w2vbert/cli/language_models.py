"""Commands that make and measure language models."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from w2vbert.cli.options import Config, Force, Json, Manifests, MaxHours, Out, Set, Tokenizer, app, print_json
from w2vbert.stages import skipping_what_is_done

lm = typer.Typer(help="Make and measure language models.", rich_markup_mode=None)
app.add_typer(lm, name="lm")

Text = Annotated[
    list[Path] | None,
    typer.Option("--text", metavar="FILE", help="More text, one sentence a line (.gz allowed); may be repeated."),
]


@lm.command("ngram")
@skipping_what_is_done
def lm_ngram(
    manifests: Manifests,
    out: Out,
    tokenizer: Tokenizer,
    text: Text = None,
    unit: Annotated[
        Literal["piece", "word"] | None, typer.Option(help="What n-grams are made of; as --set unit=...")
    ] = None,
    config: Config = None,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Estimate an n-gram model over the tokenizer's pieces, or over words."""
    from w2vbert.tasks import ngram_lm as task

    settings = [*(set_ or []), *([f"unit={unit}"] if unit else [])]
    task.train_ngram(manifests, out, tokenizer, text or [], config, settings, force)


@lm.command("train")
@skipping_what_is_done
def lm_train(
    manifests: Manifests,
    out: Out,
    tokenizer: Tokenizer,
    text: Text = None,
    config: Config = None,
    set_: Set = None,
    force: Force = False,
    max_hours: MaxHours = None,
) -> None:
    """Train a Transformer or LSTM over the tokenizer's pieces."""
    from w2vbert.tasks import train_lm as task

    task.train_lm(manifests, out, tokenizer, text or [], config, set_ or [], force, max_hours)


@lm.command("import")
@skipping_what_is_done
def lm_import(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="ARPA file, .gz allowed.")],
    out: Out,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="DIR", help="Needed where the model is over pieces.")
    ] = None,
    force: Force = False,
) -> None:
    """Make a folder from a published n-gram model over words or pieces."""
    from w2vbert.tasks import import_lm as task

    task.import_arpa(source, out, tokenizer, force)


@lm.command("perplexity")
def lm_perplexity(
    folder: Annotated[Path, typer.Argument(metavar="LM_DIR", help="Folder made by `lm`.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Text, one sentence a line (.gz allowed).")],
    json: Json = False,
) -> None:
    """Perplexity of texts, per piece and per word, and how much in them is unknown."""
    from w2vbert.tasks import perplexity as task

    found = task.perplexity(folder, files)
    if json:
        print_json(found)
        return
    for key, value in found.items():
        if value is not None:
            print(f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}")
