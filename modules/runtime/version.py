"""Which Easel this is: what infotexts, /api/v1/status and the page say."""

VERSION = "0.1.0"
