"""Networks: how long a folder of ten thousand LoRAs takes to list, and a LoRA of SD 1.5's size to apply and undo.

python -m bench.networks            makes its files in a temporary folder (340 MB) and needs 2.5 GB of memory
"""

import argparse
import json
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file

from modules.app import App
from modules.families.family import Model
from modules.families.networks.applied import applied
from modules.families.networks.tensors import NetworkFiles
from modules.library import networks
from modules.library.catalogue import Wanted
from modules.library.network_tags import Network
from modules.library.networks import NetworkLibrary
from modules.runtime.flags import parse
from modules.runtime.paths import paths_from
from modules.server.models import Describer

RANK = 32


def make_files(folder: Path, count: int) -> None:
    """Headers as kohya writes them: 200 tensors, and the tags of the training pictures."""
    for number in range(count):
        path = folder / f"style {number // 500}" / f"network {number}.safetensors"
        path.parent.mkdir(exist_ok=True)
        tags = json.dumps({"10_x": {f'tag {k} "quoted"': k for k in range(300)}})
        metadata = {"ss_tag_frequency": tags, "ss_output_name": f"alias {number}", "ss_network_dim": "16"}
        header: dict[str, Any] = {"__metadata__": metadata}
        for k in range(200):
            name = f"lora_unet_down_blocks_0_attentions_{k}_proj_in.lora_down.weight"
            header[name] = {"dtype": "F16", "shape": [1], "data_offsets": [2 * k, 2 * k + 2]}
        raw = json.dumps(header, separators=(",", ":")).encode()
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(400))


def timed(what: str, do: Callable[[], Any]) -> Any:
    started, worked = time.perf_counter(), time.process_time()
    result = do()
    wall, cpu = time.perf_counter() - started, time.process_time() - worked
    print(f"{what:62} {wall:8.3f} s, {cpu:8.3f} s of it at work")
    return result


def listing(folder: Path, count: int) -> None:
    (folder / "loras").mkdir()
    make_files(folder / "loras", count)

    def fresh() -> NetworkLibrary:
        library = NetworkLibrary({"lora": [folder / "loras"]}, folder / "networks.db")
        assert len(library.list("lora")) == count
        return library

    library = timed(f"{count} LoRAs, never seen before", fresh)
    timed("the same at the next start", fresh)
    timed("the same, looked through again", lambda: library.refresh("lora"))
    timed("one by its alias", lambda: library.find("lora", f"alias {count - 1}"))


def browsing(folder: Path, count: int) -> None:
    """What the page asks for."""

    def start() -> App:
        return App(paths_from(flags, root=folder / "program"), flags)

    flags = parse(["--data-dir", str(folder / "data"), "--lora-dir", str(folder / "loras")])

    def first(app: App) -> App:
        page = app.models.page(Wanted(kinds=("lora",)))
        describe = Describer(app)
        assert page.total == count and len([describe(one) for one in page.models]) == 100
        return app

    app = timed("the first page of them, never seen before", lambda: first(start()))
    timed("again", lambda: first(app))
    timed("a search", lambda: app.models.page(Wanted(kinds=("lora",), search="alias 77")))
    timed("by date, the last page", lambda: app.models.page(Wanted(kinds=("lora",), sort="date", offset=count - 100)))
    timed("a look for duplicates", lambda: app.models.duplicates("lora"))
    app.watcher.poll()
    timed("a look for changes, where there is none", app.watcher.poll)
    app.store.close()
    app = timed("the first page at the next start", lambda: first(start()))
    app.store.close()


def applying(folder: Path) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    unet = unet.to_empty(device="cpu").half().requires_grad_(False)
    for parameter in unet.parameters():
        parameter.fill_(0.01)
    tensors = {}
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear) and "attentions" in name:
            key = f"lora_unet_{name.replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"] = torch.randn(RANK, module.in_features).half()
            tensors[f"{key}.lora_up.weight"] = torch.randn(module.out_features, RANK).half()
    (folder / "one").mkdir()
    save_file(tensors, folder / "one" / "net.safetensors")
    (file,) = NetworkLibrary({"lora": [folder / "one"]}, folder / "one.db").list("lora")
    model = cast(Model, SimpleNamespace(components={"unet": unet}, family="SD 1.x"))
    changes = applied(model, [Network(file, "net")])
    timed(f"a LoRA of rank {RANK} on SD 1.5's UNet ({len(tensors) // 2} layers), applied", changes.__enter__)
    timed("the same, undone", lambda: changes.__exit__(None, None, None))
    files = NetworkFiles()
    files.room = 1
    for what in ("applied, and its file kept", "applied, its file in memory"):
        changes = applied(model, [Network(file, "net")], files=files)
        timed(f"the same, {what}", changes.__enter__)
        changes.__exit__(None, None, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    options = parser.parse_args()
    networks.LOOK_BUDGET_S = 600  # all of it is measured; a slower disk would be cut short and go on later
    with tempfile.TemporaryDirectory() as folder:
        listing(Path(folder), options.files)
        browsing(Path(folder), options.files)
        applying(Path(folder))


if __name__ == "__main__":
    main()
