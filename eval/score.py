"""Scores of two sets of pictures from anywhere.

    python -m eval.score GENERATED REFERENCE [--held_out=MORE] [--metrics=fd,kid] ...

GENERATED and REFERENCE are folders of images or of shards, or .npz archives (see
eval/images.py). Prints a table, and one JSON object a number to --output. psnr, ssim
and lpips compare pictures of the same name (or place, in archives and shards), such as
reconstructions.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from core import hosts, parallel, tool
from core.errors import UserError, unknown
from core.log import finite, say
from core.workdir import write_atomic
from eval import features, paired, scores
from eval.images import ImageSet, open_images
from eval.sampled import neighbours
from pipelines import pictures


def main(argv: Sequence[str]) -> int:
  """Exit status: 0 done, 2 the user must change something."""
  return tool.status(tell, argv)


def tell(argv: Sequence[str]) -> None:
  """Prints and writes what the command line asks for."""
  flags = parser().parse_args(argv)
  hosts.initialize()
  parallel.keep_freed_memory()
  records = run(flags)
  if jax.process_index() == 0:
    print(scores.table(records))
    if flags.output:
      file = Path(flags.output)
      write_atomic(file, "".join(f"{json.dumps(finite(r))}\n" for r in records))


def parser() -> argparse.ArgumentParser:
  """The command line."""
  parser = tool.Parser("python -m eval.score", __doc__)
  add = parser.add_argument
  add("generated", help="what is scored")
  add("reference", help="real pictures")
  add("--held_out", help="real pictures that nothing was trained on (memorisation)")
  add(
    "--metrics",
    default="fd,kid,prdc",
    help=f"among {', '.join((*scores.METRICS, *paired.METRICS))}; default %(default)s",
  )
  add("--features", default="efficientnet_lite0", help=", ".join(features.NETS))
  add("--resize", default="clean", choices=features.METHODS, help="default %(default)s")
  add("--num_images", type=int, default=0, help="the first so many of each; 0 for all")
  add("--batch_size", type=int, default=64, help="over all devices")
  add("--neighbours", help="PNG to write of samples and what they lie nearest to")
  add("--output", help="file for the numbers with their provenance, JSON lines")
  return parser


def run(flags: argparse.Namespace) -> list[dict[str, Any]]:
  """The records of what is asked for.

  Raises:
    UserError: what is given can't be read or does not fit.
  """
  if flags.num_images < 0:
    raise UserError(f"--num_images must be 0 (all) or more, not {flags.num_images}.")
  names = [name for name in flags.metrics.split(",") if name]
  if not names:
    raise UserError("--metrics names none; leave it out for fd,kid,prdc.")
  for name in names:
    if name not in (*scores.METRICS, *paired.METRICS):
      raise unknown("--metrics", name, (*scores.METRICS, *paired.METRICS))
  sets = [open_images(path) for path in (flags.generated, flags.reference)]
  generated, reference = (images.first(flags.num_images) for images in sets)
  say(f"{generated.length:,} pictures against {reference.length:,}")
  count = {"num_samples": generated.length, "num_reference": reference.length}
  source = {"samples": generated.name, "reference": reference.name}
  of_features = [name for name in names if name in scores.METRICS]
  records = []
  if of_features:
    records += compare(flags, of_features, generated, reference)
  of_pairs = [name for name in names if name in paired.METRICS]
  if of_pairs:
    records += paired.records(of_pairs, generated, reference)
  return [record | count | source for record in records]


def compare(
  flags: argparse.Namespace,
  names: list[str],
  generated: ImageSet,
  reference: ImageSet,
) -> list[dict[str, Any]]:
  """The scores of distributions."""
  run = parallel.make(ConfigDict({"backend": "auto", "fsdp": 1, "tensor": 1}))
  run.check_batch(flags.batch_size, field="--batch_size")
  net = features.load(flags.features, flags.resize, "--features")
  extract = features.Extractor(net, run, flags.resize, flags.batch_size)
  sets = {"reference": reference}
  if "memorisation" in names:
    if not flags.held_out:
      raise UserError("memorisation needs --held_out: real pictures not in REFERENCE.")
    held_out = open_images(flags.held_out).first(flags.num_images)
    scores.check_apart(reference, held_out)
    sets |= {"training": reference, "held_out": held_out}
  lengths = {role: images.length for role, images in sets.items()}
  scores.check(names, net, generated.length, **lengths)
  sums = {"reference"} if "kid" in names else set()
  known = {role: extract.cached(images, role in sums) for role, images in sets.items()}
  found, memorised = scores.score(names, net, extract(generated), **known)
  if memorised and flags.neighbours and jax.process_index() == 0:
    picture = neighbours(memorised, generated, reference)
    pictures.save(picture, Path(flags.neighbours))
  provenance = net.provenance | {"resize": flags.resize}
  if memorised:
    provenance["held_out"] = sets["held_out"].name
  return [scores.record(score) | provenance for score in found]


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
