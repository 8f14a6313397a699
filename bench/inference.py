"""Measure the images per second of each model, compared with the bare runtime on a prepared tensor in the same run.

    python bench/inference.py VIDEO [--models-dir DIR] [--rounds N] [--images N]

Besides its net, a model spends time on resizing, filling the tensor, decoding, and mapping boxes. The ratio to the bare runtime
shows this cost. The bare runtime is onnxruntime's session.run, or torch's module, on one tensor of the model's size, with one
thread. Each round measures both. The ratio is the median over the rounds, with its minimum and maximum.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from vidflow.domain.errors import VidflowError
from vidflow.infra.models import registry
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.model import Model, Picture
from vidflow.infra.models.spec import ONNX
from vidflow.infra.video.frames import KeptFrame, read_kept_frames
from vidflow.infra.video.open import open_video

RANDOM_SPEC = """
kind = "torchvision"
architecture = "ssdlite320_mobilenet_v3_large"
file = "random.pth"
labels = ["__background__", "thing"]
[thresholds]
score = 0.9
"""


def main() -> None:
    args = _parse_arguments()
    kept = _pictures(args.video, args.images)
    print(f"{time.strftime('%Y-%m-%d')}  {platform.machine()}, {args.video.name} {kept[0].width}x{kept[0].height}")
    print(f"{'model':34}{'images/s':>10}{'bare/s':>9}{'ratio':>8}   min-max of {args.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        for bundle in _models(args.models_dir, Path(folder)):
            _print_row(bundle, kept, args.rounds)


def _print_row(bundle: Bundle, kept: Sequence[Picture], rounds: int) -> None:
    try:
        model = registry.load(bundle)
    except VidflowError as error:
        print(f"{bundle.name:34}  skipped: {error.message}")
        return
    bare = _bare(bundle, model)
    model.infer(kept[:4])
    rates, bare_rates = [], []
    for _ in range(rounds):
        rates.append(_rate(lambda: model.infer(kept), len(kept)))
        if bare is not None:
            bare_rates.append(_rate(lambda: [bare() for _ in kept], len(kept)))
    line = f"{bundle.name:34}{statistics.median(rates):10.1f}"
    if bare_rates:
        ratios = [rate / bare_rate for rate, bare_rate in zip(rates, bare_rates, strict=True)]
        line += f"{statistics.median(bare_rates):9.1f}{statistics.median(ratios):8.2f}   {min(ratios):.2f}-{max(ratios):.2f}"
    print(line)


def _bare(bundle: Bundle, model: Model) -> Callable[[], object] | None:
    """Return a function that runs only the net, on a prepared tensor; None for a model without a net."""
    if bundle.path is None or model.input_size is None:
        return None
    width, height = model.input_size
    if bundle.kind == ONNX:
        from vidflow.infra.models.onnx import open_session  # noqa: PLC0415 - import only the runtimes that are needed
        from vidflow.infra.models.onnx_inputs import find_inputs  # noqa: PLC0415

        session = open_session(bundle.require_weights(), bundle.origin)
        spec, _ = bundle.spec.tensor_specs()
        inputs = find_inputs(session.get_inputs(), spec, bundle.origin)
        feed = inputs.feed(inputs.form.allocate(inputs.fixed_batch or 1, spec.size))
        return lambda: session.run(None, feed)
    import torch  # noqa: PLC0415 - an extra

    from vidflow.infra.models.torchvision import build_detector, load_state_dict  # noqa: PLC0415 - an extra

    state = load_state_dict(bundle.require_weights(), bundle.origin)
    net = build_detector(
        bundle.spec.architecture or "", state, len(bundle.labels), bundle.spec.thresholds, 0.9, bundle.name
    )
    pictures = [torch.full((3, height, width), 0.5)]

    def run() -> object:
        with torch.inference_mode():
            return net(pictures)

    return run


def _models(models_dir: Path | None, folder: Path) -> list[Bundle]:
    """Return `motion`, all usable models in the models folder, and an ssdlite with random weights if torch is installed."""
    usable = [listed.name for listed in registry.list_models(models_dir) if listed.error is None]
    names = [name for name in usable if name not in registry.TORCHVISION_DETECTORS]
    bundles = [registry.resolve(name, models_dir, keep_weights=True) for name in names]
    try:
        import torch  # noqa: PLC0415 - an extra
        import torchvision  # noqa: PLC0415 - an extra
    except ImportError:
        return bundles
    torch.manual_seed(1)
    net = torchvision.models.get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=2
    )
    torch.save(net.state_dict(), folder / "random.pth")
    (folder / "ssdlite320_random_weights.toml").write_text(RANDOM_SPEC)
    return [*bundles, registry.resolve("ssdlite320_random_weights", folder, keep_weights=True)]


def _pictures(path: Path, count: int) -> list[KeptFrame]:
    with open_video(str(path)) as video:
        return list(islice((item for item in read_kept_frames(video) if isinstance(item, KeptFrame)), count))


def _rate(work: Callable[[], object], images: int) -> float:
    began_s = time.perf_counter()
    work()
    return images / (time.perf_counter() - began_s)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=24)
    return parser.parse_args()


if __name__ == "__main__":
    main()
