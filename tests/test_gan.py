"""GANs as families: what may be combined, what is refused, and any device count."""

import functools

import jax
import numpy as np
import pytest

from core import parallel
from core.errors import UserError
from core.family import Spec
from core.family import make as make_family
from gan import critic, losses
from pipelines import sample
from tests.runs import largest_difference, load_config, random_batch

KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("quick_to_compile")
# Each architecture with a critic of its own, and those that batch norm keeps apart.
NETWORKS = {
  "dcgan": {"generator": "dcgan", "critic": "dcgan", "norm": False},
  "dcgan_norm": {"generator": "dcgan", "critic": "dcgan", "norm": True},
  "patch": {"generator": "dcgan", "critic": "patch"},
  "resnet": {"generator": "resnet", "critic": "resnet", "chunks": True},
  "stylegan2": {"generator": "stylegan2", "critic": "stylegan2"},
  "r3gan": {"generator": "r3gan", "critic": "r3gan"},
}
PENALTIES = {
  "none": {},
  "r1": {"r1": 1.0},
  "r2": {"r2": 1.0},
  "gradient_penalty": {"gradient_penalty": 10.0},
  "spectral_norm": {"spectral_norm": "critic"},
  "spectral_norm_both": {"spectral_norm": "both"},
  "path_length": {"path_length": 2.0, "path_every": 1},
}
MIXES = ("dcgan_norm", "patch")


def allowed(networks: str, penalty: str) -> bool:
  if penalty == "path_length":
    return networks == "stylegan2"
  if penalty.startswith("spectral_norm"):
    return networks not in ("r3gan", "stylegan2")
  return networks not in MIXES or penalty == "none"


def quick(networks: str, penalty: str) -> bool:
  """Every architecture, and every penalty, at least once."""
  return networks == "dcgan" or penalty in ("none", "path_length")


def make_config(**fields):
  """The smallest pictures and networks without a text."""
  config = load_config("configs/gan/dcgan.py")
  config.data.size, config.text.encoder = 4, "none"
  config.model.widths = config.gan.widths = (8, 8)
  config.optim.schedule, config.gan.mismatch = "constant", 0.0
  config.gan.mapping_layers = 1
  config.gan.update(fields)
  return config


def make(config):
  size, channels = config.data.size, config.data.channels
  return make_family(config, Spec((size, size, channels)))


@pytest.mark.parametrize(
  ("networks", "penalty"),
  [
    pytest.param(a, p, marks=() if quick(a, p) else pytest.mark.slow)
    for a in NETWORKS
    for p in PENALTIES
    if allowed(a, p)
  ],
)
def test_a_step_of_every_combination(networks, penalty, monkeypatch, subtests):
  """Architecture x penalty, with every loss: it is chosen while the program runs."""
  names, chosen = tuple(losses.LOSSES), []

  def choose(part):
    each = [getattr(loss, part) for loss in losses.LOSSES.values()]
    return lambda *logits: jax.lax.switch(chosen[-1], each, *logits)

  any_loss = losses.Loss(*map(choose, losses.Loss._fields))
  monkeypatch.setattr(losses, "make", lambda name: any_loss)
  config = make_config(**NETWORKS[networks], **PENALTIES[penalty])
  family, batch = make(config), random_batch(config)

  @jax.jit
  def step(state, batch, which):
    chosen.append(which)
    return family.step(state, batch, KEY)

  before = jax.jit(family.init)(KEY, batch)
  found = {}
  for i, name in enumerate(names):
    with subtests.test(name):
      after, metrics = jax.device_get(step(before, batch, i))
      assert all(np.isfinite(value) for value in metrics.values()), metrics
      assert metrics["skipped"] == 0
      for player in ("generator", "critic"):
        assert largest_difference(before.params[player], after.params[player]) > 0
      assert (metrics["penalty"] > 0) == (penalty in ("r1", "r2", "gradient_penalty"))
      if penalty == "path_length":
        assert after.extra["tracked"]["path"] > 0
      found[name] = float(metrics["critic_loss"])
  assert len(set(found.values())) == len(names) - 1  # two share the critic's


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"gan.r1": 1.0}, "set gan.norm to False"),
    ({"gan.critic": "patch", "gan.gradient_penalty": 1.0}, "batch norm mixes pictures"),
    ({"optim.microbatches": 2}, "optim.microbatches"),
    ({"data.batch_size": 7}, "multiple of twice gan.critic_steps=1"),
    ({"data.batch_size": 12, "gan.critic_steps": 4}, "gan.critic_steps=4"),
    ({"gan.path_length": 2.0}, "needs the styles"),
    ({"gan.loss": "hinje"}, "did you mean 'hinge'"),
    ({"gan.augment": "noise", "noise.schedule": "learned"}, "cannot learn a schedule"),
    ({"gan.generator": "resnt"}, "did you mean 'resnet'"),
    ({"gan.critic": "dcgn"}, "did you mean 'dcgan'"),
    ({"gan.augment": "adda"}, "did you mean 'ada'"),
    ({"gan.augment": "diff", "gan.policy": ("colour",)}, "did you mean 'color'"),
    ({"gan.init": "orthogonol"}, "did you mean 'orthogonal'"),
    ({"gan.spectral_norm": "bothe"}, "did you mean 'both'"),
    (
      {"gan.critic": "r3gan", "gan.spectral_norm": "critic"},
      "gan.critic='r3gan' has kernels that start at zero",
    ),
    (
      {"gan.generator": "r3gan", "gan.spectral_norm": "both"},
      "gan.generator='r3gan' has kernels",
    ),
    (
      {"gan.critic": "stylegan2", "gan.spectral_norm": "critic"},
      "gan.critic='stylegan2' scales them again",
    ),
    ({"gan.family": "vae.vae"}, "no use for gan.family='vae.vae'"),
    ({"gan.mismatch": 0.5}, "needs conditions to mix up"),
    ({"gan.adaptive": True}, "gan.adaptive"),
    ({"gan.start": 10}, "gan.start"),
    ({"gan.weight": 0.0}, "gan.weight=0 leaves gan.gan nothing"),
    ({"text.drop": 0.1}, "text.drop"),
    ({"sample.guidance_scale": 2.0}, "without guidance"),
    ({"data.low_size": 4}, "reads no small picture"),
  ],
)
def test_refusals(fields, words):
  config = make_config()
  config.update_from_flattened_dict(fields)
  with pytest.raises(UserError, match=words):
    make(config)


def test_refusals_of_latents():
  for generator, latents in (("dcgan", False), ("resnet", False), ("r3gan", True)):
    config = make_config(generator=generator, critic="resnet")
    for spec in (Spec((4, 4, 3), pixels=False), Spec((4, 4, 1), vocab_size=8)):
      if latents and not spec.vocab_size:
        make_family(config, spec)
        continue
      with pytest.raises(UserError):
        make_family(config, spec)


@pytest.mark.parametrize(
  ("critic", "rows", "words"),
  [
    ("resnet", 3, "a multiple of 2 times"),
    ("resnet", 2, ""),
    ("stylegan2", 2, "a multiple of 4 times"),
    ("stylegan2", 4, ""),
  ],
)
def test_rows_that_are_judged_together_must_be_on_one_device(critic, rows, words):
  config = make_config(critic=critic)
  family, batch = make(config), random_batch(config)
  state = jax.eval_shape(family.init, KEY, batch)
  part = jax.tree.map(lambda a: a[:rows], batch)
  if not words:
    jax.eval_shape(family.step, state, part, KEY)
    return
  with pytest.raises(UserError, match=f"a device has {rows} rows.*{words}"):
    jax.eval_shape(family.step, state, part, KEY)


def test_groups_that_the_whole_batch_lacks_are_not_asked_of_a_device():
  config = make_config(critic="stylegan2")
  config.data.batch_size = 6
  family, batch = make(config), random_batch(config)
  state = jax.eval_shape(family.init, KEY, batch)
  part = jax.tree.map(lambda a: a[:2], batch)
  jax.eval_shape(family.step, state, part, KEY)


def test_noise_that_is_too_short_for_its_parts_is_refused():
  config = make_config(generator="resnet", critic="resnet", chunks=True, latent_dim=1)
  family, batch = make(config), random_batch(config)
  with pytest.raises(UserError, match="gan.latent_dim=1 must be 2 or more"):
    jax.eval_shape(family.init, KEY, batch)


def test_pictures_are_given_in_vain():
  config = make_config()
  with pytest.raises(UserError, match=r"gan\.gan does nothing with pictures"):
    sample.check_edit(config, make(config))


def test_pictures_that_are_noised_already_are_not_noised_again():
  with pytest.raises(UserError, match="noises pictures already"):
    critic.make(make_config(augment="noise"), noisy=True)


CUT = {
  "batch_norm": {"generator": "dcgan", "critic": "dcgan", "loss": "hinge"},
  "styles": {
    "generator": "stylegan2",
    "critic": "stylegan2",
    "r1": 1.0,
    "path_length": 2.0,
    "path_every": 1,
    "augment": "ada",
    "augment_kimg": 0.1,
  },
}


@functools.cache
def trained(name: str, backend: str):
  """The state and the metrics after two steps."""
  config = make_config(**CUT[name])
  config.parallel.backend = backend
  # Four rows a device: a group of StyleGAN2's critic is not cut.
  config.data.batch_size = 32
  # By Adam's root a gradient that is only noise moves as much as any.
  config.optim.eps, config.optim.learning_rate = 1e-3, 1e-2
  family, run = make(config), parallel.make(config.parallel)
  state = run.init(family.init, KEY, run.put(random_batch(config)))
  step = run.compile_step(family.step, state, random_batch(config))
  for i in range(2):
    state, metrics = step(state, random_batch(config, i), KEY)
  return jax.device_get((state, metrics))


@pytest.mark.parametrize(
  ("name", "backend"),
  [
    ("batch_norm", "pmap"),
    ("batch_norm", "mesh"),
    pytest.param("styles", "pmap", marks=pytest.mark.slow),
    pytest.param("styles", "mesh", marks=pytest.mark.slow),
  ],
)
def test_eight_devices_equal_one(name, backend):
  (alone, told), (state, metrics) = trained(name, "jit"), trained(name, backend)
  assert largest_difference(alone, state) < 2e-5
  assert largest_difference(told, metrics) < 1e-3
  moved = alone.extra["tracked"]["batch_stats"]["net"]
  assert largest_difference(moved, jax.tree.map(np.zeros_like, moved)) > 1e-3
