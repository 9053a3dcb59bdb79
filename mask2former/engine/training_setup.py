"""What stands before a command of the trainer: the checked config, the log, and the lock of OUTPUT_DIR."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..checkpoint.directory import has_checkpoint
from ..config import find_config, load_config
from ..config_validation import config_warnings, validate_config
from ..config_values import BUILDERS, check_values
from ..data import register_from_config
from ..errors import ConfigError
from ..utils.atomic_file import check_writable
from ..utils.console import PACKAGE, file_only, setup_console
from ..utils.device import select_device
from ..utils.file_io import write_bytes
from ..utils.locks import Lock
from ..utils.parallel import use_one_thread
from .output_directory import LOCK_NAME
from .resume import check_length_of

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace) -> CfgNode:
    """Load, check and freeze the config; start logging to the console and OUTPUT_DIR; seed this process.

    OUTPUT_DIR gets log.txt (log.txt.rankN for the other processes) and config.yaml; of a training that is resumed, the
    latter when `Trainer.resume_or_load` has found that its checkpoint fits. Evaluations leave the config.yaml of a
    training. The complete config and the environment are written to log.txt only.

    Raises:
        FileNotFoundError, ValueError: a mistake in the config, naming file, key and remedy.
        InUseError: another training writes to OUTPUT_DIR.
        OSError: OUTPUT_DIR cannot be written; the error names it and the reason.
    """
    if args.config_file:
        args.config_file = str(find_config(args.config_file))
    cfg = load_config(args.config_file or None, args.opts)
    built = list(itertools.chain(*BUILDERS.values()))  # the trainer checks them: a subclass may know others
    check_values(cfg, training=not args.eval_only, without=built)  # before anything reads them
    note = _choose_device(cfg, getattr(args, "num_gpus", 1))
    # An evaluation takes no look at the training data, which may be on another machine.
    register_from_config(cfg, [*cfg.DATASETS.TEST, *(() if args.eval_only else cfg.DATASETS.TRAIN)])
    validate_config(cfg, training=not args.eval_only, without=built)
    prepare_device(cfg)
    if args.resume and not args.eval_only:
        check_length_of(cfg)
    cfg.freeze()
    if comm.is_main_process():  # before anything is written there, or read
        check_writable(cfg.OUTPUT_DIR, "OUTPUT_DIR", directory=True)
        if not args.eval_only:
            _SETUP_LOCKS[cfg.OUTPUT_DIR] = training_lock(cfg.OUTPUT_DIR)
    _setup_log(cfg.OUTPUT_DIR)
    with file_only(), _config_kept(cfg, args.eval_only) if args.resume or args.eval_only else contextlib.nullcontext():
        _describe_run(cfg, args)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if note:
        logger.info("%s", note)
    if unused := _unused_gpu(cfg, args):
        logger.warning("%s", unused)
    for warning in config_warnings(cfg) if not args.eval_only and comm.is_main_process() else ():
        logger.warning("%s", warning)
    return cfg


def _describe_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Write environment, arguments and config to the log, and config.yaml, of rank 0.

    detectron2's `default_setup` does so on every rank, which costs each of them programs that it starts to look at
    compiled libraries, and several dumps of the config.
    """
    logger.info("Rank %d of %d.", comm.get_rank(), comm.get_world_size())
    if not comm.is_main_process():
        return
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    if args.config_file:
        logger.info("Contents of %s:\n%s", args.config_file, Path(args.config_file).read_text(encoding="utf-8"))
    content = cfg.dump()
    logger.info("Running with full config:\n%s", content)
    write_bytes(Path(cfg.OUTPUT_DIR, "config.yaml"), content.encode())


_ACCEPTED_LATER: dict[str, str] = {}  # OUTPUT_DIR -> config.yaml of a resumed training


@contextlib.contextmanager
def _config_kept(cfg: CfgNode, for_good: bool) -> Iterator[None]:
    """Keep the config.yaml of a training, or until its checkpoint is known to fit the new one; see `accept_config`."""
    file = Path(cfg.OUTPUT_DIR, "config.yaml")
    before = file.read_bytes() if comm.is_main_process() and file.is_file() and has_checkpoint(cfg.OUTPUT_DIR) else None
    yield
    if before is not None:
        write_bytes(file, before)
    if before is not None and not for_good:
        _ACCEPTED_LATER[cfg.OUTPUT_DIR] = cfg.dump()


def accept_config(directory: str) -> None:
    """Write the config.yaml of a resumed training, whose config fits its checkpoint. For rank 0."""
    content = _ACCEPTED_LATER.pop(directory, None)
    if content is not None:
        write_bytes(Path(directory, "config.yaml"), content.encode())


_SETUP_LOCKS: dict[str, Lock] = {}  # OUTPUT_DIR -> lock that the training will take over


def training_lock(directory: str) -> Lock:
    """Return the lock of OUTPUT_DIR, for one training at a time: the one of `setup`, or a new one. For rank 0.

    Raises:
        InUseError: another process trains there; the message names it and its host.
    """
    return _SETUP_LOCKS.pop(directory, None) or Lock(Path(directory) / LOCK_NAME, f"The output directory {directory}")


def prepare_device(cfg: CfgNode) -> None:
    """Check that the device of a config is there, and leave the cores to the data workers where it is a GPU.

    Raises:
        ConfigError: MODEL.DEVICE is unknown, or a GPU that PyTorch does not find.
    """
    try:
        device = select_device(cfg.MODEL.DEVICE)
    except ValueError as error:
        raise ConfigError(f"MODEL.DEVICE: {error}") from error
    if device.type == "cuda":
        use_one_thread()


def _setup_log(directory: str) -> None:
    rank = comm.get_rank()
    setup_logger(directory, distributed_rank=rank, name=PACKAGE, abbrev_name="m2f")
    setup_logger(directory, distributed_rank=rank, name="fvcore")
    setup_logger(directory, distributed_rank=rank)
    setup_console()


def ensure_log(directory: str) -> None:
    """Log to the console and OUTPUT_DIR where the program has set up no logging of this package, as `setup` does."""
    if not logging.getLogger(PACKAGE).hasHandlers():
        setup_logger(directory, distributed_rank=comm.get_rank(), name=PACKAGE, abbrev_name="m2f")
        setup_console((PACKAGE,))


def _choose_device(cfg: CfgNode, num_gpus: int) -> str:
    """Fall back to the CPU where there is no GPU or none is requested; return a line for the log, or ''."""
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return ""
    if num_gpus == 0:
        reason = "--num-gpus 0"
    elif not torch.cuda.is_available():
        reason = "no GPU is available"
    else:
        return ""
    requested, cfg.MODEL.DEVICE = cfg.MODEL.DEVICE, "cpu"
    return f"MODEL.DEVICE is set from {requested} to cpu: {reason}."


def _unused_gpu(cfg: CfgNode, args: argparse.Namespace) -> str:
    """Return a warning if a config file, not the command, chooses the CPU of a machine with GPUs; or ''. For rank 0."""
    asked = "MODEL.DEVICE" in args.opts[::2] or getattr(args, "num_gpus", 1) == 0
    if cfg.MODEL.DEVICE != "cpu" or asked or not torch.cuda.is_available() or not comm.is_main_process():
        return ""
    return f"MODEL.DEVICE is cpu in {args.config_file}, and this machine has a GPU: add MODEL.DEVICE cuda to use it."
