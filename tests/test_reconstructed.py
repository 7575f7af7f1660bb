"""Scores of reconstructions: of a codec whose faults are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from core import parallel
from core.errors import UserError
from core.family import Codec, Family, Spec, State
from data.dataset import Dataset, Example
from eval import reconstructed
from eval.reconstructed import ReconstructionScores

STEP = 8 / 255  # by which the codec below darkens


def family(vocab_size: int = 0) -> Family:
  """Its codec darkens by 4 levels, or gives each quarter of the picture one token."""

  def encode(state, x):
    if vocab_size:
      return jnp.broadcast_to(jnp.arange(4), (len(x), 4)).reshape(-1, 2, 2, 1)
    return x

  def decode(state, code):
    if vocab_size:
      return jnp.broadcast_to(code[:, :1, :1] / 4, (len(code), 32, 32, 3))
    return code - STEP

  name = "tokens" if vocab_size else "latents"
  codec = Codec(Spec((2, 2, 1), jnp.int32, vocab_size), encode, decode)
  return Family(None, None, None, {}, codecs={name: codec})


def scores(tmp_path, metrics, vocab_size=0):
  config = base.get_config()
  config.family = "vae.autoencoder"
  config.eval.num_images, config.eval.batch_size = 10, 8
  draw = np.random.default_rng(0)
  pixels = draw.integers(20, 256, (13, 32, 32, 3)).astype(np.uint8)
  held_out = Dataset(
    "made",
    13,
    lambda i: Example(pixels[i], {}, -1),
    shape=(32, 32, 3),
    captions=lambda i: {},
  )
  config.parallel.backend = "jit"
  run = parallel.make(config.parallel)
  scorer = ReconstructionScores(
    config, family(vocab_size), run, tmp_path, metrics, held_out
  )
  state = State(jnp.int32(7), {}, {}, {}, {})
  return {record["metric"]: record for record in scorer(state)}


def test_reconstructions_four_levels_darker(tmp_path):
  found = scores(tmp_path, ("rfd", "psnr", "ssim", "lpips"))
  assert set(found) == {"rFD-EfficientNetLite0", "PSNR", "SSIM", "LPIPS-AlexNet"}
  want = 10 * np.log10(4 / STEP**2)
  np.testing.assert_allclose(found["PSNR"]["value"], want, rtol=1e-4)
  assert 0.98 < found["SSIM"]["value"] < 1
  assert found["rFD-EfficientNetLite0"]["value"] > 0
  record = found["PSNR"]
  assert (record["step"], record["split"], record["num_images"]) == (7, "test", 10)
  with np.load(tmp_path / "samples" / "reconstructed.npz") as kept:
    assert kept["images"].shape == (10, 32, 32, 3)
  assert (tmp_path / "samples" / "reconstructed.png").exists()


def test_use_of_a_codebook(tmp_path):
  """Four of sixteen codes, as often each."""
  found = scores(tmp_path, ("codebook",), vocab_size=16)
  assert found["codebook-usage"]["value"] == 0.25
  np.testing.assert_allclose(found["codebook-perplexity"]["value"], 4, rtol=1e-6)


def test_refusals(tmp_path):
  with pytest.raises(UserError, match="'codebook' is of tokens"):
    scores(tmp_path, ("codebook",))
  assert reconstructed.usual(Family(None, None, None, {})) == ()
  assert "codebook" in reconstructed.usual(family(4))
