"""Commands that score what was recognised."""

from pathlib import Path
from typing import Annotated

import typer

from w2vbert.cli.options import Json, app, print_json


@app.command()
def score(
    ref: Annotated[
        Path, typer.Argument(metavar="REF", help="True texts: Kaldi text, trn, JSONL, Lhotse's supervisions or cuts.")
    ],
    hyp: Annotated[list[Path], typer.Argument(metavar="HYP...", help="Recognised texts, in any of these formats.")],
    normalize: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="Of both texts: none; basic (nfkc,apostrophes,case,punctuation); or steps of nfc, nfkc, apostrophes, "
            "case, punctuation with commas between them.",
        ),
    ] = "none",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Folder for alignments, tables and report.html.")
    ] = None,
    json: Json = False,
) -> None:
    """Word and character error rates, and where the errors are; of several HYP, whether they differ by chance."""
    from w2vbert.decoding.normalization import Normalization
    from w2vbert.tasks import score as task
    from w2vbert.tasks import score_report

    normalization = Normalization.parse(normalize)
    systems = task.score_systems(ref, hyp, normalization)
    if out is not None:
        score_report.write_details(out, ref, hyp, systems, normalization)
    if json:
        print_json(task.describe(systems, normalization))
    else:
        print(score_report.render(systems, normalization), end="")
