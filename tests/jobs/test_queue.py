"""Which checkpoint a request gets that names none."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from modules.jobs.queue import choose_checkpoint
from modules.library.checkpoints import CheckpointLibrary


def test_a_whole_checkpoint_goes_before_files_with_only_a_unet(tmp_path: Path) -> None:
    unet = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}
    save_file(
        {name.removeprefix("model.diffusion_model."): tensor for name, tensor in unet.items()},
        tmp_path / "a.safetensors",
    )
    library = CheckpointLibrary([tmp_path], tmp_path / "cache.db")
    assert choose_checkpoint(library, None).name == "a.safetensors"
    save_file({**unet, "cond_stage_model.transformer.x": torch.zeros(1)}, tmp_path / "b.safetensors")
    library.refresh()
    assert choose_checkpoint(library, None).name == "b.safetensors"
    assert choose_checkpoint(library, "a").name == "a.safetensors"
