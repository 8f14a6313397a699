"""Open a video source safely, read its kept frames in order, and convert them to pixels."""

from vidflow.infra.video.frames import FrameGap, KeptFrame, read_kept_frames
from vidflow.infra.video.open import Video, open_video
from vidflow.infra.video.source import SourceInfo
from vidflow.infra.video.source_connection import Interruption, ReadingStopped

__all__ = [
    "FrameGap",
    "Interruption",
    "KeptFrame",
    "ReadingStopped",
    "SourceInfo",
    "Video",
    "open_video",
    "read_kept_frames",
]
