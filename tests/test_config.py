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


def test_missing_config_names_the_nearest_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cells.yaml").touch()
    with pytest.raises(FileNotFoundError, match=rf"Did you mean '{tmp_path}/cells\.yaml'\?"):
        find_config(tmp_path / "celsl.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'cells\.yaml'\?"):
        find_config("celsl.yaml")


def test_unknown_keys_name_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("MODEL:\n  MASK_FORMER:\n    NUM_QUERIES: 5\n")
    with pytest.raises(ConfigError, match="NUM_OBJECT_QUERIES"):
        load_config(file)
    with pytest.raises(ConfigError, match=r"Did you mean 'SOLVER\.BASE_LR'"):
        load_config(None, ["SOLVER.BASELR", "1"])
    with pytest.raises(ConfigError, match="pairs"):
        load_config(None, ["SOLVER.BASE_LR"])
    with pytest.raises(ConfigError, match="Write 'SOLVER.MAX_ITER 5' instead of 'SOLVER.MAX_ITER=5'"):
        load_config(None, ["SEED", "1", "SOLVER.MAX_ITER=5"])


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: a.yaml", "leads back to a file that is being read"),
        ("_BASE_: b.yaml", "b.yaml: _BASE_ leads back .*a.yaml -> .*b.yaml -> .*a.yaml"),
        ("_BASE_: .", r"is a directory \(_BASE_ of .*a.yaml"),
        ("_BASE_: c.yaml", r"c.yaml does not exist \(_BASE_ of .*a.yaml"),
        ("_BASE_: [[1]]", "_BASE_ must be the name of a YAML file"),
        ("_BASE_:", "_BASE_ must be the name of a YAML file"),
        ("_BASE_: https://a.b/c.yaml", "is a URL"),
        ("_BASE_: [d0.yaml, d0.yaml]", "leads to more than 100 files"),
        ("_BASE_: section.yaml\nSOLVER: {MAX_ITER: 3}", "SOLVER is a section, but a value in a file of _BASE_"),
        ("SEED: 1\nSEED: 2", "line 2: .*'SEED' a second time"),
        ("SOLVER: 3", "SOLVER is a section"),
        ("SOLVER:", "SOLVER is a section"),
        ("1: 2", "key 1 is no name"),
        ("OUTPUT_DIR:", "OUTPUT_DIR must not be None"),
        ("MODEL: {DEVICE: null}", "MODEL.DEVICE must not be None"),
        ("SOLVER: {BASE_LR: .nan}", "SOLVER.BASE_LR is nan"),
        ("INPUT: {MIN_SIZE_TRAIN: [1, .inf]}", "INPUT.MIN_SIZE_TRAIN is .*infinity"),
        (f"OUTPUT_DIR: '{'-' * 20_000}1'", "value of OUTPUT_DIR is nested too deeply"),
        ("OUTPUT_DIR: '{[]: 1}'", "OUTPUT_DIR takes a value of type str"),
    ],
)
def test_files_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml")
    (tmp_path / "section.yaml").write_text("SOLVER: 3")
    for i in range(8):
        (tmp_path / f"d{i}.yaml").write_text(f"_BASE_: [d{i + 1}.yaml, d{i + 1}.yaml]" if i < 7 else "SEED: 1")
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(file)


def test_later_bases_and_the_file_itself_win(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("SEED: 1\nSOLVER: {MAX_ITER: 1, BASE_LR: 1}\n")
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfSEED: 2\r\nSOLVER: {MAX_ITER: 2}\r\n")
    file = tmp_path / "a.yaml"
    file.write_text("_BASE_: [b.yaml, c.yaml]\nSOLVER: &s {MAX_ITER: 3, <<: {MAX_ITER: 4, GAMMA: 1}}\n")
    cfg = load_config(file)
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA) == (2, 3, 1.0, 1.0)
    assert isinstance(cfg.SOLVER.BASE_LR, float)


def test_paths_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("OUTPUT_DIR: ~/out\nMODEL: {WEIGHTS: ~/w.pth}\n")
    cfg = load_config("~/a.yaml", ["MODEL.TIMM.WEIGHTS", "~/t.pth"])
    assert [str(tmp_path / name) for name in ("out", "w.pth", "t.pth")] == [
        cfg.OUTPUT_DIR,
        cfg.MODEL.WEIGHTS,
        cfg.MODEL.TIMM.WEIGHTS,
    ]
    assert str(tmp_path / "x") == load_config(None, ["OUTPUT_DIR", "~/x"]).OUTPUT_DIR


@pytest.mark.parametrize("value", ["'a'", "[1", "{", "x y", "None of it"])
def test_strings_stay_what_they_are(value: str) -> None:
    expected = value.strip("'")
    assert expected == load_config(None, ["OUTPUT_DIR", value]).OUTPUT_DIR


def test_a_directory_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is a directory"):
        load_config(tmp_path)
