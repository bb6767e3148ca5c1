"""How long a start takes on a manifest of many synthetic cuts, at several places of the epoch, and how much memory.

    OMP_NUM_THREADS=1 python benchmarks/start.py FOLDER [--cuts 1000000]

Writes the manifest and one small file of features into FOLDER, then, in a new process for each place, loads what a
pre-training loads, opens the dataset and asks for a batch there. The first start makes the manifest's index. Then with
48 buckets of fixed shapes, and the assignment of all cuts to shards.
"""

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

BATCH_SECONDS = 512.0
MAX_SECONDS = 32.0


def write_manifest(folder: Path, cuts: int) -> None:
    """Cuts of 2 to 30 s, all with the features of one of 30 s, as LibriSpeech's would look."""
    import torch
    from lhotse import LilcomChunkyWriter

    with LilcomChunkyWriter(folder / "noise.lca") as writer:
        key = writer.write("noise", torch.randn(3000, 80).numpy())
    lengths = random.Random(0)
    with gzip.open(folder / "cuts_train.jsonl.gz.part", "wt", compresslevel=1, encoding="utf-8") as file:
        for number in range(cuts):
            id = f"{number // 1000}-{number // 20}-{number:07d}"
            file.write(json.dumps(describe(id, lengths.randint(200, 3000) / 100, folder / "noise.lca", key)) + "\n")
    (folder / "cuts_train.jsonl.gz.part").rename(folder / "cuts_train.jsonl.gz")


def describe(id: str, seconds: float, storage: Path, key: str) -> dict[str, object]:
    """A cut as Lhotse writes it."""
    own = {"id": id, "start": 0.0, "duration": seconds, "channel": 0}
    words = {"id": id, "recording_id": id, "start": 0.0, "duration": seconds, "channel": 0, "text": "WORDS " * 30}
    features = {"type": "kaldi-fbank", "num_frames": 3000, "num_features": 80, "frame_shift": 0.01}
    features |= {"sampling_rate": 16000, "start": 0.0, "duration": 30.0, "storage_type": "lilcom_chunky"}
    features |= {"storage_path": str(storage), "storage_key": key, "channels": 0}
    audio = {"type": "file", "channels": [0], "source": f"/corpus/train/{id.replace('-', '/')}.flac"}
    samples = int(seconds * 16000)
    recording = {"id": id, "sources": [audio], "sampling_rate": 16000, "num_samples": samples, "duration": seconds}
    supervision = words | {"speaker": id.split("-")[0]}
    return own | {"supervisions": [supervision], "features": features, "recording": recording, "type": "MonoCut"}


def measure(folder: Path, share: float, buckets: int) -> None:
    """Prints seconds from the start of the process's work to the batch at a share of the epoch, and peak memory."""
    began = time.perf_counter()
    import torch

    from w2vbert.data.datasets import SpeechDataset
    from w2vbert.data.loaders import BatchStream
    from w2vbert.tasks import pretrain  # noqa: F401  what a training loads

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).zero_grad()  # loads a third of torch
    imported = time.perf_counter()
    stream = BatchStream(SpeechDataset([folder / "cuts_train.jsonl.gz"], MAX_SECONDS), BATCH_SECONDS, seed=1)
    if buckets:
        stream.fix_shapes(buckets)
    batches = len(stream._plan(0).batches)
    stream.load_state_dict({"epoch": 0, "position": int(share * batches)})
    batch = stream.next_batch()
    place = f"{share:4.0%} of {batches} batches, {buckets} buckets ({len(batch.ids)} cuts)"
    report(place, began, f", {imported - began:.1f} s of them imports")


def measure_sharding(folder: Path) -> None:
    """Prints what it takes to say which cut goes into which shard."""
    began = time.perf_counter()
    from w2vbert.data.shards import assign_shards
    from w2vbert.tasks.shard_audio import _read_lines

    lines = _read_lines(folder / "cuts_train.jsonl.gz", folder / "lines")
    shards = assign_shards(lines.seconds, 1.0, 0)
    lines.file.unlink()
    report(f"{len(lines.seconds)} cuts into {len(shards)} shards", began)


def report(what: str, began: float, more: str = "") -> None:
    """Prints time and memory of this process."""
    seconds, processor = time.perf_counter() - began, time.process_time()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {seconds:.1f} s{more}; {processor:.1f} s of processor time; {memory:.2f} GiB")


def main() -> None:
    """Measures all."""
    parser = argparse.ArgumentParser(description="Start of a training on many cuts.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cuts", type=int, default=1_000_000)
    parser.add_argument("--at", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--buckets", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--sharding", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.at is not None:
        measure(arguments.folder, arguments.at, arguments.buckets)
        return
    if arguments.sharding:
        measure_sharding(arguments.folder)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if not (arguments.folder / "cuts_train.jsonl.gz").is_file():
        write_manifest(arguments.folder, arguments.cuts)
    runs = [["--at", str(share)] for share in (0.0, 0.0, 0.5, 0.99)]
    for run in (*runs, ["--at", "0.5", "--buckets", "48"], ["--sharding"]):
        subprocess.run([sys.executable, __file__, str(arguments.folder), *run], check=True)


if __name__ == "__main__":
    main()
