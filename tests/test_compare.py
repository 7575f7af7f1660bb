"""Comparisons: budgets, members that share a folder, and the report."""

import json
import math
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from ml_collections import ConfigDict

from configs import base
from core import arrays, limits
from core.errors import UserError
from eval import features, report
from eval.report import page, rows
from pipelines import budget, compare, members, stages, training
from pipelines.members import Member
from tests.runs import COMPARISONS, load_config, picture_folder, variants
from tests.test_scoring import stand_in

TINY = "configs/compare/fashion_mnist.py"


@given(some.floats(1e-6, 1e15), some.floats(1e-3, 1e6))
def test_a_budget_is_kept_within_two_percent(cost: float, many: float) -> None:
  """Or refused, which needs steps dearer than a twenty-fifth of it."""
  share = budget.Share("seconds", cost * many)
  try:
    steps = budget.steps(share, cost, "glow")
  except UserError:
    assert many < 25.01
  else:
    assert abs(steps * cost / share.amount - 1) <= budget.WITHIN


def test_a_step_that_is_too_dear_is_refused() -> None:
  with pytest.raises(UserError, match="glow can't keep its budget within 2%"):
    budget.steps(budget.Share("seconds", 1.5), 1.0, "glow")


def some_members(path: Path, **needs: str) -> list[Member]:
  listed = []
  for name, other in needs.items():
    config = ConfigDict({"data": {"codec": other}})
    listed.append(Member(name, config, path / name))
  return listed


def is_done(member: Member) -> bool:
  return (member.workdir / "done").exists()


def test_a_failure_ends_nothing_and_what_is_done_is_passed_over(tmp_path: Path) -> None:
  listed = some_members(tmp_path, a="@late", b="", c="@b", late="", d="@c")
  begun = []

  def work(member: Member) -> bool:
    begun.append(member.name)
    if member.name == "b":
      raise ValueError("no such thing\nat all")
    (member.workdir / "done").touch()
    return True

  failed = members.run(listed, work, is_done)
  assert begun == ["b", "late", "a"]  # a comes after what it needs
  assert failed["b"] == "ValueError: no such thing"
  assert failed["c"] == "it needs b, which failed"
  assert failed["d"] == "it needs c, which failed"
  stored = json.loads((tmp_path / "b" / "failed.json").read_text())
  assert "Traceback" in stored["traceback"]
  begun.clear()
  members.run(listed, work, is_done)
  assert begun == ["b"]  # it is tried again
  assert members.run(listed[3:4], lambda m: pytest.fail(m.name), is_done) == {}


def test_a_request_to_stop_ends_the_call(tmp_path: Path) -> None:
  begun = []
  listed = some_members(tmp_path, a="", b="")
  members.run(listed, lambda m: begun.append(m.name) is not None, is_done)
  assert begun == ["a"]


def finishing(begun: list[str]) -> Callable[[Member], bool]:
  """Work that is done at once, and told in `begun`."""

  def work(member: Member) -> bool:
    begun.append(member.name)
    (member.workdir / "done").touch()
    return True

  return work


def test_two_processes_never_run_the_same_member(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """A lock that another open file holds is another process's; its work is awaited."""
  monkeypatch.setattr(members, "WAIT", 0.02)
  listed = some_members(tmp_path, a="", b="@a")
  begun = []
  work = finishing(begun)
  with members.locked(tmp_path / "a") as mine:
    assert mine
    with members.locked(tmp_path / "a") as again:
      assert not again
    here = threading.Thread(target=members.run, args=(listed, work, is_done))
    here.start()
    here.join(0.2)
    assert here.is_alive()
    assert begun == []
    (tmp_path / "a" / "done").touch()
  here.join(10)
  assert begun == ["b"]
  # What a process that died leaves is taken over: its lock is free.
  (tmp_path / "a" / "done").unlink()
  members.run(listed, work, is_done)
  assert begun == ["b", "a"]


def test_what_a_process_died_in_as_it_tried_again_is_taken_over(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Its note of the failure before is gone, which is not to say that it is done."""
  monkeypatch.setattr(members, "WAIT", 0.02)
  listed = some_members(tmp_path, a="", b="@a")
  begun = []
  work = finishing(begun)
  members.note(listed[0], "no such thing")
  with members.locked(tmp_path / "a"):
    here = threading.Thread(target=members.run, args=(listed, work, is_done))
    here.start()
    here.join(0.2)
    assert here.is_alive()
    (tmp_path / "a" / "failed.json").unlink()
  here.join(10)
  assert begun == ["a", "b"]


def test_what_another_process_has_made_good_is_no_failure(tmp_path: Path) -> None:
  """Here a failed, elsewhere it was tried again; what comes after it is run."""
  listed = some_members(tmp_path, a="", b="", c="@a")
  begun = []

  def work(member: Member) -> bool:
    begun.append(member.name)
    if member.name == "a":
      raise ValueError("no such thing")
    if member.name == "b":
      (tmp_path / "a" / "failed.json").unlink()
      (tmp_path / "a" / "done").touch()
    (member.workdir / "done").touch()
    return True

  assert list(members.run(listed, work, is_done)) == ["a"]
  assert begun == ["a", "b", "c"]


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
  """Whatever it had begun, and however it ended."""
  code = (
    "import sys, time; from pathlib import Path; from pipelines import members\n"
    "with members.locked(Path(sys.argv[1])) as mine:\n"
    "  print(mine, flush=True); time.sleep(60)"
  )
  call = [sys.executable, "-c", code, str(tmp_path)]
  with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as other:
    assert other.stdout.readline() == "True\n"
    with members.locked(tmp_path) as mine:
      assert not mine
    other.kill()
  with members.locked(tmp_path) as mine:
    assert mine


def test_two_that_start_at_once_agree_on_the_comparison(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """The second one reads what the first has written."""
  plain = {"budget": {"amount": 1.0}, "members": {}, "order": ("a",)}
  config = ConfigDict(plain)
  inside, go = threading.Event(), threading.Event()
  real = compare.write_atomic

  def slow(file: Path, text: str) -> None:
    inside.set()
    go.wait(10)
    real(file, text)

  monkeypatch.setattr(compare, "write_atomic", slow)
  first = threading.Thread(target=compare.record, args=(config, tmp_path, {}))
  first.start()
  assert inside.wait(10)
  other = ConfigDict(plain | {"budget": {"amount": 2.0}})
  with ThreadPoolExecutor() as pool:
    second = pool.submit(compare.record, other, tmp_path, {})
    time.sleep(0.1)
    go.set()
    with pytest.raises(UserError, match=r"budget.amount: 1.0 there, 2.0 given"):
      second.result()
  first.join(10)


def nested(part: str, **members: int) -> ConfigDict:
  """A comparison that has nothing but members, or codecs, with a width each."""
  own = {name: {"model": {"dim": dim}} for name, dim in members.items()}
  parts = {"members": {}, "codecs": {}, part: own}
  return ConfigDict({"budget": {"amount": 1.0}, "order": tuple(members), **parts})


def a_comparison(path: Path, config: ConfigDict, result: str) -> None:
  """Begun by `config`, with runs of all members, of which one is scored."""
  told = {"config": "x.py", "overrides": {"members.bad.model.dim": 3, "seeds": (0,)}}
  compare.record(config, path, told)
  for name in ("good", "bad", "bad_too"):
    run = path / f"{name}-0" / "checkpoints"
    run.mkdir(parents=True)
    (path / f"{name}-0" / ".member").touch()
    plan = path / "plans" / name / "plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_text("{}")
  (path / result / "eval.json").write_text("{}")


def test_a_member_without_a_result_may_change(
  tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  """Its runs begin anew, and its row is got again by what is given now."""
  a_comparison(tmp_path, nested("members", good=1, bad=3, bad_too=3), "good-0")
  other = {"overrides": {"members.bad.model.dim": 4, "members.good.x": 1}}
  compare.record(nested("members", good=1, bad=4, bad_too=3), tmp_path, other)
  (said,) = capsys.readouterr().err.splitlines()
  assert said == (
    "bad-0: without a result, begun anew (members.bad.model.dim: 3 there, 4 given);"
    f" what was there is in {tmp_path / 'replaced'}"
  )
  assert (tmp_path / "replaced" / "bad-0.1" / "checkpoints").exists()
  assert [f.name for f in (tmp_path / "bad-0").iterdir()] == [".member"]
  assert (tmp_path / "bad_too-0" / "checkpoints").exists()
  assert not (tmp_path / "plans" / "bad" / "plan.json").exists()
  assert (tmp_path / "plans" / "good" / "plan.json").exists()
  about = json.loads((tmp_path / "about.json").read_text())
  assert about["overrides"] == {"members.bad.model.dim": 4, "seeds": [0]}
  stored = json.loads((tmp_path / "config.json").read_text())
  assert stored["members"]["bad"]["model"]["dim"] == 4


def test_what_has_a_result_may_not_change(tmp_path: Path) -> None:
  """And then no other member begins anew; nor while a process is at work."""
  a_comparison(tmp_path, nested("members", good=1, bad=3, bad_too=3), "good-0")
  both = nested("members", good=2, bad=4, bad_too=3)
  with pytest.raises(UserError, match=r"another comparison .members.good.model.dim: 1"):
    compare.record(both, tmp_path, {"overrides": {}})
  assert (tmp_path / "bad-0" / "checkpoints").exists()
  mended = nested("members", good=1, bad=4, bad_too=3)
  with (
    members.locked(tmp_path / "bad_too-0"),
    pytest.raises(UserError, match="another process is at work on .*bad_too-0"),
  ):
    compare.record(mended, tmp_path, {"overrides": {}})
  assert (tmp_path / "bad-0" / "checkpoints").exists()


def test_a_comparison_older_than_a_field_goes_on(tmp_path: Path) -> None:
  """What it lacks is as it was before, and nothing begins anew."""
  config = nested("members", good=1, bad=3, bad_too=3)
  a_comparison(tmp_path, config, "good-0")
  with config.unlocked():
    for name in ("good", "bad"):
      config.members[name].diffusion = ConfigDict({"augment": 0.0})
  compare.record(config, tmp_path, {"overrides": {}})
  assert not (tmp_path / "replaced").exists()
  config.members.good.diffusion.augment = 0.1
  with pytest.raises(UserError, match="members.good.diffusion.augment: 0.0 there, 0.1"):
    compare.record(config, tmp_path, {"overrides": {}})


def test_a_trained_codec_may_not_change(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  compare.record(nested("codecs", vq=1), tmp_path, {"overrides": {}})
  plan = tmp_path / "plans" / "vq" / "plan.json"
  plan.parent.mkdir(parents=True)
  plan.write_text('{"steps": 5}')
  (tmp_path / "vq").mkdir()
  monkeypatch.setattr(stages, "trained_steps", lambda _: 5)
  with pytest.raises(UserError, match="codecs.vq.model.dim"):
    compare.record(nested("codecs", vq=2), tmp_path, {"overrides": {}})
  monkeypatch.setattr(stages, "trained_steps", lambda _: 4)
  compare.record(nested("codecs", vq=2), tmp_path, {"overrides": {}})
  assert not plan.exists()


def test_the_commit_is_unknown_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv("PATH", "")
  assert compare.commit() == "unknown"


@pytest.mark.parametrize("file", COMPARISONS)
def test_every_family_is_compared_on_the_same_data(file: str) -> None:
  for variant in variants(file):
    config = load_config(file, variant)
    limits.check(config)
    compare.check(config)
    assert len(config.order) == 19
    config.data.path, config.eval.num_images = "elsewhere", 77
    for own in (*config.members.values(), *config.codecs.values()):
      assert (own.data.path, own.eval.num_images) == ("elsewhere", 77)
      assert own.data.size == config.data.size
      assert own.sample.guidance_scale == 1 or own.family == "vae.autoencoder"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"order": ("glow", "unicorn")}, "unicorn"),
    ({"order": ()}, "order"),
    ({"seeds": (0, 0)}, "seeds"),
    ({"seeds": (-1,)}, "seeds"),
    ({"budget.unit": "miles"}, "flops, seconds, steps"),
    ({"budget.codec_share": 1.0}, "codec_share"),
    ({"curve.points": 0}, "curve.points"),
    ({"eval.num_images": 8}, "eval.batch_size"),
  ],
)
def test_refusals(change: dict[str, object], message: str) -> None:
  config = load_config(TINY)
  config.update_from_flattened_dict(change)
  with pytest.raises(UserError, match=message):
    compare.check(config)


def test_modes() -> None:
  with pytest.raises(UserError, match="configs/compare/"):
    compare.check_mode(base.get_config(), "compare", "")
  with pytest.raises(UserError, match="--mode=compare"):
    compare.check_mode(load_config(TINY), "train", "")


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("autoregressive_pixels", "exact"),
    ("gaussian_mixture", "bound"),
    ("vae_gan", "bound"),
    ("edm", "bound"),
    ("dcgan", ""),
    ("ddgan", ""),
  ],
)
def test_bits_are_exact_or_a_bound_or_none(name: str, kind: str) -> None:
  assert compare.likelihood(load_config(TINY).members[name]) == kind


def test_bits_over_orders_are_a_bound() -> None:
  config = load_config("configs/autoregressive/permuted.py")
  assert compare.likelihood(config) == "bound"


def test_what_none_beats() -> None:
  points = [(1, 9, "a"), (2, 5, "b"), (3, 5, "c"), (2, 7, "d"), (9, 1, "e")]
  points = [(float(x), float(y), name) for x, y, name in points]
  assert rows.pareto(points) == ["a", "b", "e"]
  assert rows.pareto([(0.5, math.inf, "fast"), *points]) == ["a", "b", "e"]
  assert [page.short(n) for n in (0.01234, 12.34, 1234, 1.234e6, 1.234e12)] == [
    "0.0123", "12.3", "1,230", "1.23 M", "1.23e+12",
  ]  # fmt: skip


def test_seconds_a_picture_are_of_full_batches(tmp_path: Path) -> None:
  """The first compiles; the last, of ten pictures, is filled up to fifty."""
  kept = {"seconds": np.array([9.0, 2.0, 2.0]), "nfe": np.full(110, 4)}
  arrays.write(tmp_path / "samples" / "eval.npz", **kept)
  assert rows.sampling(tmp_path, 50) == (0.04, 4.0)


def test_a_failure_that_is_tried_again_is_none(tmp_path: Path) -> None:
  """Another process may take the file away while it is read."""
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "failed.json").symlink_to(tmp_path / "gone.json")
  assert rows.failures(tmp_path) == {}


@pytest.mark.parametrize(
  ("seeds", "words"),
  [
    ([[0], [0]], "One seed."),
    ([[0, 1], [0, 1]], "Mean ± standard deviation over 2 seeds."),
    ([[0, 1], [0]], "Mean ± standard deviation over 2 seeds, in some rows fewer."),
  ],
)
def test_the_table_says_of_how_many_seeds_it_is(seeds, words) -> None:
  assert page.over({"rows": [{"seeds": own} for own in seeds]}) == words


def test_alignment_is_told_by_language_over_seeds() -> None:
  def record(en: float, zh: float) -> dict[str, object]:
    told = {"en": en, "zh": zh}
    return {"metric": "alignment score", "value": en, "by_language": told}

  found = rows.alignments([[record(20.0, 10.0)], [record(22.0, 11.0), {"metric": "x"}]])
  assert found["alignment score"]["en"]["mean"] == 21
  assert found["alignment score"]["zh"]["std"] == pytest.approx(0.5**0.5)
  none = rows.spread([1.0, None])  # a score that was not finite
  row = {"name": "glow", "columns": {"bpd": "bpd"}, "scores": {"bpd": none}}
  row |= {"likelihood": "bound", "parameters": 1, "flops": 1.0, "sampling": 0.1}
  row |= {"nfe": 1.0, "seconds": rows.spread([3.0]), "alignment": found}
  table = {"rows": [row]}
  assert page.heads(table)[-2:] == ["alignment score, en", "alignment score, zh"]
  cells = page.cells(row, table)
  assert cells[:2] == ["glow", "≤ not finite"]
  assert cells[-2:] == ["21 ± 1.4", "10.5 ± 0.71"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
  """A member with a codec, and one that is out of the band."""
  path = tmp_path_factory.mktemp("compare")
  config = load_config(TINY)
  config.order = ("maskgit", "gaussian_mixture")
  config.budget.unit, config.budget.amount = "flops", 2.4e9
  config.budget.codec_share, config.parameters = 0.5, (7_000, 200_000)
  config.parallel.backend = "jit"
  config.eval.metrics = ("fd", "kid", "prdc")  # for memorisation they are too few
  config.data.name, config.data.path = "folder", str(picture_folder(path / "data", 48))
  config.data.languages, config.data.eval_split = ("en", "zh"), "test"
  command = {"config": f"{TINY}:tiny", "overrides": {"data.languages": ("en", "zh")}}
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TAOLU_CACHE", str(path / "cache"))
    patch.setattr(features, "load", lambda *_: stand_in())
    failed = compare.run(config, str(path / "run"), command)
    report.write(path / "run")
    yield config, path / "run", command, failed


def test_members_keep_their_budget(compared: tuple) -> None:
  """In steps that were really made; the codec's share is not the member's."""
  config, path, _, failed = compared
  assert list(failed) == ["gaussian_mixture-0"]
  assert re.search(r"6,4\d\d parameters, and all .* 7,000 to", *failed.values())
  spent = 0.0
  for name, folder in (("vq", "vq"), ("maskgit", "maskgit-0")):
    plan = json.loads((path / "plans" / name / "plan.json").read_text())
    assert stages.trained_steps(path / folder) == plan["steps"]
    cost = plan["steps"] * plan["flops_per_step"]
    assert cost == pytest.approx(0.5 * config.budget.amount, rel=0.02)
    spent += cost
  assert spent == pytest.approx(config.budget.amount, rel=0.02)


def test_the_report_is_made_of_its_folder(compared: tuple, tmp_path: Path) -> None:
  """Elsewhere it is the same bytes; its figures are those of the runs' files."""
  _, path, *_ = compared
  names = ("report.html", "leaderboard.json", "leaderboard.md")
  before = [(path / name).read_bytes() for name in names]
  shutil.copytree(path, tmp_path / "moved")
  for name in names:
    (tmp_path / "moved" / name).unlink()
  report.write(tmp_path / "moved")
  assert [(tmp_path / "moved" / name).read_bytes() for name in names] == before
  found = json.loads(before[1])
  (row,) = found["rows"]
  told = json.loads((path / "maskgit-0" / "eval.json").read_text())
  for name, score in row["scores"].items():
    assert score["values"] == [told[name]]
  assert row["steps"] == told["step"]
  assert [point["share"] for point in row["curve"]] == pytest.approx([0.5, 1], abs=0.02)
  assert row["nfe"] == 4
  assert row["seconds"]["mean"] > 0 < row["sampling"]
  assert row["codec"]["name"] == "vq"
  assert found["codecs"][0]["steps"] == row["codec"]["steps"]
  assert "gaussian_mixture-0 failed: " in before[2].decode()
  assert "--config.members.maskgit.train.steps=" in row["command"]
  assert "--config.codecs.vq.train.steps=" in row["command"]
  assert "--config.data.languages=\"('en','zh')\"" in row["command"]


@pytest.mark.parametrize(
  "name", ["metrics.jsonl", "samples/eval.npz", "../plans/{}/plan.json"]
)
def test_a_file_that_is_absent_is_named(
  compared: tuple, tmp_path: Path, name: str
) -> None:
  folder = Path(shutil.copytree(compared[1], tmp_path / "copy"))
  scored = next(folder.glob("*/eval.json")).parent
  place = scored / name.format(scored.name.rpartition("-")[0])
  place.resolve().unlink()
  with pytest.raises(UserError, match=rf"{place.name} is absent, of which the report"):
    report.write(folder)


def test_it_goes_on_and_refuses_another_comparison(
  compared: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
  config, path, command, failed = compared
  monkeypatch.setattr(training, "train", lambda *_: pytest.fail("it is done"))
  assert compare.run(config, str(path), command) == failed
  other = config.copy_and_resolve_references()
  other.budget.amount = 5e9
  with pytest.raises(UserError, match="holds another comparison .budget.amount"):
    compare.run(other, str(path), command)


def test_the_page_needs_nothing_else(compared: tuple) -> None:
  text = (compared[1] / "report.html").read_text(encoding="utf-8")
  assert not re.search(r"<script|<link|https?://|url\(", text)
  # What it explains are columns that it has: nothing was looked for in memory.
  assert "Memorised share" not in text
  assert "Bits a dimension" not in text
  assert "kernel distance): less is better" in text
  sources = re.findall(r'src="([^"]{0,20})', text)
  assert len(sources) == 3  # speed, grid, curve
  assert all(source.startswith("data:image/") for source in sources)
  assert 'name="viewport"' in text


def test_a_browser_shows_it_on_a_phone(compared: tuple, tmp_path: Path) -> None:
  """Nothing but the table is wider than the screen, and every picture is shown."""
  names = ("chromium", "chromium-browser", "google-chrome")
  browser = next(filter(None, map(shutil.which, names)), None)
  if browser is None:
    pytest.skip("no browser: install Chromium to test the page (apt install chromium)")
  text = (compared[1] / "report.html").read_text(encoding="utf-8")
  measure = """<script>window.onload = () => {
    const wide = [...document.querySelectorAll('body *')].filter(e =>
      !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 1);
    const shown = [...document.images].filter(i => i.naturalWidth > 0);
    const size = getComputedStyle(document.querySelector('td')).fontSize;
    document.title = JSON.stringify({width: innerWidth, wide: wide.length,
      scroll: document.documentElement.scrollWidth, shown: shown.length, size});
  }</script>"""
  file = tmp_path / "page.html"
  file.write_text(text.replace("</body>", measure + "</body>"), encoding="utf-8")
  flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,844"]
  flags += [f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]
  flags += ["--host-resolver-rules=MAP * ~NOTFOUND"]  # no network
  shown = subprocess.run(
    [browser, *flags, file.as_uri()],
    capture_output=True, text=True, check=True, timeout=120,
  ).stdout  # fmt: skip
  found = json.loads(re.search(r"<title>(.*?)</title>", shown)[1])
  assert found["wide"] == 0
  assert found["scroll"] <= found["width"] <= 500
  assert found["shown"] == 3
  assert float(found["size"].removesuffix("px")) >= 12
