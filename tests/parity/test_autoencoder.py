"""The KL autoencoder against diffusers' AutoencoderKL, on the same weights."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.numpy import save_file

from nets.autoencoder import Autoencoder
from nets.pretrained import autoencoder

# Two levels with attention in one of them, and f = 8.
SETTINGS = {
  "f2": {"widths": (32, 40), "blocks": 2, "attention": (8,)},
  "f8": {"widths": (32, 40, 56, 72), "blocks": 1, "attention": ()},
}
SHAPE = (16, 32, 3)


def normal(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def close(ours, theirs, least: float = 0) -> None:
  """Within 1e-4 of the peer's largest number, or of `least` if that is larger."""
  theirs = np.asarray(theirs)
  scale = max(least, abs(theirs).max())
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * scale)


def nhwc(x: torch.Tensor) -> np.ndarray:
  return x.detach().permute(0, 2, 3, 1).numpy()


def nchw(x: np.ndarray) -> torch.Tensor:
  return torch.tensor(x.transpose(0, 3, 1, 2))


@functools.cache
def peer(name: str) -> AutoencoderKL:
  """With random weights, norms and biases not at 1 and 0."""
  widths, blocks, attention = SETTINGS[name].values()
  attends = [SHAPE[0] >> i in attention for i in range(len(widths))]
  torch.manual_seed(0)
  net = AutoencoderKL(
    down_block_types=[f"{'Attn' * a}DownEncoderBlock2D" for a in attends],
    up_block_types=[f"{'Attn' * a}UpDecoderBlock2D" for a in attends[::-1]],
    block_out_channels=widths,
    norm_num_groups=8,  # ours of these widths
    layers_per_block=blocks,
  )
  with torch.no_grad():
    for p in net.parameters():
      p.add_(0.05 * torch.randn_like(p))
  return net


def ours(name: str) -> Autoencoder:
  return Autoencoder(image_channels=3, encoded=8, latent=4, **SETTINGS[name])


def arrays(state: dict) -> dict:
  return {name: p.detach().numpy() for name, p in state.items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_encoding_decoding_and_gradients(name, tmp_path) -> None:
  theirs, net = peer(name), ours(name)
  file = tmp_path / "diffusion_pytorch_model.safetensors"
  theirs.save_pretrained(tmp_path)
  params = autoencoder.load(net, SHAPE, file)

  x = normal(2, *SHAPE)
  tx = nchw(x).requires_grad_()
  posterior = theirs.encode(tx).latent_dist
  decoded = theirs.decode(posterior.mode()).sample
  loss = ((decoded - tx) ** 2).mean() + 0.1 * posterior.kl().mean()
  loss.backward()

  def total(params: dict, x: jax.Array) -> tuple:
    run = functools.partial(net.apply, {"params": params})
    moments = run(x, method="encode")
    mean, logvar = jnp.split(moments, 2, axis=-1)
    images = run(mean, method="decode")
    kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum((1, 2, 3)).mean()
    return ((images - x) ** 2).mean() + 0.1 * kl, (moments, mean, images)

  step = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
  (value, (moments, mode, images)), (dparams, dx) = step(params, x)
  close(moments, nhwc(posterior.parameters))
  close(mode, nhwc(posterior.mode()))
  close(images, nhwc(decoded))
  close(value, loss.item())
  close(dx, nhwc(tx.grad))
  grads = {name: p.grad for name, p in theirs.named_parameters()}
  dtheirs = autoencoder.convert(arrays(grads))
  # Some are zero but for rounding: those of biases whose norm takes them away again.
  largest = max(abs(g).max() for g in jax.tree.leaves(dtheirs))
  jax.tree.map(functools.partial(close, least=0.01 * largest), dparams, dtheirs)


def first_release(state: dict) -> dict:
  """The same state dict as in a checkpoint of CompVis/latent-diffusion."""
  last = max(int(m[1]) for m in map(re.compile(r".*up_blocks\.(\d)").match, state) if m)
  words = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "resnets": "block",
    "attentions": "attn",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "down_blocks": "down",
    **{f"up_blocks.{i}.": f"up.{last - i}." for i in range(last + 1)},
  }
  renamed = {}
  for name, p in state.items():
    # Their attention was made of 1x1 convolutions.
    linear = re.search(r"to_.*weight$", name)
    for old, new in words.items():
      name = name.replace(old, new)
    renamed[f"first_stage_model.{name}"] = p[:, :, None, None] if linear else p
  return renamed


def test_all_names_give_the_same_parameters(tmp_path) -> None:
  theirs, net = peer("f8"), ours("f8")
  state = arrays(theirs.state_dict())
  first = first_release(state)
  # The names above are those that diffusers reads too.
  back = convert_ldm_vae_checkpoint(
    {name: torch.tensor(p) for name, p in first.items()}, theirs.config
  )
  assert {k: v.shape for k, v in back.items()} == {
    k: v.shape for k, v in theirs.state_dict().items()
  }
  words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
  before = {
    functools.reduce(lambda n, w: n.replace(*w), words.items(), name): p
    for name, p in state.items()
  }
  assert sum("proj_attn" in name for name in before) == 4
  with_more = first | {"model.diffusion_model.out.0.weight": normal(4)}
  params = autoencoder.convert(state)
  for other in (before, first, with_more):
    file = tmp_path / "other.safetensors"
    save_file(other, file)
    jax.tree.map(
      np.testing.assert_array_equal, autoencoder.load(net, SHAPE, file), params
    )


def test_stable_diffusion_has_as_many_parameters() -> None:
  with torch.device("meta"):
    theirs = AutoencoderKL(
      down_block_types=["DownEncoderBlock2D"] * 4,
      up_block_types=["UpDecoderBlock2D"] * 4,
      block_out_channels=(128, 256, 512, 512),
      layers_per_block=2,
    )
  count = sum(p.numel() for p in theirs.parameters())
  net = Autoencoder(image_channels=3, encoded=8, latent=4)
  x = jnp.zeros((1, 64, 64, 3))
  shapes = jax.eval_shape(net.init, jax.random.key(0), x)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count == 83_653_863
