"""Diffusion's loss and guidance by hand, with a stand-in for the network."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from configs.diffusion import ddpm as ddpm_config
from core import noise, step
from core.errors import UserError
from core.family import Samples, Spec
from diffusion import augmentation, ddpm, drawing, likelihood
from nets import build
from text import encoders
from text.cond import Cond

SPEC = Spec((2, 2, 1))
KEY = jax.random.key(3)
CLASSES = 3


class StandIn(nn.Module):
  """gain x + 0.1 logsnr + the sum of the condition; notes what it was given."""

  note: Callable[[dict], None]

  @nn.compact
  def __call__(self, x, logsnr, cond, ids=None):
    gain = self.param("gain", nn.initializers.constant(0.7), ())
    self.note({"x": x, "logsnr": logsnr, "cond": cond, "ids": ids})
    shift = 0.1 * logsnr
    if cond.pooled is not None:
      shift = shift + cond.pooled.sum(-1)
    return gain * x + shift[:, None, None, None]


class Parts:
  """A family taken apart; what its network was last given is in `seen`."""

  def __init__(self, monkeypatch, **fields):
    notes, caught = [], {}

    def from_loss(config, **parts):
      caught.update(parts)
      return step.from_loss(config, **parts)

    def sample(denoise, keys, shape, schedule, settings):
      caught["denoise"] = denoise
      blank = jnp.zeros((*keys.shape, *shape))
      return Samples(blank, blank[None], jnp.zeros(len(keys), jnp.int32))

    def denoise(params, cond, x_t, logsnr):
      caught["sample"](params, KEY, cond, len(x_t))
      return caught["denoise"](x_t, logsnr).x

    def noting(fn):
      return jax.jit(lambda *args: (fn(*args), notes[-1]))

    monkeypatch.setattr(build, "make", lambda model, channels: StandIn(notes.append))
    monkeypatch.setattr(ddpm, "from_loss", from_loss)
    monkeypatch.setattr(drawing.samplers, "sample", sample)
    self.config = make_config(**fields)
    encoder = self.config.text.encoder
    ddpm.make(self.config, SPEC)
    # Compiled where there is much to compile; else the single operations are shared.
    init = jax.jit(caught["init"]) if encoder == "bytes" else caught["init"]
    first = jax.tree.map(jnp.asarray, batch_of(self.config, 2))
    self.params = init(jax.random.key(0), first)
    self._loss = noting(lambda *args: caught["loss"](*args)[0])
    self._eval = noting(caught["evals"]["loss"])
    self._denoise = noting(denoise)

  def loss(self, batch, rng=KEY):
    """The training loss of each example."""
    losses, self.seen = jax.device_get(self._loss(self.params, batch, rng))
    return losses

  def eval(self, batch):
    """The evaluation's loss of each example."""
    losses, self.seen = jax.device_get(self._eval(self.params, batch, KEY))
    return losses

  def denoise(self, cond, x_t, logsnr):
    """The sampler's estimate of the clean picture, under `sample.guidance_scale`."""
    x_hat, self.seen = jax.device_get(self._denoise(self.params, cond, x_t, logsnr))
    return x_hat


def make_config(**fields):
  config = ddpm_config.get_config("tiny")
  config.text.update({"encoder": "label", "classes": CLASSES, "drop": 0.0})
  config.noise.timesteps = 0
  config.sample.threshold = "none"
  for name, value in fields.items():
    group, field = name.split("__")
    config[group][field] = value
  return config


def batch_of(config, n):
  rng = np.random.default_rng(0)
  make = encoders.raw(config.text)
  conds = [make("red heart", i % CLASSES) for i in range(n)]
  return {
    "x": rng.uniform(-1, 1, size=(n, *SPEC.shape)).astype(np.float32),
    "cond": jax.tree.map(lambda *rows: np.stack(rows), *conds),
    "_id": np.arange(n, dtype=np.uint32),
    "_mask": np.ones(n, bool),
  }


def unpacked(parts, batch):
  """alpha, sigma, x and eps of a loss that was just computed, as float64."""
  x, logsnr = (np.asarray(a, np.float64) for a in (batch["x"], parts.seen["logsnr"]))
  snr = np.exp(logsnr)[:, None, None, None]
  alpha, sigma = {
    "cosine": (np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))),
    "linear": (np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))),
    "rectified_flow": (np.sqrt(snr) / (1 + np.sqrt(snr)), 1 / (1 + np.sqrt(snr))),
    "edm": (np.ones_like(snr), 1 / np.sqrt(snr)),
  }[parts.config.noise.schedule]
  x_t = np.asarray(parts.seen["x"], np.float64)
  # Karras et al. 2022: the network sees c_in x_t.
  if parts.config.diffusion.prediction == "edm":
    x_t = x_t * np.sqrt((alpha * parts.config.diffusion.sigma_data) ** 2 + sigma**2)
  elif parts.config.noise.schedule == "edm":
    x_t = x_t * np.sqrt(1 + sigma**2)
  return alpha, sigma, x, (x_t - alpha * x) / sigma


ROWS = {  # prediction = first * x + second * eps
  "x": lambda alpha, sigma: (1, 0),
  "eps": lambda alpha, sigma: (0, 1),
  "v": lambda alpha, sigma: (-sigma, alpha),
  "velocity": lambda alpha, sigma: (-1, 1),
  "score": lambda alpha, sigma: (0, -1 / sigma),
  # F = (x - c_skip x_t / alpha) / c_out of sigma / alpha, with sigma_data 1/2.
  "edm": lambda alpha, sigma: (
    sigma / alpha / np.sqrt((sigma / alpha) ** 2 + 0.25) / 0.5,
    -0.5 / np.sqrt((sigma / alpha) ** 2 + 0.25),
  ),
}


@pytest.mark.parametrize(
  ("schedule", "prediction", "space"),
  [
    ("linear", "eps", "eps"),
    ("cosine", "v", "v"),
    ("rectified_flow", "velocity", "velocity"),
    ("edm", "eps", "eps"),
    ("rectified_flow", "x", "velocity"),
    ("cosine", "v", "eps"),
    ("edm", "edm", "edm"),
    ("cosine", "edm", "x"),
    ("linear", "eps", "score"),
    ("rectified_flow", "x", "edm"),
  ],
)
def test_loss_is_the_squared_error(monkeypatch, schedule, prediction, space):
  parts = Parts(
    monkeypatch,
    noise__schedule=schedule,
    diffusion__prediction=prediction,
    diffusion__loss=space,
  )
  batch = batch_of(parts.config, 6)
  got = parts.loss(batch)
  alphas, sigmas, x, eps = unpacked(parts, batch)
  # What the stand-in says, from what it saw.
  table = np.asarray(parts.params["encoder"]["classes"]["embedding"], np.float64)
  shift = 0.1 * np.asarray(parts.seen["logsnr"]) + table[np.arange(6) % 3].sum(-1)
  output = 0.7 * np.asarray(parts.seen["x"]) + shift[:, None, None, None]
  for i, (alpha, sigma) in enumerate(zip(alphas.ravel(), sigmas.ravel(), strict=True)):
    said = ROWS[prediction](alpha, sigma)
    pair = np.stack([alpha * x[i] + sigma * eps[i], output[i]]).reshape(2, -1)
    x_hat, eps_hat = np.linalg.solve([(alpha, sigma), said], pair)
    one, two = ROWS[space](alpha, sigma)
    off = one * (x_hat - x[i].ravel()) + two * (eps_hat - eps[i].ravel())
    np.testing.assert_allclose(got[i], np.mean(off**2), rtol=2e-3)


def loss_of(monkeypatch, n=12, **fields):
  parts = Parts(monkeypatch, **fields)
  batch = batch_of(parts.config, n)
  return parts.loss(batch), parts, batch


def test_a_cap_on_the_weight_is_min_snr(monkeypatch):
  # Hang et al. 2023, eq. 9: min(SNR, 5) |x - x_hat|^2 for every prediction.
  for prediction in ("eps", "v", "x"):
    free, parts, _ = loss_of(monkeypatch, diffusion__prediction=prediction)
    capped = loss_of(
      monkeypatch, diffusion__prediction=prediction, diffusion__weight_cap=5.0
    )[0]
    snr = np.exp(np.asarray(parts.seen["logsnr"], np.float64))
    assert (snr < 5).any()
    assert (snr > 5).any()
    np.testing.assert_allclose(capped, free * np.minimum(snr, 5) / snr, rtol=1e-5)


def test_a_network_is_told_how_a_picture_was_transformed(monkeypatch):
  # Of a mirrored picture the first of nine numbers is 1; of what is drawn all are 0.
  parts = Parts(monkeypatch, diffusion__augment=1e-9)
  batch = batch_of(parts.config, 16)
  parts.loss(batch)
  x, logsnr = parts.seen["x"], parts.seen["logsnr"]
  told = parts.seen["cond"].pooled[:, -augmentation.LABELS :]
  alpha = unpacked(parts, batch)[0]
  for fn in (parts.eval, lambda b: parts.denoise(b["cond"], b["x"], logsnr)):
    fn(batch)
    assert (parts.seen["cond"].pooled[:, -augmentation.LABELS :] == 0).all()
  plain = Parts(monkeypatch)
  plain.loss(batch)
  mirrored = told[:, 0] == 1
  assert 0 < mirrored.sum() < 16
  assert (told[:, 1:] == 0).all()
  moved = x - plain.seen["x"]
  np.testing.assert_allclose(moved[~mirrored], 0, atol=1e-6)
  want = alpha * (batch["x"][:, :, ::-1] - batch["x"])
  np.testing.assert_allclose(moved[mirrored], want[mirrored], atol=1e-5)


def test_a_small_picture_is_of_the_transformed_one(monkeypatch):
  given, real = [], ddpm.degraded

  def degraded(cond, *rest):
    jax.debug.callback(given.append, cond.image)
    return real(cond, *rest)

  monkeypatch.setattr(ddpm, "degraded", degraded)
  parts = Parts(monkeypatch, diffusion__augment=1e-9, data__low_size=1)
  batch = batch_of(parts.config, 16)
  parts.loss(batch)
  jax.effects_barrier()
  mirrored = parts.seen["cond"].pooled[:, -augmentation.LABELS] == 1
  assert 0 < mirrored.sum() < 16
  want = np.where(mirrored[:, None, None, None], batch["x"][:, :, ::-1], batch["x"])
  np.testing.assert_array_equal(given[-1], want)


def test_the_spaces_of_v_and_velocity_are_one_but_for_a_weight(monkeypatch):
  # Under vp, |v error|^2 = (SNR + 1) |x error|^2, whatever is predicted.
  in_x, parts, _ = loss_of(
    monkeypatch, diffusion__prediction="eps", diffusion__loss="x"
  )
  in_v = loss_of(monkeypatch, diffusion__prediction="eps", diffusion__loss="v")[0]
  snr = np.exp(np.asarray(parts.seen["logsnr"], np.float64))
  np.testing.assert_allclose(in_v, (snr + 1) * in_x, rtol=1e-4)


def test_the_continuous_bound_by_hand(monkeypatch):
  # VDM, eq. 17: -1/2 dlogsnr/dt |eps - eps_hat|^2, here in bits a dimension.
  got, parts, batch = loss_of(
    monkeypatch, noise__schedule="cosine", diffusion__loss="vlb"
  )
  plain = loss_of(monkeypatch, noise__schedule="cosine", diffusion__loss="eps")[0]
  logsnr = np.asarray(parts.seen["logsnr"], np.float64)
  t = 2 / np.pi * np.arctan(np.exp(-logsnr / 2))
  slope = -2 * np.pi / np.sin(np.pi * t)  # of -2 log tan(pi t / 2)
  np.testing.assert_allclose(got, -slope / 2 * plain / np.log(2), rtol=2e-3)


STEPS = {"noise__schedule": "cosine", "noise__timesteps": 8}


def test_the_discrete_bound_is_its_steps_times_their_number(monkeypatch):
  got, parts, batch = loss_of(
    monkeypatch, 32, **STEPS, diffusion__loss="vlb", diffusion__variance="small"
  )
  alpha, sigma, x, eps = unpacked(parts, batch)
  t = 2 / np.pi * np.arctan2(sigma, alpha).ravel()
  np.testing.assert_allclose(t * 8, np.rint(t * 8), atol=1e-3)
  table = np.asarray(parts.params["encoder"]["classes"]["embedding"], np.float64)
  shift = 0.1 * np.asarray(parts.seen["logsnr"]) + table[np.arange(32) % 3].sum(-1)
  eps_hat = 0.7 * np.asarray(parts.seen["x"]) + shift[:, None, None, None]
  x_hat = (alpha * x + sigma * eps - sigma * eps_hat) / alpha
  schedule = noise.discrete(noise.cosine(), 8)
  args = (jnp.asarray(a, jnp.float32) for a in (x, x_hat))
  nats = likelihood.step(*args, None, jnp.asarray(t, jnp.float32), schedule, "small")
  np.testing.assert_allclose(got, 8 * nats / 4 / np.log(2), rtol=2e-3)


def test_a_learned_variance_adds_the_bound_without_its_gradient_in_the_mean(
  monkeypatch,
):
  class Two(nn.Module):
    """A value and a log-variance, each with a gain of its own."""

    @nn.compact
    def __call__(self, x, logsnr, cond, ids=None):
      one, two = (
        self.param(name, nn.initializers.constant(0.3), ()) for name in ("mean", "var")
      )
      return jnp.concatenate([one * x, two * x], axis=-1)

  def grads(loss, **fields):
    config = make_config(
      **STEPS, diffusion__loss=loss, diffusion__learn_variance=True, **fields
    )
    caught = {}

    def from_loss(config, **parts):
      caught.update(parts)
      return step.from_loss(config, **parts)

    monkeypatch.setattr(build, "make", lambda model, channels: Two())
    monkeypatch.setattr(ddpm, "from_loss", from_loss)
    ddpm.make(config, SPEC)
    batch = jax.tree.map(jnp.asarray, batch_of(config, 16))
    params = caught["init"](KEY, batch)
    total = lambda p: caught["loss"](p, batch, KEY)[0].sum()  # noqa: E731
    return jax.tree.map(float, jax.jit(jax.grad(total))(params)["net"])

  simple = grads("eps", diffusion__vlb_weight=0.0)
  hybrid = grads("eps", diffusion__vlb_weight=0.5)
  bound = grads("vlb")
  assert simple["var"] == 0
  np.testing.assert_allclose(hybrid["mean"], simple["mean"], rtol=1e-5)
  np.testing.assert_allclose(hybrid["var"], 0.5 * bound["var"], rtol=1e-4)
  assert abs(bound["mean"]) > 0


def test_low_discrepancy_times_are_spread_over_the_batch(monkeypatch):
  n = 8
  _, parts, batch = loss_of(
    monkeypatch, n, noise__schedule="cosine", noise__low_discrepancy=True
  )
  logsnr = np.asarray(parts.seen["logsnr"], np.float64)
  t = np.sort(2 / np.pi * np.arctan(np.exp(-logsnr / 2)))
  np.testing.assert_allclose(np.diff(t), 1 / n, atol=2e-3)
  parts.eval(batch)  # where examples are evaluated one by one
  t = np.sort(2 / np.pi * np.arctan(np.exp(-np.asarray(parts.seen["logsnr"]) / 2)))
  assert np.abs(np.diff(t) - 1 / n).max() > 0.01


def test_optimal_coupling_is_the_best_assignment():
  rng = np.random.default_rng(0)
  x, eps = (rng.normal(size=(7, 2, 2, 1)).astype(np.float32) for _ in range(2))
  got = np.asarray(jax.jit(ddpm.coupled)(x, eps))
  cost = ((x[:, None] - eps[None]) ** 2).sum((2, 3, 4))
  rows, columns = optimize.linear_sum_assignment(cost)
  np.testing.assert_array_equal(got, eps[columns])


@pytest.mark.parametrize("schedule", ["cosine", "edm"])
def test_noise_is_normal_and_its_level_has_the_density(monkeypatch, schedule):
  n = 4000
  parts = Parts(monkeypatch, noise__schedule=schedule, text__encoder="none")
  batch = batch_of(parts.config, n)
  parts.loss(batch)
  alpha, sigma, _, eps = unpacked(parts, batch)
  assert abs(eps.mean()) < 4 / np.sqrt(eps.size)
  assert abs(eps.var() - 1) < 4 * np.sqrt(2 / eps.size)
  correlation = np.corrcoef(eps.reshape(n, -1).T) - np.eye(4)
  assert np.abs(correlation).max() < 4 / np.sqrt(n)
  if schedule == "edm":  # log sigma ~ N(-1.2, 1.2^2)
    level = np.log(sigma).ravel()
    assert abs(level.mean() + 1.2) < 4 * 1.2 / np.sqrt(n)
    assert abs(level.std() / 1.2 - 1) < 4 / np.sqrt(2 * n)
  else:  # t ~ U(0, 1)
    t = np.sort(2 / np.pi * np.arctan2(sigma, alpha).ravel())
    assert np.abs(t - (np.arange(n) + 0.5) / n).max() < 1.95 / np.sqrt(n)
  # The level does not tell the noise.
  size = (eps**2).mean((1, 2, 3))
  assert abs(np.corrcoef(size, sigma.ravel())[0, 1]) < 4 / np.sqrt(n)


def null_rows(parts):
  table = parts.params["encoder"]["classes"]["embedding"]
  return (parts.seen["cond"].pooled == np.asarray(table[CLASSES])).all(-1)


def test_conditions_are_dropped_at_their_rate_by_example(monkeypatch):
  n, rate = 3000, 0.25
  parts = Parts(monkeypatch, text__drop=rate)
  batch = batch_of(parts.config, n)
  whole, gone = parts.loss(batch), null_rows(parts)
  assert abs(gone.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / n)
  # A batch cut in two drops the same, and has the same losses.
  for rows in (slice(n // 2), slice(n // 2, n)):
    losses = parts.loss(jax.tree.map(lambda a, rows=rows: a[rows], batch))
    np.testing.assert_array_equal(null_rows(parts), gone[rows])
    np.testing.assert_allclose(losses, whole[rows], rtol=1e-5)
  # Another step drops others.
  parts.loss(batch, jax.random.key(4))
  assert (null_rows(parts) != gone).any()


def test_evaluation_drops_nothing(monkeypatch):
  parts = Parts(monkeypatch, text__drop=1.0)
  batch = batch_of(parts.config, 6)
  parts.loss(batch)
  assert null_rows(parts).all()
  assert parts.seen["ids"] is not None
  parts.eval(batch)
  assert not null_rows(parts).any()
  assert parts.seen["ids"] is None  # which switches dropout off


@pytest.mark.parametrize("encoder", ["label", "bytes"])
def test_sampling_and_training_have_one_null_condition(monkeypatch, encoder):
  parts = Parts(
    monkeypatch, text__encoder=encoder, text__drop=1.0, sample__guidance_scale=2.0
  )
  batch = batch_of(parts.config, 2)
  parts.loss(batch)
  trained = parts.seen["cond"]
  parts.denoise(batch["cond"], batch["x"], jnp.zeros(2))
  sampled = parts.seen["cond"]
  assert len(sampled.pooled) == 4  # own, own, null, null
  assert jax.tree.structure(trained) == jax.tree.structure(sampled)
  for one, both in zip(jax.tree.leaves(trained), jax.tree.leaves(sampled), strict=True):
    np.testing.assert_allclose(both[2:], one, atol=1e-6)
    if one.dtype != bool:
      assert (both[:2] != one).any()


@pytest.mark.parametrize(
  ("schedule", "prediction"),
  [("cosine", "eps"), ("edm", "x")],
)
def test_guidance_is_linear_in_its_scale(monkeypatch, schedule, prediction):
  x_t = jnp.asarray(np.random.default_rng(1).normal(size=(2, *SPEC.shape)), jnp.float32)
  logsnr = jnp.array([-1.0, 2.0])
  null, own = Cond(label=jnp.array([-1, -1])), Cond(label=jnp.array([0, 2]))

  def estimate(scale, cond):
    parts = Parts(
      monkeypatch,
      noise__schedule=schedule,
      diffusion__prediction=prediction,
      sample__guidance_scale=scale,
      text__drop=0.1,
    )
    return parts.denoise(cond, x_t, logsnr), len(parts.seen["x"])

  unconditional, rows = estimate(1.0, null)
  assert rows == 2  # a scale of 1 costs no second pass
  conditional, _ = estimate(1.0, own)
  assert np.abs(conditional - unconditional).max() > 0.01
  for scale in (0.0, 3.0):
    got, rows = estimate(scale, own)
    assert rows == 4
    want = unconditional + scale * (conditional - unconditional)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_clipping_keeps_the_estimate_in_range(monkeypatch):
  x_t = jnp.full((1, *SPEC.shape), 5.0)
  cond = Cond(label=jnp.array([0]))
  free, clipped = (
    Parts(monkeypatch, sample__threshold=kind).denoise(cond, x_t, jnp.zeros(1))
    for kind in ("none", "static")
  )
  assert np.abs(free).max() > 1
  np.testing.assert_array_equal(clipped, np.clip(free, -1, 1))


@pytest.mark.parametrize(
  ("fields", "sentence"),
  [
    ({"diffusion__prediction": "epsilon"}, "diffusion.prediction='epsilon' is unknown"),
    ({"diffusion__loss": "elbo"}, "diffusion.loss='elbo' is unknown"),
    ({"diffusion__learn_variance": True}, "set noise.timesteps"),
    ({"noise__schedule": "learned"}, "set diffusion.loss to 'vlb'"),
    ({"noise__zero_terminal": True}, "diffusion.prediction='eps' tells nothing"),
    ({"sample__variance": "learned", "sample__sampler": "ddpm"}, "learn_variance"),
    ({"diffusion__loss": "vlb", "noise__density": "logit_normal"}, "to 'uniform'"),
    ({"diffusion__loss": "vlb", "noise__schedule": "edm"}, "to 'uniform'"),
    ({"sample__edit": "inpainting"}, "did you mean 'inpaint'"),
    ({"data__low_size": 8}, "data.low_size=8 must be below data.size=8"),
    (
      {"sample__grid": "leading", "sample__threshold": "none", "sample__steps": 5000},
      "sample.grid='leading' takes sample.steps=5000 of noise.timesteps",
    ),
    (
      {
        "sample__grid": "leading",
        "noise__timesteps": 9,
        "sample__threshold": "static",
      },
      "ends short of the clean",
    ),
    (
      {
        "noise__zero_terminal": True,
        "diffusion__prediction": "v",
        "sample__lens": "ve",
      },
      "cannot start where there is no signal",
    ),
    ({"sample__sampler": "dimm"}, "did you mean 'ddim'"),
    ({"model__net": "unett"}, "did you mean 'unet'"),
    ({"noise__schedule": "cosin"}, "did you mean 'cosine'"),
    ({"text__encoder": "byte"}, "did you mean 'bytes'"),
  ],
)
def test_refusals(fields, sentence):
  with pytest.raises(UserError, match=sentence):
    ddpm.make(make_config(**fields), SPEC)
