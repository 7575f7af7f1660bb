"""The decoder against transformers' Llama, on the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import LlamaConfig, LlamaModel

from nets.decoder import Decoder, cached, caches, rotary_angles, unstacked
from nets.stream import causal
from tests.parity.test_nets import close, normal, randomised, value

DIM, HEADS, DEPTH, LENGTH = 48, 4, 3, 7


def llama() -> LlamaModel:
  config = LlamaConfig(
    hidden_size=DIM,
    intermediate_size=128,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    num_key_value_heads=HEADS,
    vocab_size=16,
    rms_norm_eps=1e-6,
    attn_implementation="eager",
  )
  return randomised(LlamaModel(config))


def kernel(*layers: torch.nn.Linear) -> dict:
  return {"kernel": np.concatenate([value(m.weight).T for m in layers], axis=1)}


def params_of(model: LlamaModel) -> dict:
  blocks = [
    {
      "norm_0": {"scale": value(layer.input_layernorm.weight)},
      "norm_1": {"scale": value(layer.post_attention_layernorm.weight)},
      "qkv": kernel(*(getattr(layer.self_attn, f"{n}_proj") for n in "qkv")),
      "out": kernel(layer.self_attn.o_proj),
      "gate_up": kernel(layer.mlp.gate_proj, layer.mlp.up_proj),
      "down": kernel(layer.mlp.down_proj),
    }
    for layer in model.layers
  ]
  return {
    "block": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
    "norm": {"scale": value(model.norm.weight)},
  }


def test_llama() -> None:
  """Outputs at once, with padding before, and one by one through the cache."""
  peer = llama()
  net, params = Decoder(DIM, DEPTH, HEADS), params_of(peer)
  x = jnp.asarray(normal(2, LENGTH, DIM))
  mask = np.arange(LENGTH) >= np.array([[0], [2]])
  theirs = peer(
    inputs_embeds=torch.tensor(np.asarray(x)),
    attention_mask=torch.tensor(mask),
    position_ids=torch.arange(LENGTH)[None],
  ).last_hidden_state
  positions = jnp.arange(LENGTH)[:, None]
  angles, reads = rotary_angles(positions, DIM // HEADS), causal(jnp.asarray(mask))
  ours = jax.jit(net.apply)({"params": params}, x, angles, reads)
  keep = lambda y: np.asarray(y)[mask]  # noqa: E731  (padding's own output is nothing)
  close(keep(ours), keep(theirs.detach()))
  shapes = jax.eval_shape(net.init, jax.random.key(0), x, angles, reads)["params"]
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)

  state, layers, found = caches(net, 2, LENGTH), unstacked(net, params), []
  for i in range(LENGTH):
    one = slice(i, i + 1)
    y, state = cached(net, layers, state, x[:, one], angles[one], reads[:, one], i)
    found.append(y)
  close(keep(jnp.concatenate(found, axis=1)), keep(theirs.detach()))
