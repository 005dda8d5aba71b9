"""The exception that programs report as one line with exit code 2."""


class InputError(ValueError):
  """Invalid user input; the message names it and the remedy, in one line."""
