"""What a compiled program reads from and writes to a device's main memory."""

from core.hlo import FREE, Computation, Instruction, Program, called, runs


def moved(program: Program) -> float:
  """Bytes that one device reads and writes in a run.

  Each instruction outside of fusions reads its operands and writes its results; what
  lies in a chip's own small memory is free. Of an array of which only a slice is read
  or written, as a loop's stacked weights are, the slice counts.
  """
  total = 0.0
  for name, times, fused, _ in runs(program):
    if fused:
      continue
    computation = program.computations[name]
    for made in computation.values():
      total += times * of_instruction(program, computation, made)
  return total


def of_instruction(
  program: Program, computation: Computation, made: Instruction
) -> float:
  """Bytes that one instruction moves when it runs once."""
  if made.opcode in FREE or made.opcode.endswith("-start"):
    return 0.0
  given = [computation[name] for name in made.operands if name in computation]
  out = _size(made)
  match made.opcode:
    case "fusion":
      return of_fusion(program, made, given)
    case "dynamic-slice" | "slice" | "gather":
      return _main(given[0], made) + out
    case "dynamic-update-slice" | "scatter":
      update = given[1 if made.opcode == "dynamic-update-slice" else -1]
      return _size(update) + _main(made, update)
    case name if name.endswith("-done") and given:
      # From where it was started to where it arrives.
      start = computation.get(given[0].name)
      source = computation.get(start.operands[0]) if start and start.operands else None
      return out + (_main(source, made) if source else 0.0)
  return out + sum(_size(each) for each in given)


def of_fusion(program: Program, made: Instruction, given: list[Instruction]) -> float:
  """Bytes that a fusion moves: of operands and results what is really touched."""
  inside = program.computations[called(made, "calls")]
  total = 0.0
  for each in inside.values():
    if each.opcode == "parameter":
      source = given[int(each.given)]
      total += min(_size(source), touched(program, inside, each, source))
  root = next(each for each in inside.values() if each.root)
  parts = [inside[n] for n in root.operands] if root.opcode == "tuple" else [root]
  for part, shape in zip(parts, made.shapes, strict=False):
    where, part = behind(program, inside, part)
    if part.opcode == "parameter" or shape.fast:
      continue  # passed on as it is
    if part.opcode == "dynamic-update-slice":
      update = sum((s.bytes for s in where[part.operands[1]].shapes), 0.0)
      total += min(shape.bytes, update)
    else:
      total += shape.bytes
  return total


def touched(
  program: Program, inside: Computation, each: Instruction, source: Instruction
) -> float:
  """Bytes that a fusion reads of one of its operands, which is `source` outside."""
  total = 0.0
  for user in inside.values():
    if each.name not in user.operands:
      continue
    first = user.operands[0] == each.name
    match user.opcode:
      case "dynamic-slice" if first:
        total += _main(source, user)
      case "dynamic-update-slice" if first:
        pass  # what is not overwritten stays where it is
      case "tuple":
        pass
      case "bitcast":
        total += touched(program, inside, user, source)
      case "fusion":
        within = program.computations[called(user, "calls")]
        for inner in within.values():
          if inner.opcode == "parameter":
            passed = user.operands[int(inner.given)] == each.name
            total += touched(program, within, inner, source) if passed else 0.0
      case _:
        return _size(source)
  return total


def behind(
  program: Program, inside: Computation, made: Instruction
) -> tuple[Computation, Instruction]:
  """What a bitcast or the end of a fusion within shows, and where it is."""
  while True:
    if made.opcode == "bitcast" and made.operands[0] in inside:
      made = inside[made.operands[0]]
    elif made.opcode == "fusion":
      inside = program.computations[called(made, "calls")]
      made = next(each for each in inside.values() if each.root)
    else:
      return inside, made


def _size(made: Instruction) -> float:
  return sum((shape.main for shape in made.shapes), 0.0)


def _main(where: Instruction, what: Instruction) -> float:
  """Bytes of `what`, if `where` lies in the main memory."""
  if all(shape.fast for shape in where.shapes):
    return 0.0
  return sum((shape.bytes for shape in what.shapes), 0.0)
