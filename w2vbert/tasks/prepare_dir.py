"""Manifests of a folder of one's own: splits by name, or drawn by speaker, and the same report as of any corpus."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from w2vbert.config import to_dict
from w2vbert.data.corpora import LABELLED_SPLITS, SPLITS, UNLABELLED, CorpusConfig, Utterance, keep_usable
from w2vbert.data.folders import SPLIT_NAMES, Listing, list_folder
from w2vbert.data.librilight import LongRecording
from w2vbert.data.segments import CutConfig
from w2vbert.errors import UserError
from w2vbert.files import real_path
from w2vbert.log import logger
from w2vbert.stages import Step, run_step
from w2vbert.tasks.manifests import find_warnings, summarise, write_report, write_split
from w2vbert.tasks.prepare_librilight import find_shared, write_unlabelled


@dataclass(frozen=True)
class DirConfig:
    """How a folder is shared out.

    Attributes:
        dev_share, test_share: of the transcribed files, for splits that the folder does not name; drawn by speaker.
        seed: of the draw.
        min_seconds: shorter files are dropped.
        max_seconds: longer files with a transcript are dropped; those without one are cut at silences.
        piece_seconds: longest piece of those.
    """

    dev_share: float = 0.1
    test_share: float = 0.1
    seed: int = 1
    min_seconds: float = 0.1
    max_seconds: float = 60.0
    piece_seconds: float = 32.0

    def __post_init__(self) -> None:
        if min(self.dev_share, self.test_share) < 0.0 or self.dev_share + self.test_share >= 1.0:
            raise ValueError("dev_share and test_share must not be negative, and together be less than 1")
        if not 0.0 < self.min_seconds < min(self.max_seconds, self.piece_seconds):
            raise ValueError("min_seconds must lie between 0 and both max_seconds and piece_seconds")


def prepare_dir(
    source: Path,
    out: Path,
    named: Mapping[str, Sequence[str]],
    config: DirConfig,
    jobs: int = 1,
    force: bool = False,
) -> bool:
    """Write Lhotse manifests and a report of a folder of audio; False if up to date.

    Args:
        source: folder in one of the layouts of `w2vbert.data.folders`.
        named: split -> names of the parts of the folder that it consists of; none at all: what the parts are called.
        config: how the rest is shared out.
        jobs: number of processes.

    Raises:
        UserError: the folder cannot be read, a part is not there, or nothing is left of a split.
    """
    source = real_path(source)
    if not source.is_dir():
        raise UserError(f"there is no folder {source}")
    given = {split: tuple(names) for split, names in named.items() if names}
    step = Step("prepare dir", out, {"source": source, "named": given, "config": to_dict(config)}, {"source": source})

    def work(folder: Path) -> None:
        listing = list_folder(source)
        splits, warnings = share_out(listing, given, config)
        count = ", ".join(f"{name} {len(utterances)}" for name, utterances in splits.items())
        logger.info("%s: %d audio files (%s): %s", source, len(listing.utterances), listing.layout, count)
        limits = CorpusConfig(source, {name: (source.name,) for name in splits}, config.min_seconds, config.max_seconds)
        left_out, labelled = dict(listing.dropped), []
        for name in (split for split in LABELLED_SPLITS if split in splits):
            labelled.append(keep_usable(name, splits[name], left_out, limits, jobs))
            write_split(labelled[-1], folder)
            left_out = {}  # what no split could have used stands in the report of the first
        summary = {split.name: summarise(split, given.get(split.name, ())) for split in labelled}
        warnings += find_warnings(labelled)
        if UNLABELLED in splits:
            cut = CutConfig(config.piece_seconds, config.min_seconds)
            # Of parts of a recording the whole one is cut anew, once.
            recordings = {u.path: LongRecording(u.path, u.id, u.speaker) for u in reversed(splits[UNLABELLED])}
            whole = sorted(recordings.values(), key=lambda recording: recording.id)
            summary[UNLABELLED], speakers = write_unlabelled(whole, folder, step.parts, cut, jobs)
            summary[UNLABELLED]["dropped"] |= {reason: sorted(names) for reason, names in left_out.items()}
            warnings += find_shared(speakers, labelled)
        write_report(folder, source, summary, warnings)

    with step.keeping_parts():
        return run_step(step, work, force)


def share_out(
    listing: Listing, named: Mapping[str, Sequence[str]], config: DirConfig
) -> tuple[dict[str, list[Utterance]], list[str]]:
    """The utterances of each split, and warnings.

    Parts go where `named` says, or else where their own names do. What has no transcript is unlabelled, unless its
    part is to be labelled, or it is a piece of a recording of which others have one. Where no part is dev or test,
    speakers are drawn for it, from all that would be train.

    Raises:
        UserError: `named` has a part that is not there or is there twice, or what is to be labelled has no transcripts.
    """
    groups = sorted(set(listing.groups.values()))
    twice = [name for name, count in Counter(name for names in named.values() for name in names).items() if count > 1]
    if twice:
        raise UserError(f"part {', '.join(twice)} is named twice: a part belongs to one split")
    wanted = {name.lower(): split for split, names in named.items() for name in names}
    missing = sorted(set(wanted) - set(groups))
    if missing:
        raise UserError(f"there is no part {', '.join(missing)} (there are: {', '.join(groups) or 'none'})")
    if not named:
        wanted = {name: split for split, names in SPLIT_NAMES.items() for name in names}
        unknown = sorted(set(listing.told) - set(wanted))
        if unknown:
            raise UserError(
                f"{listing.told[unknown[0]]}: '{unknown[0]}' is no split (train, dev, test or unlabelled): "
                "mend it, or say by --train, --dev, --test and --unlabelled which parts are what"
            )
    splits: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
    silent: dict[str, int] = {}  # parts that are to be labelled -> utterances in them without a transcript
    for key in sorted(listing.utterances):
        utterance = listing.utterances[key]
        utterance = replace(utterance, speaker=utterance.speaker or key)  # each file a speaker of its own
        group = listing.groups.get(key, "")
        split = wanted.get(group)
        if split is None and named:
            listing.drop("in no split", key)
        elif split == UNLABELLED or (split is None and utterance.text is None and utterance.span is None):
            splits[UNLABELLED].append(replace(utterance, text=None))
        elif not utterance.text:
            listing.drop("no transcript" if utterance.text is None else "empty transcript", key)
            if split is not None:
                silent[group] = silent.get(group, 0) + 1
        else:
            splits[split or "train"].append(utterance)
    for group, count in silent.items():
        if not splits[wanted[group]]:
            raise UserError(
                f"none of the {count} utterances of {group} has a transcript, but {wanted[group]} needs them"
            )
    shares = {"dev": config.dev_share, "test": config.test_share}
    absent = {name: share for name, share in shares.items() if share and not splits[name] and splits["train"]}
    warnings = listing.warnings + _draw(splits, absent, config.seed)
    return {name: utterances for name, utterances in splits.items() if utterances}, warnings


def _draw(splits: dict[str, list[Utterance]], shares: Mapping[str, float], seed: int) -> list[str]:
    """Moves shares of train to other splits: whole speakers, or single files where there are too few speakers."""
    if not shares:
        return []
    warnings = []
    owners = {utterance.id: utterance.speaker for utterance in splits["train"]}
    if len(set(owners.values())) <= len(shares):
        owners = {key: key for key in owners}
        names = " and ".join(shares)
        warnings.append(f"too few speakers to draw {names} by speaker: files are drawn, so speakers are in train, too")
    if len(owners) <= len(shares):
        raise UserError(f"{len(owners)} transcribed files are too few to draw {' and '.join(shares)} from")
    sizes = Counter(owners.values())
    order = sorted(sizes, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    for place, (split, share) in enumerate(shares.items(), start=1):
        left = len(shares) - place + 1  # speakers that must stay: one for train, one for each split to come
        chosen: list[str] = []
        while sum(sizes[name] for name in chosen) < share * len(owners) and len(order) > left:
            chosen.append(order.pop())
        splits[split] = [utterance for utterance in splits["train"] if owners[utterance.id] in chosen]
        splits["train"] = [utterance for utterance in splits["train"] if owners[utterance.id] not in chosen]
    return warnings
