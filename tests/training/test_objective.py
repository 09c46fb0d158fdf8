"""The DDPM objective, against its equations, diffusers as oracle, and a real (tiny) UNet that has to learn."""

import copy

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from modules.training.objective import (
    EMA,
    drop_captions,
    min_snr_weight,
    q_sample,
    scaled_linear_alphas_bar,
    signal_to_noise,
    stratified_timesteps,
    training_loss,
)

ALPHAS_BAR = scaled_linear_alphas_bar()


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def scheduler() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def test_schedule_is_stable_diffusions() -> None:
    assert_close(ALPHAS_BAR, scheduler().alphas_cumprod, atol=1e-6, rtol=1e-4)


def test_q_sample_agrees_with_diffusers() -> None:
    x0, epsilon = torch.randn(2, 5, 4, 8, 8, generator=generator())
    t = torch.tensor([0, 1, 400, 800, 999])
    assert_close(q_sample(x0, t, epsilon, ALPHAS_BAR), scheduler().add_noise(x0, epsilon, t), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("timestep", [0, 250, 999])
def test_q_sample_has_the_mean_and_variance_of_equation_4(timestep: int) -> None:
    x0 = torch.full((4000, 1, 4, 4), 2.0)
    epsilon = torch.randn(x0.shape, generator=generator())
    x = q_sample(x0, torch.full((4000,), timestep), epsilon, ALPHAS_BAR)
    a = ALPHAS_BAR[timestep]
    assert_close(x.mean(), 2 * a.sqrt(), atol=0.02, rtol=0)
    assert_close(x.var(), 1 - a, atol=0.02, rtol=0)


def test_min_snr_weight_is_its_formula() -> None:
    weight = min_snr_weight(ALPHAS_BAR, gamma=5.0)
    for t in (0, 100, 500, 999):
        snr = float(ALPHAS_BAR[t] / (1 - ALPHAS_BAR[t]))
        assert weight[t].item() == pytest.approx(min(snr, 5.0) / snr, rel=1e-4)
    assert signal_to_noise(ALPHAS_BAR)[0] > 5 > signal_to_noise(ALPHAS_BAR)[-1]
    assert (min_snr_weight(ALPHAS_BAR, gamma=float("inf")) == 1).all()


def test_loss_of_a_perfect_and_of_a_silent_network() -> None:
    x0, epsilon = torch.randn(2, 6, 4, 8, 8, generator=generator())
    t = stratified_timesteps(6, generator())
    perfect = training_loss(lambda x, t: epsilon, x0, t, epsilon, ALPHAS_BAR)
    assert perfect.weighted == 0
    silent = training_loss(lambda x, t: torch.zeros_like(x), x0, t, epsilon, ALPHAS_BAR)
    mse = epsilon.square().mean(dim=(1, 2, 3))
    assert_close(silent.mse, mse)
    assert_close(silent.weighted, (mse * min_snr_weight(ALPHAS_BAR)[t]).mean())


@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
def test_stratified_timesteps_take_one_of_every_part(batch_size: int) -> None:
    t = stratified_timesteps(batch_size, generator())
    assert sorted((t * batch_size // 1000).tolist()) == list(range(batch_size))
    assert (t >= 0).all() and (t <= 999).all()


def test_stratified_timesteps_are_uniform_for_each_place_of_the_batch() -> None:
    g = generator()
    first = torch.stack([stratified_timesteps(8, g)[0] for _ in range(3000)]).float()
    assert_close(first.mean(), torch.tensor(499.5), atol=20, rtol=0)
    assert_close(first.std(), torch.tensor(288.7), atol=15, rtol=0)


def test_timesteps_follow_a_density() -> None:
    density = torch.zeros(1000)
    density[300:400], density[900:] = 3.0, 1.0
    g = generator()
    t = torch.cat([stratified_timesteps(8, g, density=density) for _ in range(1000)])
    middle, late = ((t >= 300) & (t < 400)).float().mean(), (t >= 900).float().mean()
    assert_close(middle, torch.tensor(0.75), atol=0.001, rtol=0)
    assert_close(late, torch.tensor(0.25), atol=0.001, rtol=0)
    assert_close(t[t >= 900].float().mean(), torch.tensor(949.5), atol=3, rtol=0)


def test_a_density_does_not_change_the_expected_loss() -> None:
    density = min_snr_weight(ALPHAS_BAR, 1.0).clamp(min=0.1)
    count = 20000
    x0 = torch.ones(count, 1, 1, 1)

    def mean_loss(density: torch.Tensor | None) -> torch.Tensor:
        t = stratified_timesteps(count, generator(), density=density)
        misses = (t / 1000).view(-1, 1, 1, 1)  # a network that is worse the later t is
        return training_loss(lambda x, t: misses, x0, t, 0 * x0, ALPHAS_BAR, 1.0, density).weighted

    assert_close(mean_loss(density), mean_loss(None), atol=0, rtol=0.01)


def test_drop_captions_empties_the_given_part() -> None:
    captions = [f"caption {k}" for k in range(5000)]
    kept = drop_captions(captions, 0.1, generator())
    assert kept.count("") / 5000 == pytest.approx(0.1, abs=0.015)
    assert all(after in ("", before) for before, after in zip(captions, kept, strict=True))
    assert drop_captions(captions, 0.0, generator()) == captions


def test_ema_is_the_running_mean_with_a_warm_start() -> None:
    live = nn.Linear(3, 2)
    mean = EMA(live, decay=0.3)
    expected = copy.deepcopy(live.weight.data)
    for n, d in enumerate([2 / 11, 3 / 12, 0.3, 0.3], start=1):  # (1 + n) / (10 + n), then the decay
        live.weight.data = torch.full_like(live.weight, float(n))
        mean.update(live)
        expected = d * expected + (1 - d) * live.weight.data
        assert_close(mean.module.weight.data, expected)
    assert not any(p.requires_grad for p in mean.module.parameters())
    assert not mean.module.training


def test_ema_leaves_frozen_weights_alone() -> None:
    live = nn.Linear(3, 2)
    live.bias.requires_grad_(False)
    mean = EMA(live)
    before = mean.module.bias.clone()
    live.bias.data += 1
    mean.update(live)
    assert_close(mean.module.bias, before)


def test_a_real_unet_learns_two_captions_and_its_mean_follows() -> None:
    unet = tiny_unet()
    mean = EMA(unet, decay=0.9)
    g = generator()
    pictures = torch.randn(2, 4, 8, 8, generator=g)
    contexts = torch.randn(2, 5, 16, generator=g)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3)

    def loss_of(network: UNet2DConditionModel, swapped: bool, g: Generator, batch_size: int = 16) -> Tensor:
        which = torch.arange(batch_size) % 2
        context = contexts[1 - which if swapped else which]
        epsilon = torch.randn(batch_size, 4, 8, 8, generator=g)
        t = stratified_timesteps(batch_size, g)
        return training_loss(
            lambda x, t: network(x, t, context).sample, pictures[which], t, epsilon, ALPHAS_BAR
        ).weighted

    with torch.no_grad():
        before = loss_of(unet, False, generator(1), 64)
    for _ in range(60):
        loss = loss_of(unet, False, g)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean.update(unet)
    with torch.no_grad():
        after = loss_of(mean.module, False, generator(1), 64)
        swapped = loss_of(mean.module, True, generator(1), 64)
    assert after < 0.5 * before
    assert swapped > 1.1 * after  # it listens to the context
