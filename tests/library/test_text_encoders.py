from pathlib import Path

import pytest

from modules.library.text_encoders import TextEncoderLibrary, UnknownTextEncoder


def test_chosen_by_name_from_any_of_the_folders(tmp_path: Path) -> None:
    for name in (
        "text_encoder/clip_l.safetensors",
        "clip/sub/Clip_G.safetensors",
        "clip/clip_l.safetensors",
        "clip/x.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    library = TextEncoderLibrary([tmp_path / name for name in ("text_encoder", "nowhere", "clip")])
    large, small = tmp_path / "clip/sub/Clip_G.safetensors", tmp_path / "text_encoder/clip_l.safetensors"
    assert library.list() == (large, small)
    assert library.chosen("") == ()
    assert library.chosen(" clip_l, CLIP_G.safetensors,") == (small, large)
    with pytest.raises(UnknownTextEncoder, match=r"no text encoder 'clip_1'; nearest: clip_l\.safetensors"):
        library.chosen("clip_1")
    with pytest.raises(UnknownTextEncoder, match="put it into models/text_encoder"):
        TextEncoderLibrary([]).chosen("clip_l")
