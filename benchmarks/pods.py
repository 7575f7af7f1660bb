"""Full-size configs compiled for TPU pods that are not here: the table of docs/pods.md.

    python benchmarks/pods.py --results=FILE [--topology=v5e:16x16 ...]
      [--set FIELD=VALUE ...] [CONFIG[@STAGE] ...]
    python benchmarks/pods.py --results=FILE --table

Each config (all of `CONFIGS` without any) is compiled for each topology, one after the
other, with `SETTINGS` unless fields are given by `--set`, and its figures are added to
FILE, a line of JSON each; what is there already is passed over, so that it goes on
where it was stopped. Fields that are set otherwise than in the config are kept with the
figures. `--table` prints FILE as a table. It needs
`pip install libtpu`, no TPU, and takes minutes for each program.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax

from core import cli, limits, tool, topology
from core.errors import UserError
from core.log import say
from pipelines import compiled

TOPOLOGIES = ("v5e:2x4", "v5e:16x16", "v6e:16x16")
AUTOENCODER, VQGAN = "configs/vae/kl.py", "configs/gan/vqgan.py"
# What is trained on a pod, each with the autoencoder whose latents it reads.
CONFIGS = {
  "configs/diffusion/dit.py": AUTOENCODER,
  "configs/diffusion/dit.py:sit": AUTOENCODER,
  "configs/autoregressive/decoder.py": VQGAN,
  "configs/autoregressive/maskgit.py": VQGAN,
  "configs/autoregressive/permuted.py": VQGAN,
  "configs/autoregressive/mar.py": AUTOENCODER,
  "configs/flows/jet.py": "",
  "configs/flows/glow.py:imagenet64": "",
  "configs/text/clip.py": "",
  "configs/pipelines/stable_diffusion.py:sd3@generator": "",
  "configs/pipelines/dalle2.py@prior": "",
  "configs/pipelines/dalle.py@generator": "",
  "configs/vae/vq.py": "",
  "configs/vae/kl.py": "",
  "configs/gan/r3gan.py": "",
  "configs/gan/biggan.py:imagenet128": "",
  "configs/gan/stylegan2.py:ffhq1024": "",
  "configs/diffusion/ddpm.py": "",
  "configs/diffusion/edm.py": "",
  "configs/diffusion/vdm.py": "",
  "configs/pipelines/stable_diffusion.py@generator": "",
  "configs/pipelines/dalle2.py@decoder": "",
  "configs/pipelines/imagen.py@small": "",
  "configs/pipelines/imagen.py@large": "",
}

CUT = ("parallel.fsdp=8", "parallel.backend=mesh")  # the state, in eight parts
# With what a config was found to fit a topology that it does not fit as it stands.
SETTINGS: dict[tuple[str, str], tuple[str, ...]] = {
  ("configs/diffusion/dit.py", "v5e:2x4"): CUT,
  ("configs/diffusion/dit.py:sit", "v5e:2x4"): CUT,
  ("configs/autoregressive/decoder.py", "v5e:2x4"): ("model.remat=True",),
  ("configs/autoregressive/maskgit.py", "v5e:2x4"): ("model.remat=True",),
  ("configs/pipelines/dalle2.py@prior", "v5e:16x16"): (
    "parallel.backend=mesh",
    "parallel.fsdp=256",
    "model.remat=True",
    "optim.microbatches=4",
  ),
}


def row(name: str, topology_name: str, overrides: Sequence[str]) -> dict[str, Any]:
  """The figures of a config on a topology, and what they are of."""
  chip, devices = topology.named(topology_name)
  file, _, stage = name.partition("@")
  config = cli.load(file)
  if codec := CONFIGS.get(name, ""):
    config.data.codec = codec
  part = config.stages[stage] if stage else config
  for text in overrides:
    override(part, text)
  limits.check(config)
  with compiled.parts(config, stage) as parts:
    own = parts[stage]
    run = compiled.run_on(own, devices)
    found = compiled.step(own, run, chip)
  return {
    "config": name,
    "topology": topology_name,
    "set": list(overrides),
    "backend": run.backend,
    "batch": own.data.batch_size,
    "fsdp": own.parallel.fsdp,
    "tensor": own.parallel.tensor,
    "microbatches": own.optim.microbatches,
    "remat": own.model.remat,
    "dtype": own.model.dtype,
    "commit": commit(),
    "jax": jax.__version__,
  } | found


def override(config: Any, text: str) -> None:
  """Sets what 'model.remat=True' says; whole numbers, floats, truth values or text."""
  path, _, value = text.partition("=")
  *sections, field = path.split(".")
  for section in sections:
    config = config[section]
  kind = type(config[field])
  config[field] = value == "True" if kind is bool else kind(value)


def commit() -> str:
  """Of the code that is running."""
  return subprocess.run(
    ["git", "describe", "--always", "--dirty"],
    cwd=Path(__file__).parent,
    capture_output=True,
    text=True,
    check=False,
  ).stdout.strip()


def table(rows: Sequence[dict[str, Any]]) -> str:
  """The rows as Markdown."""
  head = (
    "| config | topology | batch, backend | memory, GiB of limit | state"
    " | FLOPs a chip, counted | compiled | moved | sent | step at least"
    " | utilisation at most | communication | commit |\n" + "|---" * 13 + "|"
  )
  return "\n".join([head, *map(line, rows)])


def line(found: dict[str, Any]) -> str:
  """One row."""
  memory, gib = found["memory"], 2**30
  state = sum(memory[k] for k in ("parameters", "optimizer", "averages", "extra"))
  ways = {name: found.get(name, 1) for name in ("fsdp", "tensor")}
  told = [f"{name} {count}" for name, count in ways.items() if count > 1]
  setting = ", ".join([found["backend"], *told])
  if found["microbatches"] > 1:
    setting += f", {found['microbatches']} microbatches"
  shown = ("parallel", "optim.micro", "data.batch_size")
  changed = [text for text in found["set"] if not text.startswith(shown)]
  name = " ".join([f"`{found['config'].removeprefix('configs/')}`", *changed])
  first = (
    f"| {name} | {found['topology']} | {found['batch']}, {setting}"
    f" | {memory['peak'] / gib:.1f} of {memory['limit'] / gib:.2f}"
    f" | {state / gib:.2f} | {found['flops']['counted'] / 1e12:.2f} T"
  )
  if not found["fits"]:
    return f"{first} | does not fit | | | | | | {found['commit']} |"
  sent = found["traffic"]["sent"] / 1e9
  return (
    f"{first} | {found['flops']['compiled'] / 1e12:.2f} T"
    f" | {found['traffic']['memory'] / 1e9:.0f} GB | {sent:.2f} GB"
    f" | {found['bound'] * 1e3:.0f} ms ({found['bound_by']})"
    f" | {found['utilisation']:.0%} | {found['communication_share']:.0%}"
    f" | {found['commit']} |"
  )


def main(argv: Sequence[str]) -> None:
  """Compiles what is missing, or prints the table."""
  parser = tool.Parser("python benchmarks/pods.py", __doc__)
  parser.add_argument("configs", nargs="*")
  parser.add_argument("--results", required=True, type=Path)
  parser.add_argument("--topology", action="append")
  parser.add_argument("--set", action="append", default=[])
  parser.add_argument("--table", action="store_true")
  flags = parser.parse_args(argv)
  text = flags.results.read_text() if flags.results.exists() else ""
  rows = [json.loads(line) for line in text.splitlines()]
  if flags.table:
    print(table(rows))
    return
  done = {(r["config"], r["topology"], frozenset(r["set"])) for r in rows}
  for where in flags.topology or TOPOLOGIES:
    for name in flags.configs or CONFIGS:
      changed = flags.set or SETTINGS.get((name, where), ())
      if (name, where, frozenset(changed)) in done:
        continue
      start = time.perf_counter()
      try:
        found = row(name, where, changed)
      except UserError as error:
        say(f"{name} on {where}: {error}")
        continue
      with flags.results.open("a") as file:
        file.write(json.dumps(found) + "\n")
      say(f"{line(found)} {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
  sys.exit(tool.status(main, sys.argv[1:]))
