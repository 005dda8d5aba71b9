"""The one exception the programs turn into a clear line and exit code 2."""


class InputError(ValueError):
  """Something the user gave is wrong; the message names it and the remedy, in one line."""
