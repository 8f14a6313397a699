"""The script that people write: OpenCV reads, onnxruntime infers, all with default threads. bench/worker.py runs it as a peer.

    python bench/opencv_script.py MODEL.onnx VIDEO SECONDS FPS

It needs opencv-python-headless, onnxruntime and numpy, and nothing of vidflow. FPS 0 means all frames. It prints frames and seconds.
"""

from __future__ import annotations

import sys
import time

import cv2  # type: ignore[import-not-found]  # only in a Python that is made for this script
import numpy as np
import onnxruntime

SIZE, SCORE, IOU = 416, 0.4, 0.45


def detect(session: onnxruntime.InferenceSession, picture: np.ndarray) -> int:
    """Return the number of objects in a picture, by YOLOX's own pre- and post-processing."""
    ratio = min(SIZE / picture.shape[0], SIZE / picture.shape[1])
    height, width = int(picture.shape[0] * ratio), int(picture.shape[1] * ratio)
    tensor = np.full((1, 3, SIZE, SIZE), 114, np.float32)
    tensor[0, :, :height, :width] = cv2.resize(picture, (width, height)).transpose(2, 0, 1)
    rows = session.run(None, {session.get_inputs()[0].name: tensor})[0][0]
    scores = rows[:, 4:5] * rows[:, 5:]
    best = scores.max(axis=1)
    kept = best > SCORE
    sizes = np.exp(rows[kept, 2:4])
    boxes = np.concatenate([rows[kept, :2] - sizes / 2, sizes], axis=1)
    return len(cv2.dnn.NMSBoxes(boxes.tolist(), best[kept].tolist(), SCORE, IOU))


def main() -> None:
    model, video, seconds, fps = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    capture = cv2.VideoCapture(video)
    rate = capture.get(cv2.CAP_PROP_FPS)
    index, inferred, cell = 0, 0, -1
    began_s = time.perf_counter()
    while index / rate < seconds:
        is_read, picture = capture.read()
        if not is_read:
            break
        if not fps or int(index / rate * fps + 1e-6) != cell:
            cell = int(index / rate * fps + 1e-6)
            detect(session, picture)
            inferred += 1
        index += 1
    sys.stdout.write(f"{inferred} {time.perf_counter() - began_s}\n")


if __name__ == "__main__":
    main()
