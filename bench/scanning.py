"""How long a folder of 50,000 model files takes to list, beside a bare walk that opens and reads the start of each.

python -m bench.scanning [--files 50000]      makes its files in a temporary folder (a file of 4 KB each)
"""

import argparse
import json
import os
import struct
import tempfile
from collections.abc import Callable, Sized
from pathlib import Path
from typing import TypeVar

from bench.networks import timed
from modules.library.checkpoints import CheckpointLibrary
from modules.library.networks import NetworkLibrary

FOLDERS = 50
Library = TypeVar("Library")


def make_files(folder: Path, count: int, names: list[str]) -> None:
    """Files of tensors of these names, with one number each."""
    header = {name: {"dtype": "F16", "shape": [1], "data_offsets": [2 * k, 2 * k + 2]} for k, name in enumerate(names)}
    raw = json.dumps(header, separators=(",", ":")).encode()
    content = struct.pack("<Q", len(raw)) + raw + bytes(2 * len(names))
    for number in range(count):
        path = folder / f"{number % FOLDERS:02}" / f"model {number}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def bare(folder: Path) -> int:
    count = 0
    for here, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(here, name)
            os.stat(path)
            with open(path, "rb") as file:
                count += len(file.read(256)) > 0
    return count


def measured(
    what: str,
    folder: Path,
    count: int,
    start: Callable[[], Library],
    listed: Callable[[Library], Sized],
    refresh: Callable[[Library], object],
) -> None:
    def fresh() -> Library:
        library = start()
        assert len(listed(library)) == count
        return library

    timed("walked and read without more", lambda: bare(folder))
    library = timed(f"{count} {what}, never seen before", fresh)
    timed("the same, looked through again", lambda: refresh(library))
    timed("the same at the next start", fresh)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=50_000)
    count = parser.parse_args().files
    with tempfile.TemporaryDirectory() as made:
        checkpoints, loras = Path(made) / "checkpoints", Path(made) / "loras"
        blocks = [f"model.diffusion_model.input_blocks.{k}.0.weight" for k in range(40)]
        make_files(checkpoints, count, [*blocks, "first_stage_model.decoder.conv_in.weight"])
        measured(
            "checkpoints",
            checkpoints,
            count,
            lambda: CheckpointLibrary([checkpoints], Path(made) / "checkpoints.db"),
            CheckpointLibrary.list,
            CheckpointLibrary.refresh,
        )
        layers = [f"lora_unet_mid_block_attentions_{k}_proj_in.lora_down.weight" for k in range(40)]
        make_files(loras, count, layers)
        measured(
            "LoRAs",
            loras,
            count,
            lambda: NetworkLibrary({"lora": [loras]}, Path(made) / "loras.db"),
            lambda library: library.list("lora"),
            lambda library: library.refresh("lora"),
        )


if __name__ == "__main__":
    main()
