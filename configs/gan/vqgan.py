"""VQGAN (Esser et al. 2021, arXiv:2012.09841): a VQ-VAE with a patch critic.

The autoencoder of configs/vae/vq.py, hinge losses and the adaptive weight of the
paper's eq. 7 times 0.8, after a start without a critic. Rombach et al. 2022, table 8,
VQ at f = 8 with 16,384 codes of 4 numbers: reconstruction FID 1.14 on ImageNet after
training on OpenImages.

Variants:
  :kl             the KL autoencoder of configs/vae/kl.py, weight 0.5: FID 0.90.
  :kl_fashion_mnist, :kl_openmoji32  the same, small.
  :fashion_mnist  32x32 Fashion-MNIST to 8x8 of 256 codes, minutes on two CPU cores.
  :openmoji32     32x32 OpenMoji to 8x8 of 256 codes, likewise.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.gan import vae_gan
from configs.vae import kl, vq

VARIANTS = (
  "kl",
  "kl_fashion_mnist",
  "kl_openmoji32",
  "fashion_mnist",
  "openmoji32",
  "tiny",
)


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  if variant not in ("", *VARIANTS):
    raise base.unknown_variant(variant, VARIANTS)
  of_kl = variant.startswith("kl")
  size = variant.removeprefix("kl").removeprefix("_")
  c = (kl if of_kl else vq).get_config(size)
  vae_gan.judged(c, size)
  c.gan.critic, c.gan.loss, c.gan.adaptive = "patch", "hinge", True
  c.gan.weight, c.gan.learning_rate = 0.5 if of_kl else 0.8, 0.0
  if size:
    # A critic that is early, or as fast as the autoencoder, ruins what it makes.
    c.gan.widths, c.gan.start = (32, 64), c.train.steps // 2
    c.gan.learning_rate = 2e-4
  else:
    c.gan.widths, c.gan.start = (64, 128, 256), 50_000
  if variant == "tiny":
    base.tiny(c)
    c.gan.start = 1
  return c
