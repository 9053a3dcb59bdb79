"""Config: defaults, errors that name key and remedy, and YAML that never runs code."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import get_cfg

from mask2former.config import add_maskformer2_config, find_config, load_config, micro_batch_size
from mask2former.errors import ConfigError

PANOPTIC = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"


def test_adding_twice_keeps_values() -> None:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.MODEL.MASK_FORMER.NHEADS = 4
    cfg.SOLVER.POLY_LR_POWER = 2.0
    add_maskformer2_config(cfg)
    assert cfg.MODEL.MASK_FORMER.NHEADS == 4 and cfg.SOLVER.POLY_LR_POWER == 2.0


def test_reference_order_of_calls_works() -> None:
    """Users call detectron2's DeepLab function first."""
    from detectron2.projects.deeplab import add_deeplab_config

    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(find_config(PANOPTIC)))
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 133


@pytest.mark.parametrize("name", [PANOPTIC, f"configs/{PANOPTIC}", PANOPTIC.removesuffix(".yaml")])
def test_names_are_found(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name).name == "maskformer2_R50_bs16_50ep.yaml"


def test_missing_config_names_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match="maskformer2_R50_bs16_50ep"):
        find_config("coco/panoptic-segmentation/maskformer2_R50_bs16_60ep.yaml")


def test_unknown_keys_name_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("MODEL:\n  MASK_FORMER:\n    NUM_QUERIES: 5\n")
    with pytest.raises(ConfigError, match="NUM_OBJECT_QUERIES"):
        load_config(file)
    with pytest.raises(ConfigError, match=r"Did you mean 'SOLVER\.BASE_LR'"):
        load_config(None, ["SOLVER.BASELR", "1"])
    with pytest.raises(ConfigError, match="pairs"):
        load_config(None, ["SOLVER.BASE_LR"])


def test_wrong_type_is_a_config_error(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("SOLVER:\n  MAX_ITER: many\n")
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        load_config(file)


def test_yaml_never_runs_code(tmp_path: Path) -> None:
    file, proof = tmp_path / "a.yaml", tmp_path / "proof"
    file.write_text(f"INPUT:\n  MIN_SIZE_TRAIN: !!python/object/apply:eval [\"open('{proof}', 'w')\"]\n")
    with pytest.raises(ConfigError, match="write the value itself"):
        load_config(file)
    assert not proof.exists()


def test_size_lists_of_old_files_are_read_as_data(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    text = '!!python/object/apply:eval ["[int(x * 0.1 * 512) for x in range(5, 21)]"]'
    file.write_text(f"INPUT:\n  MIN_SIZE_TRAIN: {text}\n")
    assert list(load_config(file).INPUT.MIN_SIZE_TRAIN) == [int(x * 0.1 * 512) for x in range(5, 21)]


@pytest.mark.parametrize("text", ["just words", "- a\n- b\n", "a: [1,\n", ""])
def test_files_that_are_no_config(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        load_config(file)


def test_micro_batch_size() -> None:
    cfg = load_config(None, ["SOLVER.IMS_PER_BATCH", 12, "SOLVER.ACCUMULATION_STEPS", 3])
    assert [micro_batch_size(cfg, ranks) for ranks in (1, 2, 4)] == [4, 2, 1]


@pytest.mark.parametrize(
    ("images", "steps", "ranks"), [(6, 4, 1), (6, 3, 4), (6, 1, 4), (0, 1, 1), (6, 0, 1), (-6, 1, 1)]
)
def test_batch_that_cannot_be_divided(images: int, steps: int, ranks: int) -> None:
    cfg = load_config(None, ["SOLVER.IMS_PER_BATCH", images, "SOLVER.ACCUMULATION_STEPS", steps])
    with pytest.raises(ConfigError, match=rf"IMS_PER_BATCH {images} must .*ranks \({ranks}\).*STEPS \({steps}\)"):
        micro_batch_size(cfg, ranks)
