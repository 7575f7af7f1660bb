"""The metrics against torch-fidelity, pytorch-fid, clean-fid and scikit-image.

The same features on both sides: a layer of random weights over random pictures, of
which the generated ones are blurred, so that the distances are of a usual size.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cleanfid import fid as clean_fid
from pytorch_fid.fid_score import calculate_frechet_distance
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch_fidelity.metric_fid import (
  fid_features_to_statistics,
  fid_statistics_to_metric,
)
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from eval.metrics.frechet import Moments, frechet_distance
from eval.metrics.inception_score import inception_score
from eval.metrics.kernel import kernel_distance, mmd2
from eval.metrics.manifold import manifold
from eval.metrics.pixels import psnr, ssim

pytestmark = [
  # scipy is about to drop an argument that pytorch-fid and clean-fid still pass.
  pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning"),
  # They take roots of singular matrices.
  pytest.mark.filterwarnings("ignore:Matrix is singular"),
]


def pictures(n: int, seed: int, blur: float) -> np.ndarray:
  """[n, 16, 16, 3] in [0, 1], smooth to begin with."""
  x = np.random.default_rng(seed).normal(size=(n, 16, 16, 3))
  for axis in (1, 2):
    x = x + np.roll(x, 1, axis)
    x = (1 - blur) * x + blur * np.roll(x, 1, axis)
  return 1 / (1 + np.exp(-x))


def features(n: int, seed: int, blur: float, dim: int) -> np.ndarray:
  weights = np.random.default_rng(0).normal(size=(768, dim)) / 16
  x = 2 * pictures(n, seed, blur).reshape(n, -1) - 1
  return np.maximum(x @ weights, 0).astype(np.float32)


@pytest.fixture(scope="module", params=[(1200, 1000, 256), (150, 200, 256)], ids=str)
def pair(request) -> tuple[np.ndarray, np.ndarray]:
  """(generated, real); the second pair has fewer rows than columns."""
  n, m, dim = request.param
  return features(n, 1, 0.3, dim), features(m, 2, 0.0, dim)


def test_frechet_distance(pair) -> None:
  a, b = (Moments.of(x) for x in pair)
  ours = frechet_distance(a, b)
  x, y = (fid_features_to_statistics(torch.tensor(z)) for z in pair)
  theirs = fid_statistics_to_metric(x, y, False)["frechet_inception_distance"]
  assert ours == pytest.approx(theirs, rel=1e-6)
  moments = a.mean, a.covariance, b.mean, b.covariance
  assert ours == pytest.approx(calculate_frechet_distance(*moments), rel=1e-6)
  assert ours == pytest.approx(clean_fid.frechet_distance(*moments), rel=1e-6)


def test_kernel_distance(pair) -> None:
  x, y = pair
  size = min(len(x), len(y)) // 2
  ours = kernel_distance(x, y, subsets=20, subset_size=size)
  theirs = kid_features_to_metric(
    *map(torch.tensor, pair), kid_subsets=20, kid_subset_size=size, verbose=False
  )
  assert ours.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
  assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)


def test_whole_kernel_distance(pair) -> None:
  size = min(map(len, pair))
  x, y = (z[:size] for z in pair)
  theirs = clean_fid.kernel_distance(
    x.astype(np.float64), y.astype(np.float64), num_subsets=1, max_subset_size=size
  )
  assert mmd2(x, y).value == pytest.approx(theirs, rel=1e-6)


def test_inception_score(pair) -> None:
  logits = pair[0][:, :40]
  for splits in (1, 10):
    ours = inception_score(logits, splits)
    theirs = isc_features_to_metric(torch.tensor(logits), splits)
    assert ours.value == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert ours.std == pytest.approx(theirs["inception_score_std"], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("k", [3, 5])
def test_precision_and_recall(pair, k) -> None:
  ours = manifold(*pair, k=k)
  theirs = prc_features_to_metric(
    *map(torch.tensor, pair),
    prc_neighborhood=k,
    prc_batch_size=100,
    save_cpu_ram=True,
    verbose=False,
  )
  assert 0.01 < ours.precision < 1
  assert ours.precision == pytest.approx(theirs["precision"], rel=1e-6)
  assert ours.recall == pytest.approx(theirs["recall"], rel=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim(channels) -> None:
  x = (2 * pictures(4, 0, 0.0) - 1)[..., :channels].astype(np.float32)
  noise = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
  for level in (0.01, 0.1, 0.5):
    y = x + level * noise
    theirs = [
      structural_similarity(
        a,
        b,
        data_range=2.0,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
      )
      for a, b in zip(x.astype(np.float64), y.astype(np.float64), strict=True)
    ]
    got = ssim(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(got, theirs, rtol=1e-5)
    theirs = [
      peak_signal_noise_ratio(a, b, data_range=2.0) for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(psnr(jnp.asarray(x), jnp.asarray(y)), theirs, rtol=1e-5)
