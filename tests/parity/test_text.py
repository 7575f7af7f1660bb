"""Text encoders against transformers' own, with random weights they share."""

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from nets import clip_text
from nets.pretrained import convert as to

SIZES = {
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
}
TOKENS = np.random.default_rng(0).integers(3, 40, (3, 9))
TOKENS[:, 0] = 1
MASK = np.arange(9) < np.array([[9], [6], [3]])
TOKENS[np.arange(3), MASK.sum(1) - 1] = 49


def random(net: torch.nn.Module) -> torch.nn.Module:
  """Every parameter drawn, so that none is of no consequence."""
  torch.manual_seed(0)
  for p in net.parameters():
    torch.nn.init.normal_(p, std=0.3 if p.ndim > 1 else 0.1)
    if p.ndim == 1:
      p.data += 0.5
  return net.eval()


def close(ours, theirs, where=None) -> None:
  theirs = theirs.detach().numpy()
  where = np.ones(len(theirs), bool) if where is None else where
  scale = np.abs(theirs).max()
  np.testing.assert_allclose(
    np.asarray(ours)[where], theirs[where], rtol=0, atol=1e-4 * scale
  )


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_clip_text_tower(tmp_path, act) -> None:
  config = transformers.CLIPTextConfig(
    vocab_size=50, max_position_embeddings=12, projection_dim=8, hidden_act=act,
    eos_token_id=49, bos_token_id=1, **SIZES,
  )  # fmt: skip
  peer = random(transformers.CLIPTextModelWithProjection(config))
  peer.save_pretrained(tmp_path)
  file = tmp_path / "model.safetensors"
  net = clip_text.TextTower(50, 12, 16, 2, 2, 24, act, eos=49, out=8)
  names = clip_text.names(net, head="text_projection")
  params = to.matched(net, names, load_file(file), lambda _: file, TOKENS)
  seq, pooled = jax.jit(net.apply)({"params": params}, TOKENS, MASK)
  want = peer(torch.tensor(TOKENS), attention_mask=torch.tensor(MASK).long())
  close(seq, want.last_hidden_state, MASK)
  close(pooled, want.text_embeds)


def test_siglip_text_tower(tmp_path) -> None:
  config = transformers.SiglipTextConfig(
    vocab_size=50, max_position_embeddings=12, projection_size=8, bos_token_id=1,
    eos_token_id=49, **SIZES,
  )  # fmt: skip
  peer = random(transformers.SiglipTextModel(config))
  peer.save_pretrained(tmp_path)
  file = tmp_path / "model.safetensors"
  net = clip_text.TextTower(
    50, 12, 16, 2, 2, 24, "gelu_pytorch_tanh", 1e-6, False, out=8, out_bias=True
  )
  names = clip_text.names(net, prefix="", head="head")
  params = to.matched(net, names, load_file(file), lambda _: file, TOKENS)
  seq, pooled = jax.jit(net.apply)({"params": params}, TOKENS)
  want = peer(torch.tensor(TOKENS))
  close(seq, want.last_hidden_state)
  close(pooled, want.pooler_output)
