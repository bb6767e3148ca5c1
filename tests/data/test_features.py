from pathlib import Path

import pytest
import soundfile
import torch

from tests.data.corpus_factory import noise, store, truncate, write_corpus, write_utterance
from w2vbert.data.corpora import CorpusConfig, Split, read_split
from w2vbert.data.features import (
    W2V_BERT_2,
    ExtractionConfig,
    FeatureConfig,
    add_speeds,
    features_of_waveform,
    normalize,
    plan_files,
    store_chunk,
)
from w2vbert.errors import UserError


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    corpus = write_corpus(tmp_path_factory.mktemp("corpus"))
    # Longer than a chunk of the store, and another rate.
    write_utterance(corpus / "a-train", "11-8-0000", "LONG", noise(12.34))
    write_utterance(corpus / "a-train", "11-8-0001", "SLOW", noise(1, 8000), 8000)
    return read_split(CorpusConfig(corpus, {"train": ("a-train",)}), "train", jobs=1)


def test_stored_features_equal_those_of_the_waveform(split: Split, tmp_path: Path) -> None:
    config = FeatureConfig()
    stored = store(split.cuts(), tmp_path)
    assert [cut.id for cut in stored] == [r.id for r in split.recordings]
    for cut in stored:
        samples = torch.from_numpy(cut.load_audio()[0])
        features = torch.from_numpy(cut.load_features())
        assert features.shape == (round(len(samples) / 160), 80) and features.dtype == torch.float32
        assert torch.equal(features, features_of_waveform(samples, config)), cut.id


def test_cuts_are_shared_out_in_order_and_point_to_where_the_features_will_lie(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("w2vbert.data.features.CUTS_PER_FILE", 3)
    aside, final = tmp_path / "aside", tmp_path / "final"
    aside.mkdir()
    cuts = list(split.cuts())
    jobs = plan_files("x", cuts, final, FeatureConfig())
    assert [job.file.name for job in jobs] == ["x-00000.lca", "x-00001.lca", "x-00002.lca"]
    assert [cut for job in jobs for cut in job.cuts] == cuts and len(jobs[0].cuts) == 3
    (cut, *_) = store_chunk(jobs[0], aside)
    aside.rename(final)
    assert cut.load_features().shape[1] == 80


def test_copies_at_other_speeds_are_shorter_or_longer_and_say_the_same(split: Split, tmp_path: Path) -> None:
    cuts = [cut for cut in split.cuts() if cut.id in ("11-8-0000", "11-8-0001")]
    copies = list(add_speeds(cuts, (0.9, 1.1)))
    assert [cut.id for cut in copies[:4]] == ["11-8-0000", "11-8-0000_sp0.9", "11-8-0000_sp1.1", "11-8-0001"]
    stored = store(copies, tmp_path)
    assert [cut.num_frames for cut in stored] == [1234, 1371, 1122, 100, 111, 91]
    for cut in stored:
        assert len(cut.load_features()) == cut.num_frames and cut.load_features().std() > 0.5
        assert cut.supervisions[0].text == {"11-8-0000": "LONG", "11-8-0001": "SLOW"}[cut.id[:9]]
        assert cut.supervisions[0].duration == pytest.approx(cut.duration)
    assert list(add_speeds(cuts, ())) == cuts


def test_pitch_follows_the_speed(tmp_path: Path) -> None:
    tone = 0.3 * torch.sin(2 * torch.pi * 1000 / 16000 * torch.arange(16000)).numpy()
    write_utterance(tmp_path / "a", "1-1-0000", "TONE", tone)
    cuts = read_split(CorpusConfig(tmp_path, {"train": ("a",)}), "train", jobs=1).cuts()
    stored = store(add_speeds(cuts, (0.8, 1.25)), tmp_path)
    loudest = [int(cut.load_features()[20:60].mean(0).argmax()) for cut in stored]
    assert loudest[1] < loudest[0] < loudest[2]


def test_features_agree_with_torchaudios_kaldi_filterbank() -> None:
    from torchaudio.compliance.kaldi import fbank

    samples = torch.from_numpy(noise(2))
    theirs = fbank(samples[None], num_mel_bins=80, high_freq=-400, snip_edges=False, dither=0.0, energy_floor=0.0)
    # Half a step of the stored values, and a little for float32.
    assert (features_of_waveform(samples, FeatureConfig()) - theirs).abs().max() < 1 / 64 + 1e-3


@pytest.mark.parametrize("samples", [16000, 15999, 30001])
def test_features_of_w2v_bert_2_are_those_of_transformers(samples: int) -> None:
    """To 1/64, what storage loses, before normalisation; afterwards to 2 % of a bin's deviation on average."""
    extractor = pytest.importorskip("transformers").SeamlessM4TFeatureExtractor()
    waveform = noise(2)[:samples]
    theirs = extractor(waveform, sampling_rate=16000, do_normalize_per_mel_bins=False, return_tensors="pt")
    raw = features_of_waveform(torch.from_numpy(waveform), W2V_BERT_2)
    stacks = (len(raw) // 2, 160)  # an odd frame is left out; transformers gives it to padding
    assert int(theirs["attention_mask"].sum()) == stacks[0]
    ours = raw[: 2 * stacks[0]].reshape(stacks)
    torch.testing.assert_close(ours, theirs["input_features"][0, : stacks[0]].float(), atol=1 / 64 + 3e-3, rtol=0)
    theirs = extractor(waveform, sampling_rate=16000, return_tensors="pt")["input_features"][0, : stacks[0]].float()
    difference = normalize(raw)[: 2 * stacks[0]].reshape(stacks) - theirs
    assert difference.square().mean().sqrt() < 0.02 and difference.abs().max() < 0.1


def test_cuts_are_as_long_as_their_frames_where_edges_are_snipped(split: Split, tmp_path: Path) -> None:
    cuts = [cut.truncate(duration=0.02) if cut.id.endswith("0000") else cut for cut in split.cuts()]
    stored = store(cuts, tmp_path, W2V_BERT_2)
    for before, after in zip(cuts, stored, strict=True):
        samples = before.load_audio().shape[1]
        frames = max(1 + (samples - 400) // 160, 1)
        assert after.num_frames == len(after.load_features()) == frames, "what is shorter than a frame is filled up"
        assert after.duration == pytest.approx(0.01 * frames) and after.id == before.id
        if samples >= 400:
            whole = torch.from_numpy(before.load_audio()[0])
            assert torch.equal(torch.from_numpy(after.load_features()), features_of_waveform(whole, W2V_BERT_2))


def test_normalized_features_have_mean_0_and_variance_1_whatever_the_gain() -> None:
    samples = torch.from_numpy(noise(2))
    loud, quiet = (normalize(features_of_waveform(gain * samples, FeatureConfig())) for gain in (1.0, 0.5))
    torch.testing.assert_close(loud.mean(dim=0), torch.zeros(80), atol=1e-4, rtol=0)
    torch.testing.assert_close(loud.var(dim=0, unbiased=False), torch.ones(80), atol=1e-3, rtol=0)
    assert (loud - quiet).abs().max() < 0.1


def test_a_scale_that_is_no_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="scale"):
        FeatureConfig(scale=0.0)


def test_digital_silence_stays_finite() -> None:
    features = normalize(features_of_waveform(torch.zeros(16000), FeatureConfig()))
    assert torch.equal(features, torch.zeros(100, 80))


@pytest.mark.parametrize("samples", [torch.zeros(0), torch.zeros(399), torch.zeros(1, 16000)])
def test_what_is_no_waveform_is_refused(samples: torch.Tensor) -> None:
    with pytest.raises(ValueError):
        features_of_waveform(samples, FeatureConfig())


def test_audio_damaged_after_its_manifest_was_made_is_a_clear_error(tmp_path: Path) -> None:
    path = write_utterance(tmp_path / "a", "1-1-0000", "TEXT", noise(2))
    wav = write_utterance(tmp_path / "b", "1-1-0001", "TEXT", noise(2)).with_suffix(".wav")
    soundfile.write(wav, *soundfile.read(wav.with_suffix(".flac")))
    wav.with_suffix(".flac").unlink()
    for subset, name in (("a", path), ("b", wav)):
        split = read_split(CorpusConfig(tmp_path, {"train": (subset,)}), "train", jobs=1)
        truncate(name, 0.5)
        with pytest.raises(UserError, match=f"{name.name} cannot be decoded"):
            store(split.cuts(), tmp_path)


def test_another_sampling_rate_than_the_configs_is_refused(split: Split, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="16000 Hz, the config 8000 Hz"):
        store(split.cuts(), tmp_path, FeatureConfig(sampling_rate_hz=8000, high_hz=3800))


@pytest.mark.parametrize(
    "values",
    [
        {"num_mel_bins": 0},
        {"num_mel_bins": 500},
        {"sampling_rate_hz": 0},
        {"frame_shift_seconds": 0.02},
        {"frame_length_seconds": 0.005},
        {"high_hz": 9000.0},
    ],
)
def test_contradictions_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        FeatureConfig(**values)


@pytest.mark.parametrize("speeds", [(0.9, 0.9), (1.0,), (0.0,), (3.0,)])
def test_speeds_that_cannot_be_are_refused(speeds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="speeds must"):
        ExtractionConfig(speeds=speeds)


def test_augmentation_does_not_change_what_models_must_agree_on() -> None:
    config = ExtractionConfig(num_mel_bins=40, speeds=(0.9, 1.1), noise=Path("noise"))
    assert config.filterbanks == FeatureConfig(num_mel_bins=40) and type(config.filterbanks) is FeatureConfig
