"""An RTSP camera: GStreamer's RTSP server with a live test picture. Runs on Debian's own Python.

    /usr/bin/python3 rtsp_server.py '{"port": 8554, "codec": "h264", "size": "160x120", "rate": 15}'

Prints a line once it listens. Needs python3-gi, gir1.2-gst-rtsp-server-1.0 and GStreamer's plugins.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gio, GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

ENCODERS = {
    # Slices in threads come out as two packets per key frame with GStreamer 1.22.
    "h264": "x264enc tune=zerolatency sliced-threads=false threads=1 speed-preset=ultrafast "
    "key-int-max={rate} bitrate={kbit} ! rtph264pay name=pay0 config-interval=-1 pt=96",
    "mjpeg": "jpegenc ! rtpjpegpay name=pay0 pt=26",
}


def launch_line(wanted: dict[str, Any]) -> str:
    """GStreamer's description of the camera."""
    width, _, height = wanted.get("size", "160x120").partition("x")
    rate = wanted.get("rate", 15)
    encoder = ENCODERS[wanted.get("codec", "h264")].format(rate=rate, kbit=wanted.get("kbit", 300))
    return (
        f"( videotestsrc is-live=true pattern={wanted.get('pattern', 'ball')} ! "
        f"video/x-raw,format=I420,width={width},height={height},framerate={rate}/1 ! {encoder} )"
    )


def main() -> None:
    """Serve rtsp[s]://127.0.0.1:port/stream until killed."""
    wanted = json.loads(sys.argv[1])
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(wanted["port"]))
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(launch_line(wanted))
    factory.set_shared(True)
    auth = GstRtspServer.RTSPAuth()
    if "certificate" in wanted:
        auth.set_tls_certificate(Gio.TlsCertificate.new_from_file(wanted["certificate"]))
    if "password" in wanted:
        protect(auth, factory, wanted)
    if "password" in wanted or "certificate" in wanted:
        server.set_auth(auth)
    server.get_mount_points().add_factory("/stream", factory)
    if not server.attach(None):
        sys.exit("the port is taken")
    print("listening", flush=True)
    GLib.MainLoop().run()


def protect(auth: Any, factory: Any, wanted: dict[str, Any]) -> None:
    """Let in one user only, by basic or digest authentication."""
    user, password = wanted["user"], wanted["password"]
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", user)
    if wanted.get("digest"):
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(user, password, token)
    else:
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    permissions = GstRtspServer.RTSPPermissions()
    for name in ("media.factory.access", "media.factory.construct"):
        permissions.add_permission_for_role(user, name, True)
    factory.set_permissions(permissions)


if __name__ == "__main__":
    main()
