"""Reading instance annotations in COCO's format."""

from __future__ import annotations

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json

from ..errors import BadRecordError
from .catalog import Records, require_files


def load_instances(name: str, layout: str, json_file: str, image_root: str) -> Records:
    """Load a COCO instance json with detectron2, image ids as the file has them (numbers, or names in ADE20K).

    Raises:
        FileNotFoundError: the json or the folder of pictures is missing; shows the expected folders.
        BadRecordError: the json is not in COCO's format, or has categories that the dataset does not have.
    """
    require_files(name, [json_file, image_root], layout)
    try:
        # Without the name: detectron2 would take the class list from the file and refuse one that is not the whole.
        records = load_coco_json(json_file, image_root)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        reason = f"is not in COCO's instance format: {type(error).__name__}: {error}"
        raise BadRecordError(json_file, reason) from error
    classes = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    for record in records:
        for annotation in record["annotations"]:
            category = annotation["category_id"]
            if category not in classes:
                where = f"image {record['image_id']}"
                raise BadRecordError(json_file, f"category {category} is not one of dataset {name!r}", where)
            annotation["category_id"] = classes[category]
    return records
