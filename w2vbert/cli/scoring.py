"""Commands that score what was recognised."""

from pathlib import Path
from typing import Annotated

import typer

from w2vbert.cli.options import Json, Out, app, print_json
from w2vbert.errors import UserError

Normalize = Annotated[
    str,
    typer.Option(
        metavar="HOW",
        help="Of both texts: none; basic (nfkc,apostrophes,case,punctuation); or steps of nfc, nfkc, apostrophes, "
        "case, punctuation with commas between them.",
    ),
]


@app.command()
def score(
    ref: Annotated[
        Path, typer.Argument(metavar="REF", help="True texts: Kaldi text, trn, JSONL, Lhotse's supervisions or cuts.")
    ],
    hyp: Annotated[list[Path], typer.Argument(metavar="HYP...", help="Recognised texts, in any of these formats.")],
    normalize: Normalize = "none",
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


@app.command(name="tune-fusion")
def tune_fusion(
    ref: Annotated[Path, typer.Argument(metavar="REF", help="True texts, in a format of `score`.")],
    nbest: Annotated[
        Path, typer.Argument(metavar="NBEST.jsonl", help="What `decode` wrote with search.nbest above 1.")
    ],
    out: Out,
    range_: Annotated[
        list[str] | None,
        typer.Option("--range", metavar="NAME=LOW:HIGH", help="Where to look for a weight; may be repeated."),
    ] = None,
    normalize: Normalize = "none",
) -> None:
    """Choose the weights of language models on n-best lists of a dev set, without decoding it again.

    OUT/decode.yaml is for `decode --config`; OUT/wer.png shows the error rate over the weights.
    """
    ranges = dict(_parse_range(text) for text in range_ or [])
    from w2vbert.decoding.normalization import Normalization
    from w2vbert.tasks import tune_fusion as task

    outcome = task.tune_fusion(ref, nbest, out, ranges, Normalization.parse(normalize))
    print(task.render(outcome), end="")


def _parse_range(text: str) -> tuple[str, tuple[float, float]]:
    name, _, bounds = text.partition("=")
    low, _, high = bounds.partition(":")
    try:
        found = float(low), float(high)
    except ValueError:
        found = 0.0, 0.0
    if not name or not -100 <= found[0] < found[1] <= 100:
        raise UserError(f"--range {text}: write NAME=LOW:HIGH, as in ngram=0:1")
    return name, found
