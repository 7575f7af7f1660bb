"""Systems side by side: 24 prompts in three languages, judged by one dual encoder.

    python benchmarks/systems.py OUT JUDGE NAME=RUN...

Each RUN is the workdir of a system, or of a plain generator, trained on the pictures of
configs/quickstart.py; JUDGE that of a dual encoder none of them has a part of. Eight of
the prompts are of concepts that are in no training split. Draws four pictures of each
prompt and prints a Markdown table: the mean 100 cos of pictures and captions, for
prompts seen and held out and by language, the same with the captions of other prompts,
seconds a picture on this machine (the second call, compiled) and network evaluations;
FD and KD are those of each RUN's eval.json, if `--mode=eval` has made one. OUT.png has
a column for each prompt: the real picture, then two of each system's.
"""

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from ml_collections import ConfigDict

from core import cli, parallel
from core.workdir import read_config
from data import source
from eval import images
from eval.metrics import alignment
from pipelines import dual, pictures, rerank, sample, system
from pipelines.embed import Embedder

SEEN = {
  "en": ("red heart", "yellow circle", "grinning face", "umbrella", "snowman"),
  "zh": ("蓝心", "红苹果", "彩虹", "星星", "足球"),
  "ja": ("オレンジの丸", "三日月", "さくらんぼ", "ネコの顔", "チューリップ", "ピザ"),
}
HELD_OUT = {
  "en": ("green square", "pink heart", "winking face"),
  "zh": ("红色方块", "草莓", "书呆子脸"),
  "ja": ("困った顔", "晴れ時々曇り"),
}
PROMPTS = [p for group in (SEEN, HELD_OUT) for part in group.values() for p in part]
LANGUAGES = [
  code for group in (SEEN, HELD_OUT) for code, part in group.items() for _ in part
]
NEW = np.arange(len(PROMPTS)) >= sum(map(len, SEEN.values()))
EACH = 4  # pictures of a prompt


class Drawn(NamedTuple):
  """What a system drew, `EACH` of every prompt in turn."""

  config: ConfigDict
  images: np.ndarray
  seconds: float  # a picture
  nfe: float


def main(out: Path, judge: str, *runs: str) -> None:
  """Draws, judges, prints, writes the sheet."""
  named = dict(run.partition("=")[::2] for run in runs)
  rows, found = [], {}
  for name, workdir in named.items():
    found[name] = draw(workdir)
    config = found[name].config
  embed = Embedder(
    dual.load(judge, config.parallel), parallel.make(config.parallel), 64
  )
  texts = embed.texts(PROMPTS)
  print(f"| {' | '.join(['', *HEADINGS])} |")
  print("| --- " * (1 + len(HEADINGS)) + "|")
  for name, drawn in found.items():
    print(f"| {' | '.join([name, *row(drawn, texts, embed, named[name])])} |")
    rows += [drawn.images[::EACH], drawn.images[1::EACH]]
  tiles = [tile for drawn in (real(config), *rows) for tile in drawn]
  pictures.sheet(tiles, len(PROMPTS), side=48).save(out.with_suffix(".png"))


HEADINGS = (
  *("seen", "held out", "captions of others", "en", "zh", "ja"),
  *("FD", "KD", "s a picture", "nfe"),
)


def row(
  drawn: Drawn, texts: np.ndarray, embed: Embedder, workdir: str
) -> tuple[str, ...]:
  """The cells of one system."""
  seen = embed.images(images.of_array("drawn", drawn.images))
  own = alignment.score(seen, texts.repeat(EACH, axis=0)).reshape(-1, EACH).mean(1)
  others = alignment.mismatched(seen, texts.repeat(EACH, 0), np.repeat(PROMPTS, EACH))
  groups = [~NEW, NEW, *(np.asarray(LANGUAGES) == code for code in SEEN)]
  cells = [f"{own[rows].mean():.1f}" for rows in groups]
  cells.insert(2, f"{others:.1f}")
  return (
    *cells,
    *(score(workdir, start) for start in ("FD-", "KD-")),
    f"{drawn.seconds:.2g}",
    f"{drawn.nfe:.0f}",
  )


def draw(workdir: str) -> Drawn:
  """All prompts by the run in `workdir`; with `sample.rerank` the best of each."""
  config = read_config(Path(workdir))
  config.parallel.backend = "jit"
  config.sample.per_prompt = EACH
  config, family, run, state = system.opened(config, workdir)
  each = config.sample.rerank or EACH
  one = sample.sampler(config, family, run, PROMPTS, [0] * len(PROMPTS), each)
  one(state)
  start = time.perf_counter()
  samples = one(state)
  seconds = (time.perf_counter() - start) / len(samples.images)
  nfe = float(np.mean(samples.nfe))
  if config.sample.rerank:
    samples, _ = rerank.chooser(config, run, PROMPTS)(samples)
    seconds, nfe = (x * each / EACH for x in (seconds, nfe))
  return Drawn(config, pictures.to_uint8(samples.images), seconds, nfe)


def score(workdir: str, start: str) -> str:
  """Of the newest eval.json, or a dash."""
  file = Path(workdir) / "eval.json"
  scores = json.loads(file.read_text())["scores"] if file.exists() else []
  return next(
    (f"{s['value']:.3g}" for s in scores if s["metric"].startswith(start)), "–"
  )


def real(config: ConfigDict) -> np.ndarray:
  """The picture that each prompt is a caption of."""
  found = {}
  for split in ("train", "validation", "test"):
    data = source.load(config.data, split)
    for i in range(len(data)):
      for captions in data.captions(i).values():
        found |= dict.fromkeys(captions, (data, i))
  return np.stack([data.image(i) for data, i in map(found.__getitem__, PROMPTS)])


if __name__ == "__main__":
  if len(sys.argv) < 4:
    sys.exit(__doc__)
  cli.be_quiet()
  main(Path(sys.argv[1]), *sys.argv[2:])
