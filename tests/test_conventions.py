"""The project's promises about itself that no other tool checks."""

import configparser
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from core import noise

ROOT = Path(__file__).resolve().parents[1]


def lines(text: str) -> list[str]:
  return [line for line in text.split("\n") if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
  parser = configparser.ConfigParser()
  parser.read(ROOT / "setup.cfg", encoding="utf-8")
  return parser


@pytest.mark.parametrize(
  "logsnr", [jnp.zeros(1), jnp.zeros((3, 1)), jnp.zeros(3, jnp.int32)]
)
def test_wrong_shapes_and_dtypes_are_errors(logsnr):
  # Each of these would broadcast, and go unnoticed, if nothing checked it.
  x = jnp.ones((3, 2))
  with pytest.raises(TypeCheckError):
    noise.diffuse(x, x, logsnr, "vp")


def test_there_are_eight_devices():
  assert jax.device_count() >= 8


def test_every_package_is_installed_and_layered(setup):
  packages = {file.parent.name for file in ROOT.glob("[a-z]*/__init__.py")} - {"tests"}
  included = lines(setup["options.packages.find"]["include"])
  assert {name.removesuffix("*") for name in included} == packages
  assert set(lines(setup["importlinter"]["root_packages"])) == packages


@pytest.mark.parametrize(
  ("files", "extra"),
  [
    (("requirements.lock", "requirements-parity.lock"), "parity"),
    (("requirements-pairs.lock",), "pairs"),
  ],
)
def test_the_lock_is_up_to_date(setup, files, extra):
  pins = dict(
    line.split(" ;")[0].split("==")
    for file in files
    for line in lines((ROOT / file).read_text(encoding="utf-8"))
    if not line.startswith(" ")
  )
  extras = setup["options.extras_require"]
  wanted = "\n".join(
    [setup["options"]["install_requires"], extras["test"], extras[extra]]
  )
  for requirement in map(Requirement, lines(wanted)):
    version = pins.get(canonicalize_name(requirement.name))
    assert version is not None, f"{requirement} is not in the lock: make lock"
    assert requirement.specifier.contains(version), f"{requirement}: make lock"
