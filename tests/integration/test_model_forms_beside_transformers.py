"""Detectors of Hugging Face's transformers, exported to ONNX without a spec, beside the package's own preparation and post-processing.

The models are small and have random weights. They see a frame of a real video.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.boxes import largest_differences
from tests.pictures import FramePicture, picture_of, pictures
from tests.rle import read_mask

from vidflow.commands.run.labelled_model import recognise_with_labels, temporary_spec
from vidflow.domain.detections import Detection
from vidflow.domain.messages import Parameters
from vidflow.infra.models import registry
from vidflow.infra.models.recognition import Recognition
from vidflow.infra.models.spec import InputSpec
from vidflow.infra.models.tensors import TensorForm, fill_tensor
from vidflow.infra.samples import find_sample

torch = pytest.importorskip("torch", reason="the extra torch is not installed")
hf = pytest.importorskip("transformers", reason="the extra verify is not installed")
pytest.importorskip("onnxscript", reason="the extra verify is not installed")
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

LABELS = 12
NAMES = [f"class {number}" for number in range(LABELS)]
HEIGHT, WIDTH = 128, 192
SQUARE = 256
SCORE = 0.3
TRANSFORMER: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 60, "num_labels": LABELS,
}  # fmt: skip
PYRAMID: dict[str, Any] = {
    **TRANSFORMER, "encoder_hidden_dim": 32, "encoder_in_channels": [16, 24, 32], "feat_strides": [8, 16, 32],
    "decoder_in_channels": [32, 32, 32], "num_denoising": 0,
}  # fmt: skip
WINDOWED: dict[str, Any] = {
    "num_queries": 100, "d_model": 32, "decoder_layers": 1, "decoder_ffn_dim": 32, "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 4, "decoder_n_points": 2, "group_detr": 1, "num_labels": LABELS,
}  # fmt: skip
STAGES: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
OUTPUTS = ["logits", "pred_boxes", "pred_masks"]
NO_DOWNLOAD: dict[str, Any] = {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False}


def resnet(stages: int) -> dict[str, Any]:
    """Return the settings of a backbone that gives the features of its last `stages`."""
    features = ["stage2", "stage3", "stage4"][-stages:]
    config = hf.ResNetConfig(**STAGES, layer_type="basic", out_features=features)
    return {"backbone_config": config, **NO_DOWNLOAD}


def pyramid_resnet() -> Any:
    return hf.RTDetrResNetConfig(**STAGES, layer_type="basic", out_features=["stage2", "stage3", "stage4"])


def hgnet() -> Any:
    four = {
        "stage_in_channels": [8, 8, 16, 24],
        "stage_mid_channels": [8] * 4,
        "stage_out_channels": [8, 16, 24, 32],
        "stage_num_blocks": [1] * 4,
        "stage_downsample": [False, True, True, True],
        "stage_light_block": [False] * 4,
        "stage_kernel_size": [3] * 4,
        "stage_numb_of_layers": [1] * 4,
    }
    return hf.HGNetV2Config(**STAGES, **four, stem_channels=[3, 8, 8], out_features=["stage2", "stage3", "stage4"])


def detr() -> Any:
    return hf.DetrForObjectDetection(hf.DetrConfig(**resnet(1), **TRANSFORMER))


def conditional_detr() -> Any:
    return hf.ConditionalDetrForObjectDetection(hf.ConditionalDetrConfig(**resnet(1), **TRANSFORMER))


def deformable_detr() -> Any:
    return hf.DeformableDetrForObjectDetection(hf.DeformableDetrConfig(**resnet(3), **TRANSFORMER))


def dab_detr() -> Any:
    more = {"hidden_size" if name == "d_model" else name: value for name, value in TRANSFORMER.items()}
    return hf.DabDetrForObjectDetection(hf.DabDetrConfig(**resnet(1), **more))


def rt_detr() -> Any:
    return hf.RTDetrForObjectDetection(hf.RTDetrConfig(backbone_config=pyramid_resnet(), **PYRAMID))


def rt_detr_v2() -> Any:
    return hf.RTDetrV2ForObjectDetection(hf.RTDetrV2Config(backbone_config=pyramid_resnet(), **PYRAMID))


def d_fine() -> Any:
    config = hf.DFineConfig(backbone_config=hgnet(), **PYRAMID, decoder_n_points=[2, 2, 2])
    return hf.DFineForObjectDetection(config)


def yolos() -> Any:
    config = hf.YolosConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=[HEIGHT, WIDTH],
        patch_size=16, num_detection_tokens=100, num_labels=LABELS, use_mid_position_embeddings=False,
    )  # fmt: skip
    return hf.YolosForObjectDetection(config)


def lw_detr() -> Any:
    backbone = hf.LwDetrViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SQUARE, pretrain_image_size=SQUARE,
        patch_size=16, window_block_indices=[0], num_windows=4, out_indices=[1, 2],
    )  # fmt: skip
    config = hf.LwDetrConfig(backbone_config=backbone, projector_scale_factors=[1.0], **WINDOWED)
    return hf.LwDetrForObjectDetection(config)


def rf_detr_config() -> Any:
    backbone = hf.RfDetrDinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=SQUARE, patch_size=16,
        num_windows=2, out_indices=[2, 4], use_mask_token=False,
    )  # fmt: skip
    return hf.RfDetrConfig(backbone_config=backbone, **WINDOWED)


def rf_detr() -> Any:
    return hf.RfDetrForObjectDetection(rf_detr_config())


def rf_detr_segmentation() -> Any:
    return hf.RfDetrForInstanceSegmentation(rf_detr_config())


class Case(msgspec.Struct):
    """A model and its package's image processor. `square`: it takes no other pictures. `dynamo`: the exporter that can export it.

    `normalise` is the preset that its processor stands for. `recognised`: whether an export says so. `gain`: how much the layers amplify:
    enough for queries that differ, and too little for rounding errors to show. `has_mask`: it has an input for a mask of the picture;
    `has_masks`: it returns one for each object.
    """

    build: Callable[[], Any]
    processor: str
    normalise: str
    has_mask: bool = False
    has_masks: bool = False
    recognised: bool = True
    square: bool = False
    dynamo: bool = False
    gain: float = 1.0

    @property
    def has_top_k(self) -> bool:
        """Whether the post-processing keeps 100 pairs of a query and a class by default. vidflow keeps one for each query."""
        return self.processor in {"ConditionalDetrImageProcessor", "DeformableDetrImageProcessor"}


CASES = {
    "detr": Case(detr, "DetrImageProcessor", "imagenet"),
    "detr, with a mask": Case(detr, "DetrImageProcessor", "imagenet", has_mask=True),
    "yolos": Case(yolos, "YolosImageProcessor", "imagenet", gain=1.7),
    "conditional detr": Case(conditional_detr, "ConditionalDetrImageProcessor", "imagenet", recognised=False),
    "conditional detr, with a mask": Case(conditional_detr, "ConditionalDetrImageProcessor", "imagenet", has_mask=True),
    "dab detr": Case(dab_detr, "ConditionalDetrImageProcessor", "imagenet", recognised=False),
    "deformable detr": Case(deformable_detr, "DeformableDetrImageProcessor", "imagenet", recognised=False, dynamo=True),
    "rt-detr": Case(rt_detr, "RTDetrImageProcessor", "unit", gain=1.7),
    "rt-detr v2": Case(rt_detr_v2, "RTDetrImageProcessor", "unit", gain=1.7),
    "d-fine": Case(d_fine, "RTDetrImageProcessor", "unit"),
    "lw-detr": Case(lw_detr, "DeformableDetrImageProcessor", "imagenet", recognised=False, square=True),
    "rf-detr": Case(rf_detr, "RfDetrImageProcessor", "imagenet", recognised=False, square=True, dynamo=True),
}


class Outputs(torch.nn.Module):  # type: ignore[name-defined]  # torch is imported if it is there
    """The outputs that exporters keep."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        found = self.model(**dict(zip(("pixel_values", "pixel_mask"), inputs, strict=False)))
        return tuple(found[name] for name in OUTPUTS if name in found)


def spread_outputs(model: Any, gain: float) -> None:
    """Replace the small weights of an untrained model, so that scores and boxes differ from query to query."""
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "query" in name or "tokens" in name:
                values.normal_()
            elif values.dim() > 1:
                wanted = 2 * gain if "class" in name or "score" in name else gain
                values.normal_(0, wanted * (values.shape[0] / values.numel()) ** 0.5)
            elif "class" in name:
                values.fill_(-2)


def export(case: Case, model: Any, path: Path, height: int, width: int) -> None:
    inputs = [torch.rand(1, 3, height, width), torch.ones(1, height, width, dtype=torch.int64)][: 1 + case.has_mask]
    how = {"dynamo": True, "verbose": False, "external_data": False} if case.dynamo else {"dynamo": False}
    torch.onnx.export(
        Outputs(model).eval(), tuple(inputs), str(path), input_names=["pixel_values", "pixel_mask"][: len(inputs)],
        output_names=OUTPUTS[: 2 + case.has_masks], **how,
    )  # fmt: skip


def recognise(case: Case, path: Path) -> Recognition:
    """Return what vidflow recognises with a file of labels, and the line of the spec that corrects the normalisation."""
    names = path.with_suffix(".txt")
    names.write_text("\n".join(NAMES))
    found = recognise_with_labels(str(path), str(names))
    (chosen,) = [choice for choice in found.choices if choice.key == "input.normalise"]
    assert (chosen.value == case.normalise) == case.recognised
    assert case.recognised or chosen.assumed
    corrected = msgspec.structs.replace(chosen, value=case.normalise)
    choices = tuple(corrected if choice is chosen else choice for choice in found.choices)
    return msgspec.structs.replace(found, choices=choices)


def video_frame() -> FramePicture:
    (frame,) = pictures(find_sample("sample:bikes"), {60})
    return frame


def as_tensor(picture: FramePicture, spec: InputSpec) -> NDArray[np.float32]:
    tensor = TensorForm().allocate(1, spec.size)
    fill_tensor(tensor[0], picture, spec)
    return tensor.astype(np.float32)


def run(case: Case, folder: Path, frame: FramePicture) -> tuple[Any, Any, Any, tuple[Detection, ...]]:
    """Return the processor, the model's own outputs, the tensor that both see, and what vidflow finds with the exported model."""
    height, width = (SQUARE, SQUARE) if case.square else (HEIGHT, WIDTH)
    torch.manual_seed(1)
    model = case.build().eval()
    spread_outputs(model, case.gain)
    path = folder / "exported.onnx"
    export(case, model, path, height, width)
    with temporary_spec(str(path), recognise(case, path)) as spec:
        bundle = registry.resolve(spec, any_onnx=True, keep_weights=True)
        (found,) = registry.load(bundle, Parameters(score_threshold=SCORE)).infer([frame])
    processor = getattr(hf, case.processor)(do_resize=False, do_pad=False)
    prepared = processor(frame.image(width, height), return_tensors="pt")["pixel_values"]
    assert as_tensor(frame, bundle.spec.tensor_specs()[0]) == pytest.approx(prepared.numpy(), abs=1e-5)
    with torch.inference_mode():
        return processor, model(pixel_values=prepared), prepared, found


@pytest.mark.parametrize("name", CASES)
def test_an_export_gives_the_detections_of_the_packages_post_processing(name: str, tmp_path: Path) -> None:
    case, frame = CASES[name], video_frame()
    processor, outputs, _, found = run(case, tmp_path, frame)
    more = {"top_k": outputs.logits.shape[1]} if case.has_top_k else {}
    (expected,) = processor.post_process_object_detection(
        outputs, threshold=SCORE, target_sizes=[(frame.height, frame.width)], **more
    )
    labels = [NAMES[index] for index in expected["labels"].tolist()]
    count, boxes, scores = largest_differences(
        found,
        zip(labels, expected["scores"].tolist(), expected["boxes"].tolist(), strict=True),
        frame.width,
        frame.height,
    )
    assert count >= 12
    assert boxes <= 0.5
    assert scores <= 1e-3


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 640), (128, 192)])
@pytest.mark.parametrize(
    ("processor", "normalise", "range_of_pixels"),
    [("DetrImageProcessor", "imagenet", 255 * 0.229), ("RTDetrImageProcessor", "unit", 255.0)],
)
def test_pictures_are_resized_as_the_package_does(
    processor: str, normalise: Any, range_of_pixels: float, height: int, width: int
) -> None:
    picture = picture_of(video_frame().image())
    resize = getattr(hf, processor)(size={"height": height, "width": width})
    prepared = resize(picture.image(), return_tensors="pt")["pixel_values"].numpy()
    tensor = as_tensor(picture, InputSpec(size=(height, width), normalise=normalise))
    differences = np.abs(tensor - prepared) * range_of_pixels
    assert differences.mean() < 0.25
    assert differences.max() < 5


def test_an_export_with_masks_gives_those_of_the_packages_post_processing_in_the_boxes(tmp_path: Path) -> None:
    case = Case(
        rf_detr_segmentation, "RfDetrImageProcessor", "imagenet", has_masks=True, square=True, dynamo=True
    )  # fmt: skip
    frame = video_frame()
    processor, outputs, _, found = run(case, tmp_path, frame)
    (expected,) = processor.post_process_instance_segmentation(
        outputs, threshold=SCORE, target_sizes=[(frame.height, frame.width)], return_binary_maps=True
    )
    masks = [
        (NAMES[info["label_id"]], info["score"], mask.numpy().astype(bool))
        for info, mask in zip(expected["segments_info"], expected["segmentation"], strict=True)
    ]
    y, x = np.mgrid[: frame.height, : frame.width] + 0.5
    differing = pixels = 0
    for detection in found:
        x1, y1, x2, y2 = detection.box
        inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
        same = [
            mask for label, score, mask in masks if label == detection.label and abs(score - detection.score) < 1e-3
        ]
        differing += min(int((read_mask(detection.mask) != (mask & inside)).sum()) for mask in same)
        pixels += int(inside.sum())
    assert len(found) >= 12
    assert differing <= pixels / 1000
