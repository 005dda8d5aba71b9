"""Cases that fail on purpose, to see that the others go on."""

import os
import time


def measure(*, how: str) -> dict:
  """Raises, hangs, or ends the process."""
  if how == "raise":
    raise RuntimeError("planted: this case raises")
  if how == "hang":
    time.sleep(3600)
  if how == "crash":
    os.abort()
  return {"how": how}
