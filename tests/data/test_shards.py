"""Audio in shards: what is in them, how they are read, and in which order."""

import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import soundfile
import torch
from lhotse import CutSet

from tests.data.corpus_factory import RATE_HZ, noise, write_utterance
from w2vbert.config import load_config
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.features import ExtractionConfig
from w2vbert.data.loaders import BatchStream
from w2vbert.data.shards import ATTEMPTS, LANES, ShardConfig, ShardReader, assign_shards, plan_shards
from w2vbert.errors import UserError
from w2vbert.tasks.prepare import extract_features, prepare_corpus
from w2vbert.tasks.shard_audio import shard_audio

HOURS = 4.0 / 3600  # of a shard in these tests
SECONDS = [0.5 + 0.1 * (number % 12) for number in range(30)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests of 30 utterances, one of them as WAV, and shards of them."""
    root = tmp_path_factory.mktemp("shards")
    for number, seconds in enumerate(SECONDS):
        write_utterance(root / "corpus" / "a", f"11-7-{number:04d}", f"WORD {number}", noise(seconds, seed=number))
    (root / "corpus" / "d").mkdir()
    write_utterance(root / "corpus" / "d", "12-7-0000", "WORD", noise(1.0))
    prepare_corpus(root / "corpus", root / "manifests", {"train": ["a"], "dev": ["d"]})
    assert shard_audio(root / "manifests", root / "shards", ShardConfig(hours=HOURS))
    assert not shard_audio(root / "manifests", root / "shards", ShardConfig(hours=HOURS))
    return root


def open_split(folder: Path, split: str = "train") -> SpeechDataset:
    return SpeechDataset([folder / f"cuts_{split}.jsonl.gz"], 30.0, cache_bytes=0)


def test_shards_hold_what_the_files_hold(root: Path) -> None:
    extract_features(root / "manifests", root / "files", ExtractionConfig(stored=False))
    files, shards = open_split(root / "files"), open_split(root / "shards")
    assert shards.shards is not None and len(set(shards.shards)) > 4 and files.shards is None
    places = {name: index for index, name in enumerate(files.ids)}
    assert sorted(shards.ids) == sorted(files.ids)
    for index, name in enumerate(shards.ids):
        assert shards.texts[index] == files.texts[places[name]]
        assert torch.equal(shards.load(index), files.load(places[name]))
    assert len(open_split(root / "shards", "dev").load(0)) == 100


def test_lhotse_reads_the_shards(root: Path) -> None:
    cuts = CutSet.from_shar(in_dir=root / "shards" / "audio" / "train")
    lengths = {cut.id: cut.load_audio().shape[1] for cut in cuts}
    assert lengths == {f"11-7-{number:04d}": round(16000 * seconds) for number, seconds in enumerate(SECONDS)}


def test_the_number_of_processes_changes_nothing(root: Path, tmp_path: Path) -> None:
    assert shard_audio(root / "manifests", tmp_path / "shards", ShardConfig(hours=HOURS), jobs=2)
    for path in sorted((root / "shards" / "audio").rglob("*.tar")):
        assert path.read_bytes() == (tmp_path / "shards" / path.relative_to(root / "shards")).read_bytes()


def test_parts_of_recordings_keep_their_samples(root: Path, tmp_path: Path) -> None:
    source = next(iter(CutSet.from_file(root / "manifests" / "cuts_train.jsonl.gz")))
    part = source.truncate(offset=0.1, duration=0.25)
    (tmp_path / "manifests").mkdir()
    CutSet.from_cuts([part]).to_file(tmp_path / "manifests" / "cuts_train.jsonl.gz")
    shard_audio(tmp_path / "manifests", tmp_path / "shards", ShardConfig())
    (cut,) = CutSet.from_shar(in_dir=tmp_path / "shards" / "audio" / "train")
    assert (cut.load_audio() == part.load_audio()).all() and cut.start == 0.0


def test_shards_are_of_similar_lengths_and_of_the_size_asked_for() -> None:
    seconds = torch.rand(20_000, generator=torch.Generator().manual_seed(0)).mul(15).add(1).tolist()
    shards = assign_shards(seconds, 0.5, seed=1)
    assert sorted(i for shard in shards for i in shard) == list(range(len(seconds)))
    for shard in shards:
        lengths = [seconds[i] for i in shard]
        assert max(lengths) - min(lengths) < 1.0 and 0.15 < sum(lengths) / 3600 < 0.75
    assert assign_shards(seconds, 0.5, seed=1) == shards != assign_shards(seconds, 0.5, seed=2)


def test_batches_stay_within_shards_and_processes_within_lanes() -> None:
    generator = torch.Generator().manual_seed(0)
    owners = torch.arange(64).repeat_interleave(100).tolist()
    frames = torch.randint(500, 600, (6400,), generator=generator).tolist()
    plan = plan_shards(frames, owners, 60.0, (1, 0))
    assert sorted(i for batch in plan.batches for i in batch) == list(range(6400))
    assert all(len({owners[i] for i in batch}) == 1 for batch in plan.batches)
    assert all(max(frames[i] for i in batch) * len(batch) <= 6000 for batch in plan.batches)
    readers = Counter()
    for rank in range(4):
        for shard in {owners[batch[0]] for batch in plan.batches[rank::4]}:
            readers[shard] += 1
    assert sum(readers.values()) <= 64 + 4  # each shard by one process, but for the last ones
    open_at_once = max(len({owners[b[0]] for b in plan.batches[at : at + LANES]}) for at in range(0, 200, LANES))
    assert open_at_once <= LANES
    assert plan == plan_shards(frames, owners, 60.0, (1, 0)) != plan_shards(frames, owners, 60.0, (1, 1))


def test_a_stream_resumes_exactly_and_shares_out(root: Path) -> None:
    def stream(buckets: int = 0) -> BatchStream:
        batches = BatchStream(open_split(root / "shards"), 4.0, 1)
        if buckets:
            batches.fix_shapes(buckets)
        return batches

    for buckets in (0, 3):
        first = stream(buckets)
        seen = [first.next_batch() for _ in range(16)]
        assert len({batch.features.shape[1] for batch in seen}) <= 3 or not buckets
        second, third = stream(buckets), stream(buckets)
        for _ in range(5):
            second.next_batch()
        third.load_state_dict(second.state_dict())
        assert all(torch.equal(third.next_batch().features, batch.features) for batch in seen[5:])
        part = stream(buckets)
        part.share(1, 2)
        assert [part.next_batch().ids for _ in range(8)] == [batch.ids for batch in seen[1::2]]


@pytest.fixture
def server(root: Path) -> Iterator[tuple[str, list[str]]]:
    """URL of the shards, and what was asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root / "shards" / "audio"))) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}", asked
        serving.shutdown()


def test_shards_behind_a_url_are_each_fetched_once(root: Path, tmp_path: Path, server: tuple[str, list[str]]) -> None:
    url, asked = server
    config = load_config(ShardConfig, None, [f"hours={HOURS}", f"location={url}"])
    shard_audio(root / "manifests", tmp_path / "shards", config)
    remote, local = open_split(tmp_path / "shards"), open_split(root / "shards")
    far, near = BatchStream(remote, 4.0, 1), BatchStream(local, 4.0, 1)
    for _ in range(len(far._plan(0).batches)):
        assert torch.equal(far.next_batch().features, near.next_batch().features)
    assert remote.shards is not None and sorted(Counter(asked).values()) == [1] * len(set(remote.shards))


@pytest.mark.parametrize("broken", [2, 3])
def test_a_download_that_breaks_off_is_tried_again(broken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2vbert.data.shards.time.sleep", lambda seconds: None)
    sizes = [5] * broken + [10]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"0123456789"[: sizes.pop(0)])

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        place = {"shard": f"http://127.0.0.1:{serving.server_port}/a.tar", "offset": 2, "bytes": 3}
        if broken < ATTEMPTS:
            assert ShardReader().read(place) == b"234"
        else:
            with pytest.raises(UserError, match="a.tar cannot be fetched: IncompleteRead"):
                ShardReader().read(place)
        serving.shutdown()


def test_what_cannot_be_read_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2vbert.data.shards.time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match=r"127.0.0.1:1/recording.000000.tar cannot be fetched"):
        ShardReader().read({"shard": "http://127.0.0.1:1/recording.000000.tar", "offset": 0, "bytes": 10})
    with pytest.raises(UserError, match=r"none.tar cannot be read \(No such file"):
        ShardReader().read({"shard": str(tmp_path / "none.tar"), "offset": 0, "bytes": 10})
    (tmp_path / "short.tar").write_bytes(b"12345")
    with pytest.raises(UserError, match="short.tar is truncated"):
        ShardReader().read({"shard": str(tmp_path / "short.tar"), "offset": 0, "bytes": 10})
    with pytest.raises(UserError, match="smart_open"):
        ShardReader().read({"shard": "s3://none/none.tar", "offset": 0, "bytes": 10})
    with pytest.raises(UserError, match="has no cuts_"):
        shard_audio(tmp_path, tmp_path / "out", ShardConfig())
    with pytest.raises(UserError, match="hours must be positive"):
        load_config(ShardConfig, None, ["hours=0"])


@pytest.mark.parametrize("change", ["other", "damaged", "gone"])
def test_audio_that_has_changed_since_its_manifest_is_refused(root: Path, tmp_path: Path, change: str) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    cuts = CutSet.from_cuts([next(iter(CutSet.from_file(root / "manifests" / "cuts_train.jsonl.gz")))])
    audio = tmp_path / "a.flac"
    audio.write_bytes(Path(cuts[0].recording.sources[0].source).read_bytes())
    cuts[0].recording.sources[0].source = str(audio)
    cuts.to_file(manifests / "cuts_train.jsonl.gz")
    if change == "other":
        soundfile.write(audio, noise(0.1), RATE_HZ)
    elif change == "damaged":
        audio.write_bytes(b"fLaC")
    else:
        audio.unlink()
    with pytest.raises(UserError, match=r"a.flac cannot be read \(any more\), prepare the corpus again: "):
        shard_audio(manifests, tmp_path / "out", ShardConfig())
