"""DPM-Solver (Lu et al., 2022a) and DPM-Solver++ (Lu et al., 2022b): the equation in lambda = -log sigma, where its
linear part is solved exactly. steps.py has the contract."""

from math import atan, ceil

import torch
from torch import Tensor

from modules.diffusion.steps import Denoise, Noise, OnStep, Step, ancestral_step, halfway, to_d


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep) -> Tensor:
    """DPM-Solver++(2M), algorithm 2 of Lu et al. (2022b)."""
    total = len(sigmas) - 1
    levels = sigmas.tolist()
    old_x0 = torch.zeros_like(x)
    for i in range(total):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        x0 = denoise(x, sigma)
        on_step(Step(i, total, sigma, x0))
        h = sigma.log() - sigma_next.log()  # infinite in a last step to 0, where x becomes x0
        if i == 0 or levels[i + 1] == 0:
            d = x0
        else:
            r = (sigmas[i - 1].log() - sigma.log()) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * old_x0
        x = sigma_next / sigma * x - torch.expm1(-h) * d
        old_x0 = x0
    return x


def dpmpp_2s_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver++(2S), algorithm 1 of Lu et al. (2022b), down to less than the next level, and fresh noise up to
    it."""
    total = len(sigmas) - 1
    levels = sigmas.tolist()
    downs = ancestral_step(sigmas[:-1], sigmas[1:], eta)[0].tolist()
    for i in range(total):
        sigma = sigmas[i]
        x0 = denoise(x, sigma)
        on_step(Step(i, total, sigma, x0))
        down, up = ancestral_step(sigma, sigmas[i + 1], eta)
        if downs[i] == 0:
            x = x + to_d(x, sigma, x0) * (down - sigma)
        else:
            middle = halfway(sigma, down)
            x0_middle = denoise(exact(x, x0, sigma, middle), middle)
            x = exact(x, x0_middle, sigma, down)
        if levels[i + 1] > 0:
            x = x + noise() * s_noise * up
    return x


def exact(x: Tensor, x0: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Where x goes if x0 stays as it is."""
    return sigma_next / sigma * x + (1 - sigma_next / sigma) * x0


class Solver:
    """Single steps of DPM-Solver of order 1 to 3, eq. 3.7 and algorithms 1 and 2 of Lu et al. (2022a); t = -log
    sigma."""

    def __init__(self, denoise: Denoise, x: Tensor, t: Tensor) -> None:
        self.denoise, self.x, self.t = denoise, x, t
        self.x0 = denoise(x, self.sigma(t))
        self.eps = (x - self.x0) / self.sigma(t)
        self._first: tuple[Tensor, Tensor] | None = None  # eps a third of the way, for that step's size

    @staticmethod
    def sigma(t: Tensor) -> Tensor:
        return (-t).exp()

    def order_1(self, t: Tensor) -> Tensor:
        return self.x - self.sigma(t) * (t - self.t).expm1() * self.eps

    def order_2(self, t: Tensor, r: float = 1 / 2) -> Tensor:
        change = self._eps_at(t, r) - self.eps
        return self.order_1(t) - self.sigma(t) / (2 * r) * (t - self.t).expm1() * change

    def order_3(self, t: Tensor, r1: float = 1 / 3, r2: float = 2 / 3) -> Tensor:
        h, s = t - self.t, self.t + r2 * (t - self.t)
        change = self._eps_at(t, r1) - self.eps
        u = self.order_1(s) - self.sigma(s) * (r2 / r1) * ((r2 * h).expm1() / (r2 * h) - 1) * change
        change = self._eps(u, s) - self.eps
        return self.order_1(t) - self.sigma(t) / r2 * (h.expm1() / h - 1) * change

    def _eps_at(self, t: Tensor, r: float) -> Tensor:
        """After the part r of the way to t; the second and the third order share it where their r is the same."""
        s = self.t + r * (t - self.t)
        if self._first is None or not torch.equal(self._first[0], s):
            self._first = s, self._eps(self.order_1(s), s)
        return self._first[1]

    def _eps(self, u: Tensor, s: Tensor) -> Tensor:
        return (u - self.denoise(u, self.sigma(s))) / self.sigma(s)


def down_and_up(t: Tensor, t_next: Tensor, t_end: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """The ancestral step in t: how far to go (never beyond the end), and how much noise then leads to t_next."""
    if eta == 0:
        return t_next, torch.zeros_like(t_next)
    down, _ = ancestral_step((-t).exp(), (-t_next).exp(), eta)
    t_down = torch.minimum(t_end, -down.log())
    return t_down, ((-2 * t_next).exp() - (-2 * t_down).exp()).clamp(min=0).sqrt()


def dpm_fast(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    sigma_min: float = 0.0,
    sigma_max: float = 0.0,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver-fast of Lu et al. (2022a), section 3.4: as many calls of the model as `sigmas` has steps, mostly by
    threes. Of `sigmas` only the ends count, or those that are given; it stops at the lower one."""
    t, t_end = ends(sigmas, sigma_min, sigma_max)
    calls = len(sigmas) - 1
    orders = [3] * (calls // 3 - 1) + [2, 1] if calls % 3 == 0 else [3] * (calls // 3) + [calls % 3]
    ts = torch.linspace(float(t), float(t_end), len(orders) + 1, device=sigmas.device)
    for i, order in enumerate(orders):
        solver = Solver(denoise, x, ts[i])
        on_step(Step(i, len(orders), (-ts[i]).exp(), solver.x0))
        t_down, up = down_and_up(ts[i], ts[i + 1], t_end, eta)
        step = (solver.order_1, solver.order_2, solver.order_3)[order - 1]
        x = step(t_down) + up * s_noise * noise()
    return x


def dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    sigma_min: float = 0.0,
    sigma_max: float = 0.0,
    eta: float = 0.0,
    rtol: float = 0.05,
    atol: float = 0.0078,
    first_h: float = 0.05,
    accept_safety: float = 0.81,
) -> Tensor:
    """DPM-Solver-23 of Lu et al. (2022a), appendix C: the second order tells how far off the third is, and that how
    long the next step may be. Of `sigmas` only the ends count, or those that are given; it stops at the lower one."""
    t_start, t_end = ends(sigmas, sigma_min, sigma_max)
    h, order = torch.tensor(first_h, device=x.device), 1.5 if eta else 3.0
    t, x_low_old, i = t_start, x, 0
    while t < t_end - 1e-5:
        t_next = torch.minimum(t_end, t + h)
        t_down, up = down_and_up(t, t_next, t_end, eta)
        solver = Solver(denoise, x, t)
        total = ceil((i + 1) * float((t_end - t_start) / (t_next - t_start)))  # so many if all steps went as far
        on_step(Step(i, total, (-t).exp(), solver.x0))
        x_low, x_high = solver.order_2(t_down, 1 / 3), solver.order_3(t_down)
        tolerance = (rtol * torch.maximum(x_low.abs(), x_low_old.abs())).clamp(min=atol)
        error = float(torch.linalg.vector_norm((x_low - x_high) / tolerance)) / x.numel() ** 0.5
        factor = 1 + atan((1 / (error + 1e-8)) ** (1 / order) - 1)
        if factor >= accept_safety:
            x_low_old, x, t = x_low, x_high + up * noise(), t_next
        h, i = h * factor, i + 1
    return x


def ends(sigmas: Tensor, sigma_min: float, sigma_max: float) -> tuple[Tensor, Tensor]:
    """The first and the last t; 0 leaves it to `sigmas`, whose 0 at the end would be infinitely far."""
    first = sigmas.new_tensor(sigma_max) if sigma_max else sigmas[0]
    last = sigmas.new_tensor(sigma_min) if sigma_min else sigmas[sigmas > 0][-1]
    return -first.log(), -last.log()
