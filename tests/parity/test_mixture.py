"""EM against scikit-learn, from the same parameters."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from vae import em

# Too small to act on either side: theirs is added to a variance, ours its least value.
FLOOR = 1e-9


@jax.jit
def iterate(model: em.Mixture, x: jax.Array) -> tuple[em.Mixture, jax.Array]:
  """One iteration, and the mean log-likelihood before it."""
  words, mask = jnp.zeros((len(x), 1)), jnp.ones(len(x), bool)
  found, log_p = em.expect(model, x, words, mask)
  model, _ = em.maximise(found, model, floor=FLOOR, smoothing=1.0)
  return model, log_p.mean()


def mixture(weight, factors, noise) -> em.Mixture:
  leaves = (weight, factors, noise, np.zeros((len(weight), 1)))
  return em.Mixture(*(jnp.asarray(leaf, jnp.float32) for leaf in leaves))


def test_diagonal_mixture_follows_gaussian_mixture():
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(4, 6))
  x = (centres[rng.integers(0, 4, 500)] + rng.normal(size=(500, 6)) / 2).astype(
    np.float32
  )
  weight, means = np.array([0.1, 0.2, 0.3, 0.4]), x[:4]
  variances = rng.uniform(0.2, 0.5, (4, 6))
  theirs = GaussianMixture(
    4,
    covariance_type="diag",
    reg_covar=FLOOR,
    tol=0,
    max_iter=1,
    weights_init=weight,
    means_init=means,
    precisions_init=1 / variances,
    warm_start=True,
  )
  ours = mixture(weight, means[..., None], variances)
  for _ in range(10):
    with warnings.catch_warnings():
      # One iteration at a time never converges.
      warnings.simplefilter("ignore", ConvergenceWarning)
      theirs.fit(x.astype(np.float64))
    ours, before = iterate(ours, jnp.asarray(x))
    np.testing.assert_allclose(before, theirs.lower_bound_, atol=1e-4)
    np.testing.assert_allclose(ours.weight, theirs.weights_, atol=1e-4)
    np.testing.assert_allclose(ours.factors[..., -1], theirs.means_, atol=1e-4)
    np.testing.assert_allclose(ours.noise, theirs.covariances_, atol=1e-4)
  words = jnp.zeros((len(x), 1))
  np.testing.assert_allclose(
    em.log_joint(ours, jnp.asarray(x), words), theirs.score_samples(x), atol=1e-3
  )
  evidence = em.log_evidence(ours, words)
  q = jax.nn.softmax(em.log_density(ours, jnp.asarray(x))[0] + evidence, 0)
  np.testing.assert_allclose(q.T, theirs.predict_proba(x), atol=1e-3)


def test_one_component_ends_as_factor_analysis():
  rng = np.random.default_rng(1)
  loadings = rng.normal(size=(6, 2))
  x = rng.normal(size=(400, 2)) @ loadings.T + rng.normal(size=(400, 6)) * 0.5 + 0.3
  x = x.astype(np.float32)
  theirs = FactorAnalysis(2, tol=1e-10, max_iter=10_000, svd_method="lapack")
  theirs.fit(x.astype(np.float64))
  start = em.start(
    jax.random.key(0),
    jnp.asarray(x),
    jnp.arange(len(x), dtype=jnp.uint32),
    jnp.ones(len(x), bool),
    (1, 2, 1),
    FLOOR,
  )
  step = lambda model, _: iterate(model, jnp.asarray(x))  # noqa: E731
  ours, log_p = jax.lax.scan(step, start, length=500)
  np.testing.assert_allclose(log_p[-1], theirs.score(x), atol=1e-4)
  np.testing.assert_allclose(ours.factors[..., -1][0], theirs.mean_, atol=1e-4)
  np.testing.assert_allclose(ours.noise[0], theirs.noise_variance_, atol=2e-3)
  # W is found up to a rotation of z.
  w = np.asarray(ours.factors[0, :, :-1])
  covariance = w @ w.T + np.diag(ours.noise[0])
  np.testing.assert_allclose(covariance, theirs.get_covariance(), atol=1e-3)
