import pytest
import torch
from torch import Tensor, nn

from w2vbert.training.optim import (
    ParamGroup,
    WeightAverage,
    layer_groups,
    make_optimizer,
    scale_and_clip,
    set_learning_rates,
)
from w2vbert.training.schedules import OptimConfig


def parameters(seed: int = 0) -> list[nn.Parameter]:
    """Parameters with gradients of norm about 40, and one without."""
    generator = torch.Generator().manual_seed(seed)
    found = [nn.Parameter(torch.zeros(shape)) for shape in ((5, 3), (7,), (2, 2, 2))]
    for parameter in found:
        parameter.grad = 7 * torch.randn(parameter.shape, generator=generator)
    return [*found, nn.Parameter(torch.zeros(3))]


def grads(params: list[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_scaling_equals_dividing_by_the_count_and_then_clipping(max_norm: float) -> None:
    ours, theirs = parameters(), parameters()
    norm = scale_and_clip(ours, torch.tensor(8), max_norm)
    for grad in grads(theirs):
        grad /= 8
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(grads(ours), grads(theirs), strict=True):
        torch.testing.assert_close(a, b)
    assert ours[-1].grad is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_norm_tells_of_gradients_that_are_not_finite(value: float) -> None:
    params = parameters()
    grads(params)[1][3] = value
    assert not scale_and_clip(params, torch.tensor(8), 1.0).isfinite()


def test_the_norm_tells_of_an_empty_count() -> None:
    params = parameters()
    for grad in grads(params):
        grad.zero_()
    assert not scale_and_clip(params, torch.tensor(0), 1.0).isfinite()


def test_weight_decay_acts_on_matrices_and_kernels_only() -> None:
    module = nn.Sequential(nn.Conv1d(2, 3, 4), nn.Linear(3, 3), nn.LayerNorm(3))
    groups = [ParamGroup("all", [module], OptimConfig(weight_decay=0.1))]
    optimizer = make_optimizer(groups)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(decay[id(p)] == (0.1 if p.ndim > 1 else 0.0) for p in module.parameters())
    assert len(decay) == len(list(module.parameters()))


def test_groups_follow_their_own_schedules_and_frozen_parameters_stay_out() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    first.bias.requires_grad_(False)
    groups = [
        ParamGroup("first", [first], OptimConfig(1.0, 10)),
        ParamGroup("second", [second], OptimConfig(0.5, 0, "constant")),
    ]
    optimizer = make_optimizer(groups)
    assert set_learning_rates(optimizer, groups, 4, 100) == {"first": 0.5, "second": 0.5}
    set_learning_rates(optimizer, groups, 0, 100)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == {id(first.weight): 0.1, id(second.weight): 0.5, id(second.bias): 0.5}


def test_learning_rates_fall_from_the_last_layer_down() -> None:
    layers = [[nn.Linear(2, 2), nn.LayerNorm(2)], [nn.Linear(2, 2)], [nn.Linear(2, 2)]]
    groups = [
        *layer_groups("encoder", layers, OptimConfig(1.0, 10), 0.5),
        ParamGroup("head", [nn.Linear(2, 2)], OptimConfig(2.0, 10)),
    ]
    optimizer = make_optimizer(groups)
    assert set_learning_rates(optimizer, groups, 4, 100) == {"encoder": 0.5, "head": 1.0}
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for layer, rate in zip(layers, (0.125, 0.25, 0.5), strict=True):
        assert {rates[id(p)] for module in layer for p in module.parameters()} == {rate}
    (whole,) = layer_groups("encoder", layers, OptimConfig(), 1.0)
    assert whole == ParamGroup("encoder", [*layers[0], *layers[1], *layers[2]], OptimConfig())


def test_a_parameter_in_two_groups_is_refused() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="group b shares"):
        make_optimizer([ParamGroup(name, [module], OptimConfig()) for name in "ab"])
    with pytest.raises(ValueError, match="group c shares"):
        make_optimizer([ParamGroup("c", [module, module], OptimConfig())])


def test_average_follows_the_formula_and_copies_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, decay=0.4)
    expected = [p.detach().clone() for p in model.parameters()]
    for update in range(1, 9):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        model(torch.randn(4, 3))
        average.update(model)
        decay = min(0.4, (1 + update) / (10 + update))
        expected = [decay * e + (1 - decay) * p.detach() for e, p in zip(expected, model.parameters(), strict=True)]
        for mine, wanted in zip(average.model.parameters(), expected, strict=True):
            torch.testing.assert_close(mine, wanted, check_stride=False)
        for name, buffer in average.model.named_buffers():
            assert torch.equal(buffer, model.get_buffer(name))


def test_average_stands_apart_from_the_model() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model.train(), 0.9)
    before = average.model.get_parameter("weight").clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    assert torch.equal(average.model.get_parameter("weight"), before)
    assert not average.model.training and not any(p.requires_grad for p in average.model.parameters())
