"""onnxruntime with telemetry disabled. All other modules import onnxruntime from here."""

from __future__ import annotations

import os

# The library reads this while it loads. Calling `disable_telemetry_events()` alone is too late: by then onnxruntime has written
# a device id to the user's cache folder and started its uploader.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

onnxruntime.disable_telemetry_events()

__all__ = ["onnxruntime"]
