"""A real RTSP server, run by the system's Python, which has GStreamer's bindings.

Usage: python3 server.py PORT PATH LAUNCH TRANSPORT, where LAUNCH describes a GStreamer pipeline that ends in a payloader `pay0`. It
serves the stream at rtsp://127.0.0.1:PORT/PATH over TRANSPORT (any, or udp alone) and prints `ready` when it listens. `python3
server.py check` exits with 0 if that works here.
"""

import sys

import gi  # type: ignore[import-not-found]

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # type: ignore[import-not-found]  # noqa: E402

ELEMENTS = ("videotestsrc", "openh264enc", "h264parse", "rtph264pay", "x265enc", "rtph265pay", "jpegenc", "rtpjpegpay")
Gst.init(None)
if sys.argv[1:] == ["check"]:
    sys.exit(0 if all(map(Gst.ElementFactory.find, ELEMENTS)) else 1)
port, path, launch, transport = sys.argv[1:]
server = GstRtspServer.RTSPServer.new()
server.set_address("127.0.0.1")
server.set_service(port)
factory = GstRtspServer.RTSPMediaFactory.new()
factory.set_launch(f"( {launch} )")
factory.set_shared(True)
if transport == "udp":
    factory.set_protocols(GstRtsp.RTSPLowerTrans.UDP)
server.get_mount_points().add_factory(f"/{path}", factory)
server.attach(None)
sys.stdout.write("ready\n")
sys.stdout.flush()
GLib.MainLoop().run()
