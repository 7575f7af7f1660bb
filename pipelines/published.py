"""The published weights that a config asks for."""

from pathlib import Path

from jaxtyping import PyTree
from ml_collections import ConfigDict

from core.errors import UserError
from core.family import Spec
from diffusion import weights as diffusion
from nets.pretrained import autoencoder as pretrained
from nets.pretrained import lpips
from pipelines import codecs
from text import frozen as frozen_text
from vae import autoencoder

STABLE_DIFFUSION_SCALE = 0.18215  # of its latents, where no file tells


def frozen(config: ConfigDict, spec: Spec) -> dict[str, PyTree]:
  """What families.make is given besides the config, read from files.

  Raises:
    UserError: they are missing, of another network, or for another family.
  """
  found = {}
  if "diffusion" in config and config.diffusion.weights:
    found["weights"] = denoiser(config, spec)
  vae = config.get("vae")
  if vae is None or not (vae.perceptual_weight or vae.weights):
    return found
  name = config.gan.family if config.family == "gan.hybrid" else config.family
  if name != "vae.autoencoder":
    raise UserError(
      f"vae.perceptual_weight and vae.weights are for vae.autoencoder, not"
      f" {config.family}; set them to 0 and ''."
    )
  if vae.perceptual_weight:
    found["perceptual"] = lpips.load("vgg16")
  if vae.weights:
    file = Path(vae.weights).expanduser()
    check_scale(vae.latent_scale, file, "vae.latent_scale")
    net = autoencoder.network(config, spec)
    found["weights"] = pretrained.load(net, spec.shape, file)
  return found


def denoiser(config: ConfigDict, spec: Spec) -> dict[str, PyTree]:
  """The network in `diffusion.weights`, and the empty text as its encoder has it.

  Raises:
    UserError: as `diffusion.load`; it is for another family; or the latents of
      `data.codec` are scaled otherwise than those that it was trained on.
  """
  if config.family != "diffusion.ddpm":
    raise UserError(
      f"diffusion.weights is for diffusion.ddpm, not {config.family}; set it to ''."
    )
  if config.data.codec:
    codec = codecs.config_of(config)
    scale = codec.vae.latent_scale if "vae" in codec else 0.0
    name = f"vae.latent_scale of the run in data.codec={config.data.codec}"
    if not scale:
      raise UserError(
        f"{name} is 0, and the U-Net in diffusion.weights was trained on latents that"
        f" were multiplied by a number: {STABLE_DIFFUSION_SCALE} in Stable Diffusion."
      )
    folder = Path(config.diffusion.weights).expanduser().parent / "vae"
    check_scale(scale, folder, name)
  found = {"net": diffusion.load(config, spec)}
  text = config.text
  if text.encoder == "frozen" and text.frozen_as_is and not text.embedding:
    found["encoder"] = frozen_text.of_nothing(text)
  return found


def check_scale(scale: float, place: Path, name: str) -> None:
  """Raises UserError if config.json at `place` has another scale of latents.

  0, latents of deviation 1, is for generators of one's own.
  """
  wanted = pretrained.scale(place)
  if scale and wanted is not None and scale != wanted:
    raise UserError(
      f"{name} is {scale}, and config.json in {place} has scaling_factor={wanted}; set"
      " it so."
    )
