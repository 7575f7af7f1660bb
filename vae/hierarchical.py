"""A hierarchy of latents, drawn top down: coarse ones first, finer ones given those.

p(x|y) is the integral of p(x|z, y) prod_l p(z_l | z_<l, y) over groups of latents z_l,
all normal, and q(z|x, y) = prod_l q(z_l | z_<l, x, y) takes the same way down: Ladder
VAE (Sønderby et al. 2016, arXiv:1602.02282), NVAE (Vahdat & Kautz 2020,
arXiv:2007.03898), VDVAE (Child 2020, arXiv:2011.10650). The loss is minus the evidence
lower bound on log p(x|y).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from core import checks, edits
from core.family import Batch, Family, Given, Samples, Spec, sample_keys
from nets.groups import Normal
from text.cond import Cond
from vae import elbo
from vae.elbo import Draw, Seen, Weights
from vae.hierarchy import Model


def kl(q: Normal, p: Normal) -> Float[Array, "b g"]:
  """KL(q || p) of each group in nats.

  The sum of log(sp / sq) + (sq^2 + (mq - mp)^2) / (2 sp^2) - 1/2.
  """
  ratio = q.log_std - p.log_std
  off = (q.mean - p.mean) * jnp.exp(-p.log_std)
  each = (jnp.exp(2 * ratio) + off**2 - 1) / 2 - ratio
  return each.sum((2, 3, 4)).T


def log_ratio(
  q: Normal, p: Normal, eps: Float[Array, "g b h w c"]
) -> Float[Array, " b"]:
  """log p(z) - log q(z) at z = q.at(eps), whose mean is -kl."""
  off = (q.at(eps) - p.mean) * jnp.exp(-p.log_std)
  each = (eps**2 - off**2) / 2 + q.log_std - p.log_std
  return each.sum((0, 2, 3, 4))


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of `config.vae` and `config.model`; loss and evals as `elbo.family` has.

  If the likelihood is a density, each draw of z comes with a draw of the noise that
  dequantizes x; the way up sees x without. A picture is the mean of p(x|z, y). The
  metrics kl_N are of the groups of side N.

  Raises:
    UserError: settings that are unknown, of no use or do not fit the picture or one
      another.
  """
  checks.refuse(config, "vae", bottleneck="kl", latent_dim=0, evenness=0)
  model, groups = Model(config, spec), sum(config.vae.groups)

  def see(
    params: PyTree, batch: Batch, cond: Cond, dropout: Array | None = None
  ) -> Seen:
    x = jnp.asarray(batch["x"])
    vec = model.run(params, "embed", cond)
    maps = model.run(params, "ascend", x, vec)

    def draw(keys: Key[Array, " b"]) -> Draw:
      keys = jax.vmap(jax.random.split)(keys)
      eps = model.noise(keys[:, 0])
      met = model.run(params, "descend", eps, model.first(groups), vec, maps)
      log_px = model.likelihood.log_levels(x, met.out, keys[:, 1])
      pairs = list(zip(met.posteriors, met.priors, strict=True))
      ratios = [log_ratio(*pair, e) for pair, e in zip(pairs, eps, strict=True)]
      sides = [f"kl_{side}" for _, side, *_ in model.net.down.shapes]
      kls = {side: kl(*pair) for side, pair in zip(sides, pairs, strict=True)}
      return Draw(log_px, kls, sum(ratios), model.likelihood.mean(met.out))

    return draw

  def form(
    weights: Weights, eps: tuple[Array, ...], cond: Cond, images: Array | None = None
  ) -> Samples:
    """The pictures, and how they form: more groups drawn, the rest at their mean.

    Drawn from the posteriors of `images` if they are given.
    """
    params = weights[0]
    vec = model.run(params, "embed", cond)
    maps = None if images is None else model.run(params, "ascend", images, vec)

    def picture(count: Float[Array, ""]) -> Float[Array, "n h w c"]:
      drawn = model.first(count.round().astype(int))
      met = model.run(params, "descend", eps, drawn, vec, maps)
      return model.likelihood.mean(met.out)

    return edits.film(picture, config.sample.frames, groups)

  def sample(weights: Weights, rng: Array, cond: Cond, n: int) -> Samples:
    return form(weights, model.noise(sample_keys(rng, n)), cond)

  def reconstruct(weights: Weights, rng: Array, cond: Cond, given: Given) -> Samples:
    """From the posteriors' means, the coarsest groups' first."""
    eps = jax.tree.map(jnp.zeros_like, model.noise(sample_keys(rng, len(given.images))))
    return form(weights, eps, cond, given.images)

  return elbo.family(
    config,
    spec,
    init=model.init,
    see=see,
    sample=sample,
    edits={"reconstruct": reconstruct},
  )
