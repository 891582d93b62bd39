"""The one exception that stands for a mistake of the user's, not of ours."""


class UserError(ValueError):
  """A wrong input: one line that names the value and what would be right.

  `main` prints the line without a stack trace and exits with `status`.
  """

  status = 2


class CheckpointError(UserError):
  """A checkpoint that cannot be read, or is not what was asked for."""
