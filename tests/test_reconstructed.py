"""Scores of reconstructions: of a codec whose faults are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from core import parallel
from core.errors import UserError
from core.family import Codec, Family, Samples, Spec, State
from data.dataset import Dataset, Example
from eval import reconstructed
from eval.evaluate import in_training
from eval.reconstructed import ReconstructionScores

STEP = 8 / 255  # by which the codec below darkens


def family(vocab_size: int = 0, darker: float = STEP) -> Family:
  """Darkens where label is 3, or gives each quarter of the picture one token."""

  def encode(state, x):
    return jnp.broadcast_to(jnp.arange(4), (len(x), 4)).reshape(-1, 2, 2, 1)

  def decode(state, code):
    return jnp.broadcast_to(code[:, :1, :1] / 4, (len(code), 32, 32, 3))

  def edit(state, rng, cond, given):
    step = jnp.where(cond.label == 3, darker, 0)[:, None, None, None]
    return Samples(given.images - step, given.images[None], jnp.ones(len(step)))

  if not vocab_size:
    return Family(None, None, None, {}, edits={"reconstruct": edit})
  codec = Codec(Spec((2, 2, 1), jnp.int32, vocab_size), encode, decode)
  return Family(None, None, None, {}, codecs={"tokens": codec})


def scores(tmp_path, metrics, vocab_size=0, darker=STEP, codec=""):
  config = base.get_config()
  config.data.codec = codec
  config.family = "vae.autoencoder"
  config.text.encoder, config.text.classes = "label", 10
  config.eval.num_images, config.eval.batch_size = 10, 8
  draw = np.random.default_rng(0)
  pixels = draw.integers(20, 256, (13, 32, 32, 3)).astype(np.uint8)
  held_out = Dataset(
    "made",
    13,
    lambda i: Example(pixels[i], {}, 3),
    shape=(32, 32, 3),
    captions=lambda i: {},
  )
  config.parallel.backend = "jit"
  run = parallel.make(config.parallel)
  scorer = ReconstructionScores(
    config, family(vocab_size, darker), run, tmp_path, metrics, held_out
  )
  state = State(jnp.int32(7), {}, {}, {}, {})
  return {record["metric"]: record for record in scorer(state)}


def test_reconstructions_four_levels_darker(tmp_path):
  found = scores(tmp_path, ("rfd", "psnr", "ssim", "lpips"))
  assert set(found) == {"rFD-EfficientNetLite0", "PSNR", "SSIM", "LPIPS-AlexNet"}
  want = 10 * np.log10(4 / STEP**2)
  np.testing.assert_allclose(found["PSNR"]["value"], want, rtol=1e-4)
  assert 0.98 < found["SSIM"]["value"] < 1
  far, same = found, scores(tmp_path / "same", ("rfd", "ssim"), darker=0.0)
  assert same["rFD-EfficientNetLite0"]["value"] < 1e-3
  assert same["SSIM"]["value"] > 0.9999
  assert far["rFD-EfficientNetLite0"]["value"] > 0.01
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


def test_a_codec_of_vectors_has_no_pictures_to_score(tmp_path):
  """Such as principal components, with a dual encoder before them."""
  config = base.get_config()
  assert "psnr" in in_training(config, family(4))
  config.data.codec = "somewhere"
  assert "psnr" not in in_training(config, family(4))
  with pytest.raises(UserError, match="is of autoencoders of pictures"):
    scores(tmp_path, ("rfd",), codec="somewhere")
