"""The Apache Beam pipeline of `data/pairs.py`: tar shards in, chosen ones out.

    shards -> judge each sample -> the first of equal ones -> no near ones -> shards

What comes out depends on the input and the rules alone, not on how the work was cut: a
picture is named after its pixels, goes to a shard by that name, and lies in its order.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsIter, AsSingleton, TaggedOutput
from array_record.python.array_record_module import ArrayRecordWriter

from data import near, selection, tars
from data.near import Signature
from data.selection import Kept, Rules, shard_of

REPORT = "report.json"
RAW = CompressionTypes.UNCOMPRESSED


def find(pattern: str) -> list[str]:
  """The files that match, in the order of their names, on any file system of Beam."""
  found = FileSystems.match([pattern])[0].metadata_list
  return sorted(one.path for one in found)


def unknown(flags: Sequence[str]) -> list[str]:
  """Those of the flags that no option of Beam or its runners takes."""
  parser = beam.options.pipeline_options._BeamArgumentParser(allow_abbrev=False)
  for options in PipelineOptions.__subclasses__():
    options._add_argparse_args(parser)
  return parser.parse_known_args(list(flags))[1]


def run(
  files: Sequence[str],
  output: str,
  rules: Rules,
  shard_size: int,
  kind: str,
  flags: Sequence[str],
) -> dict[str, Any]:
  """Runs the pipeline and returns its report, which `output` holds too.

  Args:
    files: tar shards.
    output: a folder, on any file system of Beam.
    rules: what is kept.
    shard_size: pictures in a shard, about.
    kind: 'tar' or 'array_record'.
    flags: options of Beam and its runner.
  """
  # Annotations are for readers here; Beam would choose coders by them.
  beam.typehints.disable_type_annotations()
  if not FileSystems.exists(output):
    FileSystems.mkdirs(output)
  with beam.Pipeline(options=PipelineOptions(list(flags))) as pipeline:
    build(pipeline, files, output, rules, shard_size, kind)
  with FileSystems.open(FileSystems.join(output, REPORT), compression_type=RAW) as file:
    return json.loads(file.read())


def build(
  pipeline: beam.Pipeline,
  files: Sequence[str],
  output: str,
  rules: Rules,
  shard_size: int,
  kind: str,
) -> None:
  """Adds all steps to a pipeline."""
  judged = (
    pipeline
    | "shards" >> beam.Create(sorted(files))
    | "spread" >> beam.Reshuffle()
    | "judge" >> beam.ParDo(Judge(rules)).with_outputs("counts", "torn", main="passed")
  )
  unique = judged.passed | "equal ones" >> beam.CombinePerKey(first)
  dropped = near_ones(unique, rules.near_bits)
  count = beam.combiners.Count.Globally
  uniques, nears = unique | "uniques" >> count(), dropped | "nears" >> count()
  shards = uniques | "how many" >> beam.Map(
    lambda all_, fewer: -(-(all_ - fewer) // shard_size), AsSingleton(nears)
  )
  written = (
    {
      "kept": unique
      | beam.Map(lambda x, n: (shard_of(x[0], n), x[1]), AsSingleton(shards)),
      "dropped": dropped
      | beam.Map(lambda x, n: (shard_of(x, n), x), AsSingleton(shards)),
    }
    | "gather" >> beam.CoGroupByKey()
    | "write" >> beam.FlatMap(write, output, kind)
  )
  counts = (
    judged.counts,
    uniques | beam.Map(lambda n: ("unique", n)),
    nears | beam.Map(lambda n: ("near", n)),
    written,
  ) | "counts" >> beam.Flatten()
  told = counts | "sums" >> beam.CombinePerKey(sum) | beam.combiners.ToDict()
  settings = rules._asdict() | {"shard_size": shard_size, "format": kind}
  told | beam.Map(tell, AsIter(judged.torn), settings, output)


class Judge(beam.DoFn):
  """A shard -> (digest, sample) of each that passes the filters, and counts."""

  def __init__(self, rules: Rules):
    self._rules = rules

  def process(self, path: str) -> Iterator[Any]:
    """The samples of one shard."""
    name = os.path.basename(path)
    with FileSystems.open(path, compression_type=RAW) as tar:
      try:
        for i, (key, places) in enumerate(tars.samples(tars.members(tar))):
          parts = {}
          for extension, (offset, size) in places.items():
            tar.seek(offset)
            parts[extension] = tar.read(size)
          own = selection.judge(parts, self._rules, (path, i), f"{name}/{key}")
          yield TaggedOutput("counts", ("read", 1))
          if isinstance(own, Kept):
            yield TaggedOutput("counts", ("passed", 1))
            yield own.signature.digest, own
          else:
            yield TaggedOutput("counts", (own, 1))
      except tars.Torn as error:
        yield TaggedOutput("torn", f"{name}: {error}")


def near_ones(samples: beam.PCollection, bits: int) -> beam.PCollection:
  """(digest, sample) -> digests of near duplicates, each once."""
  return (
    samples
    | "parts of hashes" >> beam.FlatMap(keyed, bits)
    | "alike in a part" >> beam.GroupByKey()
    | "near" >> beam.FlatMap(losers, bits)
    | "once" >> beam.Distinct()
  )


def keyed(one: tuple[str, Kept], bits: int) -> Iterator[tuple[str, Signature]]:
  """A signature under each part of its hash."""
  signature = one[1].signature
  for number, part in near.bands(signature.perceptual, bits):
    yield f"{number}:{part:x}", signature


def losers(group: tuple[str, Iterable[Signature]], bits: int) -> Iterator[str]:
  """The near duplicates among those that are alike in a part."""
  return near.losers(group[1], bits)


def first(found: Iterable[Kept]) -> Kept:
  """Of equal pictures."""
  return min(found, key=lambda one: one.order)


def write(
  group: tuple[int, dict[str, Iterable[Any]]], output: str, kind: str
) -> Iterator[tuple[str, int]]:
  """Writes a shard, whole or not at all; how many it holds."""
  shard, found = group
  dropped = set(found["dropped"])
  kept = [one for one in found["kept"] if one.signature.digest not in dropped]
  if not kept:
    return
  kept.sort(key=lambda one: one.signature.digest)
  with tempfile.TemporaryDirectory() as folder:
    local = os.path.join(folder, "shard")
    if kind == "tar":
      with open(local, "wb") as file:
        tars.write_tar(file, selection.members(kept))
    else:
      writer = ArrayRecordWriter(local, "group_size:1,uncompressed")
      for one in kept:
        writer.write(tars.packed(one.meta, one.picture))
      writer.close()
    with open(local, "rb") as file:
      copy(file, FileSystems.join(output, f"{shard:05d}.{kind}"))
  yield "kept", len(kept)
  yield "shards", 1


def copy(source: Any, path: str) -> None:
  """Writes a file so that nobody sees a part of it."""
  partial = f"{path}.{os.urandom(8).hex()}.partial"
  with FileSystems.create(partial, compression_type=RAW) as file:
    while block := source.read(2**24):
      file.write(block)
  FileSystems.rename([partial], [path])


def tell(
  counts: dict[str, int], torn: Iterable[str], settings: dict[str, Any], output: str
) -> None:
  """Writes the report."""
  settings = {k: None if v == float("inf") else v for k, v in settings.items()}
  found = selection.report(counts, torn) | {"settings": settings}
  text = json.dumps(found, indent=2) + "\n"
  with tempfile.TemporaryFile() as file:
    file.write(text.encode())
    file.seek(0)
    copy(file, FileSystems.join(output, REPORT))
