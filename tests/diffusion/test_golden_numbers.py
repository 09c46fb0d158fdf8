"""All measured noise tensors, sigma lists and timesteps; tests/data holds a part of them."""

import json
from pathlib import Path

import numpy as np
import torch

from modules.diffusion.denoisers import levels_for
from modules.diffusion.names import SAMPLER_INFOS, resolve
from modules.diffusion.noise import ImageNoise, Source, Variation
from modules.diffusion.prediction import scaled_linear_alphas_cumprod
from modules.diffusion.schedules import SCHEDULES, sigmas_for, timesteps_for
from tests.golden import golden as golden

SHAPE = (4, 24, 16)


def test_sigmas(golden: Path) -> None:
    alphas = scaled_linear_alphas_cumprod()
    infos = {info.name: info for info in SAMPLER_INFOS}
    tried = 0
    for key, (*sigmas, extra) in json.loads((golden / "sigmas.json").read_text())["sampler_scheduler_steps"].items():
        sampler, schedule, steps = key.split("|")
        if sampler in infos and schedule in SCHEDULES:
            tried += 1
            found = sigmas_for(infos[sampler], schedule, int(steps), levels_for(infos[sampler], alphas))
            torch.testing.assert_close(found, torch.tensor(sigmas), rtol=1e-6, atol=0, msg=lambda m, k=key: f"{k}: {m}")
            assert resolve(infos[sampler], schedule) == extra.get("Schedule type", "Automatic"), key
    assert tried


def test_timesteps(golden: Path) -> None:
    for key, wanted in json.loads((golden / "sigmas.json").read_text())["compvis_timesteps"].items():
        assert timesteps_for(int(key.split("|")[1])).tolist() == wanted, key


def test_noise(golden: Path) -> None:
    wanted = np.load(golden / "rng.npz")
    sources: tuple[Source, ...] = ("CPU", "NV")
    for source in sources:
        for seed in (0, 1, 42, 123456789, 4294967295):
            noise = ImageNoise(SHAPE, [seed], source)
            for i in range(3):
                found = noise.next() if i else noise.first()
                assert np.array_equal(found, wanted[f"{source}|seed{seed}|draw{i}"])
        for key, noise in {
            "seeds42-43|sub7-8@0.3": ImageNoise(SHAPE, [42, 43], source, variation=Variation((7, 8), 0.3)),
            "seed42|resizefrom64x128": ImageNoise(SHAPE, [42], source, resize_from=(16, 8)),
        }.items():
            assert np.array_equal(noise.first(), wanted[f"{source}|{key}"]), key
            assert np.array_equal(noise.next(), wanted[f"{source}|{key}|draw1"]), key
        noise = ImageNoise(SHAPE, [42], source, resize_from=(32, 32))
        assert np.array_equal(noise.first(), wanted[f"{source}|seed42|resizefrom256x256"])
        noise = ImageNoise(SHAPE, [42], source, later_seed_delta=31337)
        for i in range(2):
            found = noise.next() if i else noise.first()
            assert np.array_equal(found, wanted[f"{source}|seed42|ensd31337|draw{i}"])
