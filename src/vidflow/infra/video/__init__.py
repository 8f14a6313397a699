"""Videos: opening a source safely, its kept frames in order, and their pixels. Not which model looks at them."""

from vidflow.infra.video.frames import Gap, KeptFrame, read
from vidflow.infra.video.open import Video, open_video
from vidflow.infra.video.source import Source

__all__ = ["Gap", "KeptFrame", "Source", "Video", "open_video", "read"]
