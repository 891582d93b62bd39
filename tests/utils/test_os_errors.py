"""What the operating system said, found in the text of a library's error."""

import errno

import pytest

from semppl_jax.utils import os_errors


@pytest.mark.parametrize(
  'error, words, number',
  [
    (OSError(errno.EIO, 'Input/output error'), None, errno.EIO),
    (
      ValueError(
        'Error reading "x": No space left on device [os_error_code=\'28\'] [a'
      ),
      'No space left on device',
      errno.ENOSPC,
    ),
    (ValueError('bad: not a zarr [tensorstore_spec={'), 'not a zarr', None),
    (
      RuntimeError('pread() failed: Stale file handle; reading x\nmore'),
      'Stale file handle',
      errno.ESTALE,
    ),
    (RuntimeError('it failed: badly; x\ny'), 'it failed: badly; x', None),
    (MemoryError(), 'MemoryError', None),
  ],
)
def test_words_and_number(error, words, number):
  assert os_errors.said(error) == (words or str(error), number)
