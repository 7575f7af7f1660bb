"""Every step of DDPM and DDIM against diffusers' schedulers, on the same noise."""

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from core import noise
from diffusion import sampler

SCHEDULE = noise.linear()
SHAPE = (3, 4, 4, 2)
COMMON = {"beta_start": 1e-4, "beta_end": 0.02, "timestep_spacing": "trailing"}


def eps_model(x: np.ndarray, timestep: int) -> np.ndarray:
  """Any smooth function of x and t serves as the network."""
  return np.tanh(0.7 * x) + 0.1 * np.cos(timestep / 100)


def test_linear_betas() -> None:
  theirs = diffusers.DDPMScheduler(**COMMON).alphas_cumprod.numpy()
  logsnr = SCHEDULE.logsnr(jnp.arange(1, 1001) / 1000)
  alpha, sigma = noise.alpha_sigma(logsnr, "vp")
  np.testing.assert_allclose(np.square(alpha), theirs, rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(np.square(sigma), 1 - theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_step_for_step(eta: float, steps: int, clip: bool) -> None:
  scheduler = diffusers.DDIMScheduler(**COMMON, clip_sample=clip)
  compare(scheduler, eta, steps, clip, {"eta": eta, "use_clipped_model_output": True})


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [20, 1000])
def test_ddpm_step_for_step(steps: int, clip: bool, monkeypatch) -> None:
  scheduler = diffusers.DDPMScheduler(**COMMON, clip_sample=clip)
  module = diffusers.schedulers.scheduling_ddpm
  queue = []
  monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: queue.pop())
  compare(scheduler, 1.0, steps, clip, {}, queue)


def compare(scheduler, eta, steps, clip, arguments, queue=None) -> None:
  """Both samplers from the same start, step by step."""
  draw = np.random.default_rng(0)
  ours = theirs = draw.normal(size=SHAPE).astype(np.float32)
  grid = sampler.time_grid(SCHEDULE, steps)
  scheduler.set_timesteps(steps)
  for i, timestep in enumerate(scheduler.timesteps.tolist()):
    fresh = draw.normal(size=SHAPE).astype(np.float32)
    if queue is None:
      arguments["variance_noise"] = torch.from_numpy(fresh) if eta > 0 else None
    else:
      queue[:] = [torch.from_numpy(fresh)]
    out = torch.from_numpy(eps_model(theirs, timestep).astype(np.float32))
    step = scheduler.step(out, timestep, torch.from_numpy(theirs), **arguments)
    theirs = step.prev_sample.numpy()

    logsnr = jnp.full(SHAPE[0], grid[i])
    eps = jnp.asarray(eps_model(ours, timestep), jnp.float32)
    x_hat, _ = noise.to_x_eps(eps, jnp.asarray(ours), logsnr, "vp", "eps")
    x_hat = jnp.clip(x_hat, -1, 1) if clip else x_hat
    ours = np.asarray(
      sampler.step(
        jnp.asarray(ours),
        x_hat,
        jnp.asarray(fresh),
        grid[i],
        grid[i + 1],
        SCHEDULE,
        eta,
      )
    )
    scale = max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-4)
