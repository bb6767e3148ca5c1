"""Encoded text and its batches: nothing is lost, the order is a function of the seed, any place is reached at once."""

from pathlib import Path

import pytest

from w2vbert.data import text as module
from w2vbert.data.text import EncodedText, TextBatch, TextStream, encode_text, group_by_pieces
from w2vbert.errors import UserError

LENGTHS = [1 + (7 * i) % 23 for i in range(300)]
LINES = [" ".join(str(i) for _ in range(length)) for i, length in enumerate(LENGTHS)]  # its number, again and again
LIMIT = 60


def numbers(lines: list[str]) -> list[list[int]]:
    return [[int(word) for word in line.split()] for line in lines]


@pytest.fixture
def encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncodedText:
    """300 sentences in blocks of 16, three blocks in a chunk."""
    for name, value in (("LINES_AT_ONCE", 7), ("BLOCK_SENTENCES", 16), ("CHUNK_BLOCKS", 3)):
        monkeypatch.setattr(module, name, value)
    return encode_text(iter(LINES), numbers, tmp_path, 2)


def epoch(stream: TextStream) -> list[TextBatch]:
    batches: list[TextBatch] = []
    while sum(len(batch.ids) for batch in batches) < len(LINES):
        batches.append(stream.next_batch())
    return batches


def test_what_is_encoded_is_read_back(encoded: EncodedText) -> None:
    assert list(encoded) == numbers(LINES) and len(encoded) == len(LINES)
    counts = encoded.counts
    assert (counts.sentences, counts.tokens, counts.words, counts.left_out) == (300, sum(LENGTHS), sum(LENGTHS), 0)
    assert encoded.tensor(5).tolist() == [5] * LENGTHS[5] and encoded.length(5) == LENGTHS[5]


@pytest.mark.parametrize(("width", "largest"), [(2, 65_535), (4, 10_000_000)])
def test_large_numbers_have_room(tmp_path: Path, width: int, largest: int) -> None:
    assert list(encode_text([f"0 {largest}"], numbers, tmp_path, width)) == [[0, largest]]


def test_long_and_empty_sentences_are_left_out_and_counted(tmp_path: Path) -> None:
    text = encode_text(["1 2", "", "1 2 3", "4"], numbers, tmp_path, 2, max_tokens=2)
    assert list(text) == [[1, 2], [4]] and text.counts.left_out == 2
    with pytest.raises(UserError, match=r"there is no text .* all 1 sentences have more than 2 pieces"):
        encode_text(["1 2 3"], numbers, tmp_path, 2, max_tokens=2)
    with pytest.raises(UserError, match="there is no text to learn"):
        encode_text([], numbers, tmp_path, 2)


def test_every_sentence_comes_once_in_each_epoch_and_whole(encoded: EncodedText) -> None:
    stream = TextStream(encoded, LIMIT, 1)
    orders = []
    for _ in range(3):
        batches = epoch(stream)
        for batch in batches:
            assert batch.tokens.shape[0] * (batch.tokens.shape[1] + 1) <= LIMIT
            for id, row, length in zip(batch.ids, batch.tokens.tolist(), batch.lengths.tolist(), strict=True):
                assert row == [int(id)] * length + [0] * (len(row) - length) and length == LENGTHS[int(id)]
        orders.append([id for batch in batches for id in batch.ids])
        assert sorted(orders[-1], key=int) == [str(i) for i in range(len(LINES))]
    assert orders[0] != orders[1] != orders[2]


def test_the_seed_decides_the_order(encoded: EncodedText) -> None:
    first, again, other = (TextStream(encoded, LIMIT, seed).next_batch().ids for seed in (1, 1, 2))
    assert first == again != other


def test_sentences_of_similar_lengths_stand_together(encoded: EncodedText) -> None:
    batches = epoch(TextStream(encoded, 200, 1))
    places = sum(batch.tokens.numel() for batch in batches)
    assert sum(LENGTHS) / places > 0.7


def test_any_position_is_gone_on_from(encoded: EncodedText) -> None:
    whole = TextStream(encoded, LIMIT, 3)
    states, batches = [], []
    for _ in range(250):  # more than an epoch
        states.append(whole.state_dict())
        batches.append(whole.next_batch().ids)
    for position in range(0, 250, 7):
        resumed = TextStream(encoded, LIMIT, 3)
        resumed.load_state_dict(states[position])
        assert [resumed.next_batch().ids for _ in batches[position : position + 9]] == batches[position : position + 9]


@pytest.mark.parametrize("count", [2, 3, 40])
def test_several_processes_share_the_batches(encoded: EncodedText, count: int) -> None:
    whole = TextStream(encoded, LIMIT, 1)
    parts = [TextStream(encoded, LIMIT, 1) for _ in range(count)]
    for index, part in enumerate(parts):
        part.share(index, count)
    for _ in range(6):
        assert [part.next_batch().ids for part in parts] == [whole.next_batch().ids for _ in range(count)]
        assert all(part.state_dict() == whole.state_dict() for part in parts)


def test_the_largest_batch_takes_most_and_moves_nothing(encoded: EncodedText) -> None:
    stream = TextStream(encoded, LIMIT, 1)
    before = stream.state_dict()
    largest = stream.largest()
    assert stream.state_dict() == before
    assert largest.tokens.numel() >= max(stream.next_batch().tokens.numel() for _ in range(10))
    assert largest.size == f"{len(largest.ids)} sentences of up to {largest.tokens.shape[1]} pieces"


def test_a_long_sentence_is_a_batch_of_its_own() -> None:
    assert group_by_pieces([0, 1, 2, 3], [1, 99, 1, 2], 10) == [[0], [1], [2, 3]]
