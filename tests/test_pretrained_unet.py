"""Files of Stable Diffusion's U-Net: what they describe, and what is refused."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from core.errors import UserError
from core.family import Spec
from core.family import make as make_family
from core.workdir import open_workdir
from diffusion import weights
from nets.pretrained import unet
from nets.unet import UNet
from pipelines import published
from tests.runs import load_config, random_batch
from text.cond import Cond

SHAPE, TEXT = (8, 8, 4), 16
CONFIG = {
  "_class_name": "UNet2DConditionModel",
  "block_out_channels": [8, 16],
  "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
  "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
  "layers_per_block": 1,
  "cross_attention_dim": TEXT,
  "attention_head_dim": 2,
  "norm_num_groups": 4,
}
SCHEDULER = {
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "clip_sample": False,
}


def written(place: Path, state: dict, **fields) -> Path:
  """The folder `unet` of a checkpoint, its scheduler beside it."""
  for name, config in (("unet", CONFIG | fields), ("scheduler", SCHEDULER)):
    (place / name).mkdir(exist_ok=True)
    file = "config.json" if name == "unet" else "scheduler_config.json"
    (place / name / file).write_text(json.dumps(config))
  save_file(state, place / "unet" / "diffusion_pytorch_model.safetensors")
  return place / "unet"


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> dict:
  """Random tensors under diffusers' names."""
  folder = written(tmp_path_factory.mktemp("described"), {})
  net, _, text = unet.described(folder, SHAPE[0])
  cond = Cond(seq=jnp.zeros((1, 1, text)))
  args = jnp.zeros((1, *SHAPE)), jnp.zeros(1), cond
  tree = unet.flat(jax.eval_shape(net.init, jax.random.key(0), *args)["params"])
  rng, found = np.random.default_rng(0), {}
  for path, leaf in tree.items():
    names = unet.tensors(path, 2)
    *rest, last = leaf.shape
    for name in names:
      array = 0.2 * rng.normal(size=(*rest, last // len(names))).astype(np.float32)
      if path.endswith("kernel"):
        order = (3, 2, 0, 1) if array.ndim == 4 else (1, 0)
        array = np.ascontiguousarray(array.transpose(order))
      found[name] = array
  assert len(found) == len({*found}) > 100
  return found


def test_stable_diffusion_is_described(tmp_path):
  folder = written(tmp_path, {})
  common = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "layers_per_block": 2,
    "norm_num_groups": 32,
  }
  first = common | {"attention_head_dim": 8, "cross_attention_dim": 768}
  second = common | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024}
  expected = UNet(
    out_channels=4,
    widths=(320, 640, 1280, 1280),
    blocks=2,
    attention=(64, 32, 16),
    head_dim=0,
    heads=8,
    modulation="shift",
    transformer=1,
    groups=32,
    eps=1e-5,
    clock="scaled_linear",
  )
  (folder / "config.json").write_text(json.dumps(first))
  assert unet.described(folder, 64) == (expected, 4, 768)
  (folder / "config.json").write_text(json.dumps(second))
  expected = expected.clone(heads=0, head_dim=64, attention=(96, 48, 24))
  assert unet.described(folder, 96) == (expected, 4, 1024)


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"conv_in.bias": None}, r"model.safetensors has no tensor conv_in.bias"),
    ({"more.weight": np.zeros(2)}, "has a tensor more.weight, which is no part of"),
    (
      {"mid_block.resnets.0.conv1.weight": np.zeros((16, 8, 3, 3))},
      r"mid_block.resnets.0.conv1.weight of shape \(16, 8, 3, 3\), .* \(16, 16, 3, 3\)",
    ),
  ],
)
def test_tensors_that_do_not_fit_are_named(state, change, sentence, tmp_path):
  changed = {k: a for k, a in (state | change).items() if a is not None}
  folder = written(tmp_path, changed)
  net = unet.described(folder, SHAPE[0]).net
  with pytest.raises(UserError, match=sentence):
    unet.load(net, SHAPE, folder)


@pytest.mark.parametrize(
  ("fields", "sentence"),
  [
    ({"_class_name": "UNet2DModel"}, "is of UNet2DModel, not of UNet2DCondition"),
    (
      {"addition_embed_type": "text_time"},
      "has addition_embed_type='text_time'",
    ),
    ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "other resolutions down than up"),
    (
      {"down_block_types": ["AttnDownBlock2D"] * 2},
      "has blocks AttnDownBlock2D",
    ),
    ({"attention_head_dim": [2, 3]}, r"has attention_head_dim=\[2, 3\], which"),
    ({"block_out_channels": 8}, "cannot be read as a configuration of a U-Net"),
    ({"norm_num_groups": 2}, "is of a U-Net with model.groups=2, not 4"),
    ({"block_out_channels": [8, 32]}, r"with model.widths=\(8, 32\), not \(8, 16\)"),
    ({"in_channels": 9}, "is of a U-Net that reads 9 channels, not 4"),
    ({"out_channels": 8}, "is of a U-Net that returns 8 channels, not 4"),
  ],
)
def test_other_networks_are_refused(state, fields, sentence, tmp_path):
  net = unet.described(written(tmp_path, state), SHAPE[0]).net
  with pytest.raises(UserError, match=sentence):
    unet.load(net, SHAPE, written(tmp_path, state, **fields))


def config_of(folder: Path, **fields):
  """A config of that network, which reads a text of 16 numbers a byte."""
  config = load_config("configs/diffusion/ddpm.py")
  config.update_from_flattened_dict(
    {
      "noise.schedule": "scaled_linear",
      "noise.timesteps": 1000,
      "diffusion.weights": str(folder),
      "model.widths": (8, 16),
      "model.blocks": 1,
      "model.attention": (4,),
      "model.head_dim": 0,
      "model.heads": 2,
      "model.modulation": "shift",
      "model.transformer": 1,
      "model.groups": 4,
      "model.norm_eps": 1e-5,
      "model.clock": "scaled_linear",
      "sample.threshold": "none",
      **fields,
    }
  )
  return config


SPEC = Spec(SHAPE, pixels=False)


def test_a_config_whose_noise_is_another_is_refused(state, tmp_path):
  folder = written(tmp_path, state)
  for field, value, sentence in (
    ("model.clock", "logsnr", "with model.clock='scaled_linear', not 'logsnr'; set"),
    (
      "diffusion.prediction",
      "v",
      "with diffusion.prediction='eps', not 'v'",
    ),
    ("noise.schedule", "cosine", "with noise.schedule='scaled_linear', not 'cosine'"),
    ("noise.scaled_linear.beta_end", 0.02, "beta_end=0.012, not 0.02; set it so"),
    ("noise.zero_terminal", True, "with noise.zero_terminal=False, not True"),
    ("noise.schedule", "rectified_flow", "were trained with variance-preserving noise"),
    ("model.net", "dit", "are for model.net='unet' without model.fourier"),
    ("model.fourier", (7, 8), "are for model.net='unet' without model.fourier"),
    ("model.heads", 4, "with model.heads=2, not 4"),
  ):
    with pytest.raises(UserError, match=sentence):
      weights.load(config_of(folder, **{field: value}), SPEC)
  config = config_of(folder)
  config.family = "diffusion.other"
  with pytest.raises(UserError, match="diffusion.weights is for diffusion.ddpm, not"):
    published.frozen(config, SPEC)
  # Without the file nothing tells, but the network's own clock.
  (folder.parent / "scheduler" / "scheduler_config.json").unlink()
  weights.load(config_of(folder, **{"diffusion.prediction": "v"}), SPEC)
  with pytest.raises(UserError, match="set model.clock to 'scaled_linear', not"):
    weights.load(config_of(folder, **{"model.clock": "logsnr"}), SPEC)


def test_another_text_encoder_is_refused(state, tmp_path):
  config = config_of(written(tmp_path, state))  # bytes have a pooled vector, too
  family = make_family(config, SPEC, **published.frozen(config, SPEC))
  batch = random_batch(config) | {"x": np.zeros((8, *SHAPE), np.float32)}
  with pytest.raises(UserError, match=r"has pooled/bias of shape None.* be \(32,\)"):
    jax.eval_shape(family.init, jax.random.key(0), batch)


def test_a_codec_of_other_latents_is_refused(state, tmp_path):
  folder = written(tmp_path, state)
  codec = load_config("configs/vae/kl.py")
  config = config_of(folder, **{"data.codec": str(tmp_path / "codec")})
  for scale, sentence in ((0.0, "is 0, and the U-Net in"), (0.5, "is 0.5, and config")):
    codec.vae.latent_scale = scale
    shutil.rmtree(tmp_path / "codec", ignore_errors=True)
    open_workdir(str(tmp_path / "codec"), codec)
    (tmp_path / "vae").mkdir(exist_ok=True)
    (tmp_path / "vae" / "config.json").write_text('{"scaling_factor": 0.25}')
    with pytest.raises(UserError, match=f"vae.latent_scale of the run .* {sentence}"):
      published.frozen(config, SPEC)
