"""The folder of a run: whose it is, and files that are whole or not there."""

import fcntl
import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from configs import base
from core import workdir
from core.checkpoint import Checkpoints, abstract_like
from core.errors import UserError
from core.family import Watch
from core.log import Log
from core.workdir import (
  check_workdir,
  open_workdir,
  reopen_workdir,
  write_atomic,
  written,
)
from tests.runs import load_config

CONFIG = load_config("configs/quickstart.py")


def test_a_folder_belongs_to_one_process(tmp_path: Path) -> None:
  with (tmp_path / ".lock").open("w") as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is training"):
      open_workdir(str(tmp_path), CONFIG)
  open_workdir(str(tmp_path), CONFIG)
  open_workdir(str(tmp_path), CONFIG)  # this process holds it already
  assert tmp_path in workdir._held


def test_checkpoints_of_nobody_are_not_taken_over(tmp_path: Path) -> None:
  (tmp_path / "checkpoints" / "4").mkdir(parents=True)
  with pytest.raises(UserError, match=r"no config\.json"):
    open_workdir(str(tmp_path), CONFIG)
  (tmp_path / "config.json").write_text("[]")
  with pytest.raises(UserError, match="damaged.*put back a copy"):
    open_workdir(str(tmp_path), CONFIG)


def test_the_same_folder_of_pictures_by_another_spelling(tmp_path: Path) -> None:
  config = CONFIG.copy_and_resolve_references()
  config.data.path = "pictures/"
  open_workdir(str(tmp_path), config)
  config.data.path = "pictures"
  open_workdir(str(tmp_path), config)
  config.data.path = "others"
  with pytest.raises(UserError, match=r"data\.path"):
    open_workdir(str(tmp_path), config)


def test_another_config_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
  config = load_config("configs/quickstart.py")
  check_workdir(str(tmp_path / "new"), config)
  open_workdir(str(tmp_path / "run"), config)
  check_workdir(str(tmp_path / "run"), config)
  config.text.max_tokens = 12
  with pytest.raises(UserError, match="text.max_tokens: 16 there, 12 given"):
    check_workdir(str(tmp_path / "run"), config)
  assert not (tmp_path / "new").exists()


def test_a_run_older_than_a_field_has_what_was_done_before(tmp_path: Path) -> None:
  config = load_config("configs/quickstart.py")
  config.autoregressive = base.autoregressive()
  before = {field: config[part][name] for field, part, name in fields_added()}
  assert before == workdir.ADDED
  for _, part, name in fields_added():
    del config[part][name]
  open_workdir(str(tmp_path), config)
  of_system = json.dumps({"stages": {"a": json.loads(config.to_json_best_effort())}})
  (tmp_path / "system").mkdir()
  (tmp_path / "system" / "config.json").write_text(of_system)
  for read in (
    workdir.read_config(tmp_path),
    workdir.read_config(tmp_path / "system").stages.a,
  ):
    assert {field: read[part][name] for field, part, name in fields_added()} == before


def fields_added() -> list[tuple[str, ...]]:
  return [(field, *field.split(".")) for field in workdir.ADDED]


def test_how_often_a_bound_draws_may_change(tmp_path: Path) -> None:
  config = load_config("configs/flows/glow.py")
  open_workdir(str(tmp_path), config)
  config.flow.draws = 64
  reopen_workdir(str(tmp_path), config)
  config.flow.bins += 1
  with pytest.raises(UserError, match=r"flow\.bins"):
    reopen_workdir(str(tmp_path), config)


def test_languages_may_be_chosen_for_scores_alone(tmp_path: Path) -> None:
  config = CONFIG.copy_and_resolve_references()
  open_workdir(str(tmp_path), config)
  config.data.languages = ("de",)
  reopen_workdir(str(tmp_path), config)
  with pytest.raises(UserError, match=r"data\.languages"):
    open_workdir(str(tmp_path), config)


def test_a_run_older_than_a_field_goes_on_without_it(tmp_path: Path) -> None:
  open_workdir(str(tmp_path), CONFIG)
  file = tmp_path / "config.json"
  older = json.loads(file.read_text())
  del older["text"]["embedding_of_caption"], older["data"]["on_bad_image"]
  file.write_text(json.dumps(older))
  with pytest.raises(UserError, match=r"another config \(data\.on_bad_image: 'absent'"):
    reopen_workdir(str(tmp_path), CONFIG)
  older["data"]["on_bad_image"] = CONFIG.data.on_bad_image
  file.write_text(json.dumps(older))
  reopen_workdir(str(tmp_path), CONFIG)
  config = CONFIG.copy_and_resolve_references()
  config.text.embedding_of_caption = True
  with pytest.raises(UserError, match=r"embedding_of_caption: False there"):
    reopen_workdir(str(tmp_path), config)


def test_a_refusal_names_some_of_many_fields(tmp_path: Path) -> None:
  """First the number of steps, of which it says more."""
  open_workdir(str(tmp_path), CONFIG)
  config = CONFIG.copy_and_resolve_references()
  for name in ("dim", "depth", "heads", "patch"):
    config.model[name] += 1
    if name != "patch":
      config.text[name] += 1
  config.optim.schedule, config.train.steps = "linear", config.train.steps + 1
  told = r"\(train\.steps: .*; optim\.schedule: [^;]*; 3 more\); .* falls to 0"
  with pytest.raises(UserError, match=told):
    reopen_workdir(str(tmp_path), config)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
  file = tmp_path / "a.txt"
  write_atomic(file, "old")

  def fail() -> None:
    with written(file) as partial:
      partial.write_text("half of the n")
      raise OSError(28, "No space left on device")

  with pytest.raises(UserError, match="No space left"):
    fail()
  assert file.read_text() == "old"
  assert list(tmp_path.iterdir()) == [file]


def test_links_are_followed_and_devices_stay(tmp_path: Path) -> None:
  (tmp_path / "link").symlink_to(tmp_path / "file")
  write_atomic(tmp_path / "link", "text")
  assert (tmp_path / "link").is_symlink()
  assert (tmp_path / "file").read_text() == "text"
  write_atomic(Path("/dev/null"), "text")
  assert not Path("/dev/null").is_file()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
  state = {"weights": jnp.arange(5000.0)}
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(3, state)
  checkpoints.wait()
  largest = max(
    (f for f in (tmp_path / "checkpoints").rglob("*") if f.is_file()),
    key=lambda f: f.stat().st_size,
  )
  largest.write_bytes(largest.read_bytes()[:50])
  shapes = {"weights": state["weights"]}
  abstract = abstract_like(shapes, {"weights": state["weights"].sharding})
  with pytest.raises(UserError, match=r"checkpoints/3 does not fit .* or is damaged"):
    checkpoints.restore(abstract)
  checkpoints.close()


def test_strange_lines_of_the_log_are_left_out(tmp_path: Path) -> None:
  file = tmp_path / "metrics.jsonl"
  good = json.dumps({"step": 2, "loss": 1.0})
  strange = ["[]", "5", "null", '{"step": "x"}', "{}", '{"step": 9}', '{"st']
  file.write_bytes("\n".join([good, *strange]).encode() + b"\n\xff\xfe")
  Log(tmp_path, 4, 10).close()
  assert file.read_text() == good + "\n"


def test_a_metric_out_of_its_range_is_told_once(
  tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
  log, watched = Log(tmp_path, 0, 10), {"diversity": Watch(0.2, 10.0, "all alike")}
  for step, value in enumerate((0.1, 0.1, 0.5, 0.1, 0.1, 0.1, 0.1)):
    log.watch(step, {"diversity": value}, watched)
  log.close()
  told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
  assert told == ["step 5: warning: diversity is 0.1: all alike"]


def test_a_loss_that_is_no_number_is_said_once(
  tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
  log = Log(tmp_path, 0, 1)
  log.write(1, {"loss": float("nan")})
  log.close()
  assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
    "step": 1,
    "loss": None,
  }
  assert not caplog.records
