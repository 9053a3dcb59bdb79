from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mask2former.checkpoint.training_state import check_optimizer_state
from mask2former.config import load_config
from mask2former.engine.optimizer import (
    build_lr_scheduler,
    build_optimizer,
    clip_gradients,
    full_model_clip_norm,
    parameter_groups,
    scaled_learning_rate,
)

SETTINGS = ["SOLVER.BASE_LR", "0.001", "SOLVER.WEIGHT_DECAY", "0.05", "SOLVER.BACKBONE_MULTIPLIER", "0.1"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"block": Block(), "bn": nn.BatchNorm2d(3)})
        self.backbone.absolute_pos_embed = nn.Parameter(torch.zeros(3))
        self.query_feat = nn.Embedding(4, 3)
        self.group_norm = nn.GroupNorm(1, 3)
        self.level_embed = nn.Parameter(torch.zeros(3, 3))
        self.shared = self.query_feat
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


# Written out by hand from the reference's rules: (learning rate, weight decay) of each parameter.
EXPECTED = {
    "backbone.absolute_pos_embed": (1e-4, 0.0),
    "backbone.block.linear.weight": (1e-4, 0.05),
    "backbone.block.linear.bias": (1e-4, 0.05),
    "backbone.block.norm.weight": (1e-4, 0.0),
    "backbone.block.norm.bias": (1e-4, 0.0),
    "backbone.block.relative_position_bias_table": (1e-4, 0.0),
    "backbone.bn.weight": (1e-4, 0.0),
    "backbone.bn.bias": (1e-4, 0.0),
    "query_feat.weight": (1e-3, 0.0),
    "group_norm.weight": (1e-3, 0.0),
    "group_norm.bias": (1e-3, 0.0),
    "level_embed": (1e-3, 0.05),
}


def assigned(optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    return {
        name: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for name in group["param_names"]
    }


def test_rules_of_the_reference_in_few_groups() -> None:
    optimizer = build_optimizer(load_config(None, SETTINGS), Everything())
    result = assigned(optimizer)
    assert result.keys() == EXPECTED.keys()
    for name, expected in EXPECTED.items():
        assert result[name] == pytest.approx(expected), name
    assert len(optimizer.param_groups) == 4  # two learning rates, decayed or not


def test_merged_groups_step_like_single_ones() -> None:
    torch.manual_seed(1)
    model, twin = Everything(), Everything()
    twin.load_state_dict(model.state_dict())
    merged = build_optimizer(load_config(None, SETTINGS), model)
    named = dict(twin.named_parameters())
    single = torch.optim.AdamW(
        [{"params": [named[n]], "lr": lr, "weight_decay": wd} for n, (lr, wd) in EXPECTED.items()]
    )
    for _ in range(3):
        for (_, p), (_, q) in zip(model.named_parameters(), twin.named_parameters()):
            if p.requires_grad:
                p.grad = torch.randn_like(p)
                q.grad = p.grad.clone()
        merged.step()
        single.step()
    for (name, p), (_, q) in zip(model.named_parameters(), twin.named_parameters()):
        torch.testing.assert_close(p, q, msg=name)


def test_norm_embed_and_bias_decay_keys() -> None:
    cfg = load_config(None, [*SETTINGS, "SOLVER.WEIGHT_DECAY_NORM", "0.01", "SOLVER.WEIGHT_DECAY_EMBED", "0.02"])
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.03
    result = assigned(build_optimizer(cfg, Everything()))
    assert result["group_norm.weight"][1] == 0.01
    assert result["query_feat.weight"][1] == 0.02
    assert result["backbone.block.linear.bias"][1] == 0.03
    assert result["backbone.block.relative_position_bias_table"][1] == 0  # a name with "bias" in it is no bias
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0
    assert assigned(build_optimizer(cfg, Everything()))["backbone.block.linear.bias"][1] == 0


def test_learning_rate_of_biases() -> None:
    result = assigned(build_optimizer(load_config(None, [*SETTINGS, "SOLVER.BIAS_LR_FACTOR", "2.0"]), Everything()))
    assert result["backbone.block.linear.bias"][0] == pytest.approx(2e-4)
    assert result["group_norm.bias"][0] == pytest.approx(2e-3)
    assert result["backbone.block.linear.weight"][0] == result["backbone.block.relative_position_bias_table"][0]


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4), nn.GroupNorm(2, 4)),
        *(nn.InstanceNorm1d(4, affine=True), nn.InstanceNorm2d(4, affine=True), nn.InstanceNorm3d(4, affine=True)),
        *(nn.LayerNorm(4), nn.RMSNorm(4)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_norm_layer_takes_its_own_decay(layer: nn.Module) -> None:
    cfg = load_config(None, [*SETTINGS, "SOLVER.WEIGHT_DECAY_NORM", "0.01"])
    optimizer = build_optimizer(cfg, nn.ModuleDict({"scale": layer, "linear": nn.Linear(2, 2)}))
    assert {decay for name, (_, decay) in assigned(optimizer).items() if name.startswith("scale")} == {0.01}


def test_tied_weights_are_in_one_group_once() -> None:
    model = nn.ModuleDict({"backbone": nn.Linear(3, 3), "head": nn.Linear(3, 3)})
    model["head"].weight = model["backbone"].weight
    result = assigned(build_optimizer(load_config(None, SETTINGS), model))
    assert set(result) == {"backbone.weight", "backbone.bias", "head.bias"}


def test_parameter_of_the_model_itself_has_a_plain_name() -> None:
    model = nn.Linear(2, 2)
    assert set(assigned(build_optimizer(load_config(None, SETTINGS), model))) == {"weight", "bias"}


def test_numbers_of_adamw() -> None:
    defaults = build_optimizer(load_config(None, [*SETTINGS, "SOLVER.OPTIMIZER", "adamw"]), nn.Linear(2, 2)).defaults
    assert (defaults["lr"], defaults["weight_decay"]) == (1e-3, 0.05)
    assert (defaults["betas"], defaults["eps"], defaults["fused"]) == ((0.9, 0.999), 1e-8, True)


def test_numbers_of_sgd() -> None:
    keys = ["SOLVER.OPTIMIZER", "sgd", "SOLVER.MOMENTUM", "0.5", "SOLVER.NESTEROV", "True"]
    optimizer = build_optimizer(load_config(None, [*SETTINGS, *keys]), nn.Linear(2, 2))
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.5, True)
    assert optimizer.defaults["fused"] and optimizer.defaults["weight_decay"] == 0.05
    buffers = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert len(buffers) == 2 and not any(buffer.any() for buffer in buffers)
    plain = load_config(None, [*SETTINGS, "SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", "0.0"])
    assert not build_optimizer(plain, nn.Linear(2, 2)).state  # nothing to store


def test_sgd_skips_its_first_step_without_a_trace() -> None:
    model = nn.Linear(2, 1)
    twin = nn.Linear(2, 1)
    twin.load_state_dict(model.state_dict())
    optimizer = build_optimizer(load_config(None, [*SETTINGS, "SOLVER.OPTIMIZER", "SGD"]), model)
    plain = torch.optim.SGD(twin.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.05)
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    del optimizer.found_inf
    for _ in range(2):
        for p, q in zip(model.parameters(), twin.parameters()):
            p.grad = torch.ones_like(p)
            q.grad = torch.ones_like(q)
        optimizer.step()
        plain.step()
    torch.testing.assert_close(model.weight, twin.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["SOLVER.OPTIMIZER", "ADAMM"], "SOLVER.OPTIMIZER is 'ADAMM'"),
        (
            ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "fullmodel"],
            "CLIP_TYPE",
        ),
    ],
)
def test_unknown_settings_are_named(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_optimizer(load_config(None, settings), nn.Linear(2, 2))


def test_model_without_parameters() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups_of_frozen = nn.Linear(2, 2).requires_grad_(False)
        build_optimizer(load_config(None), parameter_groups_of_frozen)


@pytest.mark.parametrize("clip_type", ["value", "norm"])
def test_single_parameter_clipping(clip_type: str) -> None:
    keys = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip_type]
    cfg = load_config(None, [*keys, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.1", "SOLVER.OPTIMIZER", "SGD"])
    assert full_model_clip_norm(cfg) is None
    model = nn.Linear(3, 1, bias=False)
    optimizer = build_optimizer(cfg, model)
    model.weight.grad = torch.tensor([[3.0, 0.0, 4.0]])
    optimizer.step()
    expected = [[0.1, 0.0, 0.1]] if clip_type == "value" else [[0.06, 0.0, 0.08]]
    torch.testing.assert_close(model.weight.grad, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_full_model_clipping_equals_one_norm_over_all_gradients() -> None:
    model = Everything()
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = torch.randn_like(p)
    flat = torch.cat([p.grad.flatten() for p in parameters])
    norm = clip_gradients(parameters, 0.01)
    assert float(norm) == pytest.approx(float(flat.norm()), rel=1e-5)
    clipped = torch.cat([p.grad.flatten() for p in parameters])
    torch.testing.assert_close(clipped, flat * (0.01 / flat.norm()), rtol=1e-4, atol=1e-8)
    norm = clip_gradients(parameters, 1.0)  # already smaller: nothing changes
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in parameters]), clipped)
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_clipping_that_is_off_changes_nothing() -> None:
    keys = ["SOLVER.CLIP_GRADIENTS.ENABLED", "False", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"]
    model = nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(load_config(None, [*keys, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.1"]), model)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    optimizer.step()
    assert model.weight.grad.tolist() == [[3.0, 4.0]]
    build_optimizer(load_config(None, [*keys[:3], "unknown"]), model)  # what is off is not checked


def test_parameters_without_gradient_do_not_count() -> None:
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    first.grad = torch.tensor([3.0, 4.0])
    assert float(clip_gradients([first, second], None)) == 5 and first.grad.tolist() == [3, 4]
    assert float(clip_gradients([first, second], 0.0)) == 5
    assert first.grad.tolist() == [0, 0] and second.grad is None


def test_full_model_clip_norm_from_config() -> None:
    keys = ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.01"]
    assert full_model_clip_norm(load_config(None, keys)) is None  # not enabled
    enabled = [*keys, "SOLVER.CLIP_GRADIENTS.ENABLED", "True"]
    assert full_model_clip_norm(load_config(None, enabled)) == 0.01
    assert full_model_clip_norm(load_config(None, [*enabled, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.0"])) is None


def learning_rates(keys: list[str], steps: int) -> list[float]:
    cfg = load_config(None, ["SOLVER.BASE_LR", "0.1", "SOLVER.MAX_ITER", str(steps), *keys])
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_poly_schedule() -> None:
    keys = [
        "SOLVER.LR_SCHEDULER_NAME",
        "WarmupPolyLR",
        "SOLVER.WARMUP_ITERS",
        "10",
        "SOLVER.WARMUP_FACTOR",
        "0.5",
    ]
    rates = learning_rates([*keys, "SOLVER.POLY_LR_POWER", "0.9"], 40)
    for i, rate in enumerate(rates):
        warmup = 0.5 * (1 - i / 10) + i / 10 if i < 10 else 1.0
        assert rate == pytest.approx(0.1 * warmup * (1 - i / 40) ** 0.9), i


def test_step_schedule() -> None:
    keys = [
        "SOLVER.LR_SCHEDULER_NAME",
        "WarmupMultiStepLR",
        "SOLVER.STEPS",
        "(10, 15)",
        "SOLVER.WARMUP_ITERS",
        "0",
    ]
    rates = learning_rates(keys, 20)
    assert rates == pytest.approx([0.1] * 10 + [0.01] * 5 + [0.001] * 5)


def test_cosine_schedule() -> None:
    rates = learning_rates(["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.WARMUP_ITERS", "0"], 20)
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 20)) for i in range(20)])


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="SOLVER.LR_SCHEDULER_NAME 'Poly'"):
        learning_rates(["SOLVER.LR_SCHEDULER_NAME", "Poly"], 5)


def test_a_saved_state_finds_its_parameters_by_name() -> None:
    """Also in other groups: another weight decay or learning rate may unite or divide them."""
    cfg = load_config(None, SETTINGS)
    optimizer = build_optimizer(cfg, Everything())
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, float(parameter.numel()))
    optimizer.step()
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match="backbone"):
        check_optimizer_state(build_optimizer(cfg, nn.Sequential(nn.Linear(2, 2))), state, "optimizer")
    other = load_config(None, [*SETTINGS, "SOLVER.BACKBONE_MULTIPLIER", "1.0"])
    regrouped = build_optimizer(other, Everything())
    assert len(regrouped.param_groups) < len(optimizer.param_groups)
    regrouped.load_state_dict(check_optimizer_state(regrouped, state, "optimizer"))
    for group in regrouped.param_groups:
        for parameter in group["params"]:
            torch.testing.assert_close(
                regrouped.state[parameter]["exp_avg"], torch.full_like(parameter, 0.1 * parameter.numel())
            )
    for group in state["param_groups"]:  # as another program saves it
        del group["param_names"]
    check_optimizer_state(build_optimizer(cfg, Everything()), state, "optimizer")
    with pytest.raises(ValueError, match="groups of"):
        check_optimizer_state(regrouped, state, "optimizer")


def test_groups_hold_names_and_each_parameter_once() -> None:
    model = Everything()
    pairs = [pair for group in parameter_groups(load_config(None), model) for pair in group["params"]]
    assert len({id(p) for _, p in pairs}) == len(pairs) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("optimizer", "rate"), [("ADAMW", 0.0005), ("SGD", 0.00025)])
def test_a_rate_for_another_batch(optimizer: str, rate: float) -> None:
    """A quarter of the batch: half of AdamW's rate, a quarter of SGD's, in the backbone and in the schedule, too."""
    batch = ["SOLVER.OPTIMIZER", optimizer, "SOLVER.IMS_PER_BATCH", "4", "SOLVER.REFERENCE_BATCH"]
    poly = ["SOLVER.WARMUP_ITERS", "0", "SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.POLY_LR_POWER", "1.0"]
    for reference, expected in (("16", rate), ("4", 0.001), ("0", 0.001)):
        cfg = load_config(overrides=[*SETTINGS, *batch, reference, *poly, "SOLVER.MAX_ITER", "10"])
        built = build_optimizer(cfg, Everything())
        assert max(group["lr"] for group in built.param_groups) == pytest.approx(expected)
        assert min(group["lr"] for group in built.param_groups) == pytest.approx(expected / 10)
        schedule = build_lr_scheduler(cfg, built)
        built.step()
        schedule.step()
        assert max(group["lr"] for group in built.param_groups) == pytest.approx(0.9 * expected)
    assert scaled_learning_rate(1e-4, 64, 16) == pytest.approx(2e-4)
