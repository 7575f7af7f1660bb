"""Every fault a user can mend: exit status 2 and one line that says how."""

import json
import os
import stat
from pathlib import Path

import pytest
from PIL import Image

from tests.runs import command, load_config, on_folder, picture_folder, run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return picture_folder(tmp_path_factory.mktemp("pictures"))


def refused(argv: list[str], *words: str, devices: int = 1) -> None:
  done = run(argv, devices)
  assert done.returncode == 2, done.stderr
  *others, line = done.stderr.strip().splitlines()
  assert line.startswith("taolu: ")
  # Nothing else but what a run says of itself.
  assert all(other.startswith(("reading ", "mesh on ", "jit on ")) for other in others)
  for word in words:
    assert word in line


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--config.train.stps=3"], ["train.stps", "did you mean 'train.steps'"]),
    (["--config.train.steps=many"], ["train.steps", "many"]),
    (["--mode=trian"], ["mode", "train"]),
    (["--workdr=x"], ["workdr"]),
    (["--config.data.name=openmojy"], ["openmojy", "did you mean", "openmoji"]),
    (["--config.noise.schedule=cosin"], ["did you mean 'cosine'"]),
    (["--config.family=diffusion.dppm"], ["diffusion.dppm", "not a family"]),
    (["--config.data.path=/nowhere", "--config.data.name=folder"], ["/nowhere"]),
    (["--config.data.batch_size=9"], ["batch_size=9", "8 devices", "multiple of 8"]),
    (["--mode=sample"], ["no run in", "--mode=train"]),
    # Before the data, which may take hours to build, are looked for.
    (
      [
        "--mode=prepare",
        "--config.data.name=folder",
        "--config.data.path=/nowhere",
        "--config.data.codec=/none",
        "--config.sample.threshold=none",
      ],
      ["no run in data.codec=/none"],
    ),
    (["--mode=prepare", "--config.text.encoder=frosen"], ["did you mean 'frozen'"]),
  ],
)
def test_flags_and_fields(tmp_path: Path, flags: list[str], words: list[str]) -> None:
  refused(command(tmp_path / "run", *flags), *words, devices=8)


def test_config_file_and_variant(tmp_path: Path) -> None:
  refused(command(tmp_path, config="configs/quickstrat.py"), "no config file")
  wrong = command(tmp_path, config="configs/quickstart.py:huge")
  refused(wrong, "unknown variant 'huge'", "tiny")


def test_empty_folder(tmp_path: Path) -> None:
  refused(command(tmp_path / "run", *on_folder(tmp_path)), str(tmp_path), "No images")


def test_small_and_grey_images(tmp_path: Path, pictures: Path) -> None:
  flags = (*on_folder(pictures), "--config.data.size=16")
  refused(command(tmp_path / "run", *flags), "8", "16", ".png")
  flags = (*on_folder(pictures), "--config.data.channels=1")
  refused(command(tmp_path / "run", *flags), "channels", ".png")


def test_captions_name_their_line(tmp_path: Path) -> None:
  folder = picture_folder(tmp_path / "pictures")
  lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
  lines[2] = lines[2][:-1]
  (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
  refused(command(tmp_path / "run", *on_folder(folder)), "captions.jsonl", "line 3")


def test_damaged_image(tmp_path: Path) -> None:
  folder = picture_folder(tmp_path / "pictures")
  (folder / "005.png").write_bytes(b"not a picture")
  refused(command(tmp_path / "run", *on_folder(folder)), "005.png", "skip")


def test_workdir_of_another_config(tmp_path: Path, pictures: Path) -> None:
  config = load_config("configs/quickstart.py")
  config.model.dim = 32
  (tmp_path / "config.json").write_text(config.to_json(), encoding="utf-8")
  argv = command(tmp_path, *on_folder(pictures))
  refused(argv, "another config", "model.dim: 32 there, 16 given")


def test_no_checkpoint(tmp_path: Path) -> None:
  config = json.loads(load_config("configs/quickstart.py").to_json())
  (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
  refused(command(tmp_path, "--mode=eval"), "no checkpoint", "--mode=train")


def test_damaged_config(tmp_path: Path) -> None:
  (tmp_path / "config.json").write_text('{"seed": ', encoding="utf-8")
  refused(command(tmp_path, "--mode=eval"), "config.json", "damaged")


def test_unwritable_workdir(tmp_path: Path, pictures: Path) -> None:
  flags = on_folder(pictures)
  file = tmp_path / "file"
  file.touch()
  refused(command(file / "run", *flags), "cannot write", "another place")
  if os.geteuid():  # root may write anywhere
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    refused(command(tmp_path / "run", *flags), "cannot write")
    tmp_path.chmod(stat.S_IRWXU)


def test_image_named_as_a_folder(tmp_path: Path) -> None:
  file = tmp_path / "a.png"
  Image.new("RGB", (8, 8)).save(file)
  refused(command(tmp_path / "run", *on_folder(file)), "a.png")
