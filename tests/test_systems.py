"""Systems: stages trained in order, put together, moved and stopped."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base
from core import cli, limits
from core.checkpoint import Checkpoints
from core.errors import UserError
from core.family import Batch, Family, Given, Samples, Spec, State, keys_at, sample_keys
from core.family import make as make_family
from core.workdir import check_same, open_workdir, read_config, resolved
from pipelines import (
  build,
  inputs,
  published,
  sample,
  similarity,
  stages,
  system,
)
from pipelines.draw import request
from pipelines.drawn import of_stages as drawn_settings
from tests.runs import (
  SYSTEMS,
  command,
  load_config,
  on_folder,
  picture_folder,
  variants,
)
from tests.runs import run as execute
from text.cond import Cond

TINY = "configs/pipelines/imagen.py:tiny"


def state(**ema: object) -> State:
  return State(step=jnp.int32(0), params={}, opt={}, ema=ema, extra={})


def drawing(size: int, nfe: int) -> Family:
  """Draws noise of its weight, on top of the picture it is given."""

  def sample(state: State, rng: jax.Array, cond: Cond, n: int) -> Samples:
    noise = jax.vmap(lambda key: jax.random.normal(key, (size, size, 1)))(rng)
    images = state.ema["weight"] * noise
    if cond.image is not None:
      images += jax.image.resize(cond.image, images.shape, "nearest")
    frames = jnp.stack([jnp.zeros_like(images), images])
    return Samples(images, frames, jnp.full(n, nfe))

  return Family(init=None, step=None, sample=sample, evals={})


def test_a_cascade_is_its_stages_one_after_the_other() -> None:
  """Each has draws of its own of a sample's key, and the picture of the one before."""
  parts = {
    "small": system.Stage(drawing(2, 3), None),
    "large": system.Stage(drawing(4, 5), None),
  }
  weights = {
    "small": system.Weights(state(weight=jnp.float32(2)), None),
    "large": system.Weights(state(weight=jnp.float32(0.5)), None),
  }
  keys, cond = sample_keys(jax.random.key(1), 3), {"small": Cond(), "large": Cond()}
  drawn = system.composed(parts).sample(state(**weights), keys, cond, 3)
  for i in range(3):
    key = jax.random.fold_in(jax.random.key(1), i)
    small = 2 * jax.random.normal(jax.random.fold_in(key, 0), (2, 2, 1))
    fine = jax.random.normal(jax.random.fold_in(key, 1), (4, 4, 1)) / 2
    coarse = jnp.kron(small[..., 0], jnp.ones((2, 2)))[..., None]
    np.testing.assert_allclose(drawn.images[i], coarse + fine, rtol=1e-6)
    np.testing.assert_allclose(drawn.frames[1, i], coarse, rtol=1e-6)
    np.testing.assert_allclose(drawn.frames[3, i], drawn.images[i])
  assert drawn.frames.shape == (4, 3, 4, 4, 1)
  assert drawn.nfe.tolist() == [8, 8, 8]


@pytest.mark.parametrize("file", SYSTEMS)
def test_every_variant_of_a_system_fits_together(
  file: str, subtests: pytest.Subtests
) -> None:
  """At full size too: each stage's networks are built without their numbers.

  What differs in its training or its pictures alone is built once.
  """
  for variant in variants(file):
    config = load_config(file, variant)
    stages.check(config)
    limits.check(config)
    for name in config.order:
      if config.stages.get("generator", {}).get("diffusion", {}).get("weights"):
        continue  # it reads files that only their users have
      if (network := network_of(config, name)) in BUILT:
        continue
      BUILT.add(network)
      with subtests.test(f"{variant}:{name}"):
        own = ConfigDict(config.stages[name].to_dict())
        assert own.data.name == config.data.name
        family = built(config, name)
        batch = {
          "x": np.zeros((1, *spec_of(config, name).shape), spec_of(config, name).dtype),
          "cond": conditions(config, name),
          "_id": np.zeros(1, np.uint32),
          "_mask": np.ones(1, bool),
        }
        shapes = jax.eval_shape(family.init, jax.random.key(0), batch)
        assert jax.tree.leaves(shapes.params)


BUILT = set()
BESIDE = ("seed", "data", "optim", "train", "sample", "eval", "parallel")


def network_of(config: ConfigDict, name: str) -> str:
  """What a stage's network follows from."""
  own = json.loads(config.stages[name].to_json_best_effort())
  data = config.stages[name].data
  shape = (data.size, data.low_size, data.channels, data.latents)
  codec = network_of(config, data.codec[1:]) if data.codec else ""
  other = own["text"]["embedding"]
  read = network_of(config, other[1:]) if other else ""
  parts = {key: part for key, part in own.items() if key not in BESIDE}
  return json.dumps([parts, shape, codec, read], sort_keys=True)


def spec_of(config: ConfigDict, name: str) -> Spec:
  """What a stage models, by the codec of the stage that it names."""
  data = config.stages[name].data
  if not data.codec:
    return Spec((data.size, data.size, data.channels))
  codec = built(config, data.codec[1:]).codecs[data.latents]
  return codec.spec


def built(config: ConfigDict, name: str) -> Family:
  own = ConfigDict(config.stages[name].to_dict())
  return make_family(
    own, spec_of(config, name), **published.frozen(own, spec_of(config, name))
  )


def conditions(config: ConfigDict, name: str) -> Cond:
  own = ConfigDict(config.stages[name].to_dict())
  other, own.text.embedding = own.text.embedding, ""
  own.text.embedding_of_caption, own.sample.candidates = False, 1
  cells, own.text.similarity_cells = own.text.similarity_cells, 0
  cond = inputs.conditions(own, ["a"], [0])
  if other:
    dim = config.stages[other[1:]].clip.dim
    cond = cond.replace(embedding=np.zeros((1, dim), np.float32))
  return similarity.unknown(cond, 1) if cells else cond


def test_shared_fields_have_one_value() -> None:
  config = load_config("configs/pipelines/imagen.py")
  config.data.path, config.seed, config.sample.per_prompt = "somewhere", 7, 9
  for name in config.order:
    own = config.stages[name]
    assert (own.data.path, own.seed, own.sample.per_prompt) == ("somewhere", 7, 9)
  assert config.stages.small.data.size == 4
  assert config.stages.large.data.size == 8


def linked(file: str = "imagen", **fields: object) -> ConfigDict:
  config = load_config(f"configs/pipelines/{file}.py")
  config.update_from_flattened_dict(fields)
  return config


@pytest.mark.parametrize(
  ("config", "message"),
  [
    (linked(draw=("large",)), "starts from a small picture"),
    (linked(draw=("small", "small")), "makes 4x4x3"),
    (linked(draw=()), "draw must name"),
    (linked(draw=("huge",)), "draw='huge' is unknown"),
    (linked(**{"stages.large.data.low_size": 2}), "starts from pictures of 2x2x3"),
    (linked(**{"stages.small.data.codec": "@large"}), "not trained before it"),
    (linked(**{"stages.small.data.codec": "@other"}), "'other'"),
    (
      linked("dalle2", **{"stages.prior.data.codec": ""}),
      "stage decoder starts from a vector of text.embedding=@clip, and stage prior",
    ),
    (
      linked("dalle2", draw=("decoder", "prior")),
      "draw a prior before it, or it alone",
    ),
  ],
)
def test_stages_that_do_not_fit_are_refused(config: ConfigDict, message: str) -> None:
  with pytest.raises(UserError, match=message):
    stages.check(config)


def test_each_stage_is_led_away_from_its_own_negative_prompt() -> None:
  config = linked(**{"stages.small.sample.negative_prompt": "blue"})
  cond = inputs.conditions(config, ["red"], [0])
  found = sample.with_negative(config, cond, 1)
  own, large = config.stages.small, found["large"]
  expected = inputs.conditions(own, ["blue"], [0]).tokens
  np.testing.assert_array_equal(found["small"].negative.tokens, expected)
  assert large.negative is None
  own.sample.guidance_scale = 2.0
  sample.check_negative(config)
  own.sample.guidance_scale = 1.0
  with pytest.raises(UserError, match="negative_prompt='blue' is what guidance"):
    sample.check_negative(config)


def test_the_vectors_of_a_prior_may_come_from_outside() -> None:
  config = linked("dalle2", **{"stages.prior.data.codec": "runs/clip"})
  config.stages.prior.text.embedding = config.stages.decoder.text.embedding = (
    "runs/clip"
  )
  stages.check(config)
  stages.check(linked("dalle2", draw=("decoder",)))


def test_a_stage_stays_as_another_was_trained_with_it(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  config = linked("stable_diffusion", **{"stages.codec.train.steps": 8})
  steps = {"codec": 4, "generator": 2}
  monkeypatch.setattr(stages, "trained_steps", lambda path: steps[path.name])
  turns = lambda: stages.runs(config, str(tmp_path), "train", "")  # noqa: E731
  with pytest.raises(UserError, match="codec as it is at step 4.*train.steps to 4"):
    list(turns())
  steps["codec"] = -1
  with pytest.raises(UserError, match="codec, which is gone"):
    list(turns())
  steps.update(codec=4, generator=-1)
  assert next(turns())[1] == str(tmp_path / "codec")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
  config, file = linked(), tmp_path / "config.json"
  turns = lambda: next(stages.runs(config, str(tmp_path), "train", ""))  # noqa: E731
  for text, sentence in (
    ('{"order": ["codec", "large"]}', "a system with stage codec"),
    ('{"family": "vae.vae"}', "a run of no system"),
  ):
    file.write_text(text)
    with pytest.raises(UserError, match=sentence):
      turns()
    assert file.read_text() == text
  file.unlink()
  open_workdir(str(tmp_path / "large"), config.stages.large)
  assert turns()[1] == str(tmp_path / "small")
  config.data.languages = ("zh",)
  with pytest.raises(UserError, match="large holds a run.*data.languages"):
    turns()


def test_the_pictures_of_a_stage_are_those_of_its_codec() -> None:
  config = load_config("configs/pipelines/stable_diffusion.py")
  config.stages.codec.data.size = 16
  with pytest.raises(UserError, match=r"stages\.generator\.data\.size is 8"):
    stages.check(config)


def test_a_plain_run_in_the_folder_of_a_system_is_refused() -> None:
  with pytest.raises(UserError, match="^a holds a system of several stages; "):
    check_same({"stages": {}, "seed": 0}, {"seed": 1}, Path("a"))


def test_an_error_says_of_which_stage_it_is() -> None:
  config, plain = load_config("configs/pipelines/imagen.py"), base.get_config()
  for whole, own, message in (
    (config, config.stages.small, "^stage small: no$"),
    (config, config, "^no$"),
    (plain, plain, "^no$"),
  ):
    with pytest.raises(UserError, match=message), stages.told(whole, own, "a/small"):
      raise UserError("no")


def test_a_field_that_each_stage_has_is_told_with_their_names() -> None:
  fields = {"seed", "stages.small.model.dim", "stages.large.model.dim"}
  found = str(cli.unknown_field("model.dim", fields))
  assert "--config.stages.large.model.dim or --config.stages.small.model.dim" in found
  assert "did you mean 'seed'?" in str(cli.unknown_field("sead", fields))


def test_stages_of_a_plain_config_are_refused() -> None:
  plain = base.get_config()
  assert [path for _, path in stages.runs(plain, "a/b", "train", "")] == ["a/b"]
  with pytest.raises(UserError, match="is for systems"):
    list(stages.runs(plain, "a/b", "train", "codec"))


@pytest.mark.slow
def test_a_system_from_the_command_line(tmp_path: Path) -> None:
  """Stage by stage, stopped and moved; drawn and scored as one."""
  folder, home = picture_folder(tmp_path / "pictures"), tmp_path / "sd"
  flags = (*on_folder(folder), "--config.eval.metrics=('loss','fd')")
  config = "configs/pipelines/stable_diffusion.py:tiny"

  def ask(*more: str, workdir: Path = home) -> str:
    done = execute(command(workdir, *flags, *more, config=config))
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr

  refused = execute(command(home, *flags, "--stage=generator", config=config))
  assert refused.returncode == 2
  assert "stage generator needs codec" in refused.stderr
  ask("--stage=codec")
  assert not (home / "generator").exists()
  said = ask()
  assert "stage codec: its 4 steps are done" in said
  assert read_config(home / "generator").data.codec == str(home / "codec")
  stored = json.loads((home / "generator" / "config.json").read_text())
  assert stored["data"]["codec"] == "@codec"
  moved = tmp_path / "moved"
  shutil.move(home, moved)
  assert "red_heart.png" in ask("--mode=sample", "--prompt=red heart", workdir=moved)
  ask("--mode=eval", workdir=moved)
  scores = json.loads((moved / "eval.json").read_text())
  assert np.isfinite(scores["loss"])
  assert scores["step"] == 4


def test_a_cascade_draws_what_its_stages_would(tmp_path: Path) -> None:
  """From trained runs: the pictures of `opened` are those of a chain by hand."""
  folder = picture_folder(tmp_path / "pictures")
  config = load_config("configs/pipelines/imagen.py")
  config.data.name, config.data.path = "folder", str(folder)
  config.data.match, config.data.eval_split = "", "train"
  config.data.languages = ("en",)
  config.parallel.backend = "jit"
  saved = {}
  for name in config.order:
    saved[name] = untrained(config.stages[name], tmp_path / "run" / name)
  front, family, run, whole = system.opened(config, str(tmp_path / "run"))
  assert front.data.size == 8
  assert front.data.low_size == 0
  given = Given(np.zeros((1, 8, 8, 3), np.float32), np.ones((1, 8, 8, 1), np.float32))
  with pytest.raises(UserError, match="small, large draw together from texts alone"):
    sample.batch_sampler(front, family, run, 1, given=given)
  asked = (["red", "blue", "green"], ["no.png"], "")
  with pytest.raises(UserError, match="draw together from texts alone"):
    request(front, family, run, lambda: pytest.fail("data read"), *asked)
  front.stages.small.sample.steps += 1
  settings = drawn_settings(front)
  assert settings["small.steps"] == front.sample.steps + 1
  assert not any(name.startswith("large.") for name in settings)
  cond = inputs.conditions(front, ["colour 1", "colour 2"], [0, 0])
  keys = sample_keys(jax.random.key(3), 2)
  drawn = jax.jit(lambda *a: family.sample(*a, 2))(whole, keys, cond)
  (small, s_state), (large, l_state) = saved["small"], saved["large"]
  first = jax.jit(lambda *a: small.sample(*a, 2))(
    s_state, keys_at(keys, 0), cond["small"]
  )
  given = cond["large"].replace(image=first.images)
  draw = jax.jit(lambda *a: large.sample(*a, 2))
  second = draw(l_state, keys_at(keys, 1), given)
  np.testing.assert_allclose(drawn.images, second.images, atol=1e-5)
  other = draw(l_state, keys_at(keys, 1), given.replace(image=-first.images))
  assert np.abs(second.images - other.images).max() > 0.01
  assert (drawn.nfe == first.nfe + second.nfe).all()


def test_a_prior_and_a_decoder_draw_what_they_would_in_turn(tmp_path: Path) -> None:
  """unCLIP's autoregressive one: tokens of components to vectors, of two the nearer."""
  folder = picture_folder(tmp_path / "pictures")
  config = load_config("configs/pipelines/dalle2.py", "tiny_ar")
  config.data.name, config.data.path = "folder", str(folder)
  config.data.match, config.data.languages = "", ("en",)
  config.parallel.backend = "jit"
  config.stages.decoder.sample.guidance_scale = 2.0
  config.stages.prior.sample.candidates = 2
  saved = {}
  for name in config.order:
    path = tmp_path / "run" / name
    saved[name] = untrained(resolved(config.stages[name], path), path)
  front, family, _, whole = system.opened(config, str(tmp_path / "run"))
  cond = inputs.conditions(front, ["colour 1", "colour 2"], [0, 0])
  keys = sample_keys(jax.random.key(3), 2)
  drawn = jax.jit(lambda *a: family.sample(*a, 2))(whole, keys, cond)
  (prior, state), (components, pca) = saved["prior"], saved["components"]
  draw = jax.jit(lambda *a: prior.sample(*a, 2).images)
  asked = [keys_at(keys_at(keys, 0), j) for j in range(2)]
  tokens = [
    draw(state, own, similarity.upper_half(own, cond["prior"])) for own in asked
  ]
  vectors = [components.codecs["tokens"].decode(pca, x).reshape(2, -1) for x in tokens]
  scores = [(z * cond["prior"].embedding).sum(1) for z in vectors]
  nearer = jnp.where((scores[0] >= scores[1])[:, None], *vectors)
  assert (np.asarray(tokens[0]) != tokens[1]).any()
  decoder, state = saved["decoder"]
  draw = jax.jit(lambda *a: decoder.sample(*a, 2).images)
  given = cond["decoder"].replace(embedding=nearer)
  images = draw(state, keys_at(keys, 1), given)
  np.testing.assert_allclose(drawn.images, images, atol=1e-4)
  assert np.abs(images - draw(state, keys_at(keys, 1), cond["decoder"])).max() > 0.01
  assert drawn.frames.shape[0] == front.sample.frames  # of the decoder alone


def untrained(config: ConfigDict, path: Path) -> tuple[Family, State]:
  """A run with weights near those that its family starts from, of which none is 0."""
  workdir, family = open_workdir(str(path), config), build.family(config)

  def start(key: jax.Array, batch: Batch) -> State:
    state = family.init(key, batch)
    leaves, tree = jax.tree.flatten(state.ema)
    keys = jax.random.split(key, len(leaves))
    moved = [
      a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)
    ]
    return state.replace(ema=tree.unflatten(moved))

  state = jax.jit(start)(jax.random.key(5), build.example_batch(config))
  checkpoints = Checkpoints(workdir)
  checkpoints.save(0, state)
  checkpoints.close()
  return family, state
