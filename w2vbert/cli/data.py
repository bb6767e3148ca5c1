"""Commands that extract features, write shards of audio, and train tokenizers."""

from w2vbert.cli.options import Config, Force, Jobs, Manifests, Out, Set, ShardOf, app
from w2vbert.config import load_config
from w2vbert.stages import skipping_what_is_done
from w2vbert.tasks.shards import parse_shard


@app.command()
@skipping_what_is_done
def features(
    manifests: Manifests,
    out: Out,
    nj: Jobs = 1,
    shard: ShardOf = None,
    config: Config = None,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Extract and store filter banks.

    What is finished before a failure is kept.
    """
    own = parse_shard(shard) if shard else None
    from w2vbert.data.features import ExtractionConfig
    from w2vbert.tasks import prepare as task

    task.extract_features(manifests, out, load_config(ExtractionConfig, config, set_ or []), nj, force, own)


@app.command()
@skipping_what_is_done
def shards(
    manifests: Manifests, out: Out, nj: Jobs = 1, config: Config = None, set_: Set = None, force: Force = False
) -> None:
    """Write audio into shards, which trainings read in order.

    Takes the place of `features`: filter banks are computed as the audio is read.
    """
    from w2vbert.data.shards import ShardConfig
    from w2vbert.tasks import shard_audio as task

    task.shard_audio(manifests, out, load_config(ShardConfig, config, set_ or []), nj, force)


@app.command()
@skipping_what_is_done
def tokenizer(manifests: Manifests, out: Out, config: Config = None, set_: Set = None, force: Force = False) -> None:
    """Train a tokenizer on the transcripts of the train split."""
    from w2vbert.data.tokenizer import TokenizerConfig
    from w2vbert.tasks import prepare as task

    task.train_tokenizer(manifests, out, load_config(TokenizerConfig, config, set_ or []), force)
