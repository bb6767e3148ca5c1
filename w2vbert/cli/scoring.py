"""Commands that score what was recognised."""

from pathlib import Path
from typing import Annotated

import typer

from w2vbert.cli.options import Json, app, print_json


@app.command()
def score(
    ref: Annotated[Path, typer.Argument(metavar="REF", help="True texts: Kaldi text, trn or JSONL.")],
    hyp: Annotated[Path, typer.Argument(metavar="HYP", help="Recognised texts, in any of these formats.")],
    json: Json = False,
) -> None:
    """Word error rate with insertions, deletions, substitutions."""
    from w2vbert.tasks import score as task

    result = task.score_files(ref, hyp)
    if json:
        print_json(result.to_dict())
    else:
        print(result.summary())
