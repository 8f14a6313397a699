"""The forms in which exporters write detectors: which outputs each has, and how its pictures are prepared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from vidflow.infra.models.exporter_notes import parse_size
from vidflow.infra.models.onnx_metadata import TensorInfo
from vidflow.infra.models.spec import Task

COCO: Final = {80: "coco80", 91: "coco91"}
"""Labels that are assumed for a number of classes. With 91, class 0 is no object, and eleven numbers are unused."""
STRIDES: Final = ((8, 16, 32), (8, 16, 32, 64))
YOLO_ANCHORS: Final = 3
COCO_CLASSES: Final = 80
MASK_AXES: Final = 4
BOX: Final = 4
BOX_AND_OBJECTNESS: Final = 5
END2END_COLUMNS: Final = 6
DETR_QUERIES: Final = 100
FASTESTDET_STRIDE: Final = 16
USUAL_SIZE: Final = (640, 640)
Entry = str | int | float | tuple[int, ...]


class Preprocessing(msgspec.Struct, frozen=True):
    """Entries of [input], and who prepares pictures so."""

    source: str
    entries: Mapping[str, Entry]


_LETTERBOX: Final[Mapping[str, Entry]] = {
    "resize": "letterbox",
    "place": "centre",
    "pad": 114,
    "channels": "rgb",
    "normalise": "unit",
}
ULTRALYTICS: Final = Preprocessing("Ultralytics", _LETTERBOX)
ULTRALYTICS_CLASSIFIER: Final = Preprocessing(
    "Ultralytics", {"resize": "crop", "crop": 1.0, "channels": "rgb", "normalise": "unit"}
)
YOLOV6: Final = Preprocessing("YOLOv6", _LETTERBOX)
YOLOX: Final = Preprocessing(
    "YOLOX", {"resize": "letterbox", "place": "corner", "pad": 114, "channels": "bgr", "normalise": "none"}
)
RT_DETR: Final = Preprocessing("RT-DETR", {"resize": "stretch", "channels": "rgb", "normalise": "unit"})
IMAGENET: Final[Mapping[str, Entry]] = {"resize": "stretch", "channels": "rgb", "normalise": "imagenet"}
HUGGING_FACE_DETR: Final = Preprocessing("Hugging Face's DETR", IMAGENET)
RF_DETR: Final = Preprocessing("RF-DETR", IMAGENET)
TORCHVISION: Final = Preprocessing("torchvision", {"resize": "stretch", "channels": "rgb", "normalise": "unit"})
TENSORFLOW: Final = Preprocessing("TensorFlow", {"resize": "stretch", "channels": "rgb", "normalise": "none"})
FASTESTDET: Final = Preprocessing("FastestDet", {"resize": "stretch", "channels": "bgr", "normalise": "unit"})


class ModelFacts(msgspec.Struct, frozen=True):
    """What a file says: `size` is the height and width of its pictures, None where it leaves them open.

    `task` is the one in the metadata of Ultralytics, or detection.
    """

    metadata: Mapping[str, str]
    picture: TensorInfo
    size: tuple[int | None, int | None]
    other_inputs: frozenset[str]
    outputs: tuple[TensorInfo, ...]
    labels: tuple[str, ...] | None
    task: Task = "detection"

    def output(self, name: str) -> TensorInfo | None:
        """Return the output of this name."""
        return next((output for output in self.outputs if output.name == name), None)

    def cells(self, anchors: int = 1) -> dict[int, tuple[int, ...]]:
        """Return the strides of YOLO's grids by the number of their cells. An open height or width is taken to be the usual one."""
        noted = parse_size(self.metadata.get("imgsz", "")) or USUAL_SIZE
        height, width = self.size[0] or noted[0], self.size[1] or noted[1]
        return {
            anchors * sum((height // stride) * (width // stride) for stride in strides): strides for strides in STRIDES
        }


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """A recognised form. `evidence` is what distinguishes it from others; `assumed`: others have the same form.

    `classes` is the number of classes in the outputs, None if they do not tell. `spare_classes`: how many of them may have no
    label. `counts_from_one`: class 0 is the background. `usual_labels`: the labels to assume for a number of classes.
    """

    name: str
    evidence: str
    decoder: str
    preprocessing: Preprocessing
    assumed: bool = False
    classes: int | None = None
    spare_classes: tuple[int, ...] = (0,)
    counts_from_one: bool = False
    usual_labels: Mapping[int, str] = {}
    usual_size: tuple[int, int] = USUAL_SIZE
    output: Mapping[str, Entry] = {}
    task: Task = "detection"


def find_family(facts: ModelFacts) -> Family | None:
    """Return the form of a file, None if it has no known one."""
    if facts.task == "classification":
        return _classifier(facts)
    if facts.task != "detection":
        return _task_of_ultralytics(facts)
    return next((family for find in _FINDERS if (family := find(facts)) is not None), None)


def _tensorflow(facts: ModelFacts) -> Family | None:
    if not all(map(facts.output, ("detection_boxes", "detection_scores", "detection_classes"))):
        return None
    scores = facts.output("raw_detection_scores") or facts.output("detection_multiclass_scores")
    return Family(
        name="a detector of TensorFlow's Object Detection API",
        evidence="outputs detection_boxes, detection_scores and detection_classes",
        decoder="ssd",
        preprocessing=TENSORFLOW,
        classes=_last_length(scores),
        counts_from_one=True,
        usual_labels={91: "coco91"},
    )


def _rf_detr(facts: ModelFacts) -> Family | None:
    classes = _last_length(facts.output("labels"), axes=3)
    if facts.output("dets") is None or classes is None:
        return None
    return Family(
        name="RF-DETR",
        evidence="outputs dets and labels",
        decoder="detr",
        preprocessing=RF_DETR,
        classes=classes,
        spare_classes=(0, 1),
        usual_labels={91: "coco91"},
        usual_size=(560, 560),
        output={"activation": "sigmoid"},
        task="detection" if facts.output("masks") is None else "instance_segmentation",
    )


def _hugging_face(facts: ModelFacts) -> Family | None:
    """Return one of the models that return logits and boxes, some with masks: they differ by the number of logits and queries."""
    logits, boxes = facts.output("logits"), facts.output("pred_boxes")
    count = _last_length(logits, axes=3)
    if logits is None or boxes is None or count is None:
        return None
    queries = logits.shape[1] if logits.shape is not None else None
    has_masks = facts.output("pred_masks") is not None
    task: Task = "instance_segmentation" if has_masks else "detection"
    evidence = f"outputs logits and pred_boxes, {count} logits, {queries if isinstance(queries, int) else 'any number of'} queries"
    if _has_no_object(count, queries, facts.labels):
        return Family(
            name="DETR or YOLOS of Hugging Face",
            evidence=f"{evidence}, the last logit for 'no object'",
            decoder="detr",
            preprocessing=HUGGING_FACE_DETR,
            assumed=True,
            classes=count - 1,
            usual_labels={91: "coco91"},
            usual_size=(750, 1333),
            output={"activation": "softmax"},
            task=task,
        )
    deformable = "pixel_mask" in facts.other_inputs or has_masks or count == max(COCO)
    return Family(
        name="Deformable or Conditional DETR of Hugging Face" if deformable else "RT-DETR or D-FINE of Hugging Face",
        evidence=evidence,
        decoder="detr",
        preprocessing=HUGGING_FACE_DETR if deformable else RT_DETR,
        assumed=True,
        classes=count,
        usual_labels=COCO,
        usual_size=(750, 1333) if deformable else USUAL_SIZE,
        output={"activation": "sigmoid"},
        task=task,
    )


def _has_no_object(count: int, queries: int | str | None, labels: tuple[str, ...] | None) -> bool:
    """Return whether the last logit means 'no object'. Labels decide it where they fit. LW-DETR has 100 queries too, and no such logit."""
    if labels is not None and count - len(labels) in {0, 1}:
        return count > len(labels)
    return count == max(COCO) + 1 or (queries == DETR_QUERIES and count not in COCO)


def _lists(facts: ModelFacts) -> Family | None:
    """Return RT-DETR with its post-processing, which needs the picture's size as an input, or a torchvision detector."""
    if not all(map(facts.output, ("boxes", "scores", "labels"))):
        return None
    if "orig_target_sizes" in facts.other_inputs:
        return Family(
            name="RT-DETR or D-FINE with post-processing",
            evidence="outputs labels, boxes and scores, and the input orig_target_sizes",
            decoder="detr",
            preprocessing=RT_DETR,
        )
    return Family(
        name="a torchvision detector",
        evidence="outputs boxes, scores and labels",
        decoder="torchvision",
        preprocessing=TORCHVISION,
        counts_from_one=True,
        usual_size=(720, 1280),
    )


def _fastestdet(facts: ModelFacts) -> Family | None:
    shape = facts.outputs[0].shape if len(facts.outputs) == 1 else None
    height, width = facts.size
    if shape is None or len(shape) != 4 or height is None or width is None or not isinstance(shape[1], int):
        return None
    classes = shape[1] - BOX_AND_OBJECTNESS
    is_grid = shape[2:] == (height // FASTESTDET_STRIDE, width // FASTESTDET_STRIDE)
    if not is_grid or classes != (80 if facts.labels is None else len(facts.labels)):
        return None
    return Family(
        name="FastestDet",
        evidence=f"one output with a cell for {FASTESTDET_STRIDE} x {FASTESTDET_STRIDE} pixels",
        decoder="fastestdet",
        preprocessing=FASTESTDET,
        assumed=True,
        classes=classes,
        usual_labels={80: "coco80"},
    )


def _classifier(facts: ModelFacts) -> Family | None:
    classes = _last_length(facts.outputs[0], axes=2) if facts.outputs else None
    if classes is None:
        return None
    return Family(
        name="a classifier of Ultralytics",
        evidence=f"`task` in the file's metadata, and one output [batch, {classes}]",
        decoder="classes",
        preprocessing=ULTRALYTICS_CLASSIFIER,
        classes=classes,
        usual_size=(224, 224),
        output={"activation": "none"},
        task=facts.task,
    )


def _task_of_ultralytics(facts: ModelFacts) -> Family | None:
    """Return a net of Ultralytics whose rows have further numbers after the classes: keypoints, an angle, or weights of masks."""
    found = [output.shape for output in facts.outputs if output.shape is not None and len(output.shape) == 3]
    more, output = _further_numbers(facts)
    if len(found) != 1 or more is None:
        return None
    [(_, rows, columns)] = found
    evidence = "`task` in the file's metadata"
    if columns == END2END_COLUMNS + more and not (facts.labels and rows == BOX + len(facts.labels) + more):
        family = _end2end(columns)
    elif isinstance(rows, int) and rows > BOX + more:
        family = _yolov8(
            rows - BOX - more, f"one output [batch, {rows}, cells]: a box, the classes and {more} more numbers"
        )
    else:
        return None
    return msgspec.structs.replace(
        family, evidence=f"{evidence}, and {family.evidence}", usual_labels={}, output=output, task=facts.task
    )


def _further_numbers(facts: ModelFacts) -> tuple[int | None, Mapping[str, Entry]]:
    """Return how many numbers follow the classes, None if the file does not say it, and the entries of [output] that say so."""
    if facts.task == "oriented_boxes":
        return 1, {}
    if facts.task == "instance_segmentation":
        prototypes = [
            output.shape for output in facts.outputs if output.shape is not None and len(output.shape) == MASK_AXES
        ]
        channels = prototypes[0][1] if len(prototypes) == 1 else None
        return channels if isinstance(channels, int) else None, {}
    keypoints = parse_size(facts.metadata.get("kpt_shape", ""))
    return (None, {}) if keypoints is None else (keypoints[0] * keypoints[1], {"keypoints": keypoints[0]})


def _yolo(facts: ModelFacts) -> Family | None:
    """Return the member of the YOLO family by the shape of its one output of three axes."""
    outputs = [output for output in facts.outputs if output.dtype in {"float", "float16"} and output.shape is not None]
    if any(len(output.shape or ()) == MASK_AXES for output in outputs):
        return None
    found = [(output.name, output.shape) for output in outputs if output.shape is not None and len(output.shape) == 3]
    if len(found) != 1:
        return None
    [(name, (_, rows, columns))] = found
    if columns == END2END_COLUMNS and _is_end2end(rows, facts):
        return _end2end(columns)
    if isinstance(rows, int) and _is_transposed(rows, columns, facts):
        return _yolov8(rows - BOX, f"one output [batch, {rows}, cells]: a box and the classes of each cell")
    if isinstance(columns, int) and columns > BOX_AND_OBJECTNESS:
        return _yolo_rows(facts, name, rows, columns)
    return None


def _is_end2end(rows: int | str | None, facts: ModelFacts) -> bool:
    """Return whether six columns are a box, a score and a class, rather than a box, an objectness and one class."""
    count = len(facts.labels or ())
    if not isinstance(rows, int):
        return count != 1
    if rows in facts.cells() or rows in facts.cells(YOLO_ANCHORS):
        return False
    return rows > END2END_COLUMNS and not (_is_rt_detr(facts) and count == END2END_COLUMNS - BOX)


def _is_rt_detr(facts: ModelFacts) -> bool:
    description = facts.metadata.get("description", "").lower()
    return "rtdetr" in description or "rt-detr" in description


def _is_transposed(rows: int, columns: int | str | None, facts: ModelFacts) -> bool:
    """Return whether rows, rather than columns, hold the numbers of a cell: there are fewer of them, unless labels say so."""
    if rows <= BOX or not isinstance(columns, int):
        return rows > BOX
    count = len(facts.labels or ())
    return rows < columns and (rows == BOX + count or columns not in {BOX + count, BOX_AND_OBJECTNESS + count})


def _end2end(columns: int) -> Family:
    return Family(
        name="YOLO with its boxes selected (v10, 26, or with NMS inside)",
        evidence=f"one output [batch, detections, {columns}]",
        decoder="yolo_end2end",
        preprocessing=ULTRALYTICS,
    )


def _yolov8(classes: int, evidence: str) -> Family:
    return Family(
        name="YOLO (v8, v9, 11 or 12)",
        evidence=evidence,
        decoder="yolov8",
        preprocessing=ULTRALYTICS,
        classes=classes,
        usual_labels={80: "coco80"},
    )


def _yolo_rows(facts: ModelFacts, name: str, rows: int | str | None, columns: int) -> Family | None:
    """Return the family of an output with a row for each cell: YOLOv5, v6, v7, YOLOX, RT-DETR, or a transposed YOLOv8."""
    evidence = f"one output [batch, {rows if isinstance(rows, int) else 'cells'}, {columns}]"
    grid, anchored_grid = facts.cells(), facts.cells(YOLO_ANCHORS)
    is_cells = not isinstance(rows, int) or rows in grid or rows in anchored_grid
    has_no_objectness = columns == BOX + (len(facts.labels) if facts.labels is not None else COCO_CLASSES)
    if not is_cells:
        return _joined_detr(columns - BOX, evidence) if has_no_objectness or _is_rt_detr(facts) else None
    if has_no_objectness:
        return _yolov8(columns - BOX, f"{evidence}: a box and the classes of each cell")
    if isinstance(rows, int) and rows in grid:
        return _anchor_free(name, columns, grid[rows], f"{evidence}, one row for each cell")
    return Family(
        name="YOLOv5 or v7",
        evidence=f"{evidence}, {YOLO_ANCHORS} rows for each cell" if isinstance(rows, int) else evidence,
        decoder="yolov5",
        preprocessing=ULTRALYTICS,
        assumed=not isinstance(rows, int),
        classes=columns - BOX_AND_OBJECTNESS,
        usual_labels={80: "coco80"},
    )


def _joined_detr(classes: int, evidence: str) -> Family:
    return Family(
        name="RT-DETR of Ultralytics",
        evidence=f"{evidence}, a row for each query",
        decoder="detr",
        preprocessing=RT_DETR,
        classes=classes,
        usual_labels={80: "coco80"},
    )


def _anchor_free(name: str, columns: int, strides: tuple[int, ...], evidence: str) -> Family:
    """Return YOLOX, or YOLOv6, whose output has the same shape, but another name, and is decoded."""
    classes = columns - BOX_AND_OBJECTNESS
    if name == "outputs":
        return Family(
            name="YOLOv6",
            evidence=f"{evidence}, named 'outputs'",
            decoder="yolov5",
            preprocessing=YOLOV6,
            assumed=True,
            classes=classes,
            usual_labels={80: "coco80"},
        )
    return Family(
        name="YOLOX",
        evidence=f"{evidence}; if its decoding is inside the model, decoder yolov5 is the right one",
        decoder="yolox",
        preprocessing=YOLOX,
        assumed=True,
        classes=classes,
        usual_labels={80: "coco80"},
        output={"strides": strides},
    )


_FINDERS: Final[tuple[Callable[[ModelFacts], Family | None], ...]] = (
    _tensorflow, _rf_detr, _hugging_face, _lists, _fastestdet, _yolo,
)  # fmt: skip


def _last_length(output: TensorInfo | None, axes: int | None = None) -> int | None:
    """Return the length of an output's last axis, None if it is open or the output has another number of axes."""
    if output is None or not output.shape or (axes is not None and len(output.shape) != axes):
        return None
    length = output.shape[-1]
    return length if isinstance(length, int) else None
