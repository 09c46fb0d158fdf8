"""The environment variables that the server runs under. They have to be set before the libraries that read them."""

from collections.abc import Mapping

OURS = {
    # Nothing leaves this machine unasked.
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    # No code out of model folders.
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    # Waiting OpenMP threads would spin, and take the cores from the web server.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}


def surroundings(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` with ours added where the user has said nothing; text is UTF-8 whatever the locale."""
    return {**OURS, **environ, "PYTHONUTF8": "1"}
