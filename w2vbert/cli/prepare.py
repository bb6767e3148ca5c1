"""Commands that make corpora and their manifests."""

from pathlib import Path
from typing import Annotated

import typer

from w2vbert.cli.options import Config, Force, Jobs, Out, Set, SplitNames, prepare
from w2vbert.config import load_config
from w2vbert.errors import UserError
from w2vbert.stages import skipping_what_is_done


@prepare.command("synth")
@skipping_what_is_done
def prepare_synth(out: Out, config: Config = None, set_: Set = None, force: Force = False) -> None:
    """Make a corpus of synthetic speech in LibriSpeech's layout."""
    from w2vbert.data.synthesis import SynthConfig
    from w2vbert.tasks import prepare as task

    task.prepare_synth(out, load_config(SynthConfig, config, set_ or []), force=force)


@prepare.command("corpus")
@skipping_what_is_done
def prepare_corpus(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="Folder in LibriSpeech's layout.")],
    out: Out,
    train: SplitNames = "",
    dev: SplitNames = "",
    test: SplitNames = "",
    unlabelled: SplitNames = "",
    nj: Jobs = 1,
    force: Force = False,
) -> None:
    """Make and check the manifests of a corpus.

    Train, dev and test need transcripts.
    """
    chosen = {"train": train, "dev": dev, "test": test, "unlabelled": unlabelled}
    splits = {split: [name.strip() for name in names.split(",") if name.strip()] for split, names in chosen.items()}
    if not any(splits.values()):
        raise UserError("name the subsets of the corpus with --train, --dev, --test, --unlabelled")
    from w2vbert.tasks import prepare as task

    task.prepare_corpus(corpus, out, splits, nj, force)
