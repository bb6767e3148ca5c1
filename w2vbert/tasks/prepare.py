"""Data preparation: a synthetic corpus, Lhotse manifests, features and the tokenizer, each a step that is done once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from w2vbert.config import save_config, to_dict
from w2vbert.data.corpora import SPLITS, CorpusConfig, check_subsets, read_split
from w2vbert.data.features import FEATURES_FILE, ExtractionConfig, add_speeds
from w2vbert.data.manifest_files import read_cuts
from w2vbert.data.synthesis import SPLITS as SYNTH_SPLITS
from w2vbert.data.synthesis import SynthConfig, write_corpus
from w2vbert.data.tokenizer import Tokenizer, TokenizerConfig
from w2vbert.errors import UserError
from w2vbert.files import check_space, real_path
from w2vbert.log import logger, progress
from w2vbert.machine import usable_cores
from w2vbert.stages import Step, run_step
from w2vbert.tasks.feature_parts import FeaturePart, join_parts, make_missing, plan_parts
from w2vbert.tasks.manifests import cuts_file, find_warnings, summarise, write_report, write_split
from w2vbert.tasks.shards import Shard, shard_of

if TYPE_CHECKING:
    from lhotse import MonoCut

STORAGE = "storage"
BYTES_PER_SECOND = 20_000  # of synthetic speech as FLAC: 19 700 over the corpus of recipes/mini


def prepare_synth(out: Path, config: SynthConfig, jobs: int | None = None, force: bool = False) -> bool:
    """Make the synthetic corpus in `out`; False if it is up to date.

    Args:
        jobs: number of processes; None: one for each usable core. The corpus does not depend on it.

    Raises:
        UserError: espeak-ng cannot be loaded, or the disk is too small.
    """
    step = Step("prepare synth", out, config, {})

    def work(folder: Path) -> None:
        check_space(out, 3600 * sum(config.hours(split) for split in SYNTH_SPLITS) * BYTES_PER_SECOND)
        write_corpus(folder, config, jobs or usable_cores())

    return run_step(step, work, force)


def prepare_corpus(
    corpus: Path, out: Path, splits: Mapping[str, Sequence[str]], jobs: int = 1, force: bool = False
) -> bool:
    """Write Lhotse manifests and a validation report of a corpus in LibriSpeech's layout; False if up to date.

    `out` gets `{recordings,supervisions,cuts}_{split}.jsonl.gz`, `report.json` and `report.txt`.

    Args:
        splits: train, dev, test, unlabelled -> names of the subset folders in it; a split without any is left out.
        jobs: number of processes that decode the audio.

    Raises:
        UserError: a folder is missing, an unlabelled one is named as labelled, or nothing is left of a split.
    """
    named = {split: tuple(subsets) for split, subsets in splits.items() if subsets}
    config = CorpusConfig(real_path(corpus), named)
    check_subsets(config)
    subsets = sorted({subset for names in named.values() for subset in names})
    step = Step("prepare corpus", out, to_dict(config), {subset: config.corpus / subset for subset in subsets})
    return run_step(step, lambda folder: _write_manifests(config, folder, jobs), force)


def extract_features(
    manifests: Path,
    out: Path,
    config: ExtractionConfig,
    jobs: int = 1,
    force: bool = False,
    shard: Shard | None = None,
) -> bool:
    """Store the features of all splits in `manifests`, and of noise; False if up to date.

    With `stored: false` only manifests are written, cut by cut, which say how features are computed when they are read.

    `out` gets `cuts_{split}.jsonl.gz`, `cuts_noise.jsonl.gz` if asked for, and the features under `storage/`. Until all
    are there, finished parts stand in `OUT.parts`: a call makes those that are missing, and joins them.

    Args:
        manifests: folder of `prepare_corpus`.
        jobs: number of processes.
        shard: make these of the parts only, and leave the joining to a call without it.

    Raises:
        UserError: there are no manifests, their audio or the noise cannot be read, or the disk is too small.
    """
    splits = [split for split in SPLITS if cuts_file(manifests, split).is_file()]
    if not splits:
        raise UserError(f"{manifests} has no cuts_*.jsonl.gz: give the folder that `w2vbert prepare corpus` wrote")
    final = real_path(out)
    inputs = {"manifests": manifests, "noise": config.noise}
    step = Step("features", out, {"features": to_dict(config), "out": str(final)}, inputs)

    def plan() -> list[FeaturePart]:
        return plan_parts(step, _cuts_to_store(manifests, splits, config), final / STORAGE, config.filterbanks)

    def work(folder: Path) -> None:
        save_config(config.filterbanks, folder / FEATURES_FILE)
        if not config.stored:
            for split in splits:
                cuts = _read_cuts(cuts_file(manifests, split), config.speeds)
                _write_described(cuts, config, final / FEATURES_FILE, cuts_file(folder, split))
        parts = plan()
        make_missing(parts, out, jobs)
        join_parts(parts, folder, folder / STORAGE)

    if shard is None:
        with step.keeping_parts():
            return run_step(step, work, force)
    if not force and step.is_done():
        return False
    step.check_out()
    make_missing(list(shard_of(plan(), shard)), out, jobs)
    return True


def _cuts_to_store(manifests: Path, splits: Sequence[str], config: ExtractionConfig) -> dict[str, list["MonoCut"]]:
    """Cuts whose features are to be stored, by split; noise is one."""
    from w2vbert.data.noise import noise_cuts

    cuts = {split: list(_read_cuts(cuts_file(manifests, split), config.speeds)) for split in splits if config.stored}
    if config.noise is not None:
        cuts["noise"] = list(noise_cuts(config.noise, config.sampling_rate_hz))
    return cuts


def _read_cuts(manifest: Path, speeds: Sequence[float]) -> "Iterator[MonoCut]":
    """Cuts of a manifest, one after the other; those of the train split at all speeds."""
    return add_speeds(read_cuts(manifest), speeds if manifest == cuts_file(manifest.parent, "train") else ())


def _write_described(cuts: "Iterable[MonoCut]", config: ExtractionConfig, config_file: Path, manifest: Path) -> None:
    """Writes a manifest of cuts whose features are computed when they are read, one cut after the other."""
    from lhotse import CutSet

    from w2vbert.data.on_the_fly import describe_features

    with CutSet.open_writer(manifest) as writer:
        for cut in progress(describe_features(cuts, config.filterbanks, config_file), desc=manifest.name, unit="cuts"):
            writer.write(cut)


def train_tokenizer(manifests: Path, out: Path, config: TokenizerConfig, force: bool = False) -> bool:
    """Train a tokenizer on the texts of the train split; False if up to date. `out` gets what `Tokenizer.load` reads.

    Raises:
        UserError: there is no train split, or the vocabulary does not fit its text.
    """
    source = cuts_file(manifests, "train")
    if not source.is_file():
        raise UserError(f"there is no {source}: a tokenizer needs the text of a train split")
    step = Step("tokenizer", out, config, {"manifests": manifests})

    def work(folder: Path) -> None:
        texts = [s.text for cut in read_cuts(source) for s in cut.supervisions if s.text]
        tokenizer = Tokenizer.train(texts, config)
        tokenizer.save(folder)
        pieces = sum(len(tokenizer.encode(text)) for text in texts)
        words = sum(len(text.split()) for text in texts)
        logger.info("tokenizer: %d pieces, %.2f for a word", tokenizer.vocab_size, pieces / max(words, 1))

    return run_step(step, work, force)


def _write_manifests(config: CorpusConfig, folder: Path, jobs: int) -> None:
    splits = [read_split(config, name, jobs) for name in SPLITS if name in config.splits]
    for split in splits:
        write_split(split, folder)
    summary = {split.name: summarise(split, config.splits[split.name]) for split in splits}
    write_report(folder, config.corpus, summary, find_warnings(splits))
