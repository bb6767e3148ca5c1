"""Commands that make language models."""

from pathlib import Path
from typing import Annotated

import typer

from w2vbert.cli.options import Config, Force, Manifests, Out, Set, Tokenizer, app
from w2vbert.stages import skipping_what_is_done


@app.command()
@skipping_what_is_done
def lm(
    manifests: Manifests,
    out: Out,
    tokenizer: Tokenizer,
    text: Annotated[
        list[Path] | None, typer.Option("--text", metavar="FILE", help="More text (.gz allowed); may be repeated.")
    ] = None,
    config: Config = None,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Train an n-gram language model over the tokenizer's pieces."""
    from w2vbert.tasks import train_lm as task

    task.train_ngram(manifests, out, tokenizer, text or [], config, set_ or [], force)
