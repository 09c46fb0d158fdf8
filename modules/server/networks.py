"""The extra networks in the lists of /sdapi/v1: LoRAs, embeddings, hypernetworks."""

import json
import logging
import threading
from typing import Any

from fastapi import APIRouter

from modules.app import App
from modules.jobs.queue import NoCheckpoint
from modules.library.header import ModelFileError, read_header
from modules.library.networks import NetworkFile

log = logging.getLogger(__name__)

LEFT_OUT = ("ssmd_cover_images",)  # pictures


def add_routes(router: APIRouter, app: App) -> None:
    embeddings = Embeddings(app)

    @router.get("/loras")
    def loras() -> list[dict[str, Any]]:
        return [
            {"name": one.name, "alias": one.alias, "path": one.file, "metadata": metadata_of(app, one)}
            for one in app.networks.list("lora")
        ]

    @router.get("/hypernetworks")
    def hypernetworks() -> list[dict[str, Any]]:
        return [{"name": one.name, "path": one.file} for one in app.networks.list("hypernetwork")]

    @router.get("/embeddings")
    def all_embeddings() -> dict[str, Any]:
        return embeddings.listed()

    @router.post("/refresh-loras")
    def refresh_loras() -> None:
        app.networks.refresh("lora")

    @router.post("/refresh-embeddings")
    def refresh_embeddings() -> None:
        app.networks.refresh("embedding")


def card_routes(app: App) -> APIRouter:
    """/sd_extra_networks: what A1111's cards ask for."""
    router = APIRouter()

    @router.get("/metadata")
    def metadata(page: str = "", item: str = "") -> dict[str, Any]:
        """Of a LoRA or a checkpoint, as a text of JSON; nothing where there is none."""
        found: dict[str, Any] = {}
        if page == "lora":
            file = app.networks.find("lora", item)
            found = metadata_of(app, file) if file else {}
        elif page == "checkpoints":
            found = _of_checkpoint(app, item)
        return {"metadata": json.dumps(found, indent=4, ensure_ascii=False)} if found else {}

    return router


def _of_checkpoint(app: App, name: str) -> dict[str, Any]:
    checkpoint = next((one for one in app.library.usable() if name in (one.model_name, one.flat_name, one.title)), None)
    if checkpoint is None or not checkpoint.path.is_file():
        return {}
    try:
        return {name: _read(value) for name, value in read_header(checkpoint.path).metadata.items()}
    except ModelFileError as error:
        log.info("%s", error)
        return {}


def metadata_of(app: App, file: NetworkFile) -> dict[str, Any]:
    """What its training wrote; values that are JSON themselves are read. Empty where the file cannot be."""
    try:
        found = app.networks.metadata(file)
    except ModelFileError as error:
        log.warning("%s", error)
        return {}
    return {name: _read(value) for name, value in found.items() if name not in LEFT_OUT}


def _read(value: str) -> Any:
    if not value.startswith("{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


class Embeddings:
    """Reads them when they are asked for, not before: that needs PyTorch."""

    def __init__(self, app: App):
        self._app = app
        self._lock = threading.Lock()
        self._store: Any = None

    def listed(self) -> dict[str, Any]:
        """Those that fit the current checkpoint, and the others with the reason."""
        with self._lock:
            if self._store is None:
                from modules.families.networks.embeddings import EmbeddingStore

                self._store = EmbeddingStore(self._app.networks)
            usable, broken = self._store.listed()
        widths = self._widths()
        answer: dict[str, Any] = {"loaded": {}, "skipped": {}}
        for name, one in usable.items():
            item = {
                "step": one.step,
                "sd_checkpoint": one.checkpoint,
                "sd_checkpoint_name": one.checkpoint_name,
                "shape": one.width,
                "vectors": one.vectors,
            }
            if widths is None or (len(one.parts), one.width) == (len(widths), sum(widths)):
                answer["loaded"][name] = item
            else:
                reason = f"it is {one.width} numbers wide, the checkpoint needs {' + '.join(map(str, widths))}"
                answer["skipped"][name] = item | {"reason": reason}
        unknown = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0, "vectors": 0}
        answer["skipped"] |= {name: unknown | {"reason": reason} for name, reason in broken.items()}
        return answer

    def _widths(self) -> list[int] | None:
        """Of the current checkpoint's text encoders, as its header tells; None: unknown."""
        try:
            tensors = read_header(self._app.current_checkpoint().path).tensors
        except (NoCheckpoint, ModelFileError) as error:
            log.info("embeddings cannot be told apart: %s", error)
            return None
        return [info.shape[1] for name, info in tensors.items() if name.endswith("token_embedding.weight")] or None
