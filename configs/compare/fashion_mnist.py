"""Every family on Fashion-MNIST: class to 32x32 grey pictures, under one budget.

`--mode=compare` trains each member for 120 seconds with each of two seeds, of which the
codec takes 30 where there is one, and scores 1,000 pictures of each.

The members are the variants for CPUs of their own files, at 32x32 and without guidance,
and differ from them as `short` says.

Variants:
  :tiny  seconds a member, on OpenMoji at 8x8 pixels; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.autoregressive import decoder, maskgit
from configs.diffusion import ddpm, dit, edm, rectified_flow
from configs.flows import glow, jet, realnvp
from configs.gan import dcgan, ddgan, flow_gan, r3gan, stylegan2, vae_gan
from configs.vae import hierarchical, kl, mixture, vae, vq

VARIANTS = ("tiny",)
# In the order of the report: from the model with the longest history to the youngest.
MEMBERS = {
  "gaussian_mixture": mixture,
  "autoregressive_pixels": decoder,
  "autoregressive_tokens": decoder,
  "maskgit": maskgit,
  "vae": vae,
  "hierarchical_vae": hierarchical,
  "realnvp": realnvp,
  "glow": glow,
  "jet": jet,
  "dcgan": dcgan,
  "stylegan2": stylegan2,
  "r3gan": r3gan,
  "ddpm": ddpm,
  "edm": edm,
  "flow_matching": rectified_flow,
  "latent_diffusion": dit,
  "vae_gan": vae_gan,
  "flow_gan": flow_gan,
  "ddgan": ddgan,
}
CODECS = {"kl": kl, "vq": vq}


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  match variant:
    case "":
      return comparison("fashion_mnist")
    case "tiny":
      return tiny()
    case _:
      raise base.unknown_variant(variant, VARIANTS)


def comparison(data: str) -> ConfigDict:
  """The comparison on `fashion_mnist` or `openmoji32`."""
  variants = {
    "autoregressive_pixels": "fashion_mnist",
    "autoregressive_tokens": "openmoji32",
    "edm": "",
    "flow_matching": "fashion_mnist",
  }
  if data == "fashion_mnist":
    variants["autoregressive_tokens"] = "fashion_mnist_tokens"
  members = {k: m.get_config(variants.get(k, data)) for k, m in MEMBERS.items()}
  if data == "openmoji32":
    for name in ("autoregressive_pixels", "flow_matching"):
      base.openmoji32(members[name])
      members[name].data.channels, members[name].text.classes = 3, 0
  else:
    base.fashion_mnist(members["edm"])
  short(members)
  return base.comparison(members, {k: m.get_config(data) for k, m in CODECS.items()})


def short(members: dict[str, ConfigDict]) -> None:
  """Members as small as the others, which draw in seconds; changed in place."""
  plain(members)
  # One number after the other: 1,024 of a grey picture, 3,072 of a colour one.
  pixels = members["autoregressive_pixels"]
  pixels.data.size, pixels.data.batch_size = 32, 8
  pixels.model.dim, pixels.text.dim = 64, 64
  for name in ("ddpm", "edm"):
    c = members[name]
    c.data.size, c.data.batch_size = 32, 32
    c.model.net, c.model.widths, c.model.blocks = "unet", (32, 64, 64), 2
    c.model.stem, c.model.attention, c.model.head_dim = 0, (), 64
    c.model.dropout, c.optim.learning_rate = 0.0, 1e-3
    c.optim.warmup_steps, c.sample.threshold = 200, "static"
  members["ddpm"].sample.sampler, members["ddpm"].sample.steps = "ddim", 20
  members["edm"].sample.steps = 10
  members["flow_matching"].sample.steps = members["latent_diffusion"].sample.steps = 10
  over_codecs(members)


def plain(members: dict[str, ConfigDict]) -> None:
  """All see the pictures as they are, and draw of p(x | y) itself; in place."""
  for c in members.values():
    c.sample.guidance_scale, c.data.flip = 1.0, False
  members["edm"].diffusion.augment = 0.0


def over_codecs(members: dict[str, ConfigDict]) -> None:
  """Tells the members over tokens and latents which codec is theirs."""
  for name in ("autoregressive_tokens", "maskgit"):
    members[name].data.codec, members[name].data.latents = "@vq", "tokens"
  members["latent_diffusion"].data.codec = "@kl"


def tiny() -> ConfigDict:
  """All members at the size of their own tests."""
  members = {k: m.get_config("tiny") for k, m in MEMBERS.items()}
  over_codecs(members)
  members["latent_diffusion"].model.patch = 1
  plain(members)
  c = base.comparison(members, {k: m.get_config("tiny") for k, m in CODECS.items()})
  c.seeds, c.parameters = (0,), (100, 200_000)
  c.budget.unit = "steps"
  c.curve.points, c.curve.num_images = 2, 8
  c.eval.num_images, c.eval.batch_size, c.sample.num_images = 24, 8, 8
  return c
