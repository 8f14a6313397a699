"""Recognise which exporter wrote an ONNX file, and write the spec that it needs.

The decision depends on the file alone: its metadata, and the names, types and shapes of its inputs and outputs. What does not
follow from them is an assumption, and is called one. families.py knows the forms of the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from vidflow.domain.detections import find_label_fault
from vidflow.domain.errors import ModelError
from vidflow.domain.escaping import escape_unprintable
from vidflow.infra.models.exporter_notes import parse_keypoint_names, parse_names, parse_size
from vidflow.infra.models.families import Family, ModelFacts, find_family
from vidflow.infra.models.onnx_metadata import Graph, TensorInfo
from vidflow.infra.models.spec import ONNX, UNUSED_LABELS, ModelSpec, Task, build_spec

FILLED_INPUTS: Final = frozenset({"orig_target_sizes", "pixel_mask"})
"""Inputs besides the pictures that vidflow fills, see onnx_inputs.py."""
PICTURE_TYPES: Final = frozenset({"float", "float16", "uint8"})
TASKS: Final[Mapping[str, Task]] = {
    "detect": "detection",
    "detection": "detection",
    "classify": "classification",
    "pose": "keypoints",
    "obb": "oriented_boxes",
    "segment": "instance_segmentation",
}
"""The tasks by the names in the metadata of Ultralytics."""
COCO_KEYPOINTS: Final = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
"""The keypoints of people, in COCO's order."""
CLASSIFIER_SCORE: Final = 0.1
CLASSIFIER_LABELS: Final = 5
"""The best labels of a frame. Each of many classes may have a small share of the probability."""
MAX_DESCRIBED: Final = 10
MAX_NAME_CHARACTERS: Final = 100
"""Bounds for an error's length, as the file chooses the number of its tensors and their names."""
MAX_LICENSE_CHARACTERS: Final = 200
SectionValue = str | int | float | Sequence[int] | Sequence[float] | Sequence[str]


class Choice(msgspec.Struct, frozen=True):
    """An entry of a spec, such as `input.size`, with its reason. `assumed`: the file does not say it."""

    key: str
    value: SectionValue
    reason: str
    assumed: bool = False


class Recognition(msgspec.Struct, frozen=True):
    """The spec of a file that has none, entry by entry. `family` is what was recognised, for people."""

    family: str
    spec: ModelSpec
    choices: tuple[Choice, ...]

    def digest_text(self) -> bytes:
        """Return what affects results, in a form that stays the same when specs get further entries."""
        return msgspec.json.encode([(choice.key, choice.value) for choice in self.choices])

    def to_toml(self, file: str, sha256: str | None = None, labels_file: str | None = None) -> str:
        """Return the spec as a file beside `file`, with the reasons as comments. `labels_file` has the labels instead of the spec."""
        lines = [f"# {self.family}", 'kind = "onnx"', f"file = {_toml(file)}"]
        if sha256 is not None:
            lines.append(f"sha256 = {_toml(sha256)}")
        section = ""
        for choice in self.choices:
            *sections, name = choice.key.split(".")
            if sections and sections[0] != section:
                section = sections[0]
                lines += ["", f"[{section}]"]
            value = labels_file if name == "labels" and labels_file is not None else choice.value
            lines += [f"# {describe_reason(choice)}", f"{name} = {_toml(value)}"]
        return "\n".join(lines) + "\n"


def describe_reason(choice: Choice) -> str:
    """Return why a spec has an entry. An assumption starts with the word."""
    return f"assumed: {choice.reason}" if choice.assumed else choice.reason


def recognise(
    origin: str, metadata: Mapping[str, str], graph: Graph, labels: tuple[str, ...] | None = None
) -> Recognition:
    """Return the spec of an ONNX file that contains none. `labels` are used instead of those in the file.

    `origin` names the file in errors. Raises ModelError (model_refused) with the inputs and outputs of the file if it is not
    recognised, its labels are unknown, or the labels do not fit its outputs.
    """
    facts = _gather_facts(origin, metadata, graph, labels)
    family = find_family(facts)
    if family is None:
        raise _refusal(origin, graph, "no exporter's form fits its inputs and outputs")
    choices = [
        *_choose_task(family),
        _choose_labels(origin, metadata, family, facts, given=labels is not None),
        *_choose_license(metadata),
        _choose_size(metadata, family, facts),
        *_choose_preprocessing(family, facts),
        Choice("output.decoder", family.decoder, family.evidence, family.assumed),
        *(Choice(f"output.{name}", value, family.evidence) for name, value in family.output.items()),
        *_choose_keypoint_names(metadata, family, facts),
        *_choose_thresholds(family),
    ]
    return Recognition(family.name, _build_spec(origin, choices), tuple(choices))


def _build_spec(origin: str, choices: Sequence[Choice]) -> ModelSpec:
    table: dict[str, Any] = {"kind": ONNX, "file": "this.onnx"}
    for choice in choices:
        *sections, name = choice.key.split(".")
        target = table.setdefault(sections[0], {}) if sections else table
        target[name] = choice.value
    return build_spec(table, origin)


def _gather_facts(origin: str, metadata: Mapping[str, str], graph: Graph, labels: tuple[str, ...] | None) -> ModelFacts:
    task = metadata.get("task", "detect")
    if task not in TASKS:
        raise _refusal(
            origin,
            graph,
            f"its metadata says that its task is {task[:MAX_NAME_CHARACTERS]!r}, which vidflow does not have",
        )
    picture = find_picture(graph)
    if picture is None:
        raise _refusal(origin, graph, "not exactly one of its inputs may take pictures")
    shape = picture.shape
    if picture.dtype not in PICTURE_TYPES or shape is None or len(shape) not in {3, 4}:
        raise _refusal(
            origin, graph, "its input does not take pictures [batch, 3, height, width] or [batch, height, width, 3]"
        )
    is_nhwc = shape[-1] == 3 and shape[-3] != 3
    channels = shape[-1] if is_nhwc else shape[-3]
    if isinstance(channels, int) and channels != 3:
        raise _refusal(origin, graph, f"its pictures have {channels} channels, not 3")
    height, width = shape[-3:-1] if is_nhwc else shape[-2:]
    names = parse_names(metadata["names"]) if "names" in metadata else None
    return ModelFacts(
        metadata=metadata,
        picture=picture,
        size=(_length(height), _length(width)),
        other_inputs=frozenset(value.name for value in graph.inputs) - {picture.name},
        outputs=graph.outputs,
        labels=labels or names,
        task=TASKS[task],
    )


def find_picture(graph: Graph) -> TensorInfo | None:
    """Return the input for pictures, None unless exactly one input can take them."""
    pictures = [value for value in graph.inputs if value.name not in FILLED_INPUTS]
    return pictures[0] if len(pictures) == 1 else None


def _length(length: int | str | None) -> int | None:
    return length if isinstance(length, int) else None


def _choose_task(family: Family) -> list[Choice]:
    return [] if family.task == "detection" else [Choice("task", family.task, family.evidence)]


def _choose_keypoint_names(metadata: Mapping[str, str], family: Family, facts: ModelFacts) -> list[Choice]:
    """Return the names in the file, if there is one for each keypoint, or COCO's for the 17 keypoints of a person."""
    count, key = family.output.get("keypoints"), "output.keypoint_names"
    names = parse_keypoint_names(metadata.get("kpt_names", "")) or ()
    if names and len(names) == count and not any(map(find_label_fault, names)):
        return [Choice(key, names, "`kpt_names` in the file's metadata")]
    if "kpt_names" not in metadata and count == len(COCO_KEYPOINTS) and facts.labels == ("person",):
        return [Choice(key, COCO_KEYPOINTS, f"{count} keypoints of a person: those of COCO", assumed=True)]
    return []


def _choose_thresholds(family: Family) -> list[Choice]:
    if family.task != "classification":
        return []
    reason = "the best labels of a frame"
    return [
        Choice("thresholds.score", CLASSIFIER_SCORE, reason, assumed=True),
        Choice("thresholds.max_detections", CLASSIFIER_LABELS, reason, assumed=True),
    ]


def _choose_labels(
    origin: str, metadata: Mapping[str, str], family: Family, facts: ModelFacts, *, given: bool
) -> Choice:
    """Return the labels: those that were given, those in the file, or those of the data set that the family is trained on."""
    if facts.labels is None:
        usual = family.usual_labels.get(family.classes or 0)
        if usual is None:
            raise _labels_refusal(origin, metadata, family)
        return Choice("labels", usual, f"{family.classes} classes, and none is named: those of COCO", assumed=True)
    labels = facts.labels
    reason = "the names that were given" if given else "`names` in the file's metadata"
    if family.counts_from_one and labels[0] not in UNUSED_LABELS:
        labels, reason = ("background", *labels), f"{reason}, after the background, which is class 0"
    if family.classes is not None and family.classes - len(labels) not in family.spare_classes:
        raise ModelError(
            f"{origin} returns {family.classes} classes, and there are {len(labels)} labels in "
            f"{'the labels file' if given else 'its metadata'}. Give one label a line, in the order of the classes: --labels-file.",
            code="model_refused",
        )
    return Choice("labels", list(labels), reason)


def _labels_refusal(origin: str, metadata: Mapping[str, str], family: Family) -> ModelError:
    count = f"its {family.classes} classes" if family.classes is not None else "its classes"
    fault = (
        "its metadata has `names`, but they are no list of labels" if "names" in metadata else "it does not name them"
    )
    coco = "coco80 and coco91 stand for the classes of COCO."
    if family.counts_from_one:
        coco = "coco91 stands for the classes of COCO, which such models count from 1."
    return ModelError(
        f"{origin} was recognised as {family.name}, but {count} have no labels: {fault}. Give a file with one label a line: "
        f"vidflow run --labels-file NAMES.txt, or write a spec with vidflow models check {origin} --labels-file NAMES.txt "
        f"--write-spec. {coco}",
        code="model_refused",
    )


def _choose_license(metadata: Mapping[str, str]) -> list[Choice]:
    text = " ".join(metadata.get("license", "").split())[:MAX_LICENSE_CHARACTERS]
    return [Choice("license", text, "`license` in the file's metadata")] if text and text.isprintable() else []


def _choose_size(metadata: Mapping[str, str], family: Family, facts: ModelFacts) -> Choice:
    """Return the size of pictures: the shape's, or else the metadata's, or else the family's usual one."""
    height, width = facts.size
    if height is not None and width is not None:
        return Choice("input.size", [height, width], f"the shape of input {_quote(facts.picture.name)}")
    noted = parse_size(metadata.get("imgsz", ""))
    usual = noted or family.usual_size
    reason = "`imgsz` in the file's metadata" if noted else "the file leaves it open; this is usual for the family"
    return Choice("input.size", [height or usual[0], width or usual[1]], reason, assumed=noted is None)


def _choose_preprocessing(family: Family, facts: ModelFacts) -> list[Choice]:
    entries = dict(family.preprocessing.entries)
    choices = []
    if facts.picture.dtype == "uint8" and entries.pop("normalise", None) is not None:
        choices.append(Choice("input.normalise", "none", "the input is uint8: the model scales pixels itself"))
    reason = f"as {family.preprocessing.source} prepares pictures"
    assumed = family.assumed or "names" not in facts.metadata  # of the known exporters only one writes it
    return [Choice(f"input.{name}", value, reason, assumed) for name, value in entries.items()] + choices


def _refusal(origin: str, graph: Graph, cause: str) -> ModelError:
    stem = origin.rpartition(".")[0] or origin
    return ModelError(
        f"{origin} is not recognised: {cause}. Inputs: {describe_tensors(graph.inputs)}. Outputs: {describe_tensors(graph.outputs)}. "
        f'Write a spec, {stem}.toml, next to it and name the spec. Its lines: kind = "onnx"; file = {_toml(origin)}; labels = '
        '"NAMES.txt"; [input]; size = [height, width]; resize, channels and normalise as in training; [output]; decoder = one '
        "whose outputs these are, see docs/how-to/own-model.md.",
        code="model_refused",
    )


def describe_tensors(tensors: Sequence[TensorInfo]) -> str:
    """Return inputs or outputs as text of bounded length, such as "'images' float [1, 3, 640, 640]"."""
    described = [
        f"{_quote(tensor.name)} {tensor.dtype} {_describe_shape(tensor)}" for tensor in tensors[:MAX_DESCRIBED]
    ]
    more = f", and {len(tensors) - MAX_DESCRIBED} more" if len(tensors) > MAX_DESCRIBED else ""
    return (", ".join(described) or "none") + more


def _describe_shape(tensor: TensorInfo) -> str:
    if tensor.shape is None:
        return "of any shape"
    lengths = ["?" if length is None else str(length)[:MAX_NAME_CHARACTERS] for length in tensor.shape[:MAX_DESCRIBED]]
    return escape_unprintable(f"[{', '.join(lengths)}]")


def _quote(name: str) -> str:
    return repr(name[:MAX_NAME_CHARACTERS])


def _toml(value: SectionValue) -> str:
    """Return a value as TOML, which writes texts and lists as JSON does but for one control character that no spec has."""
    return json.dumps(value if isinstance(value, (str, int, float)) else list(value), ensure_ascii=False)
