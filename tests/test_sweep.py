"""Sweeps: rows and their configs, what is trained once, the table and its orderings."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import quickstart
from core import limits
from core.errors import UserError
from core.workdir import open_workdir
from eval import report
from eval.report import table
from pipelines import build, compare, members, mend, stages, study, sweep, training
from tests.runs import (
  ABLATIONS,
  command,
  load_config,
  on,
  picture_folder,
  run,
  variants,
)


@pytest.mark.parametrize("file", ABLATIONS)
def test_rows_of_every_table_fit(file: str) -> None:
  """At each scale, and the paper's orderings are of rows that there are."""
  assert variants(file) == ["", "paper", "mini", "tiny"]
  full, paper = (load_config(file, variant).to_json() for variant in ("", "paper"))
  assert full == paper
  for variant in variants(file)[1:]:
    config = load_config(file, variant)
    limits.check(config)
    found = study.of_table(config)
    rows = study.configs(found)
    members = sweep.members_of(found, Path("x"), found.order)
    assert len(members) == len(found.shared) + 2 * len(rows)
    names = {name for _, *pair in table.orderings(study.told(found)) for name in pair}
    assert names <= set(rows)
    if variant != "paper":  # whose codecs and encoders are not here
      for own in rows.values():
        assert own.data.codec[:1] in ("", "@")
        if not own.data.codec and own.text.encoder != "frozen":
          build.family(own)


def test_rows_that_draw_differently_have_one_training() -> None:
  found = study.of_table(load_config("configs/ablations/cfg_table1.py", "mini"))
  rows = study.configs(found)
  assert list(rows)[:5] == ["p01_w0", "p01_w01", "p01_w1", "p01_w4", "p02_w0"]
  assert rows["p05_w1"].text.drop == 0.5
  assert rows["p05_w1"].sample.guidance_scale == 2
  assert sweep.owners(rows)["p05_w1"] == "p05_w0"
  # Asked for alone, a row comes after the one whose weights it has.
  members = sweep.members_of(found, Path("x"), ("p05_w1",))
  assert [m.name for m in members[:2]] == ["p05_w0-0", "p05_w1-0"]
  assert members[1].after == "p05_w0-0"
  assert [m.config.seed for m in members] == [0, 0, 1, 1]


def test_flags_make_a_grid(tmp_path: Path) -> None:
  base = quickstart.get_config("tiny")
  flags = ["optim.learning_rate=1e-3,1", "model.widths=(8,16),(8,)", "seed=0,2"]
  found = study.of_flags(base, flags)
  assert found.seeds == [0, 2]
  assert list(found.rows) == [
    "learning_rate=0.001,widths=8x16",
    "learning_rate=0.001,widths=8",
    "learning_rate=1.0,widths=8x16",
    "learning_rate=1.0,widths=8",
  ]
  last = study.configs(found)["learning_rate=1.0,widths=8"]
  assert (last.model.widths, last.optim.learning_rate) == ((8,), 1.0)
  file = tmp_path / "rows.json"
  file.write_text('[{"name": "wide", "model.widths": [32]}, {"data.flip": true}]')
  found = study.of_flags(base, [str(file), "data.match=a,b"])
  names = ["wide,match=a", "wide,match=b", "flip=True,match=a", "flip=True,match=b"]
  assert list(found.rows) == names
  assert found.rows["wide,match=a"] == {"model.widths": (32,), "data.match": "a"}


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("model.dimm=1,2", "did you mean 'model.dim'"),
    ("model=1", "sweep field='model' is unknown"),
    ("model.dim=wide", "model.dim must be a whole number, not 'wide'"),
    ("model.dim=1.5", "model.dim must be a whole number, not 1.5"),
    ("data.flip=1", "data.flip must be True or False"),
    ("model.widths=8", "model.widths must be a tuple"),
    ("model.dim=", "gives no values"),
    ("optim.learning_rate=-1.0", "optim.learning_rate must be above 0"),
    ("rows.json", "neither FIELD=VALUE,VALUE nor a JSON file"),
    ("seed=-1", "seeds must be different whole numbers"),
  ],
)
def test_a_flag_that_does_not_fit_is_refused(flag: str, message: str) -> None:
  with pytest.raises(UserError, match=message):
    study.configs(study.of_flags(quickstart.get_config("tiny"), [flag]))


def test_no_row_is_lost_to_another_of_its_name(tmp_path: Path) -> None:
  """Names have the last word of a field alone, 120 letters at most."""
  base, file = quickstart.get_config("tiny"), tmp_path / "rows.json"
  for told in (
    [{"model.dim": 8}, {"text.dim": 8}],
    [{"name": "a", "model.dim": 8}, {"name": "a", "model.dim": 16}],
    [{"name": 130 * "a", "model.dim": 8}, {"name": 120 * "a"}],
  ):
    file.write_text(json.dumps(told))
    with pytest.raises(UserError, match="two rows called"):
      study.of_flags(base, [str(file)])
  with pytest.raises(UserError, match="two rows called 'match=a_b'"):
    study.of_flags(base, ["data.match=a|b,a_b"])
  # A row with two seeds is one row.
  told = [{"name": "a", "seed": 0}, {"name": "a", "seed": 1}]
  file.write_text(json.dumps(told))
  found = study.of_flags(base, [str(file)])
  assert (found.rows, found.seeds) == ({"a": {}}, [0, 1])


def test_seeds_of_a_file_are_of_all_rows(tmp_path: Path) -> None:
  base, file = quickstart.get_config("tiny"), tmp_path / "rows.json"
  told = [{"name": "a", "seed": 0}, {"name": "b", "seed": 1}]
  file.write_text(json.dumps(told))
  with pytest.raises(UserError, match="gives 'a' no seed 1: leave the seeds out"):
    study.of_flags(base, [str(file)])
  told += [{"name": "a", "seed": 1}, {"name": "b", "seed": 0}]
  file.write_text(json.dumps(told))
  assert study.of_flags(base, [str(file)]).seeds == [0, 1]


def test_rows_come_back_from_a_file_as_they_were() -> None:
  rows = {"a": {"x.y": ((1, 2), ("b", (3,)), ()), "z": 1.5}, "b": {}}
  assert study.tuples(json.loads(json.dumps(rows))) == rows


def test_a_folder_of_another_mode_is_refused(tmp_path: Path) -> None:
  file = tmp_path / "config.json"
  file.write_text('{"rows": {}}')
  with pytest.raises(UserError, match="holds a sweep .--mode=sweep., not a comparison"):
    compare.record(ConfigDict({"members": {}}), tmp_path, {})
  found = study.of_flags(quickstart.get_config("tiny"), ["seed=0"])
  for stored, told in (
    ("members", "a comparison"),
    ("stages", "a system"),
    ("x", "a run"),
  ):
    file.write_text(json.dumps({stored: {}}))
    with pytest.raises(UserError, match=f"holds {told}.*, not a sweep"):
      sweep.record(found, tmp_path, {})


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (({"rows": {}}, "train", "", []), "for --mode=sweep"),
    (({}, "train", "", ["seed=1"]), "--sweep is for"),
    (({"stages": {}}, "sweep", "", ["seed=1"]), "one run"),
    (({"rows": {}}, "sweep", "", ["seed=1"]), "no --sweep"),
    (({}, "sweep", "", []), "or rows"),
  ],
)
def test_modes(given: tuple, message: str) -> None:
  config, *rest = given
  with pytest.raises(UserError, match=message):
    sweep.check_mode(ConfigDict(config), *rest)


def stored(folder: Path, scores: dict[str, dict[str, list[float | None]]]) -> Path:
  """A sweep's folder with these scores: row -> metric -> a value a seed."""
  config = {
    "base": {},
    "shared": {},
    "source": "A paper, table 1",
    "seeds": [0, 1, 2],
    "rows": {name: {"model.dim": i} for i, name in enumerate("abcd")},
    "paper": {"fd": {"a": 3.0, "b": 2.0, "c": 4.5}},
    "orderings": [["is", "b", "a"], ["fd", "b", "d"]],
  }
  about = {"config": "x.py:mini", "date": "today", "commit": "c", "machine": "m"}
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "about.json").write_text(json.dumps(about))
  for name, metrics in scores.items():
    for seed in range(len(next(iter(metrics.values())))):
      run = folder / f"{name}-{seed}"
      run.mkdir()
      records = [{"metric": m, "value": v[seed]} for m, v in metrics.items()]
      (run / "eval.json").write_text(json.dumps({"step": 9, "scores": records}))
  return folder


def test_orderings_are_judged_by_the_differences_of_each_seed(tmp_path: Path) -> None:
  """By hand: b is below a by 10, 9 and 13, so by 32/3, with a deviation of 2.0817.

  Half the interval is 4.3027 x 2.0817 / sqrt(3) = 5.171. From seed to seed c differs
  by more than from b, and yet is above b by 1.9, 2 and 2.1 in each: 2 ± 0.248.
  """
  scores = {
    "a": {"FD-net": [19.0, 21.0, 23.0], "FD-infinity-net": [0.0] * 3},
    "b": {"FD-net": [9.0, 12.0, 10.0], "FD-infinity-net": [9.0] * 3},
    "c": {"FD-net": [10.9, 14.0, 12.1]},
  }
  scores["a"]["IS-net"], scores["b"]["IS-net"] = [2.0, 3.0, 2.0], [1.0, 2.0, 1.0]
  found = table.read(stored(tmp_path / "run", scores))
  judged = {(o["score"], o["better"], o["worse"]): o for o in found["orderings"]}
  first = judged["fd", "b", "a"]
  assert first["paper"] == [2.0, 3.0]
  assert first["difference"] == pytest.approx(32 / 3)
  assert first["margin"] == pytest.approx(5.171, abs=1e-3)
  paired = judged["fd", "b", "c"]
  assert (paired["difference"], paired["margin"]) == pytest.approx(
    (2, 0.2484), abs=1e-4
  )
  assert {key: own["verdict"] for key, own in judged.items()} == {
    ("fd", "b", "a"): table.YES,
    ("fd", "b", "c"): table.YES,
    ("fd", "a", "c"): table.NO,
    ("is", "b", "a"): table.NO,
    ("fd", "b", "d"): table.OPEN,
  }
  files = report.write(tmp_path / "run")
  before = [file.read_bytes() for file in files]
  text = before[1].decode()
  assert "| a | model.dim=0 | 3 | 3 | 21 ± 2 |" in text
  assert "| FID, here FD-net | b | a | 2 against 3 | 10.7 ± 5.2 | reproduced |" in text
  assert "| IS, here IS-net | b | a | " in text
  assert "Of 5 orderings of the paper's: 2 reproduced, 2 the other way," in text
  assert "95% interval by Student's t" in text
  report.write(tmp_path / "run")
  assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(
  ("better", "worse", "margin", "verdict"),
  [
    # t of one degree of freedom is 12.706: 12.706 x 0.7071 / sqrt(2) = 6.353.
    ({0: 1.0, 1: 2.0}, {0: 6.0, 1: 8.0}, 6.353, table.NEAR),
    ({0: 1.0, 1: 2.0}, {0: 7.0, 1: 9.0}, 6.353, table.YES),
    # Of two and three seeds those in common count, here one.
    ({0: 1.0, 1: 2.0}, {1: 9.0, 2: 0.0, 3: 0.0}, None, table.ONE_YES),
    ({0: 1.0}, {1: 9.0}, None, table.OPEN),
    ({0: 1.0}, {0: 1.0}, None, table.ONE_SAME),
    ({0: 1.0, 1: None}, {0: 2.0, 1: 3.0}, None, table.BAD),
  ],
)
def test_verdicts(better: dict, worse: dict, margin: float, verdict: str) -> None:
  named = {"a": better, "b": worse}
  found = [{"name": k, "scores": {"bpd": table.over(v)}} for k, v in named.items()]
  told = table.judged(found, {}, "bpd", "a", "b")
  assert told["verdict"] == verdict
  assert told["margin"] == (margin and pytest.approx(margin, abs=1e-3))


def test_a_report_of_half_a_folder_is_refused(tmp_path: Path) -> None:
  path = stored(tmp_path / "run", {})
  (path / "about.json").unlink()
  with pytest.raises(UserError, match="has no about.json"):
    report.write(path)


def test_a_row_that_fails_is_told_by_the_exit_status(tmp_path: Path) -> None:
  """And its sentence stands in the table."""
  flags = ("--mode=sweep", "--sweep=model.net=unicorn")
  done = run(command(tmp_path / "run", *flags))
  assert done.returncode == 2
  assert "taolu: failed: net=unicorn-0; the same" in done.stderr.splitlines()[-1]
  text = (tmp_path / "run" / "table.md").read_text()
  assert "net=unicorn-0 failed: " in text


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
  scores = {"a": {"FD-net": [2.0]}, "b": {"FD-net": [1.0]}, "c": {"FD-net": [None]}}
  found = table.read(stored(tmp_path / "run", scores))
  verdicts = [own["verdict"] for own in found["orderings"]]
  assert verdicts == [table.ONE_YES, table.BAD, table.BAD, table.OPEN, table.OPEN]


@pytest.mark.parametrize(
  ("score", "metric", "higher"),
  [
    ("fd", "FID", False),
    ("rfd", "rFD-net", False),
    ("bpd", "bpd", False),
    ("bpd_iwae", "bpd_iwae", False),
    ("is", "IS", True),
    ("recognised", "recognised", True),
    ("cosine", "cosine", True),
  ],
)
def test_the_better_of_two_rows(score: str, metric: str, higher: bool) -> None:
  """Of every score that a table orders; equal ones are not the other way."""

  def row(name: str, value: float) -> dict[str, object]:
    return {"name": name, "scores": {metric: table.over({0: value})}}

  found = [row("a", 2.0), row("b", 1.0), row("c", 2.0)]
  verdict = lambda *pair: table.judged(found, {}, score, *pair)["verdict"]  # noqa: E731
  assert verdict("a", "b") == (table.ONE_YES if higher else table.ONE_NO)
  assert verdict("b", "a") == (table.ONE_NO if higher else table.ONE_YES)
  assert verdict("a", "c") == table.ONE_SAME


def test_a_sweep_older_than_a_field_goes_on() -> None:
  old = {"base": {"diffusion": {}}, "shared": {"kl": {"diffusion": {}}}, "rows": {}}
  new = {"base": {"diffusion": {"augment": 0.0}}, "rows": {}}
  new["shared"] = {"kl": {"diffusion": {"augment": 0.1}}}
  field = "shared.kl.diffusion.augment"
  assert sweep.changes(old, new) == {field: f"{field}: 0.0 there, 0.1 given"}


def test_a_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """Rows come later, one with another's weights; one fails, and is tried again."""
  config = on(picture_folder(tmp_path / "data"), "configs/vae/mixture.py")
  config.train.steps = config.train.checkpoint_every = 2
  config.train.sample_every = config.train.eval_every = 0
  config.eval.metrics = config.eval.train_metrics = ("bpd",)
  trained = []
  real = training.train

  def train(own: ConfigDict, path: str, scored: ConfigDict | None) -> None:
    trained.append(Path(path).name)
    real(own, path, scored)

  monkeypatch.setattr(training, "train", train)
  path, told = tmp_path / "run", {"config": "mixture.py", "overrides": {}}

  def swept(*flags: str, own: ConfigDict = config) -> dict[str, str]:
    return sweep.run(own, str(path), told, flags)

  assert swept("eval.num_images=8") == {}
  rows = tmp_path / "rows.json"
  bad = {"name": "bad", "data.name": "unicorns"}
  rows.write_text(json.dumps([bad, {"name": "more", "eval.num_images": 16}]))
  failed = swept(str(rows))
  assert list(failed) == ["bad-0"]
  assert "unicorns" in failed["bad-0"]
  assert trained == ["num_images=8-0", "bad-0"]
  assert (path / "more-0" / "checkpoints").is_symlink()
  found = json.loads((path / "table.json").read_text())
  assert [r["name"] for r in found["rows"]] == ["num_images=8", "bad", "more"]
  for row in found["rows"]:
    scored = path / f"{row['name']}-0" / "eval.json"
    if row["name"] == "bad":
      assert row["scores"] == {}
    else:
      values = [json.loads(scored.read_text())["bpd"]]
      assert row["scores"]["bpd"]["values"] == values
  assert "bad-0 failed: " in (path / "table.md").read_text()
  # What is done is passed over.
  assert list(swept(str(rows))) == ["bad-0"]
  assert trained == ["num_images=8-0", "bad-0", "bad-0"]
  # A score that can't be had is refused before the training that it is of.
  flags = ('eval.metrics=("memorisation",)', "optim.b2=0.5")
  failed = swept(*flags)
  assert "memorisation needs" in failed["metrics=memorisation,b2=0.5-0"]
  assert not (path / "metrics=memorisation,b2=0.5-0" / "metrics.jsonl").exists()
  other = config.copy_and_resolve_references()
  other.optim.b1 = 0.5
  with pytest.raises(UserError, match="holds another sweep .base.optim.b1"):
    swept("eval.num_images=8", own=other)


def a_sweep(rows: dict[str, dict], **shared: ConfigDict) -> study.Study:
  """A study of the tiny quickstart."""
  base = quickstart.get_config("tiny")
  return study.Study(base, rows, tuple(rows), (0,), shared, {}, (), "")


def scored(folder: Path) -> None:
  folder.mkdir(exist_ok=True)
  (folder / "eval.json").write_text('{"step": 1}')


COMMAND = {"config": "x.py", "overrides": {}, "sweep": []}


def test_a_row_without_a_result_may_change(
  tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  """Its run begins anew; a row with a result, of any seed, is kept."""
  rows = {"good": {}, "bad": {"optim.b2": 0.5}}
  sweep.record(a_sweep(rows), tmp_path, COMMAND)
  scored(tmp_path / "good-1")
  for name in ("bad-0", "bad-1"):
    (tmp_path / name / "checkpoints").mkdir(parents=True)
    (tmp_path / name / ".member").touch()
  changed = {"good": {}, "bad": {"optim.b2": 0.9}}
  with (
    members.locked(tmp_path / "bad-1"),
    pytest.raises(UserError, match="another process is at work on .*bad-1"),
  ):
    sweep.record(a_sweep(changed), tmp_path, COMMAND)
  # What is not named is as in the base, whatever older folders lack.
  for field, value in (("optim.b2", 0.5), ("sample.candidates", 2)):
    other = a_sweep({**changed, "good": {field: value}})
    with pytest.raises(UserError, match=f"rows that change .rows.good.{field}"):
      sweep.record(other, tmp_path, COMMAND)
  assert (tmp_path / "bad-0" / "checkpoints").exists()
  capsys.readouterr()
  found = sweep.record(a_sweep(changed), tmp_path, COMMAND)
  assert found.rows == changed
  assert capsys.readouterr().err == (
    "bad-0, bad-1: without a result, begun anew (rows.bad.optim.b2: 0.5 there, 0.9"
    f" given); what was there is in {tmp_path / 'replaced'}\n"
  )
  assert (tmp_path / "replaced" / "bad-1.1" / "checkpoints").exists()
  assert [f.name for f in (tmp_path / "bad-0").iterdir()] == [".member"]


def test_a_trained_row_is_kept_if_it_is_to_be_drawn_otherwise(tmp_path: Path) -> None:
  sweep.record(a_sweep({"a": {"eval.num_images": 9}}), tmp_path, COMMAND)
  (tmp_path / "a-0" / "checkpoints").mkdir(parents=True)
  sweep.record(a_sweep({"a": {"eval.num_images": 8}}), tmp_path, COMMAND)
  assert (tmp_path / "a-0" / "checkpoints").exists()
  stored = json.loads((tmp_path / "config.json").read_text())
  assert stored["rows"] == {"a": {"eval.num_images": 8}}


def test_a_process_that_knows_a_row_as_it_was_stops(tmp_path: Path) -> None:
  old = sweep.record(a_sweep({"a": {"model.dim": 8}}), tmp_path, COMMAND)
  assert sweep.told_anew(old, tmp_path) == []
  sweep.record(a_sweep({"a": {"model.dim": 16}, "b": {}}), tmp_path, COMMAND)
  assert sweep.told_anew(old, tmp_path) == ["a"]
  (tmp_path / "config.json").write_text('{"rows": {"b": {}}}')
  assert sweep.told_anew(old, tmp_path) == ["a"]


def test_a_call_whose_rows_were_changed_does_not_end_well(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """It does no more of its work, which is of rows that there are no longer."""
  done = []

  def do(asked: study.Study, member: members.Member) -> bool:
    done.append(member.name)
    sweep.record(a_sweep({"b": {"optim.b2": 0.9}}), tmp_path, COMMAND)
    return True

  monkeypatch.setattr(sweep, "do", do)
  file = tmp_path / "rows.json"
  file.write_text('[{"name": "a"}, {"name": "b", "optim.b2": 0.5}]')
  # The other process has no row of this one's in its hands.
  monkeypatch.setattr(mend.members, "locked", lambda *_, **__: nullcontext(True))
  with pytest.raises(UserError, match="b in .* changed since this process began"):
    sweep.run(quickstart.get_config("tiny"), str(tmp_path), COMMAND, [str(file)])
  assert done == ["a-0"]


def test_a_row_that_comes_to_train_as_another_has_its_weights(tmp_path: Path) -> None:
  """Those that it has begun itself are put aside."""
  (tmp_path / "a-0" / "checkpoints" / "5").mkdir(parents=True)
  (tmp_path / "b-0" / "checkpoints" / "2").mkdir(parents=True)
  config = quickstart.get_config("tiny")
  member = members.Member("b-0", config, tmp_path / "b-0", "a-0")
  for _ in range(2):
    sweep.borrow(member, config)
    assert [f.name for f in (tmp_path / "b-0" / "checkpoints").iterdir()] == ["5"]
  assert (tmp_path / "replaced" / "b-0.1" / "checkpoints" / "2").exists()
  assert mend.put_aside(tmp_path / "b-0")
  assert (tmp_path / "a-0" / "checkpoints" / "5").exists()
  assert [f.name for f in (tmp_path / "replaced" / "b-0.2").iterdir()] != []
  assert not (tmp_path / "replaced" / "b-0.2" / "checkpoints").is_symlink()


def test_what_rows_need_may_change_until_it_is_trained(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  kl, other = quickstart.get_config("tiny"), quickstart.get_config("tiny")
  other.model.dim = 2 * kl.model.dim
  sweep.record(a_sweep({}, kl=kl), tmp_path, COMMAND)
  (tmp_path / "kl").mkdir()
  (tmp_path / "kl" / "config.json").write_text('{"train": {"steps": 5}}')
  monkeypatch.setattr(stages, "trained_steps", lambda _: 5)
  with pytest.raises(UserError, match="another sweep .shared.kl.model.dim"):
    sweep.record(a_sweep({}, kl=other), tmp_path, COMMAND)
  monkeypatch.setattr(stages, "trained_steps", lambda _: 4)
  sweep.record(a_sweep({}, kl=other), tmp_path, COMMAND)
  assert (tmp_path / "replaced" / "kl.1" / "config.json").exists()


def test_rows_whose_names_begin_alike_are_told_apart() -> None:
  names = {"rows": ["a", "a.b"], "shared": ["kl"]}
  assert mend.owner("rows.a.b.optim.b2", names) == ("rows", "a.b")
  assert mend.owner("rows.a.optim.b2", names) == ("rows", "a")
  assert mend.owner("base.optim.b2", names) is None


def test_a_result_of_another_row_is_not_taken_for_this_ones(tmp_path: Path) -> None:
  """As when config.json was deleted, and a row comes back with another value."""
  config = quickstart.get_config("tiny")
  member = members.Member("a-0", config, tmp_path / "a-0")
  open_workdir(str(member.workdir), config)
  (member.workdir / "eval.json").write_text(f'{{"step": {config.train.steps}}}')
  assert sweep.done(a_sweep({"a": {}}), member)
  other = config.copy_and_resolve_references()
  other.optim.b1 = 0.5
  assert not sweep.done(a_sweep({"a": {}}), member._replace(config=other))


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('[{"optim.b2": 0.5, "optim.b2": 0.9}]', "'optim.b2' stands in it twice"),
    ('[{"name": null}]', '"name" must be text, not None'),
  ],
)
def test_a_file_that_says_two_things_is_refused(
  text: str, message: str, tmp_path: Path
) -> None:
  file = tmp_path / "rows.json"
  file.write_text(text)
  with pytest.raises(UserError, match=message):
    study.of_flags(quickstart.get_config("tiny"), [str(file)])


def test_what_comes_after_a_member_needs_its_weights_not_its_scores(
  tmp_path: Path,
) -> None:
  config = quickstart.get_config("tiny")
  first = members.Member("a-0", config, tmp_path / "a-0")
  second = members.Member("b-0", config, tmp_path / "b-0", "a-0")
  finished = set()

  def work(member: members.Member) -> bool:
    if member is first:
      raise UserError("no weights of Inception")
    finished.add(member.name)
    return True

  def run(trained: bool) -> dict[str, str]:
    done = lambda m: m.name in finished  # noqa: E731
    return members.run([first, second], work, done, lambda m: trained)

  assert list(run(trained=False)) == ["a-0", "b-0"]
  assert list(run(trained=True)) == ["a-0"]
  assert finished == {"b-0"}
