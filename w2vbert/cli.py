"""The command line: each command parses, then imports its task and calls it, so that `--help` answers at once."""

# No `from __future__ import annotations` here: Typer reads the annotations of the commands.
import io
import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, cast

import typer

from w2vbert import __version__
from w2vbert.config import load_config
from w2vbert.errors import REQUEUE_EXIT_CODE, Unfinished, UserError
from w2vbert.log import setup_logging
from w2vbert.stages import skipping_what_is_done

# Threads that wait for one another sleep instead of spinning (set before torch is imported). With another busy program
# on two cores a pre-training step took 1.2 s with spinning and 0.19 s without.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
prepare = typer.Typer(help="Make a synthetic corpus, or the manifests of any corpus.", rich_markup_mode=None)
app.add_typer(prepare, name="prepare")

# The base of Typer's parameter errors: unknown options and commands, missing arguments, values of a wrong type.
_USAGE_ERROR = cast(type[typer.BadParameter], typer.BadParameter.__base__)

Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="YAML file with settings.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting (train.max_steps=500); may be repeated."),
]
Force = Annotated[bool, typer.Option("--force", help="Do it again even if OUT is up to date.")]
Jobs = Annotated[int, typer.Option("--nj", min=1, help="Processes to use.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")]
Manifests = Annotated[Path, typer.Argument(metavar="MANIFESTS", help="Folder made by `prepare corpus`.")]
Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder made by `features`.")]
Tokenizer = Annotated[Path, typer.Option("--tokenizer", metavar="DIR", help="Folder made by `tokenizer`.")]
Model = Annotated[Path, typer.Option("--model", metavar="DIR", help="Folder made by `finetune`.")]
LanguageModel = Annotated[Path | None, typer.Option("--lm", metavar="DIR", help="Folder made by `lm`.")]
SplitNames = Annotated[str, typer.Option(metavar="NAME,...", help="Subset folders of CORPUS, separated by commas.")]
MaxHours = Annotated[
    float | None,
    typer.Option("--max-hours", metavar="H", min=0.0, help="Save and stop after H hours, with exit code 75."),
]
MAY_BE_EMPTY = ("--train", "--dev", "--test", "--unlabelled")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 after an error the user can mend, 130 after an interruption.

    SIGTERM ends with code 143, and leaves as little behind as an error does; a training saves its state and ends with
    75, as after SIGUSR1 and `--max-hours`: started again, it goes on. With the environment variable
    W2VBERT_DEBUG=1 errors come with a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be UTF-8, nor the terminal
    given = sys.argv[1:] if arguments is None else arguments
    command = typer.main.get_command(app)
    try:
        with _ending_on_sigterm():
            _refuse_empty(given)
            code = command.main(args=given, prog_name="w2vbert", standalone_mode=False)
    except (_USAGE_ERROR, UserError, OSError, MemoryError, RuntimeError) as error:
        if os.environ.get("W2VBERT_DEBUG") == "1" or (isinstance(error, RuntimeError) and not _is_memory(error)):
            raise
        print(f"error: {_describe(error)}", file=sys.stderr)
        return 2
    except Unfinished as stop:
        print(stop, file=sys.stderr)
        return REQUEUE_EXIT_CODE
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM becomes SystemExit, so that half-written files are removed on the way out."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        print("terminated", file=sys.stderr)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """An empty argument would mean the current folder; it comes from a variable of the shell that is not set."""
    for before, argument in itertools.pairwise(["", *arguments]):
        if not argument and before not in MAY_BE_EMPTY:
            place = f"after {before} " if before else ""
            raise UserError(f"an argument {place}is empty: is a variable of your shell not set?")


def _is_memory(error: Exception) -> bool:
    """Whether memory was used up, which torch tells as a RuntimeError."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _describe(error: Exception) -> str:
    """One line for an error that the user can mend."""
    if isinstance(error, _USAGE_ERROR):
        message = " ".join(error.format_message().split()).rstrip(".")
        path = error.ctx.command_path if error.ctx else "w2vbert"
        return f"{message[:1].lower()}{message[1:]} (try {path} --help)"
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.strerror[:1].lower()}{error.strerror[1:]}"
        return f"{os.fsdecode(error.filename)}: {reason}" if error.filename else reason
    if _is_memory(error):
        return "out of memory: make batches (batch_seconds) or --nj smaller"
    return " ".join(str(error).split())


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"w2vbert {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, help="Print the version.")] = False,
) -> None:
    """w2v-BERT speech recognition: pre-training, fine-tuning with a pruned RNN-T, self-training, decoding.

    Settings come from YAML files (--config) and from --set; `w2vbert info` shows them.
    """
    setup_logging()
    if context.invoked_subcommand is None:
        print(context.get_help())


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


@app.command()
@skipping_what_is_done
def features(
    manifests: Manifests, out: Out, nj: Jobs = 1, config: Config = None, set_: Set = None, force: Force = False
) -> None:
    """Extract and store filter banks."""
    from w2vbert.data.features import ExtractionConfig
    from w2vbert.tasks import prepare as task

    task.extract_features(manifests, out, load_config(ExtractionConfig, config, set_ or []), nj, force)


@app.command()
@skipping_what_is_done
def tokenizer(manifests: Manifests, out: Out, config: Config = None, set_: Set = None, force: Force = False) -> None:
    """Train a tokenizer on the transcripts of the train split."""
    from w2vbert.data.tokenizer import TokenizerConfig
    from w2vbert.tasks import prepare as task

    task.train_tokenizer(manifests, out, load_config(TokenizerConfig, config, set_ or []), force)


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


@app.command("import")
@skipping_what_is_done
def import_(
    source: Annotated[Path, typer.Argument(metavar="HF_DIR", help="Folder of config.json and model.safetensors.")],
    out: Out,
    config: Config = None,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Make a model folder from w2v-bert-2.0 as transformers saves it."""
    from w2vbert.tasks import encoders as task

    task.import_encoder(source, out, config, set_ or [], force)


@app.command()
@skipping_what_is_done
def pretrain(
    data: Data,
    out: Out,
    init: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Encoder to begin with: folder made by `import` or `pretrain`.")
    ] = None,
    config: Config = None,
    set_: Set = None,
    force: Force = False,
    max_hours: MaxHours = None,
) -> None:
    """Pre-train w2v-BERT on unlabelled speech."""
    from w2vbert.tasks import pretrain as task

    task.pretrain(data, out, init, config, set_ or [], force, max_hours)


@app.command()
@skipping_what_is_done
def finetune(
    data: Data,
    out: Out,
    tokenizer: Tokenizer,
    init: Annotated[str, typer.Option(metavar="DIR", help="Folder made by `pretrain` or `import`, or `scratch`.")],
    pseudo: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder made by `pseudo-label`.")] = None,
    config: Config = None,
    set_: Set = None,
    force: Force = False,
    max_hours: MaxHours = None,
) -> None:
    """Fine-tune to a recogniser with the pruned RNN-T loss."""
    from w2vbert.tasks import finetune as task

    task.finetune(data, out, tokenizer, init, pseudo, config, set_ or [], force, max_hours)


@app.command()
@skipping_what_is_done
def average(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder made by `finetune` or `pretrain`.")],
    out: Out,
    last: Annotated[int, typer.Option(min=1, metavar="N", help="How many checkpoints, the newest.")],
    until: Annotated[int | None, typer.Option(metavar="STEP", help="No checkpoint after this step.")] = None,
    force: Force = False,
) -> None:
    """Average the weights of a run's checkpoints into a model.

    A training keeps as many as its setting train.keep_last says.
    """
    from w2vbert.tasks import average as task

    task.average(run, out, last, until, force)


@app.command("pseudo-label")
@skipping_what_is_done
def pseudo_label(
    data: Data,
    out: Out,
    model: Model,
    lm: LanguageModel = None,
    config: Config = None,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Label the unlabelled split with a recogniser, without the doubtful."""
    from w2vbert.tasks import self_train as task

    task.pseudo_label(data, out, model, lm, config, set_ or [], force)


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
        _print_json(result.to_dict())
    else:
        print(result.summary())


@app.command()
def report(
    out: Annotated[Path, typer.Argument(metavar="OUT.md", help="File to write.")],
    row: Annotated[list[str], typer.Option(metavar="NAME=DIR", help="Row of the table: a folder of `decode --out`.")],
    curve: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Picture of WER against hours of pre-training.")
    ] = None,
) -> None:
    """Gather results into a table, with the curves of their trainings."""
    rows = []
    for text in row:
        name, equals, folder = text.rpartition("=")
        if not equals or not name or not folder:
            raise UserError(f"--row {text}: write NAME=DIR")
        rows.append((name, Path(folder)))
    from w2vbert.tasks import report as task

    task.write_report(out, rows, curve)


@app.command()
def plot(
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of trainings, finished or not.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.png", help="Picture to write.")],
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Metric to draw (wer); may be repeated.")
    ] = None,
) -> None:
    """Draw the curves of several trainings over one another."""
    from w2vbert.tasks import plot as task

    task.plot_runs(run, out, metric or [])


@app.command()
def info(
    target: Annotated[Path | None, typer.Argument(metavar="DIR", help="Folder made by any command.")] = None,
    config: Config = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Describe a folder made by w2vbert, or what a config gives."""
    from w2vbert.tasks import info as task

    description = task.describe(target, config, set_ or [])
    if json:
        _print_json(description)
    else:
        import yaml

        print(yaml.safe_dump(description, sort_keys=False, allow_unicode=True), end="")


@app.command()
def doctor(json: Json = False) -> None:
    """Show versions, devices, and how to get what is missing."""
    from w2vbert.tasks import doctor as task

    diagnosis = task.diagnose()
    if json:
        _print_json(diagnosis)
    else:
        print(task.render(diagnosis))
