"""Edits, guides and small pictures, with a network that knows its data exactly."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import edits, noise
from core.family import Given, sample_keys
from diffusion import denoiser, drawing
from nets.embeddings import NoiseEmbedding
from tests.exact import MEANS, SPEC, STD, parts
from text import encoders
from text.cond import Cond

KEY = jax.random.key(0)
N = 4


def labels(*values):
  return Cond(label=jnp.asarray(values))


COND = labels(0, 0, 1, 1)
PICTURES = MEANS[COND.label][:, None, None, None] + STD * jax.random.normal(
  jax.random.key(7), (N, *SPEC.shape)
)
GIVEN = Given(PICTURES, jnp.ones((N, 4, 4, 1)))


def draw(config, model, cond=COND, guide=None):
  sample = drawing.sampler(config, model, guide)
  return jax.jit(lambda cond: sample({}, KEY, cond, len(cond.label), {}))(cond)


def edit(name, config, model, cond=COND, given=GIVEN):
  fn = drawing.edits(config, model)[name]
  return jax.jit(lambda cond, given: fn({}, KEY, cond, given))(cond, given)


def test_pictures_are_of_their_class(monkeypatch):
  parts_ = parts(monkeypatch)
  images = draw(*parts_, labels(*[0] * 50, *[1] * 50)).images
  np.testing.assert_allclose(images[:50].mean(), -0.4, atol=0.03)
  np.testing.assert_allclose(images[50:].mean(), 0.4, atol=0.03)
  np.testing.assert_allclose(images[:50].std(), STD, rtol=0.08)


def test_guidance_pushes_away_from_no_class_and_negatives_from_theirs(monkeypatch):
  # Guided estimates are mean + gain (x_t - alpha mean) with a guided mean: the flow of
  # normal data around it.
  config, model = parts(monkeypatch, sample__guidance_scale=2.0)
  plain = draw(config, model, labels(*[1] * 60)).images.mean()
  np.testing.assert_allclose(plain, 2 * 0.4 - 0.0, atol=0.03)
  cond = labels(*[1] * 60).replace(negative=labels(*[0] * 60))
  negative = draw(config, model, cond).images.mean()
  np.testing.assert_allclose(negative, 2 * 0.4 - (-0.4), atol=0.03)


def test_a_vector_without_text_is_guided_too(monkeypatch):
  fields = {"text__encoder": "none", "text__embedding": "somewhere"}
  config, model = parts(monkeypatch, sample__guidance_scale=2.0, **fields)
  x, logsnr = jax.random.normal(KEY, (N, *SPEC.shape)), jnp.zeros(N)
  keys, vector = sample_keys(KEY, N), Cond(embedding=jnp.ones((N, 3)))
  got = drawing.denoiser(config, model)({}, vector, keys)(x, logsnr).x
  own, null = (
    model.estimate({}, x, logsnr, cond) for cond in (vector, vector.null_like())
  )
  np.testing.assert_allclose(got, 2 * own - null, atol=1e-5)
  assert np.abs(own - null).min() > 0.01


def test_an_estimate_is_guided_as_drawing_is(monkeypatch):
  # That of normal data around a guided mean: (1 - gain alpha) mean + gain x_t.
  _, model = parts(monkeypatch)
  x, logsnr = PICTURES + 0.1, jnp.zeros(N)
  gain = 0.5**0.5 * STD**2 / (0.5 * STD**2 + 0.5)
  for scale, cond in ((1, COND), (2.0, COND), (1, COND.null_like())):
    mean = scale * MEANS[cond.label][:, None, None, None]
    want = mean + gain * (x - 0.5**0.5 * mean)
    got = model.estimate({}, x, logsnr, cond, scale)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_guidance_in_an_interval_costs_and_changes_nothing_outside(monkeypatch):
  free = draw(*parts(monkeypatch))
  wide = draw(*parts(monkeypatch, sample__guidance_scale=2.0))
  none = draw(
    *parts(
      monkeypatch,
      sample__guidance_scale=2.0,
      sample__guidance_min=1e-9,
      sample__guidance_max=1e-8,
    )
  )
  some = draw(
    *parts(
      monkeypatch,
      sample__guidance_scale=2.0,
      sample__guidance_min=0.3,
      sample__guidance_max=3.0,
    )
  )
  np.testing.assert_allclose(none.images, free.images, atol=1e-6)
  push = [float(a.images[2:].mean()) for a in (free, some, wide)]
  assert push[0] + 0.05 < push[1] < push[2] - 0.05


@pytest.mark.parametrize(
  "theirs",
  [
    {"noise__schedule": "edm", "diffusion__prediction": "edm"},
    {"noise__schedule": "rectified_flow", "diffusion__prediction": "velocity"},
  ],
)
def test_a_guide_of_another_kind_that_knows_as_much_changes_nothing(
  monkeypatch, theirs
):
  free = draw(*parts(monkeypatch))
  _, guide = parts(monkeypatch, **theirs)
  config, model = parts(monkeypatch, sample__guidance_scale=3.0)
  np.testing.assert_allclose(
    draw(config, model, guide=guide).images, free.images, atol=2e-4
  )


def test_autoguidance_leads_away_from_what_the_guide_gets_wrong(monkeypatch):
  # The guide's estimates are 0.1 too bright, so the guided ones are 0.2 too dark.
  _, guide = parts(monkeypatch, off=0.1)
  guided = draw(
    *parts(monkeypatch, sample__guidance_scale=3.0), labels(*[1] * 60), guide
  )
  _, darker = parts(monkeypatch, off=-0.2)
  want = draw(*parts(monkeypatch)[:1], darker, labels(*[1] * 60))
  np.testing.assert_allclose(guided.images, want.images, atol=1e-3)


def test_edits_follow_the_guide(monkeypatch):
  # As above, and without text.drop: a guide needs no null condition.
  _, guide = parts(monkeypatch, off=0.1)
  config, model = parts(
    monkeypatch, sample__guidance_scale=3.0, sample__strength=1.0, text__drop=0.0
  )
  fn = drawing.edits(config, model, guide)["image_to_image"]
  guided = jax.jit(lambda given: fn({}, KEY, COND, given, {}))(GIVEN)
  config, darker = parts(monkeypatch, off=-0.2, sample__strength=1.0)
  want = edit("image_to_image", config, darker)
  np.testing.assert_allclose(guided.images, want.images, atol=1e-3)


@pytest.mark.parametrize(("strength", "steps"), [(0.25, 5), (0.5, 10), (1.0, 20)])
def test_image_to_image_keeps_the_less_the_stronger(monkeypatch, strength, steps):
  got = edit("image_to_image", *parts(monkeypatch, sample__strength=strength))
  assert (got.nfe == 2 * steps - 1).all()
  off = np.asarray(got.images - PICTURES).std()
  # alpha^2 of the start's noise level is left of the picture's deviations.
  alpha = np.cos(np.pi / 2 * strength)
  sigma = np.sin(np.pi / 2 * strength)
  spread = np.sqrt((alpha * STD) ** 2 + sigma**2)
  want = STD * np.sqrt((1 - alpha * STD / spread) ** 2 + (sigma / spread) ** 2)
  np.testing.assert_allclose(off, want, rtol=0.2)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun"])
def test_inpainting_keeps_what_is_known(monkeypatch, sampler):
  mask = np.zeros((N, 4, 4, 1), np.float32)
  mask[:, :, 2:] = 1
  given = Given(PICTURES, jnp.asarray(mask))
  got = edit("inpaint", *parts(monkeypatch, sample__sampler=sampler), given=given)
  np.testing.assert_allclose(got.images[:, :, :2], PICTURES[:, :, :2], atol=1e-5)
  drawn = np.asarray(got.images[:, :, 2:])
  assert np.abs(drawn - PICTURES[:, :, 2:]).mean() > 0.1
  means = MEANS[COND.label]
  np.testing.assert_allclose(drawn.mean((1, 2, 3)), means, atol=0.35)


@pytest.mark.parametrize(
  ("sampler", "close"), [("ddim", 0.08), ("heun", 0.02), ("ddpm", 0.08)]
)
def test_inversion_gives_the_picture_back(monkeypatch, sampler, close):
  config, model = parts(monkeypatch, sample__sampler=sampler, sample__steps=40)
  got = edit("invert", config, model)
  np.testing.assert_allclose(got.images, PICTURES, atol=close)
  steps = 40 if sampler != "heun" else 79
  assert (got.nfe > 1.9 * steps).all()  # there and back


def test_the_way_to_noise_knows_no_threshold(monkeypatch):
  # With one the flow would not run both ways where an estimate leaves [-1, 1].
  wide = PICTURES + 0.7 * jnp.sign(PICTURES)
  config, model = parts(monkeypatch, sample__threshold="static", sample__steps=40)
  got = edit("invert", config, model, given=Given(wide, GIVEN.mask))
  inside = np.abs(wide) < 0.97
  np.testing.assert_allclose(got.images[inside], wide[inside], atol=0.03)


def test_inversion_under_another_class_moves_the_picture_there(monkeypatch):
  # Unguided and back under guidance: the picture keeps its deviations, not its mean.
  config, model = parts(monkeypatch, sample__guidance_scale=2.0, sample__steps=40)
  got = edit("invert", config, model)
  moved = np.asarray(got.images - PICTURES).mean((1, 2, 3))
  np.testing.assert_allclose(moved, MEANS[COND.label], atol=0.08)


def test_interpolation_runs_from_one_picture_to_the_other(monkeypatch):
  config, model = parts(monkeypatch, sample__steps=40, sample__sampler="heun")
  given = Given(PICTURES[jnp.array([0, 0, 0, 1])], GIVEN.mask)
  got = np.asarray(edit("interpolate", config, model, labels(0, 0, 0, 0), given).images)
  first, last = np.asarray(PICTURES[0]), np.asarray(PICTURES[1])
  np.testing.assert_allclose(got[0], first, atol=0.02)
  np.testing.assert_allclose(got[-1], last, atol=0.02)
  near = [np.abs(image - first).mean() for image in got]
  assert near == sorted(near)


def test_slerp_keeps_the_length():
  a, b = jax.random.normal(KEY, (2, 500))
  path = edits.slerp(a, b, jnp.linspace(0, 1, 5))
  np.testing.assert_allclose(path[0], a, atol=1e-5)
  np.testing.assert_allclose(path[-1], b, atol=1e-5)
  lengths = np.linalg.norm(path, axis=1)
  want = np.linspace(lengths[0], lengths[-1], 5)
  np.testing.assert_allclose(lengths, want, rtol=0.01)


def test_a_degraded_picture_is_small_and_as_noisy_as_it_says():
  n = 400
  x = jnp.broadcast_to(jnp.linspace(-1, 1, 8)[:, None, None], (n, 8, 8, 1))
  keys, t = sample_keys(KEY, n), jnp.full(n, 0.5)
  got = denoiser.degraded(Cond(image=x), keys, t, 4)
  small = denoiser.degraded(Cond(image=x), keys, jnp.zeros(n), 4).image
  assert got.image.shape == (n, 4, 4, 1)
  means = np.asarray(x[0]).reshape(4, 2, 4, 2).mean((1, 3))[1:-1]
  np.testing.assert_allclose(small[0, 1:-1, :, 0], means, atol=1e-2)
  alpha, sigma = noise.alpha_sigma(got.image_logsnr[0], "vp")
  off = np.asarray(got.image - alpha * small)
  other = denoiser.degraded(Cond(image=x), keys, t + 0.1, 4)
  np.testing.assert_allclose(other.image_logsnr, noise.cosine().logsnr(t + 0.1))
  np.testing.assert_allclose(off.std(), sigma, rtol=0.05)
  np.testing.assert_allclose(alpha, np.sqrt(0.5), rtol=1e-4)


def test_drawing_starts_from_a_picture_as_noisy_as_augmentation_says(monkeypatch):
  """In training every level is seen; in drawing the small picture has this one."""
  config, model = parts(monkeypatch, sample__augmentation=0.3, data__low_size=2)
  asked = []
  monkeypatch.setattr(drawing, "degraded", lambda *args: asked.append(args) or args[0])
  monkeypatch.setattr(model, "encode", lambda params, cond: cond, raising=False)
  keys = sample_keys(KEY, N)
  drawing.denoiser(config, model)({}, COND, keys)
  (_, own, level, size), *_ = asked
  np.testing.assert_allclose(level, [0.3] * N)
  assert size == 2
  assert (jax.random.key_data(own) != jax.random.key_data(keys)).any(1).all()


class Seen(nn.Module):
  """Returns all that it is given to see."""

  @nn.compact
  def __call__(self, x, logsnr, cond, ids=None):
    assert cond.image is None
    return x


def test_a_small_picture_is_seen_beside_the_noisy_one_and_its_level_told():
  level = NoiseEmbedding(6)
  net = denoiser.Denoiser(encoders.NoEncoder(), Seen(), level)
  x, small = jax.random.normal(KEY, (2, 4, 4, 1)), jnp.arange(8.0).reshape(2, 2, 2, 1)
  cond = Cond(image=small, image_logsnr=jnp.array([0.0, 2.0]))
  params = net.init(KEY, x, jnp.zeros(2), cond)["params"]
  apply = lambda method, *args: net.apply({"params": params}, *args, method=method)  # noqa: E731
  encoded = apply("encode", cond, x.shape)
  expected = level.apply({"params": params["level"]}, cond.image_logsnr)
  np.testing.assert_allclose(encoded.pooled, expected, atol=1e-6)
  assert np.abs(encoded.pooled[0] - encoded.pooled[1]).max() > 1e-3
  seen = apply("predict", x, jnp.zeros(2), encoded)
  np.testing.assert_array_equal(seen[..., :1], x)
  # Bilinear, from the middles of pixels: a quarter and three quarters of the way.
  rows = np.array([0, 0.25, 0.75, 1])
  large = 2 * rows[:, None] + rows[None]
  np.testing.assert_allclose(seen[0, ..., 1], large, atol=1e-5)
