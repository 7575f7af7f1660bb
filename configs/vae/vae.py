"""VAE: Kingma & Welling 2014, "Auto-Encoding Variational Bayes".

A decoder of normal noise and the encoder that trains it, with a convolutional network
in place of the paper's one hidden layer. The default is class to 32x32 Fashion-MNIST
with one vector of 32 latents and a Gaussian of learned scale (after sigma-VAE, Rybkin
et al. 2021, but one for each picture). Expect blurry reconstructions, since what a
pixel does not share with the latents is averaged over, and blobs as samples after so
few steps. `vae.likelihood` swaps p(x|z),
`vae.beta` the weight of the KL term (Higgins et al. 2017), `vae.warmup_steps` lets it
rise from 0 (Sønderby et al. 2016), `vae.free_bits` leaves each latent some bits (Kingma
et al. 2016), and `bpd_iwae` is the bound of Burda et al. 2016.

Variants:
  :fashion_mnist  the default, by its name: under ten minutes on two CPU cores.
  :openmoji32     captions to 32x32 OpenMoji: ten minutes or more. With
                  `vae.likelihood=logistic_mixture` (Salimans et al. 2017) a third of
                  the bits is enough, for a pixel is white or it is not, but then the
                  latents say little, and the pictures are blobs.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = base.get_config()
  c.family = "vae.vae"
  c.vae = base.vae()
  c.vae.latent_dim, c.vae.latent_channels = 32, 16
  c.vae.warmup_steps = 300
  c.model.widths, c.model.blocks, c.model.attention = (16, 32, 64), 1, ()
  c.data.batch_size = 32
  c.optim.learning_rate, c.optim.warmup_steps, c.optim.schedule = 1e-3, 100, "cosine"
  c.optim.ema, c.optim.ema_decay = "warmup", 0.995
  c.train.steps = 1000
  c.train.sample_every = c.train.checkpoint_every = c.train.eval_every = 500
  c.sample.guidance_scale, c.sample.edit = 1.0, "reconstruct"
  c.sample.num_images = 40
  match variant:
    case "" | "fashion_mnist":
      c.data.name, c.data.channels = "fashion_mnist", 1
      c.text.encoder, c.text.classes = "label", 10
    case "openmoji32":
      openmoji32(c)
    case "tiny":
      openmoji32(c)
      base.tiny(c)
      c.vae.latent_dim, c.vae.warmup_steps = 4, 2
      c.vae.iwae_samples = 2
    case _:
      raise base.unknown_variant(variant, ("fashion_mnist", "openmoji32", "tiny"))
  return c


def openmoji32(c: ConfigDict) -> None:
  """Text to 32x32 OpenMoji in three languages."""
  c.data.languages = ("en", "zh", "ja")
  c.text.max_tokens = 48
  c.vae.latent_dim = 64
  c.sample.num_images = 32
