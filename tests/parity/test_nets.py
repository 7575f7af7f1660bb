"""U-Net, DiT and their parts against diffusers and PyTorch, on the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DModel
from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
from diffusers.models.embeddings import (
  Timesteps,
  get_2d_sincos_pos_embed,
  get_timestep_embedding,
)
from diffusers.models.resnet import ResnetBlock2D

from nets.attention import attend
from nets.dit import DiT
from nets.embeddings import positions_2d, sinusoidal
from nets.joint import JointBlock
from nets.layers import GroupNorm
from nets.transformer import Block
from nets.unet import ResBlock, UNet
from text.cond import Cond

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
  return RNG.normal(size=shape).astype(np.float32)


def close(ours, theirs, atol=1e-4) -> None:
  """Within atol of the peer, relative to its largest number if that is above 1."""
  theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
  np.testing.assert_allclose(
    ours, theirs, rtol=0, atol=atol * max(1, abs(theirs).max())
  )


def run(module, params, *args) -> jax.Array:
  return jax.jit(module.apply)({"params": params}, *args)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
  """A module in evaluation mode whose norms and biases are not at 1 and 0."""
  torch.manual_seed(0)
  with torch.no_grad():
    for p in module.parameters():
      p.add_(0.05 * torch.randn_like(p))
  return module.eval()


# Each mapping takes `get`, which picks a parameter's value or its gradient, so that
# the same code brings over the weights and what is to be compared with our gradients.


def value(p: torch.Tensor) -> np.ndarray:
  return p.detach().numpy()


def gradient(p: torch.Tensor) -> np.ndarray:
  return np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()


def dense(get, *layers) -> dict:
  """Several layers over the same input become one wide one."""
  kernels = [get(m.weight).reshape(m.weight.shape[:2]).T for m in layers]
  return {
    "kernel": np.concatenate(kernels, axis=1),
    "bias": np.concatenate([get(m.bias) for m in layers]),
  }


def conv(get, m) -> dict:
  return {"kernel": get(m.weight).transpose(2, 3, 1, 0), "bias": get(m.bias)}


def norm(get, m) -> dict:
  return {"scale": get(m.weight), "bias": get(m.bias)}


def attention(get, m) -> dict:
  return {"qkv": dense(get, m.to_q, m.to_k, m.to_v), "out": dense(get, m.to_out[0])}


def resnet(get, m) -> dict:
  shortcut = m.conv_shortcut
  return {
    "norm_0": norm(get, m.norm1),
    "conv_0": conv(get, m.conv1),
    "modulation": dense(get, m.time_emb_proj),
    "norm_1": norm(get, m.norm2),
    "conv_1": conv(get, m.conv2),
  } | ({} if shortcut is None else {"shortcut": dense(get, shortcut)})


def unet_params(get, m) -> dict:
  def attend(m) -> dict:
    return {"norm": norm(get, m.group_norm), "attention": attention(get, m)}

  embedding = m.time_embedding
  params = {
    "noise": {
      "Dense_0": dense(get, embedding.linear_1),
      "Dense_1": dense(get, embedding.linear_2),
    },
    "in": conv(get, m.conv_in),
    "middle_0": resnet(get, m.mid_block.resnets[0]),
    "middle_attention": attend(m.mid_block.attentions[0]),
    "middle_1": resnet(get, m.mid_block.resnets[1]),
    "out_norm": norm(get, m.conv_norm_out),
    "out": conv(get, m.conv_out),
  }
  levels = len(m.down_blocks)
  for name, blocks in (("down", m.down_blocks), ("up", list(m.up_blocks)[::-1])):
    for level, block in enumerate(blocks):
      for i, r in enumerate(block.resnets):
        params[f"{name}_{level}_{i}"] = resnet(get, r)
      for i, a in enumerate(getattr(block, "attentions", [])):
        params[f"{name}_{level}_{i}_attention"] = attend(a)
    # Ours belong to the smaller level of the two.
    for level in range(1, levels):
      sampler = (
        blocks[level - 1].downsamplers if name == "down" else blocks[level].upsamplers
      )
      if isinstance(sampler[0], ResnetBlock2D):
        params[f"{name}_{level}_resample"] = resnet(get, sampler[0])
      else:
        params[f"{name}_{level}_conv"] = conv(get, sampler[0].conv)
  return params


def block_params(get, m) -> dict:
  return {
    "modulation": dense(get, m.norm1.linear),
    "attention": attention(get, m.attn1),
    "mlp_in": dense(get, m.ff.net[0].proj),
    "mlp_out": dense(get, m.ff.net[2]),
  }


def joint_params(get, m) -> dict:
  attn = m.attn
  params = {
    "image_modulation": dense(get, m.norm1.linear),
    "image_qkv": dense(get, attn.to_q, attn.to_k, attn.to_v),
    "image_q_norm": {"scale": get(attn.norm_q.weight)},
    "image_k_norm": {"scale": get(attn.norm_k.weight)},
    "image_out": dense(get, attn.to_out[0]),
    "image_mlp_in": dense(get, m.ff.net[0].proj),
    "image_mlp_out": dense(get, m.ff.net[2]),
    "text_modulation": dense(get, m.norm1_context.linear),
    "text_k_norm": {"scale": get(attn.norm_added_k.weight)},
  }
  if m.context_pre_only:
    # They have queries of the text here as well, which nothing reads; and the scale
    # comes before the shift.
    params["text_kv"] = dense(get, attn.add_k_proj, attn.add_v_proj)
    params["text_modulation"] = swapped(params["text_modulation"])
    return params
  return params | {
    "text_qkv": dense(get, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
    "text_q_norm": {"scale": get(attn.norm_added_q.weight)},
    "text_out": dense(get, attn.to_add_out),
    "text_mlp_in": dense(get, m.ff_context.net[0].proj),
    "text_mlp_out": dense(get, m.ff_context.net[2]),
  }


def swapped(params: dict) -> dict:
  """The two halves of a layer's outputs the other way round."""
  return {name: np.roll(p, p.shape[-1] // 2, axis=-1) for name, p in params.items()}


def sd3_params(get, m) -> dict:
  embedder = m.time_text_embed.timestep_embedder
  *blocks, last = [joint_params(get, b) for b in m.transformer_blocks]
  kernel = get(m.pos_embed.proj.weight)
  return {
    "noise": {
      "Dense_0": dense(get, embedder.linear_1),
      "Dense_1": dense(get, embedder.linear_2),
    },
    "patches": {
      "kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0]),
      "bias": get(m.pos_embed.proj.bias),
    },
    "text": dense(get, m.context_embedder),
    "joint": {
      "block": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
      "last": last,
    },
    "modulation": swapped(dense(get, m.norm_out.linear)),
    "out": dense(get, m.proj_out),
  }


def dit_params(get, m) -> dict:
  embedder = m.transformer_blocks[0].norm1.emb.timestep_embedder
  blocks = [block_params(get, b) for b in m.transformer_blocks]
  kernel = get(m.pos_embed.proj.weight)
  return {
    "noise": {
      "Dense_0": dense(get, embedder.linear_1),
      "Dense_1": dense(get, embedder.linear_2),
    },
    "patches": {
      "kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0]),
      "bias": get(m.pos_embed.proj.bias),
    },
    "blocks": {"block": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)},
    "modulation": dense(get, m.proj_out_1),
    "out": dense(get, m.proj_out_2),
  }


def compare(net, params, grads_of, x, logsnr, theirs, cond=None) -> None:
  """Outputs, then the gradients of sum(output * g) for x and all parameters."""
  g, cond = normal(*x.shape), cond or Cond()
  tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
  ty = theirs(tx, torch.tensor(25 * logsnr))
  ty.backward(torch.tensor(g.transpose(0, 3, 1, 2)))

  @jax.jit
  def ours(params, x):
    def apply(params: dict, x: jax.Array) -> jax.Array:
      return net.apply({"params": params}, x, jnp.asarray(logsnr), cond)

    y, back = jax.vjp(apply, params, x)
    return y, back(g)

  shapes = jax.eval_shape(net.init, jax.random.key(0), x, logsnr, cond)["params"]
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
  y, (dparams, dx) = ours(params, x)
  close(y, ty.detach().numpy().transpose(0, 2, 3, 1))
  close(dx, tx.grad.numpy().transpose(0, 2, 3, 1))
  jax.tree.map(close, dparams, grads_of())


def test_unet() -> None:
  peer = randomised(
    UNet2DModel(
      sample_size=16,
      block_out_channels=(32, 64, 64),
      layers_per_block=2,
      down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
      up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
      attention_head_dim=16,
      attn_norm_num_groups=32,  # in the middle there is no norm otherwise
      resnet_time_scale_shift="scale_shift",
      norm_eps=1e-6,
    )
  )
  net = UNet(out_channels=3, widths=(32, 64, 64), attention=(8,), head_dim=16)
  compare(
    net,
    unet_params(value, peer),
    lambda: unet_params(gradient, peer),
    normal(2, 16, 16, 3),
    np.array([-3.0, 5.0], np.float32),
    lambda x, t: peer(x, t).sample,
  )


def test_adm() -> None:
  peer = randomised(
    UNet2DModel(
      sample_size=16,
      block_out_channels=(32, 64),
      layers_per_block=1,
      down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
      up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
      downsample_type="resnet",
      upsample_type="resnet",
      attention_head_dim=16,
      attn_norm_num_groups=32,
      resnet_time_scale_shift="scale_shift",
      norm_eps=1e-6,
    )
  )
  net = UNet(3, (32, 64), blocks=1, attention=(8,), head_dim=16, resample="block")
  compare(
    net,
    unet_params(value, peer),
    lambda: unet_params(gradient, peer),
    normal(2, 16, 16, 3),
    np.array([-3.0, 5.0], np.float32),
    lambda x, t: peer(x, t).sample,
  )


def test_ddpm() -> None:
  peer = randomised(
    UNet2DModel(
      sample_size=16,
      block_out_channels=(128, 128),  # so that both have 32 groups
      layers_per_block=1,
      down_block_types=("DownBlock2D", "AttnDownBlock2D"),
      up_block_types=("AttnUpBlock2D", "UpBlock2D"),
      attention_head_dim=128,
      attn_norm_num_groups=32,
      resnet_time_scale_shift="default",
      norm_eps=1e-6,
    )
  )
  net = UNet(3, (128, 128), 1, attention=(8,), head_dim=128, modulation="shift")
  compare(
    net,
    unet_params(value, peer),
    lambda: unet_params(gradient, peer),
    normal(2, 16, 16, 3),
    np.array([-3.0, 5.0], np.float32),
    lambda x, t: peer(x, t).sample,
  )


@pytest.mark.parametrize("way", ["", "down", "up"])
@pytest.mark.parametrize("modulation", ["scale_shift", "shift"])
def test_ddpm_plus_plus_block(way, modulation) -> None:
  peer = randomised(
    ResnetBlock2D(
      in_channels=128,
      out_channels=128,
      temb_channels=24,
      time_embedding_norm={"shift": "default"}.get(modulation, modulation),
      kernel="sde_vp",
      output_scale_factor=2**0.5,
      use_in_shortcut=True,
      **({way: True} if way else {}),
    )
  )
  block = ResBlock(
    128, modulation=modulation, skip_scale=True, resample=way, project=True
  )
  x, vec = normal(2, 4, 6, 128), normal(2, 24)
  theirs = peer(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(vec))
  y = run(block, resnet(value, peer), x, vec, None)
  close(y, theirs.permute(0, 2, 3, 1))


@pytest.mark.parametrize("last", [False, True])
def test_joint_block(last) -> None:
  peer = randomised(
    JointTransformerBlock(32, 4, 8, context_pre_only=last, qk_norm="rms_norm")
  )
  x, y, vec = normal(2, 6, 32), normal(2, 5, 32), normal(2, 32)
  block = JointBlock(heads=4, last=last)
  image, text = run(block, joint_params(value, peer), x, y, None, vec)
  their_text, their_image = peer(*map(torch.tensor, (x, y, vec)))
  close(image, their_image)
  close(text, y if last else their_text)


def test_joint_dit() -> None:
  peer = randomised(
    SD3Transformer2DModel(
      sample_size=8,
      patch_size=2,
      in_channels=3,
      out_channels=3,
      num_layers=3,
      attention_head_dim=8,
      num_attention_heads=4,
      joint_attention_dim=10,
      caption_projection_dim=32,
      pooled_projection_dim=6,
      pos_embed_max_size=4,
      qk_norm="rms_norm",
    )
  )
  # No pooled text here: there it goes through an MLP.
  for p in peer.time_text_embed.text_embedder.linear_2.parameters():
    p.data.zero_()
  peer.pos_embed.pos_embed = torch.tensor(positions_2d(4, 4, 32))[None]
  text = normal(2, 5, 10)
  compare(
    DiT(dim=32, depth=3, heads=4, patch=2, out_channels=3, text_attention="joint"),
    sd3_params(value, peer),
    lambda: sd3_params(gradient, peer),
    normal(2, 8, 8, 3),
    np.array([-3.0, 5.0], np.float32),
    lambda x, t: (
      peer(
        x,
        encoder_hidden_states=torch.tensor(text),
        pooled_projections=torch.zeros(2, 6),
        timestep=t,
      ).sample
    ),
    Cond(seq=jnp.asarray(text)),
  )


def test_dit() -> None:
  peer = randomised(
    DiTTransformer2DModel(
      num_attention_heads=4,
      attention_head_dim=8,
      in_channels=3,
      out_channels=3,
      num_layers=3,
      sample_size=8,
      patch_size=2,
      num_embeds_ada_norm=1,
      norm_eps=1e-6,
    )
  )
  # There each block has an embedding of its own, with other frequencies, and adds a
  # class to it; and the table of positions has another order of columns.
  shared = peer.transformer_blocks[0].norm1.emb
  shared.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
  shared.class_embedder.embedding_table.weight.data.zero_()
  for block in peer.transformer_blocks:
    block.norm1.emb = shared
  peer.pos_embed.pos_embed = torch.tensor(positions_2d(4, 4, 32))[None]
  compare(
    DiT(dim=32, depth=3, heads=4, patch=2, out_channels=3),
    dit_params(value, peer),
    lambda: dit_params(gradient, peer),
    normal(2, 8, 8, 3),
    np.array([-3.0, 5.0], np.float32),
    lambda x, t: peer(x, timestep=t, class_labels=torch.zeros(2, dtype=int)).sample,
  )


def test_plain_block() -> None:
  peer = randomised(
    BasicTransformerBlock(
      32, 4, 8, attention_bias=True, activation_fn="gelu-approximate", norm_eps=1e-6
    )
  )
  params = (
    block_params(value, peer)
    if hasattr(peer.norm1, "linear")
    else {
      "norm_0": norm(value, peer.norm1),
      "norm_1": norm(value, peer.norm3),
      "attention": attention(value, peer.attn1),
      "mlp_in": dense(value, peer.ff.net[0].proj),
      "mlp_out": dense(value, peer.ff.net[2]),
    }
  )
  x, mask = normal(2, 6, 32), np.arange(6) < np.array([[6], [4]])
  bias = torch.tensor(np.where(mask, 0, -1e9).astype(np.float32))[:, None]
  y = run(Block(heads=4), params, x, mask)
  close(y, peer(torch.tensor(x), attention_mask=bias))


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked) -> None:
  q, k, v = normal(2, 5, 3, 8), normal(2, 7, 3, 8), normal(2, 7, 3, 8)
  mask = np.arange(7) < np.array([[7], [4]])
  g = normal(*q.shape)
  peers = [torch.tensor(a.transpose(0, 2, 1, 3), requires_grad=True) for a in (q, k, v)]
  theirs = torch.nn.functional.scaled_dot_product_attention(
    *peers, attn_mask=torch.tensor(mask)[:, None, None] if masked else None
  )
  theirs.backward(torch.tensor(g.transpose(0, 2, 1, 3)))
  q, k, v, mask, g = map(jnp.asarray, (q, k, v, mask, g))
  ours, back = jax.vjp(lambda *args: attend(*args, mask if masked else None), q, k, v)
  close(ours, theirs.transpose(1, 2), atol=1e-5)
  for a, b in zip(back(g), peers, strict=True):
    close(a, b.grad.transpose(1, 2), atol=1e-5)


def test_group_norm() -> None:
  x, scale_shift = 2 + normal(2, 6, 5, 64), normal(2, 128)
  peer = randomised(torch.nn.GroupNorm(32, 64, eps=1e-6))
  y = run(GroupNorm(), norm(value, peer), x)
  theirs = peer(torch.tensor(x.transpose(0, 3, 1, 2))).permute(0, 2, 3, 1)
  close(y, theirs, atol=1e-5)
  y = run(GroupNorm(), norm(value, peer), x, scale_shift)
  scale, shift = torch.tensor(scale_shift)[:, None, None].chunk(2, dim=-1)
  close(y, theirs * (1 + scale) + shift, atol=1e-5)


def test_embeddings() -> None:
  x = np.array([-500.0, -1.25, 0.0, 333.3], np.float32)
  theirs = get_timestep_embedding(
    torch.tensor(x), 64, flip_sin_to_cos=True, downscale_freq_shift=0
  )
  close(sinusoidal(jnp.asarray(x), 64), theirs)
  # Theirs has sines first, and the column before the row.
  table = get_2d_sincos_pos_embed(32, 5, base_size=5, output_type="pt")
  table = table.reshape(25, 2, 2, 8).flip(1, 2)
  close(positions_2d(5, 5, 32), table.reshape(25, 32), atol=1e-6)
