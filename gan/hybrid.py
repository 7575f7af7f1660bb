"""Another family with a critic: VAE-GAN, VQGAN, Flow-GAN.

`gan.family` is trained as always, and its pictures (a VAE's reconstructions and draws,
an autoencoder's reconstructions, a flow's draws) are judged besides; likelihoods, edits
and codecs are its own.
"""

from typing import Any

from ml_collections import ConfigDict

from core import checks, family
from core.errors import UserError
from core.family import Family, Spec
from gan import critic, spectral
from gan.adversarial import adversarial


def make(config: ConfigDict, spec: Spec, **parts: Any) -> Family:
  """`config.gan.family` with the critic of `config.gan`; `parts` are the family's.

  Raises:
    UserError: there is no such family, it can have no critic, or settings do not fit.
  """
  name = config.gan.family
  if name.partition(".")[0] == "gan":
    raise UserError(
      f"gan.family={name!r} has a critic of its own: name another family, such as"
      " vae.vae, or set family to it."
    )
  checks.refuse(config, "gan", generator="dcgan", path_length=0.0)
  checks.refuse(config, "sample", truncation=0.0)
  spectral.refuse_both(config)
  own = ConfigDict(config.to_dict())
  own.family = name
  found = family.make(own, spec, "gan.family", **parts)
  return adversarial(own, found, critic.make(own))
