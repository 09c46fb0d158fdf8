"""Batches that are sampled and still have to be decoded: whoever keeps the pictures does that, while the engine samples
the next batch. A batch is decoded once, on whichever thread asks first."""

import logging
import threading
from collections.abc import Callable
from functools import lru_cache, partial

import torch

from modules.generation.made import Developing, GeneratedImage
from modules.generation.plan import ImagePlan
from modules.runtime.memory import is_out_of_memory

log = logging.getLogger(__name__)

MOST = 4  # pictures of a batch: so many are taken by whoever keeps them before the first of them is ready

Decode = Callable[[], list[GeneratedImage]]


class Batch:
    """The pictures of one, for two threads."""

    def __init__(self, decode: Decode, again: Decode, device: torch.device):
        """`again`: what the engine does on its own thread when there was no memory for both."""
        self._decode, self._again, self._device = decode, again, device
        self._lock, self._over = threading.Lock(), threading.Event()
        self._tried = False
        self._made: list[GeneratedImage] = []
        self.problem: Exception | None = None
        self._sampled: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._sampled = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._sampled.record(torch.cuda.current_stream(device))

    def picture(self, place: int) -> GeneratedImage:
        """Where there was no memory it waits for the engine, which comes by after its next batch, and at its end."""
        self._try()
        self._over.wait()
        if self.problem:
            raise self.problem
        return self._made[place]

    def settle(self) -> None:
        """On the engine's thread. Afterwards the pictures are there, or a problem is."""
        self._try()
        if self._over.is_set():
            return
        log.warning("out of memory while a batch was decoded beside the next one; it is decoded alone")
        try:
            with torch.inference_mode():
                self._made = self._again()
        except Exception as error:
            self.problem = error
        finally:
            self._end()

    def _try(self) -> None:
        with self._lock:
            if self._tried:
                return
            self._tried = True
            try:
                self._made = self._apart()
            except Exception as error:
                if is_out_of_memory(error):
                    return
                self.problem = error
            self._end()

    def _apart(self) -> list[GeneratedImage]:
        with torch.inference_mode():
            if self._sampled is None:
                return self._decode()
            stream = stream_of(self._device)
            with torch.cuda.stream(stream):
                stream.wait_event(self._sampled)
                try:
                    return self._decode()
                finally:
                    stream.synchronize()  # what it reads belongs to another stream, and is let go afterwards

    def _end(self) -> None:
        if not self._made and self.problem is None:
            self.problem = RuntimeError("the decoding of a batch was broken off")
        self._decode = self._again = list  # the latents go
        self._over.set()


@lru_cache(maxsize=8)
def stream_of(device: torch.device) -> torch.cuda.Stream:
    """The same every time: memory that was used in a stream is kept for that stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Darkroom:
    """Where one run leaves its batches, one at a time. For the engine's thread."""

    def __init__(self) -> None:
        self.shut = False  # there is no memory for two batches
        self.problem: Exception | None = None
        self._batch: Batch | None = None

    def take(
        self, images: tuple[ImagePlan, ...], decode: Decode, again: Decode, device: torch.device
    ) -> list[Developing]:
        self.settle()
        batch = self._batch = Batch(decode, again, device)
        return [Developing(image.index, image, True, partial(batch.picture, i)) for i, image in enumerate(images)]

    def settle(self) -> bool:
        """Waits for what is in it, or does it. Whether there was anything; what went wrong is in `problem`."""
        batch, self._batch = self._batch, None
        if batch is None:
            return False
        batch.settle()
        self.problem = self.problem or batch.problem
        return True

    def check(self) -> None:
        """Raises what went wrong."""
        if self.problem:
            raise self.problem
