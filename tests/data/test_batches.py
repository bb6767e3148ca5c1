import torch

from w2vbert.data.batches import collate


def features(*frames: int) -> list[torch.Tensor]:
    return [torch.full((n, 3), float(n)) for n in frames]


def test_collate_pads_ends_with_zeros() -> None:
    batch = collate(["a", "b", "c"], features(4, 7, 1), [[1, 2], [], [3]])
    assert batch.ids == ("a", "b", "c") and batch.features.shape == (3, 7, 3)
    assert batch.lengths.tolist() == [4, 7, 1]
    for row, n in zip(batch.features, [4, 7, 1], strict=True):
        assert (row[:n] == n).all() and not row[n:].any()
    assert batch.tokens is not None and batch.tokens.tolist() == [[1, 2], [0, 0], [3, 0]]
    assert batch.token_lengths is not None and batch.token_lengths.tolist() == [2, 0, 1]
    assert batch.tokens.dtype == batch.token_lengths.dtype == batch.lengths.dtype == torch.int64


def test_seconds_leave_padding_out() -> None:
    assert collate(["a", "b"], features(150, 50), None).seconds == 2.0


def test_without_transcripts_there_are_no_tokens() -> None:
    batch = collate(["a"], features(5), None)
    assert batch.tokens is None and batch.token_lengths is None


def test_transcripts_that_are_all_empty_keep_their_shape() -> None:
    batch = collate(["a", "b"], features(5, 6), [[], []])
    assert batch.tokens is not None and batch.tokens.shape == (2, 0) and batch.tokens.dtype == torch.int64


def test_moving_leaves_lengths_on_the_cpu() -> None:
    moved = collate(["a"], features(5), [[1]]).to(torch.device("meta"))
    assert moved.features.is_meta and moved.tokens is not None and moved.tokens.is_meta
    assert moved.token_lengths is not None and not moved.lengths.is_meta and not moved.token_lengths.is_meta
