"""How many of 8 and of 25 Gaussians each loss finds, and how well it draws them.

    python benchmarks/gan_modes.py [steps] [seeds]

Counted as by Srivastava et al. 2017 (VEEGAN, arXiv:1705.07761): of 2,500 samples those
within three deviations of the nearest mean are of high quality, and a mode is found
that has one of these. The ring has radius 1 and deviation 0.01, the grid of 5x5 is two
apart and has deviation 0.05. Generator and critic are perceptrons with two hidden
layers of 128, trained by `gan.adversarial` with 256 points an update; the average of
the generator's weights draws. Prints a Markdown table: the mean over the seeds, and the
fewest modes.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from configs.gan import dcgan
from core.family import Batch, Family, Objective, Play, example_keys
from gan.adversarial import adversarial
from gan.critic import Critic
from text.cond import Cond

BATCH, WIDTH, NOISE, DRAWN = 256, 128, 2, 2500
ANGLES = 2 * np.pi * np.arange(8) / 8
SIDE = 2.0 * np.arange(-2, 3)
# The means and the deviation.
DATA = {
  "ring": (np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1), 0.01),
  "grid": (np.stack(np.meshgrid(SIDE, SIDE), -1).reshape(-1, 2), 0.05),
}
RUNS = {
  "minimax": {"loss": "minimax"},
  "minimax, R1": {"loss": "minimax", "r1": 0.1},
  "non-saturating": {"loss": "nonsaturating"},
  "non-saturating, R1": {"loss": "nonsaturating", "r1": 0.1},
  "least squares": {"loss": "least_squares"},
  "least squares, R1": {"loss": "least_squares", "r1": 0.1},
  "hinge": {"loss": "hinge"},
  "hinge, R1": {"loss": "hinge", "r1": 0.1},
  "Wasserstein, gradient penalty, 5 critic steps": {
    "loss": "wasserstein",
    "gradient_penalty": 0.1,
    "critic_steps": 5,
  },
  "relativistic": {"loss": "relativistic"},
  "relativistic, R1 and R2": {"loss": "relativistic", "r1": 0.1, "r2": 0.1},
}


def layers(key: Array, *sizes: int) -> PyTree:
  """Kernels of He's scale, and biases."""
  return [
    (
      np.sqrt(2 / a) * jax.random.normal(jax.random.fold_in(key, i), (a, b)),
      jnp.zeros(b),
    )
    for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
  ]


def perceptron(params: PyTree, x: Array) -> Array:
  """ReLU between the layers."""
  for i, (kernel, bias) in enumerate(params):
    x = (jax.nn.relu(x) if i else x) @ kernel + bias
  return x


def draw(params: PyTree, keys: Array) -> Float[Array, "n 1 1 2"]:
  """The generator's points, as pictures of one pixel."""
  z = jax.vmap(lambda key: jax.random.normal(key, (NOISE,)))(keys)
  return perceptron(params, z)[:, None, None]


def play(given: tuple, batch: Batch, rng: Array, axis: str | None) -> Play:
  """A generator without a loss of its own."""
  params, _ = given
  return Play(
    jnp.zeros(len(batch["x"])),
    batch["x"],
    draw(params, example_keys(rng, batch["_id"])),
  )


def make(fields: dict, steps: int) -> Family:
  """The two players."""
  config = dcgan.gan()
  config.gan.update(fields)
  config.gan.norm, config.model.scan = False, False
  config.data.batch_size, config.train.steps = BATCH * config.gan.critic_steps, steps
  config.optim.update({"learning_rate": 1e-3, "b1": 0.0, "b2": 0.99})
  shape = (WIDTH, WIDTH)
  objective = Objective(lambda rng, batch: layers(rng, NOISE, *shape, 2), play)
  critic = Critic(
    lambda rng, play, cond: (layers(rng, 2, *shape, 1), {"strength": jnp.zeros(())}),
    lambda params, extra: (params, extra),
    lambda params, x, *rest: perceptron(params, x[:, 0, 0])[:, 0],
  )
  return adversarial(config, Family(None, None, None, {}, objective=objective), critic)


def points(key: Array, data: str, n: int) -> Float[Array, "n 1 1 2"]:
  """Of the mixture."""
  means, std = DATA[data]
  which, noise = jax.random.split(key)
  chosen = jnp.asarray(means)[jax.random.randint(which, (n,), 0, len(means))]
  return (chosen + std * jax.random.normal(noise, (n, 2)))[:, None, None]


def score(x: np.ndarray, data: str) -> tuple[int, float]:
  """(modes found, share of high quality)."""
  means, std = DATA[data]
  distances = np.linalg.norm(x.reshape(-1, 1, 2) - means, axis=-1)
  good = distances.min(1) < 3 * std
  return len(set(distances.argmin(1)[good])), good.mean()


def trained(fields: dict, data: str, steps: int, seeds: int) -> np.ndarray:
  """Points of generators trained from so many seeds, [seeds, DRAWN, 1, 1, 2]."""
  family, size = make(fields, steps), BATCH * fields.get("critic_steps", 1)

  def batch(key: Array, i: Array) -> Batch:
    x = points(jax.random.fold_in(key, i), data, size)
    ids = jnp.arange(size, dtype=jnp.uint32) + i.astype(jnp.uint32) * size
    return {"x": x, "cond": Cond(), "_id": ids, "_mask": jnp.ones(size, bool)}

  def run(key: Array) -> Array:
    start, of_data, own, drawing = jax.random.split(key, 4)
    step = lambda state, i: (family.step(state, batch(of_data, i), own)[0], None)  # noqa: E731
    state = family.init(start, batch(of_data, jnp.zeros((), jnp.int32)))
    state, _ = jax.lax.scan(step, state, jnp.arange(steps))
    return draw(state.ema["generator"], jax.random.split(drawing, DRAWN))

  keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
  return np.asarray(jax.jit(lambda keys: jax.lax.map(run, keys))(keys))


def main(steps: str = "20000", seeds: str = "3") -> None:
  """Prints the table."""
  print(f"{steps} updates of the generator, {seeds} seeds")
  print("| loss | of 8 modes | high quality | of 25 modes | high quality | s |")
  print("| --- | --- | --- | --- | --- | --- |")
  real = [np.asarray(points(jax.random.key(0), data, DRAWN)) for data in DATA]
  rows = {"(the data)": lambda data: np.stack(real)[list(DATA).index(data)][None]}
  rows |= {
    name: lambda data, fields=fields: trained(fields, data, int(steps), int(seeds))
    for name, fields in RUNS.items()
  }
  for name, sample in rows.items():
    began, cells = time.perf_counter(), []
    for data in DATA:
      found, good = zip(*[score(x, data) for x in sample(data)], strict=True)
      cells += [f"{np.mean(found):.1f} ({min(found)})", f"{100 * np.mean(good):.1f} %"]
    print(
      f"| {name} | {' | '.join(cells)} | {time.perf_counter() - began:.0f} |",
      flush=True,
    )


if __name__ == "__main__":
  main(*sys.argv[1:])
