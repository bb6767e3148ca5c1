"""Commands that make corpora and their manifests."""

from pathlib import Path
from typing import Annotated

import typer

from w2vbert.cli.options import Config, Force, Jobs, Out, Set, SplitNames, app, prepare
from w2vbert.config import load_config
from w2vbert.errors import UserError
from w2vbert.stages import skipping_what_is_done

PartNames = Annotated[str, typer.Option(metavar="NAME,...", help="Folders or tables of FOLDER, separated by commas.")]


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
    splits = _name_splits(train, dev, test, unlabelled)
    _refuse_nothing(splits)
    from w2vbert.tasks import prepare as task

    task.prepare_corpus(corpus, out, splits, nj, force)


@prepare.command("librilight")
@skipping_what_is_done
def prepare_librilight(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="Folder that holds small, medium, LibriSpeech, ...")],
    out: Out,
    train: SplitNames = "",
    dev: SplitNames = "",
    test: SplitNames = "",
    unlabelled: SplitNames = "",
    nj: Jobs = 1,
    config: Config = None,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Cut Libri-Light's recordings at silences, and make manifests.

    --train takes 10min, 1h and 10h, too. What was cut before a failure is kept.
    """
    from w2vbert.data.segments import CutConfig

    splits = _name_splits(train, dev, test, unlabelled)
    _refuse_nothing(splits)
    settings = load_config(CutConfig, config, set_ or [])
    from w2vbert.tasks import prepare_librilight as task

    task.prepare_librilight(corpus, out, splits, settings, nj, force)


@prepare.command("dir")
@skipping_what_is_done
def prepare_dir(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of audio, with transcripts or without.")],
    out: Out,
    train: PartNames = "",
    dev: PartNames = "",
    test: PartNames = "",
    unlabelled: PartNames = "",
    nj: Jobs = 1,
    config: Config = None,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Make manifests of your own audio.

    Reads FILE.txt beside the files, CSV, TSV and JSON lines, Kaldi's wav.scp. Splits that are not there are drawn.
    """
    from w2vbert.tasks import prepare_dir as task

    splits = _name_splits(train, dev, test, unlabelled)
    task.prepare_dir(source, out, splits, load_config(task.DirConfig, config, set_ or []), nj, force)


def _name_splits(train: str, dev: str, test: str, unlabelled: str) -> dict[str, list[str]]:
    """The subsets of each split, as they were typed."""
    chosen = {"train": train, "dev": dev, "test": test, "unlabelled": unlabelled}
    return {split: [name.strip() for name in names.split(",") if name.strip()] for split, names in chosen.items()}


def _refuse_nothing(splits: dict[str, list[str]]) -> None:
    if not any(splits.values()):
        raise UserError("name the subsets of the corpus with --train, --dev, --test, --unlabelled")


@app.command()
def download(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to download to.")],
    name: Annotated[list[str], typer.Argument(metavar="NAME...", help="dev-clean, small, lm-text, and so on.")],
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Folder with the same files, instead of their publishers'.")
    ] = None,
) -> None:
    """Download subsets of LibriSpeech and Libri-Light.

    Goes on after an interruption, checks what has come, and unpacks it.
    """
    from w2vbert.tasks import download as task

    task.download(out, name, mirror)
