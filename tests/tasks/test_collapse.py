"""The watch for collapsed codes: what it calls a collapse, what it does about it, and how dead codes begin anew."""

import logging
import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.tiny import ENCODER, MELS, noise
from w2vbert.errors import UserError
from w2vbert.models.objectives import make_pretraining_model
from w2vbert.models.quantizer import GumbelQuantizer, QuantizerConfig, perplexity
from w2vbert.models.w2v_bert import W2vBertConfig
from w2vbert.tasks.collapse import CollapseWatch, OnCollapse, find_collapse, reseed_dead_codes
from w2vbert.tasks.pretrain import loss_sums

CODES = 64
CONFIG = W2vBertConfig(ENCODER, QuantizerConfig(codes=CODES, dim=6))
FROZEN = W2vBertConfig(replace(ENCODER, contrastive_blocks=0, masked_blocks=4), objective="best-rq")


def sums(counts: list[list[int]], batch_nats: float = 3.0, frame_nats: float = 0.5) -> dict[str, Tensor]:
    """What the trainer adds up, with so many frames of each code."""
    code_counts = torch.tensor(counts)
    count = code_counts[0].sum()
    entropies = {"batch_entropy": count * batch_nats, "frame_entropy": count * frame_nats}
    return {"count": count, "code_counts": code_counts, **entropies}


EVEN = [20] * CODES
FEW = [400, 300, 200, 200, 100, 50, 30] + [0] * (CODES - 7)


def held_sounds(generator: torch.Generator) -> Tensor:
    """Features in which sounds of 80 to 240 ms and silences follow one another, normalised by utterance."""
    x = torch.zeros(6, 200, MELS)
    for utterance in x:
        start = 0
        while start < len(utterance):
            frames = int(torch.randint(8, 25, (1,), generator=generator))
            if torch.rand(1, generator=generator) < 0.5:
                utterance[start : start + frames] = torch.randn(MELS, generator=generator)
            start += frames
    x = x + 0.1 * torch.randn(x.shape, generator=generator)
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


@pytest.mark.parametrize(
    ("diversity", "weight", "collapses"), [("perplexity", 0.1, True), ("information", 0.25, False)]
)
def test_the_papers_diversity_loss_lets_the_codes_collapse_and_the_default_does_not(
    diversity: Literal["information", "perplexity"], weight: float, collapses: bool
) -> None:
    """A real collapse, with the contrastive loss on: as on recorded speech, the accuracy looks splendid meanwhile."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    quantizer = QuantizerConfig(codes=CODES, dim=10)
    config = replace(CONFIG, quantizer=quantizer, diversity=diversity, diversity_weight=weight, num_distractors=50)
    model = make_pretraining_model(config).train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    added: dict[str, Tensor] = {}
    for step in range(60):
        loss = model(held_sounds(generator), torch.full((6,), 200), quantizer.temperature(step / 60), generator)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        if step >= 30:
            added = {name: value + added.get(name, 0) for name, value in loss_sums(loss).items()}
    accuracy = float(added["contrastive_correct"] / added["contrastive_count"])
    assert (find_collapse(added, config) is not None) == collapses == (accuracy > 0.3)


def test_even_use_is_no_collapse_and_few_codes_are_one() -> None:
    assert find_collapse(sums([EVEN]), CONFIG) is None
    tenth = [200] * (CODES // 10) + [0] * (CODES - CODES // 10)  # 6 of 64
    assert find_collapse(sums([tenth]), CONFIG) is not None
    assert find_collapse(sums([tenth[:-1] + [200]]), CONFIG) is None  # one code more
    found = find_collapse(sums([FEW]), CONFIG)
    assert found is not None and "perplexity 5.5 of 64" in found and "31% of the masked frames" in found
    assert "model.diversity_weight above 0.25" in found and "\n" not in found


def test_one_collapsed_codebook_of_two_is_found() -> None:
    assert find_collapse(sums([EVEN, EVEN]), CONFIG) is None
    assert find_collapse(sums([EVEN, FEW]), CONFIG) == find_collapse(sums([FEW, EVEN]), CONFIG) is not None


def test_a_quantizer_that_does_not_look_at_the_frame_is_found() -> None:
    even = math.log(CODES)
    found = find_collapse(sums([EVEN], even, even - 0.01), CONFIG)
    assert found is not None and "do not depend on the frames" in found
    assert find_collapse(sums([EVEN], even, even - 0.5), CONFIG) is None


def test_too_few_frames_say_nothing() -> None:
    assert find_collapse(sums([[CODES] + [0] * (CODES - 1)]), CONFIG) is None
    assert find_collapse(sums([[0] * CODES]), CONFIG) is None


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        (replace(CONFIG, diversity="perplexity"), "try model.diversity=information, a lower"),
        (
            replace(CONFIG, encoder=replace(ENCODER, contrastive_blocks=0), objective="no-contrastive"),
            "try model.objective=w2v-bert",
        ),
        (FROZEN, "frozen codes follow the features"),
    ],
)
def test_remedies_are_those_of_the_config(config: W2vBertConfig, remedy: str) -> None:
    found = find_collapse({key: sums([FEW])[key] for key in ("count", "code_counts")}, config)
    assert found is not None and remedy in found


def watch(action: OnCollapse) -> tuple[CollapseWatch, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = make_pretraining_model(CONFIG)
    return CollapseWatch(model, action, seed=1), torch.optim.AdamW(model.parameters())


def test_it_warns_when_a_collapse_begins_and_tells_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    looking, optimizer = watch("warn")
    before = {name: p.clone() for name, p in looking.model.named_parameters()}
    with caplog.at_level(logging.INFO, "w2vbert"):
        for step, counts in enumerate([EVEN, FEW, FEW, EVEN, EVEN, FEW]):
            looking.look(step, sums([counts]), optimizer)
    messages = [record.getMessage() for record in caplog.records]
    assert [m.split(":")[0] for m in messages] == ["step 1", "step 3", "step 5"]
    assert "have collapsed" in messages[0] and "recovered" in messages[1]
    assert all(torch.equal(p, before[name]) for name, p in looking.model.named_parameters())


def test_it_stops_the_run() -> None:
    looking, optimizer = watch("stop")
    looking.look(50, sums([EVEN]), optimizer)
    with pytest.raises(UserError, match="step 100: the codes have collapsed .* checkpoints before this step are kept"):
        looking.look(100, sums([FEW]), optimizer)


def test_it_reseeds_alike_in_every_process_and_after_every_restart() -> None:
    """What begins anew follows from the seed, the step and the counts alone."""
    weights = []
    for _ in range(2):
        looking, optimizer = watch("reseed")
        looking.look(100, sums([FEW]), optimizer)
        weights.append(torch.cat([p.flatten() for p in looking.model.quantizer.parameters()]))
    assert torch.equal(*weights)
    looking, optimizer = watch("reseed")
    looking.look(200, sums([FEW]), optimizer)
    assert not torch.equal(weights[0], torch.cat([p.flatten() for p in looking.model.quantizer.parameters()]))


def collapsed_quantizer(groups: int = 1) -> tuple[GumbelQuantizer, Tensor]:
    """A quantizer in which six codes win all frames, and frames."""
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(MELS, QuantizerConfig(groups, CODES, 6 * groups)).eval()
    with torch.no_grad():
        quantizer.logits.bias.view(groups, CODES)[:, 6:] = -1000.0
    return quantizer, noise(4000, MELS)


def count(quantizer: GumbelQuantizer, x: Tensor) -> Tensor:
    return F.one_hot(quantizer(x, 1.0).ids, CODES).sum(0)  # (G, V)


@pytest.mark.parametrize("groups", [1, 2])
def test_dead_codes_take_frames_from_live_ones_and_those_stay_as_they_are(groups: int) -> None:
    quantizer, x = collapsed_quantizer(groups)
    counts = count(quantizer, x)
    before = {name: p.clone() for name, p in quantizer.named_parameters()}
    optimizer = torch.optim.AdamW(quantizer.parameters())
    reseeded = reseed_dead_codes(quantizer, counts, optimizer, torch.Generator().manual_seed(0))
    dead = counts == 0
    assert reseeded == dead.sum() >= groups * (CODES - 6)
    assert torch.equal(quantizer.codebook[~dead], before["codebook"][~dead])
    assert torch.equal(quantizer.logits.weight[~dead.flatten()], before["logits.weight"][~dead.flatten()])
    assert not (quantizer.codebook[dead] == before["codebook"][dead]).any()
    assert (perplexity(counts / len(x)) < 7).all() and (perplexity(count(quantizer, x) / len(x)) > 20).all()


def test_the_optimizer_forgets_dead_codes_only() -> None:
    quantizer, x = collapsed_quantizer()
    counts = count(quantizer, x)
    optimizer = torch.optim.AdamW(quantizer.parameters())
    for learnt in quantizer.parameters():
        learnt.grad = torch.ones_like(learnt)
    optimizer.step()
    reseed_dead_codes(quantizer, counts, optimizer, torch.Generator().manual_seed(0))
    dead = (counts == 0)[0]
    for parameter in (quantizer.logits.weight, quantizer.logits.bias, quantizer.codebook):
        for name in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[parameter][name].view(CODES, -1)
            assert not moment[dead].any() and moment[~dead].all()


def test_nothing_dead_changes_nothing() -> None:
    quantizer, _ = collapsed_quantizer()
    before = quantizer.logits.weight.clone()
    optimizer = torch.optim.AdamW(quantizer.parameters())
    assert reseed_dead_codes(quantizer, torch.tensor([EVEN]), optimizer, torch.Generator()) == 0
    assert torch.equal(quantizer.logits.weight, before)
