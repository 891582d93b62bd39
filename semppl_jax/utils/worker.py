"""What a worker process does before its work."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
  """Ends this process when its parent ends.

  A parent that is killed tells nobody: its workers would wait for ever.
  """
  threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
  multiprocessing.parent_process().join()
  os._exit(1)
