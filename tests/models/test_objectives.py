"""The four objectives on one encoder: which parts they have and reach, what they refuse, and BEST-RQ's targets."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.tiny import ENCODER, MELS, PRETRAINING, noise, unsettle
from w2vbert.models.best_rq import BestRq
from w2vbert.models.encoder import EncoderOutput
from w2vbert.models.objectives import PretrainingModel, make_pretraining_model
from w2vbert.models.random_projection import RandomProjectionConfig, RandomProjectionQuantizer
from w2vbert.models.w2v_bert import PretrainingLoss, W2vBertConfig

LENGTHS = torch.tensor([160, 103, 90, 41])
ALL_FIRST = replace(ENCODER, contrastive_blocks=4, masked_blocks=0)
ALL_LAST = replace(ENCODER, contrastive_blocks=0, masked_blocks=4)
CONFIGS = {
    "w2v-bert": PRETRAINING,
    "w2v-conformer": replace(PRETRAINING, objective="w2v-conformer", encoder=ALL_FIRST),
    "no-contrastive": replace(PRETRAINING, objective="no-contrastive", encoder=ALL_LAST),
    "best-rq": replace(
        PRETRAINING,
        objective="best-rq",
        encoder=ALL_LAST,
        random_projection=RandomProjectionConfig(codebooks=2, codes=12, dim=5),
    ),
}
EVERYWHERE = {"feature_encoder", "input_linear"}
REACHED = {
    "w2v-conformer": EVERYWHERE | {"contrastive_blocks", "quantizer", "context_linear"},
    "no-contrastive": EVERYWHERE | {"masked_blocks", "quantizer", "code_linear"},
    "best-rq": EVERYWHERE | {"masked_blocks", "code_linear"},
}


def build(objective: str) -> PretrainingModel:
    torch.manual_seed(0)
    return make_pretraining_model(CONFIGS[objective])


def run(model: PretrainingModel, lengths: Tensor = LENGTHS, seed: int = 0) -> PretrainingLoss:
    features = noise(len(lengths), int(lengths.max()), MELS)
    loss: PretrainingLoss = model(features, lengths, 1.0, torch.Generator().manual_seed(seed))
    return loss


@pytest.mark.parametrize("objective", REACHED)
def test_each_objective_has_and_reaches_its_own_parts(objective: str) -> None:
    model = build(objective).train()
    unsettle(model)
    run(model).total.backward()
    learnt = {
        name: p.grad is not None and bool(p.grad.any()) for name, p in model.named_parameters() if p.requires_grad
    }
    assert [name for name, reached in learnt.items() if not reached] == []
    parts = {name.split(".")[1 if name.startswith("encoder") else 0] for name in learnt}
    assert parts == REACHED[objective]


@pytest.mark.parametrize("objective", CONFIGS)
def test_totals_are_made_of_the_losses_that_the_objective_has(objective: str) -> None:
    config = CONFIGS[objective]
    loss = run(build(objective))
    expected = torch.zeros(())
    if objective == "best-rq":
        assert loss.masked is not None
        expected = loss.masked.loss
    else:
        assert loss.use is not None and (loss.masked is None) == (objective == "w2v-conformer")
        expected = config.diversity_weight * loss.use.penalty
        if loss.masked is not None:
            expected = expected + loss.masked.loss
    assert (loss.contrastive is None) == (objective in ("no-contrastive", "best-rq"))
    if loss.contrastive is not None:
        expected = expected + loss.contrastive.loss
    torch.testing.assert_close(loss.total, expected)
    assert bool((loss.code_counts.sum(1) == loss.count).all())


@pytest.mark.parametrize("objective", CONFIGS)
@pytest.mark.parametrize("lengths", [[160, 10], [10], [1]], ids=str)
def test_odd_batches_give_finite_losses_and_gradients(objective: str, lengths: list[int]) -> None:
    model = build(objective).train()
    loss = run(model, torch.tensor(lengths))
    loss.total.backward()
    assert loss.total.isfinite() and loss.count >= len(lengths)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("objective", CONFIGS)
def test_padding_changes_no_loss(objective: str) -> None:
    totals = []
    for scale in (1.0, 30.0):
        features = noise(4, 160, MELS)
        for row, n in zip(features, LENGTHS.tolist(), strict=True):
            row[n:] *= scale
        totals.append(build(objective)(features, LENGTHS, 1.0, torch.Generator().manual_seed(0)).total)
    torch.testing.assert_close(*totals)


@pytest.mark.parametrize(
    ("objective", "first", "rest", "remedy"),
    [
        ("w2v-bert", 0, 4, "encoder.contrastive_blocks of at least 1"),
        ("w2v-conformer", 2, 2, "set encoder.contrastive_blocks to 4 and encoder.masked_blocks to 0"),
        ("no-contrastive", 2, 2, "set encoder.contrastive_blocks to 0 and encoder.masked_blocks to 4"),
        ("best-rq", 1, 2, "set encoder.contrastive_blocks to 0 and encoder.masked_blocks to 3"),
    ],
)
def test_blocks_in_a_module_that_the_objective_lacks_are_refused(
    objective: str, first: int, rest: int, remedy: str
) -> None:
    encoder = replace(ENCODER, contrastive_blocks=first, masked_blocks=rest)
    with pytest.raises(ValueError, match=remedy):
        W2vBertConfig(encoder, objective=objective)  # type: ignore[arg-type]


def test_keys_that_an_objective_does_not_look_at_are_named() -> None:
    assert PRETRAINING.unused_keys() == []
    changed = replace(CONFIGS["best-rq"], contrastive_temperature=0.2, diversity_weight=3.0)
    unused = ["quantizer", "num_distractors", "contrastive_temperature", "diversity_weight"]
    assert changed.unused_keys() == unused
    assert W2vBertConfig(ALL_FIRST, objective="w2v-conformer").unused_keys() == []


def test_random_codes_are_the_nearest_on_the_unit_sphere() -> None:
    torch.manual_seed(0)
    quantizer = RandomProjectionQuantizer(7, RandomProjectionConfig(codebooks=2, codes=9, dim=4))
    x = noise(50, 7)
    ids = quantizer(x)
    for group in range(2):
        projected = F.normalize(x @ quantizer.projection[group], dim=-1)
        distances = torch.cdist(projected, quantizer.codebook[group])  # (N, V)
        assert torch.equal(ids[:, group], distances.argmin(1))
    assert not torch.equal(ids[:, 0], ids[:, 1]) and torch.equal(ids, quantizer(3.0 * x))


def test_random_codes_do_not_learn_and_are_saved_with_the_model() -> None:
    model, other = build("best-rq"), BestRq(CONFIGS["best-rq"])
    assert [name for name, _ in model.named_parameters() if name.startswith("quantizer")] == []
    other.load_state_dict(model.state_dict())
    assert torch.equal(run(model).code_counts, run(other).code_counts)


def test_best_rq_hides_the_filterbanks_whose_codes_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands below masked frames changes targets only; below the others it reaches the encoder, too."""
    model = build("best-rq").eval()
    seen: list[Tensor] = []
    original = model.encoder.forward

    def watch(features: Tensor, lengths: Tensor) -> EncoderOutput:
        seen.append(features)
        return original(features, lengths)

    monkeypatch.setattr(model.encoder, "forward", watch)
    features, lengths = noise(1, 160, MELS), torch.tensor([160])
    loss = model(features, lengths, 1.0, torch.Generator().manual_seed(0))
    hidden = (seen[0] != features).any(-1).view(-1, 4)  # (T/4, 4)
    assert torch.equal(hidden.all(1), hidden.any(1)) and hidden.all(1).sum() == loss.count and not hidden.all()
    assert abs(seen[0][0][hidden.flatten()].std() - 0.1) < 0.02
    changed = torch.where(hidden.flatten()[None, :, None], -features, features)
    again = model(changed, lengths, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(seen[0], seen[1]) and not torch.equal(again.code_counts, loss.code_counts)
