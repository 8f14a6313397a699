"""Make the picture of a result: `python -m docs.generator.picture`. Run a sample clip and draw a frame's detections on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import av
import msgspec
from PIL import Image, ImageDraw, ImageFont

from vidflow.contract import FrameResult
from vidflow.infra.samples import find_sample

SAMPLE: Final = "sample:bikes"
PICTURE: Final = Path(__file__).parents[1] / "images" / "result.jpg"
WIDTH: Final = 640
_COLOUR: Final = "#ffd400"


def main() -> None:
    """Run the sample and draw the frame in which most different things are seen."""
    command = [
        sys.executable,
        "-m",
        "vidflow",
        "run",
        SAMPLE,
        "--fps",
        "2",
        "--output",
        "ndjson",
    ]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    results = [msgspec.json.decode(line, type=FrameResult) for line in output.splitlines()]
    result = max(results, key=lambda frame: len({detection.label for detection in frame.detections}))
    picture = _decode_frame(result.time_s)
    _draw(picture, result)
    picture.thumbnail((WIDTH, WIDTH))
    PICTURE.parent.mkdir(exist_ok=True)
    picture.save(PICTURE, quality=85, optimize=True)


def _decode_frame(time_s: float) -> Image.Image:
    with av.open(str(find_sample(SAMPLE))) as container:
        first_s: float | None = None
        for frame in container.decode(video=0):
            first_s = frame.time if first_s is None else first_s
            if frame.time - first_s >= time_s - 0.001:
                return Image.fromarray(frame.to_ndarray(format="rgb24"))
    raise ValueError(f"{SAMPLE} has no frame at {time_s} s")


def _draw(picture: Image.Image, result: FrameResult) -> None:
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=picture.width // 36)
    for detection in result.detections:
        x1, y1, x2, y2 = detection.box
        draw.rectangle((x1, y1, x2, y2), outline=_COLOUR, width=3)
        text = f"{detection.label} {detection.score:.2f}"
        draw.rectangle(draw.textbbox((x1 + 4, y1 + 3), text, font), fill=_COLOUR)
        draw.text((x1 + 4, y1 + 3), text, "black", font)


if __name__ == "__main__":
    main()
