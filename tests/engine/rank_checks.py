"""What `test_ranks.py` runs on two processes; each function raises where something is wrong."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils import comm
from tiny_training import TinyModel, TinyTrainer, tiny_config
from torch import nn

from mask2former.config import load_config
from mask2former.engine.data_parallel import distribute
from mask2former.engine.rank_group import drop_groups
from mask2former.evaluation.gathering import gather_parts
from mask2former.modeling.checkpointing import PARTS, checkpoint_parts

TINY_MASK_FORMER = [
    *("MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "mobilenetv3_small_050", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"),
    *("MODEL.SEM_SEG_HEAD.MASK_DIM", "32", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1"),
    *("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD", "32"),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "32"),
    *("MODEL.MASK_FORMER.DEC_LAYERS", "4", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "8"),
    *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64"),
]
TRAINING_OPTIONS = [
    *("MODEL.MASK_FORMER.QUERY_GROUPS", "2", "MODEL.MASK_FORMER.DENOISING.QUERIES", "6"),
    *("MODEL.MASK_FORMER.QUERY_SELECTION", "True", "MODEL.MASK_FORMER.SMALL_OBJECT_POINTS", "0.5"),
    *("MODEL.MASK_FORMER.MASK_QUALITY.ENABLED", "True"),
]


class NormModel(TinyModel):
    """With running statistics that differ between the processes."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.norm = nn.BatchNorm1d(4)
        self.norm.running_mean.fill_(float(comm.get_rank() + 1))
        self.norm.requires_grad_(False)


class NormTrainer(TinyTrainer):
    """Its evaluation tells the statistics that this process evaluates with."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return NormModel()

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        found = comm.all_gather(model.norm.running_mean.tolist())
        assert found == [[1.0] * 4] * 2, found
        return {"segm": {"AP": 1.0}} if comm.is_main_process() else {}


def joined(rank: int, check: Callable[[int, str], None], directory: str) -> None:
    """Run a check in a group of two processes."""
    # They meet in a file: a port that was free when the test began can be taken when they come to use it.
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    check(rank, directory)
    dist.destroy_process_group()
    drop_groups()


def all_evaluate_the_model_that_is_saved(rank: int, directory: str) -> None:
    for decay in ("0.0", "0.5"):
        trainer = NormTrainer(tiny_config(Path(directory), "SOLVER.EMA_DECAY", decay))
        trainer.evaluate()
        if decay != "0.0":  # and it does not change the average of this process
            assert trainer.weight_average is not None
            with trainer.weight_average.applied():
                assert trainer.checkpointer.model.norm.running_mean[0] == rank + 1


def parts_come_to_the_main_process(rank: int, directory: str) -> None:
    assert gather_parts({"rank": rank}, distributed=True) == ([{"rank": 0}, {"rank": 1}] if rank == 0 else None)
    assert gather_parts(rank, distributed=False) == [rank]


def averages_begin_with_the_common_weights(rank: int, directory: str) -> None:
    torch.manual_seed(rank)
    trainer = TinyTrainer(tiny_config(Path(directory), "SOLVER.EMA_DECAY", "0.5"))
    assert trainer.weight_average is not None
    average = comm.all_gather(trainer.weight_average.state_dict()["average"])
    for name, value in average[0].items():
        assert torch.equal(value, average[1][name]), name


def a_checkpoint_that_one_process_lacks_is_an_error(rank: int, directory: str) -> None:
    cfg = tiny_config(Path(directory) / f"rank{rank}").clone()
    if rank == 0:
        cfg.defrost()
        own = Path(directory) / "rank0"
        own.mkdir()
        trainer = TinyTrainer(cfg)
        trainer.iter = 2
        trainer.checkpointer.save("model_0000002", iteration=2)
    else:
        trainer = TinyTrainer(cfg)
    comm.synchronize()
    try:
        trainer.resume_or_load(resume=True)
    except ValueError as error:
        assert "rank 1: 0" in str(error) and "OUTPUT_DIR" in str(error), error
    else:
        raise AssertionError("the ranks would train from different iterations")


def image(objects: int) -> dict[str, Any]:
    instances = Instances((64, 64))
    instances.gt_classes = torch.zeros(objects, dtype=torch.int64)
    instances.gt_masks = torch.zeros(objects, 64, 64, dtype=torch.bool)
    instances.gt_masks[:, 8:40, 8:40] = True
    return {"image": torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8), "instances": instances}


def images_without_objects_are_no_obstacle(rank: int, directory: str) -> None:
    """On one process, on both, and more objects than queries: no hang, every gradient there and the same."""
    for options in ([], TRAINING_OPTIONS):
        cfg = load_config("nuclei/maskformer2_efficientnet_lite0.yaml", [*TINY_MASK_FORMER, *options])
        model = distribute(build_model(cfg).train(), static_graph=bool(options))
        for counts in ((2, 0), (0, 0), (0, 12)):
            _check_losses_and_gradients(model, [image(counts[rank]), image(0)], counts[rank])


def _check_losses_and_gradients(model: nn.Module, batch: list[dict[str, Any]], objects: int) -> None:
    model.zero_grad()
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    for kind in ("mask", "denoising_mask", "quality", "selection_mask", "selection_quality"):
        name = f"loss_{kind}"
        assert name not in losses or (losses[name] == 0) == (objects == 0)
    norms = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            norms[name] = float(parameter.grad.norm())
    first, second = comm.all_gather(norms)
    assert first == second, [(name, norm, second[name]) for name, norm in first.items() if second[name] != norm]


def gradients_do_not_depend_on_the_way_of_reduction(rank: int, directory: str) -> None:
    """Static graph, checkpointing and accumulation give the mean over the ranks, in each iteration; bf16 rounds it."""
    cfg = load_config("nuclei/maskformer2_efficientnet_lite0.yaml", TINY_MASK_FORMER)
    plain = build_model(cfg).train()
    comm.synchronize()
    for value in [*plain.parameters(), *plain.buffers()]:
        dist.broadcast(value.data, 0)
    batches = [[image(2 + rank)], [image(3 - rank)], [image(1)]]
    expected = [_mean_gradients(plain, [batch]) for batch in batches]
    for find, static, recompute, reduction in (
        (False, True, False, "fp32"),
        (False, False, True, "fp32"),
        (True, True, False, "fp32"),
        (False, True, True, "fp32"),
        (False, True, False, "bf16"),
    ):
        copied = copy.deepcopy(plain)
        if recompute:
            checkpoint_parts(copied, PARTS)
        model = distribute(copied, find_unused_parameters=find, static_graph=static, reduction=reduction)
        for batch, gradients in zip(batches, expected, strict=True):
            found = _gradients(model, [batch])
            if reduction == "bf16":  # gradients that nearly cancel have any error relative to their sum
                size = torch.nn.utils.get_total_norm(gradients.values())
                error = torch.nn.utils.get_total_norm([found[f"module.{n}"] - x for n, x in gradients.items()])
                assert 0 < error < 2**-6 * size, (error, size)
                continue
            for name, gradient in gradients.items():
                torch.testing.assert_close(found[f"module.{name}"], gradient, rtol=1e-5, atol=1e-6, msg=name)
    model = distribute(copy.deepcopy(plain), static_graph=False)
    accumulated = _mean_gradients(plain, batches[:2])
    for _ in range(2):
        found = _gradients(model, batches[:2])
        for name, gradient in accumulated.items():
            torch.testing.assert_close(found[f"module.{name}"], gradient, rtol=1e-5, atol=1e-6, msg=name)


def _gradients(model: nn.Module, batches: list[list[dict[str, Any]]]) -> dict[str, torch.Tensor]:
    """Gradients of micro-batches, with the same random numbers in each call."""
    model.zero_grad()
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        last = number == len(batches) - 1
        with contextlib.nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():
            sum(model(batch).values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _mean_gradients(model: nn.Module, batches: list[list[dict[str, Any]]]) -> dict[str, torch.Tensor]:
    found = _gradients(copy.deepcopy(model), batches)
    total = torch.cat([gradient.flatten() for gradient in found.values()])  # one call for all
    dist.all_reduce(total)
    parts = (total / 2).split([gradient.numel() for gradient in found.values()])
    return {name: part.view_as(found[name]) for name, part in zip(found, parts, strict=True)}
