"""Training data of other programs: a changed file of any format, read and checked as `mask2former check` does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from mask2former.data.formats import load_data, write_coco
from mask2former.data.inspect_training import check_training_data, format_training_report
from mask2former.errors import BadRecordError
from tests.data.formats import samples

from .judgment import Case, require
from .mutation import damage_text, mutate, mutate_bytes, write_json

Writer = Callable[[Path, samples.Sample], None]
FORMATS: dict[str, Writer] = {
    "coco": samples.write_coco,
    "roboflow": samples.write_roboflow,
    "label_maps": samples.write_label_maps,
    "binary": samples.write_binary,
    "object_masks": samples.write_object_masks,
    "yolo": samples.write_yolo,
    "voc": samples.write_voc,
    "voc_colors": samples.write_voc_colors,
    "labelme": samples.write_labelme,
    "labelme_masks": samples.write_labelme_masks,
    "cvat": samples.write_cvat,
    "cvat_masks": lambda root, data: samples.write_cvat(root, data, samples.cvat_mask),
    "label_studio": samples.write_label_studio,
    "label_studio_brush": lambda root, data: samples.write_label_studio(root, data, brush=True),
}


def prepare(root: Path) -> Path:
    """Write intact data of each format."""
    data = samples.sample(0)
    for name, write in FORMATS.items():
        write(root / name, data)
    return root


def run(root: Path, case: Case) -> None:
    """Change a file, then read the data strictly and with all problems collected, and check it."""
    random = case.random
    data = case.directory / "data"
    shutil.copytree(root / random.choice(sorted(FORMATS)), data)
    files = sorted(path for path in data.rglob("*") if path.is_file())
    annotations = [path for path in files if path.suffix in (".json", ".xml", ".txt", ".yaml")]
    file = random.choice(annotations if annotations and random.random() < 0.8 else files)
    case.names = tuple(path.name for path in [*files, *(path.parent for path in files)])
    _change(random, file)
    strict = case.attempt(load_data, data)
    problems: list[BadRecordError] = []
    lenient = case.attempt(load_data, data, problems=problems)
    require(
        lenient.accepted or not strict.accepted,
        f"can be read strictly, but not with problems collected: {lenient.error}",
    )
    require(not strict.accepted or not problems, f"is read strictly, in spite of {problems[:1]}")
    if not lenient.accepted:
        return
    checked = case.attempt(check_training_data, lenient.value, "data", problems, workers=1)
    require(checked.accepted, f"can be read, but not checked: {checked.error}")
    case.attempt(format_training_report, checked.value)
    for split, content in lenient.value.items():
        case.attempt(write_coco, content, case.directory / f"{split}_written.json")


def _change(random: Random, file: Path) -> None:
    choice = random.random()
    if choice < 0.05:
        file.unlink()
    elif choice < 0.1:
        file.write_bytes(random.choice((b"", b"\0" * 99, b"\xff\xfe", b"version https://git-lfs.github.com/spec/v1\n")))
    elif file.suffix == ".json":
        file.write_bytes(write_json(random, mutate(random, json.loads(file.read_text(encoding="utf-8")))))
    elif file.suffix in (".xml", ".txt", ".yaml") and choice < 0.8:
        text = file.read_text(encoding="utf-8")
        for _ in range(random.choice((1, 1, 3))):
            text = _text(random, text)
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
    else:
        file.write_bytes(mutate_bytes(random, file.read_bytes()))


def _text(random: Random, text: str) -> str:
    """Change a word, a line or some characters."""
    words = text.split(" ")
    lines = text.splitlines(keepends=True)
    choice = random.randrange(4)
    if choice == 0 and len(words) > 1:
        number = random.randrange(len(words))
        words[number] = random.choice(("nan", "-1", "1e400", "", "x", "9" * 20, '"', "0", "<a>", ":", "[", words[0]))
        return " ".join(words)
    if choice == 1 and lines:
        number = random.randrange(len(lines))
        lines[number : number + 1] = random.choice(([], [lines[number]] * 2, ["\n"], ["x: [1\n"]))
        return "".join(lines)
    return damage_text(random, text)
