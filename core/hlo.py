"""A compiled program's text: what each device computes, moves and sends.

XLA's own analysis takes the body of a loop once. Here each instruction counts as often
as it runs: loops by the trip count that XLA found, or that their condition tells.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from core.flops import Count, products

BITS = {"pred": 8, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "token": 0, "opaque": 0}
SHAPE = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-broadcast",
  "collective-permute",
  "ragged-all-to-all",
  "reduce-scatter",
)
# Instructions that move nothing themselves.
FREE = frozenset(
  "parameter constant tuple get-tuple-element bitcast while conditional call after-all"
  " partition-id replica-id iota opt-barrier domain".split()
)


class Shape(NamedTuple):
  """An array's; `fast` if it lies in a chip's own small memory, not in the main one."""

  dims: tuple[int, ...]
  bytes: float
  fast: bool

  @property
  def main(self) -> float:
    """Bytes in the main memory."""
    return 0.0 if self.fast else self.bytes


class Instruction(NamedTuple):
  """One line: name = type opcode(given), rest; operands are the names in `given`."""

  name: str
  type: str
  opcode: str
  given: str
  operands: tuple[str, ...]
  rest: str
  root: bool

  @property
  def shapes(self) -> list[Shape]:
    """Of its results."""
    return shapes(self.type)


Computation = dict[str, Instruction]


class Program(NamedTuple):
  """All computations by name, which one runs, and on how many devices."""

  computations: dict[str, Computation]
  entry: str
  devices: int


class Collective(NamedTuple):
  """A collective operation: what each of `devices` holds of it, and how often it runs.

  bytes: of the whole result, or of reduce-scatter of what is reduced.
  """

  kind: str
  bytes: float
  devices: int
  times: int

  @property
  def sent(self) -> float:
    """Bytes that each device must send at least, in all its runs.

    Of n devices a gather passes on (n - 1) / n of the result, and so does a scatter; an
    all-reduce is both (Thakur et al. 2005, section 4: the bandwidth terms).
    """
    share = 1 - 1 / self.devices
    if self.kind == "all-reduce":
      share *= 2
    if self.kind in ("collective-permute", "collective-broadcast"):
      share = 1.0
    return share * self.bytes * self.times


@functools.lru_cache(4096)
def shapes(text: str) -> list[Shape]:
  """The arrays in a type such as `(f32[2,3]{1,0}, s32[])`."""
  found = []
  for kind, dims, layout in SHAPE.findall(text):
    sizes = tuple(int(n) for n in dims.split(",") if n)
    bits = BITS.get(kind) if kind in BITS else int(re.sub(r"\D", "", kind) or 8)
    found.append(Shape(sizes, math.prod(sizes) * bits / 8, "S(" in layout))
  return found


def parse(text: str) -> Program:
  """The program of `compiled.as_text()`."""
  computations, entry, current = {}, "", {}
  for line in text.splitlines():
    if head := re.match(r"(ENTRY )?%?([^\s(]+) \(.*\{$", line):
      current = computations[head[2]] = {}
      entry = head[2] if head[1] else entry
    elif " = " in line and line.startswith("  "):
      made = instruction(line)
      current[made.name] = made
  head = text.partition("\n")[0]
  ways = re.findall(r"(?:num_partitions|replica_count)=(\d+)", head)
  return Program(computations, entry, math.prod(int(n) for n in ways))


def instruction(line: str) -> Instruction:
  """One line of a computation."""
  name, _, right = line.strip().partition(" = ")
  root, name = name.startswith("ROOT "), name.split("%")[-1].removeprefix("ROOT ")
  end = closing(right) if right.startswith("(") else right.index(" ")
  kind, right = right[:end], right[end:].strip()
  opcode, _, _ = right.partition("(")
  right = right[len(opcode) :]
  end = closing(right)
  given = right[1 : end - 1]
  operands = tuple(re.findall(r"%([^\s,()]+)", given))
  return Instruction(name, kind, opcode, given, operands, right[end:], root)


def closing(text: str) -> int:
  """The place behind the bracket that closes the first."""
  depth = 0
  for match in re.finditer(r"[()]", text):
    depth += 1 if match[0] == "(" else -1
    if not depth:
      return match.end()
  return len(text)


def called(made: Instruction, field: str) -> str:
  """The computation in `field=%name`, or ''."""
  found = re.search(rf"\b{field}=%?([^\s,}}]+)", made.rest)
  return found[1] if found else ""


def runs(program: Program) -> Iterator[tuple[str, int, bool, bool]]:
  """(computation, how often it runs, inside a fusion?, is that certain?)."""
  waiting = [(program.entry, 1, False, True)]
  while waiting:
    name, times, fused, sure = waiting.pop()
    yield name, times, fused, sure
    for made in program.computations[name].values():
      if made.opcode == "while":
        trips = trip_count(program, made)
        body, known = called(made, "body"), trips is not None
        waiting.append((body, times * (trips or 1), fused, sure and known))
      elif made.opcode == "conditional":
        # Which branch runs is not known here: all count.
        inside = re.search(r"branch_computations=\{([^}]*)\}", made.rest)
        names = inside[1].split(", ") if inside else ()
        pair = ("true_computation", "false_computation")
        for branch in names or (called(made, field) for field in pair):
          waiting.append((branch.lstrip("%"), times, fused, sure))
      elif made.opcode == "call":
        waiting.append((called(made, "to_apply"), times, fused, sure))
      elif inner := called(made, "calls"):
        waiting.append((inner, times, fused or made.opcode == "fusion", sure))


def trip_count(program: Program, loop: Instruction) -> int | None:
  """How often a loop runs, if it can be told."""
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
    return int(known[1])
  condition = program.computations[called(loop, "condition")]
  root = next(made for made in condition.values() if made.root)
  if root.opcode == "fusion":
    outer = root
    inside = program.computations[called(root, "calls")]
    root = next(made for made in inside.values() if made.root)
    limit = condition.get(outer.operands[-1])
    ends = [limit] + [inside.get(name) for name in root.operands]
  else:
    ends = [condition.get(name) for name in root.operands]
  if root.opcode != "compare" or "direction=LT" not in root.rest:
    return None
  # Loops of scans count from 0 by 1.
  for made in ends:
    if made is not None and made.opcode == "constant":
      return int(made.given) if made.given.isdecimal() else None
  return None


def collectives(program: Program) -> list[Collective]:
  """Those of a program, the largest first."""
  found = []
  for name, times, _, _ in runs(program):
    computation = program.computations[name]
    targets = " ".join(made.rest for made in computation.values())
    starts = '"AsyncCollectiveStart"' in targets
    for made in computation.values():
      kind = made.opcode.removesuffix("-start")
      if kind not in COLLECTIVES:
        continue
      # A TPU shows a collective again in each fusion during which it goes on.
      if "async_collective_fusion_config" in made.rest and not starts:
        continue
      operands = [computation[o].shapes for o in made.operands if o in computation]
      into = sum((shape.bytes for each in operands for shape in each), 0.0)
      out = sum((shape.bytes for shape in made.shapes), 0.0)
      if made.opcode.endswith("-start") and kind in (
        "all-gather",
        "collective-permute",
      ):
        out -= into  # these return what they were given, too
      size = into if kind in ("reduce-scatter", "all-reduce") else out
      if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # a TPU's fusion of it and the slice that is kept
      if (devices := group_size(made.rest, program.devices)) > 1:
        found.append(Collective(kind, size, devices, times))
  return sorted(found, key=lambda each: -each.sent)


def group_size(rest: str, devices: int) -> int:
  """How many of all devices take part in a collective together."""
  if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
    # An axis, or 'axis':(before)size, a part of one.
    axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  if tiled := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
    return int(tiled[1])
  if listed := re.search(r"replica_groups=\{\{([^}]*)\}", rest):
    return listed[1].count(",") + 1
  return 2 if "source_target_pairs" in rest else devices


def flops(program: Program) -> Count:
  """Operations of the matrix products and convolutions of one device."""
  total = Count(0.0)
  for name, times, _, sure in runs(program):
    computation = program.computations[name]
    inside = sum((operations(computation, made) for made in computation.values()), 0.0)
    total += Count(inside, sure or not inside).times(times)
  return total


def operations(computation: Computation, made: Instruction) -> float:
  """Those of one matrix product or convolution; 0 of all else."""
  target = re.search(r'custom_call_target="__(cudnn\$conv|cublas)(\w*)', made.rest)
  if made.opcode not in ("dot", "convolution") and not target:
    return 0.0
  left, right = (computation[name].shapes[0].dims for name in made.operands[:2])
  out = made.shapes[0].dims
  if made.opcode == "dot" or (target and target[1] == "cublas"):
    named = r'lhs_contracting_dim(?:s=\{|ensions":\[)([^\]}]*)'
    axes = re.findall(r"\d+", re.search(named, made.rest)[1])
    return 2.0 * math.prod(out) * math.prod(left[int(axis)] for axis in axes)
  if target and target[2] == "BackwardFilter":
    right, out = out, right  # cuDNN's gradients have the settings of what they are of
  if target and target[2] == "BackwardInput":
    left, out = out, left
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", made.rest)
  lhs, rhs, result = labels.groups()
  total = 2.0 * out[result.index("b")] * out[result.index("f")] * right[rhs.index("i")]
  for i in range(len(lhs) - 2):
    axis = str(i)
    total *= products(
      left[lhs.index(axis)],
      right[rhs.index(axis)],
      out[result.index(axis)],
      int(of_window(made.rest, "stride", i, "1")),
      int(of_window(made.rest, "pad", i, "0_0").split("_")[0]),
      int(of_window(made.rest, "lhs_dilate", i, "1")),
      int(of_window(made.rest, "rhs_dilate", i, "1")),
    )
  return total


def of_window(rest: str, field: str, axis: int, default: str) -> str:
  """A convolution's setting along an axis, from `window={size=3x3 pad=1_1x1_1}`."""
  window = re.search(r"window=\{([^}]*)\}", rest)
  found = re.search(rf"\b{field}=(\S+)", window[1]) if window else None
  return found[1].split("x")[axis] if found else default
