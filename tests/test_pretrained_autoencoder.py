"""Files of autoencoders: names, types of numbers, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from core.errors import UserError
from core.family import Spec
from nets.autoencoder import Autoencoder
from nets.pretrained import autoencoder
from pipelines.published import check_scale
from tests.runs import load_config, random_batch
from vae import autoencoder as vae

NET = Autoencoder(3, encoded=6, latent=2, widths=(8, 16), blocks=1, attention=(4,))
SHAPE = (8, 12, 3)
ORDER = {2: (1, 0), 4: (3, 2, 0, 1)}
PARTS = {
  "norm_0": "norm1",
  "conv_0": "conv1",
  "norm_1": "norm2",
  "conv_1": "conv2",
  "shortcut": "conv_shortcut",
  "norm": "group_norm",
  "attention": "",
}
LAYERS = {
  "in": "conv_in",
  "middle_0": "mid_block.resnets.0",
  "middle_attention": "mid_block.attentions.0",
  "middle_1": "mid_block.resnets.1",
  "out_norm": "conv_norm_out",
  "out": "conv_out",
  "down_0_0": "down_blocks.0.resnets.0",
  "down_1_conv": "down_blocks.0.downsamplers.0.conv",
  "down_1_0": "down_blocks.1.resnets.0",
  "down_1_0_attention": "down_blocks.1.attentions.0",
  "up_1_0": "up_blocks.0.resnets.0",
  "up_1_0_attention": "up_blocks.0.attentions.0",
  "up_1_1": "up_blocks.0.resnets.1",
  "up_1_1_attention": "up_blocks.0.attentions.1",
  "up_1_conv": "up_blocks.0.upsamplers.0.conv",
  "up_0_0": "up_blocks.1.resnets.0",
  "up_0_1": "up_blocks.1.resnets.1",
}


def published(theta):
  """The state dict, under diffusers' names, of a network of two levels."""
  state = {}

  def write(name, p):
    if "qkv" in p:
      for i, part in enumerate(("to_q", "to_k", "to_v")):
        write(f"{name}.{part}", {k: np.split(a, 3, -1)[i] for k, a in p["qkv"].items()})
      return write(f"{name}.to_out.0", p["out"])
    for part, a in p.items():
      if isinstance(a, dict):
        write(f"{name}.{PARTS[part]}".removesuffix("."), a)
      elif part == "kernel":
        # [h w i o] -> [o i h w], [i o] -> [o i]
        state[f"{name}.weight"] = np.ascontiguousarray(np.transpose(a, ORDER[a.ndim]))
      else:
        state[f"{name}.{'bias' if part == 'bias' else 'weight'}"] = np.array(a)

  for side in ("encoder", "decoder"):
    for layer, p in theta[side].items():
      write(f"{side}.{LAYERS[layer]}", p)
  write("quant_conv", theta["quant"])
  write("post_quant_conv", theta["post_quant"])
  return state


def test_files(tmp_path, monkeypatch):
  shapes = jax.eval_shape(NET.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
  rng, file = np.random.default_rng(0), tmp_path / "vae.safetensors"
  theta = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes["params"]
  )
  state = published(theta)

  def load(state):
    save_file(state, file)
    return autoencoder.load(NET, SHAPE, file)

  jax.tree.map(np.testing.assert_array_equal, load(state), theta)
  half = load({name: a.astype(np.float16) for name, a in state.items()})
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-3), half, theta)
  assert {a.dtype for a in jax.tree.leaves(half)} == {jnp.dtype("float32")}

  for name, says in (
    ("encoder.conv_in.weight", "KeyError: 'encoder.conv_in.weight'"),
    ("quant_conv.bias", "KeyError: 'quant_conv.bias'"),
    ("decoder.up_blocks.1.resnets.1.norm1.weight", r"\['up_0_1'\].* is None, not"),
    ("encoder.down_blocks.0.downsamplers.0.conv.bias", r"\['down_1_conv'\]\['bias'\]"),
  ):
    less = {k: a for k, a in state.items() if k != name}
    with pytest.raises(UserError, match=rf"does not hold .* Autoencoder.*{says}"):
      load(less)
  wrong = state | {"decoder.conv_out.weight": np.zeros((4, 8, 3, 3), np.float32)}
  with pytest.raises(UserError, match=r"'out'\]\['kernel'\] is \(3, 3, 8, 4\), not"):
    load(wrong)
  with pytest.raises(UserError, match="does not hold the weights of Autoencoder"):
    load({"conv.weight": np.zeros(3, np.float32)})
  save_file(state, file)
  with pytest.raises(UserError, match=r"\['in'\]\['bias'\] is \(16,\), not \(8,\)"):
    autoencoder.load(Autoencoder(3, 6, 2, (8,), 1), SHAPE, file)
  file.write_bytes(b"version https://git-lfs.github.com/spec/v1")
  with pytest.raises(UserError, match="Git LFS pointer"):
    autoencoder.load(NET, SHAPE, file)
  file.unlink()
  monkeypatch.setenv("TAOLU_WEIGHTS", str(tmp_path))
  # A named file is looked for where it is named, others in a directory.
  for given, place in ((file, "give the file"), (None, "TAOLU_WEIGHTS")):
    with pytest.raises(
      UserError,
      match=rf"is missing: download it from .*stabilityai/sd-vae-ft-mse .*{place}",
    ):
      autoencoder.load(NET, SHAPE, given)


def test_a_scale_of_the_latents(tmp_path):
  config = load_config("configs/vae/kl.py")
  config.vae.latent_scale = 0.25
  family = vae.make(config, Spec((8, 8, 3)))
  batch = random_batch(config)
  state = jax.jit(family.init)(jax.random.key(0), batch)
  net, x = vae.network(config, Spec((8, 8, 3))), jnp.asarray(batch["x"])

  @jax.jit
  def run(state):
    codec, params = family.codecs["latents"], {"params": state.ema["generator"]}
    latents = codec.encode(state, x)
    mean = net.apply(params, x, method="encode")[..., : latents.shape[-1]]
    own = net.apply(params, mean, method="decode")
    return latents, 0.25 * mean, codec.decode(state, latents), jnp.clip(own, -1, 1)

  latents, wanted, images, own = run(state)
  np.testing.assert_allclose(latents, wanted, atol=1e-6)
  np.testing.assert_allclose(images, own, atol=1e-5)


def test_a_folder_and_its_scale(tmp_path):
  shapes = jax.eval_shape(NET.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
  theta = jax.tree.map(lambda leaf: np.ones(leaf.shape, "f4"), shapes["params"])
  file = tmp_path / "diffusion_pytorch_model.fp16.safetensors"
  save_file(published(theta), file)
  jax.tree.map(
    np.testing.assert_array_equal, autoencoder.load(NET, SHAPE, tmp_path), theta
  )
  assert autoencoder.scale(tmp_path) is autoencoder.scale(file) is None
  check_scale(0.3, file, "vae.latent_scale")
  (tmp_path / "config.json").write_text('{"scaling_factor": 0.18215}')
  assert autoencoder.scale(tmp_path) == autoencoder.scale(file) == 0.18215
  check_scale(0.18215, file, "vae.latent_scale")
  check_scale(0.0, file, "vae.latent_scale")
  with pytest.raises(UserError, match="vae.latent_scale is 0.3, .*=0.18215; set it so"):
    check_scale(0.3, file, "vae.latent_scale")
  (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
  with pytest.raises(UserError, match="is of UNet2DConditionModel, not of Autoenc"):
    autoencoder.check_described(NET, tmp_path)
