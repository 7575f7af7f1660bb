"""What a run says: TensorBoard's events, and a disk without room."""

import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from core.errors import UserError
from core.log import Board, Log


def events(folder: Path) -> list[Event]:
  """All events of all files: records of length, checksum, bytes and checksum."""
  found = []
  for file in sorted(folder.iterdir()):
    data = file.read_bytes()
    while data:
      (length,) = struct.unpack("<Q", data[:8])
      found.append(Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return found


def test_events_have_every_number_and_where_a_run_resumes(tmp_path):
  board = Board(tmp_path, 6)
  board.write(7, {"loss": 0.5, "eval/loss": float("nan")})
  board.write(8, {"loss": 0.25})
  board.close()
  version, start, first, second = events(tmp_path)
  assert version.file_version == "brain.Event:2"
  assert (start.step, start.session_log.status) == (7, SessionLog.START)
  assert first.step == 7
  values = {v.tag: v.simple_value for v in first.summary.value}
  np.testing.assert_array_equal([*values.values()], [0.5, np.nan])
  assert (second.step, second.summary.value[0].simple_value) == (8, 0.25)


def test_a_run_that_resumes_at_once_has_a_file_of_its_own(tmp_path):
  boards = [Board(tmp_path, start) for start in (4, 2)]
  for board in boards:
    board.write(7, {"loss": 1.0})
  assert len(list(tmp_path.iterdir())) == 2
  starts = [e.step for e in events(tmp_path) if e.HasField("session_log")]
  assert starts == [5, 3]
  assert [e.step for e in events(tmp_path) if e.summary.value] == [7, 7]
  for board in boards:  # all was written before
    board.close()


def test_a_full_disk_ends_a_run_that_has_much_to_say(tmp_path):
  """A library's thread that fails for itself would be waited for without end."""
  log = Log(tmp_path, 0, 10_000)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

  def run() -> None:
    for step in range(10_000):
      log.write(step, {"loss": 1.0})

  try:
    with pytest.raises(UserError, match="cannot write to .* make room"):
      run()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.close()
