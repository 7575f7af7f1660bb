"""The discrete VAE of DALL-E (Ramesh et al. 2021, arXiv:2102.12092, appendix A).

256x256 to 32x32 of 8,192 codes, relaxed by Gumbel-softmax; logit-Laplace likelihood; KL
weight 6.6 after 5,000 updates, temperature 1 to 1/16 over 150,000, 3 million updates of
512 pictures, AdamW with an average of the weights of 0.999. The paper gives no figure
for its reconstructions. Differences: the network is that of configs/vae/kl.py, theirs
has no norms and no attention; beta rises along a line, the learning rate falls to 0,
and pixels get the uniform noise that makes the density a bound. The small variants
have the L1 loss of configs/vae/kl.py.

Variants:
  :openmoji32     32x32 OpenMoji to 8x8 of 256 codes: twelve minutes on one CPU core.
  :fashion_mnist  32x32 Fashion-MNIST to 8x8 of 256 codes: two to three minutes.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.vae import kl


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = kl.autoencoder(variant)
  c.vae.bottleneck, c.vae.loss, c.vae.perceptual_weight = "gumbel", "laplace", 0.0
  c.vae.codes, c.vae.beta, c.vae.warmup_steps = 8192, 6.6, 5000
  c.vae.temperature_steps = 150_000
  match variant:
    case "":
      c.data.batch_size, c.train.steps = 512, 3_000_000
      c.optim.learning_rate, c.optim.b1, c.optim.b2 = 1e-4, 0.9, 0.999
      c.optim.weight_decay, c.optim.schedule = 1e-4, "cosine"
      c.optim.ema, c.optim.ema_decay = "constant", 0.999
    case "openmoji32" | "fashion_mnist":
      # A short run: a quicker anneal, and pressure towards even use of the codes, for
      # what nothing chooses in the first updates would stay unused.
      # The loss is that of configs/vae/kl.py: colours come late with the likelihood.
      c.vae.loss, c.vae.codes, c.vae.evenness = "l1", 256, 0.01
      c.vae.beta, c.vae.warmup_steps = 0.05, 0
      c.vae.temperature_steps = 3 * c.train.steps // 4
    case "tiny":
      base.tiny(c)
      c.vae.evenness = 0.01
  return c
