"""Commands that train models."""

from pathlib import Path
from typing import Annotated

import typer

from w2vbert.cli.options import Config, Data, Force, LmFolders, Lodr, MaxHours, Model, Out, Set, ShardOf, Tokenizer, app
from w2vbert.stages import skipping_what_is_done
from w2vbert.tasks.shards import parse_shard


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
    last: Annotated[int | None, typer.Option(min=1, metavar="N", help="How many checkpoints, the newest.")] = None,
    best: Annotated[int | None, typer.Option(min=1, metavar="N", help="Or how many of the best models.")] = None,
    until: Annotated[int | None, typer.Option(metavar="STEP", help="No checkpoint after this step.")] = None,
    force: Force = False,
) -> None:
    """Average the weights of a run's checkpoints into a model.

    A training keeps as many as its settings train.keep_last and train.keep_best say.
    """
    from w2vbert.tasks import average as task

    task.average(run, out, last, best, until, force)


@app.command("pseudo-label")
@skipping_what_is_done
def pseudo_label(
    data: Data,
    out: Out,
    model: Model,
    lm: LmFolders = None,
    lodr: Lodr = None,
    shard: ShardOf = None,
    config: Config = None,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Label the unlabelled split with a recogniser, without the doubtful."""
    own = parse_shard(shard) if shard else None
    from w2vbert.tasks import fusion
    from w2vbert.tasks import pseudo_labels as task

    lms = fusion.LanguageModels(tuple(lm or ()), lodr)
    task.pseudo_label(data, out, model, lms, config, set_ or [], force, own)


@app.command("self-train")
@skipping_what_is_done
def self_train(
    data: Data,
    out: Out,
    tokenizer: Tokenizer,
    init: Annotated[str, typer.Option(metavar="DIR", help="What each student starts from: as `finetune`'s.")],
    model: Annotated[Path, typer.Option("--model", metavar="DIR", help="First teacher: folder made by `finetune`.")],
    lm: LmFolders = None,
    lodr: Lodr = None,
    config: Config = None,
    set_: Set = None,
    force: Force = False,
    max_hours: MaxHours = None,
) -> None:
    """Train students on a teacher's labels, generation by generation.

    A student that is better on dev becomes the next teacher. OUT/best is the best model of all, which is the first
    teacher if no student was better.
    """
    from w2vbert.tasks import fusion
    from w2vbert.tasks import self_train as task
    from w2vbert.tasks.finetune import Sources

    lms = fusion.LanguageModels(tuple(lm or ()), lodr)
    task.self_train(Sources(data, tokenizer, init), out, model, lms, config, set_ or [], force, max_hours)
