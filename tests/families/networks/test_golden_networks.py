"""Embeddings in prompts become the conditionings that A1111 measured; whole pictures with networks are in
tests/generation/test_golden_cases.py."""

import json
from pathlib import Path

import numpy as np

from modules.families.family import UNTOLD, TextOptions
from modules.families.networks.embeddings import EmbeddingStore
from modules.families.sd1 import SD1Family
from modules.library.header import read_header
from modules.library.networks import NetworkLibrary
from tests.golden import golden as golden
from tests.tiny import FP32


def test_conditionings_with_embeddings(golden: Path, tmp_path: Path) -> None:
    path = golden / "models" / "tiny-sd1.safetensors"
    model = SD1Family().load(path, read_header(path), path.with_suffix(".yaml"), FP32, UNTOLD)
    embeddings = EmbeddingStore(NetworkLibrary({"embedding": [golden / "models"]}, tmp_path / "n.db")).fitted(model)
    measured = json.loads((golden / "prompts" / "prompts.json").read_text("utf-8"))
    conds = np.load(golden / "prompts" / "conds.npz")
    named = [entry for entry in measured if "tinyemb" in entry["prompt"].lower()]
    assert len(named) >= 4
    for entry in named:
        ours = model.encode([entry["prompt"]], TextOptions(embeddings=embeddings)).cross[0].detach().numpy()
        theirs = conds[str(entry["index"])]
        assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs), entry["prompt"]
