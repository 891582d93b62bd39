"""What a bucket's server or its client said, in one line of ours.

The clients' own texts are not passed on: they may have an address with a
password in it, and are no help.
"""

import contextlib
import errno
import os
from collections.abc import Iterator

from semppl_jax.errors import UserError

_NO_BUCKET = ('NoSuchBucket', 'InvalidBucketName')
_EXPIRED = (
  'ExpiredToken',
  'ExpiredTokenException',
  'RequestExpired',
  'TokenRefreshRequired',
  'TokenRetrievalError',
  'UnauthorizedSSOTokenError',
  'RefreshError',
  'ReauthFailError',
)
_NO_CREDENTIALS = (
  'NoCredentialsError',
  'PartialCredentialsError',
  'CredentialRetrievalError',
  'ProfileNotFound',
  'DefaultCredentialsError',
  'SSOTokenLoadError',
  'MissingSecurityHeader',
)
_NOT_ACCEPTED = (
  'InvalidAccessKeyId',
  'SignatureDoesNotMatch',
  'InvalidToken',
  'InvalidClientTokenId',
  'AuthFailure',
  '401',
)
_FORBIDDEN = (
  'AccessDenied',
  'Forbidden',
  'AllAccessDisabled',
  'AccountProblem',
  '403',
)
_OTHER_REGION = (
  'AuthorizationHeaderMalformed',
  'PermanentRedirect',
  'IllegalLocationConstraintException',
  '301',
)
_NO_ANSWER = (
  'EndpointConnectionError',
  'ConnectTimeoutError',
  'ReadTimeoutError',
  'ConnectionClosedError',
  'ProxyConnectionError',
  'SSLError',
  'HTTPClientError',
  'ResponseStreamingError',
  'IncompleteReadError',
  'IncompleteRead',
  'FSTimeoutError',
  'TimeoutError',
  'ConnectionError',
  'ConnectionRefusedError',
  'ConnectionResetError',
  'ClientConnectorError',
  'ClientConnectionError',
  'ClientPayloadError',
  'ContentLengthError',
  'ServerDisconnectedError',
  'ServerTimeoutError',
  'TransportError',
  'ResponseParserError',
  'SlowDown',
  'ServiceUnavailable',
  'InternalError',
  'RequestTimeout',
  'RequestTimeTooSkewed',
  '408',
  '429',
  '500',
  '502',
  '503',
  '504',
)
# Of a file on this machine that an object is copied to.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_EXTRAS = {'s3': ('s3fs', 's3'), 'gs': ('gcsfs', 'gs')}
_RENEW = {
  's3': '`aws login`, `aws sso login` or new AWS_* variables',
  'gs': '`gcloud auth application-default login`',
}
_SET = {
  's3': (
    '`aws configure`, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role '
    'of this machine'
  ),
  'gs': (
    '`gcloud auth application-default login`, GOOGLE_APPLICATION_CREDENTIALS, '
    'or a service account of this machine'
  ),
}


class StorageError(UserError):
  """What object storage did not do, and what would help, in one line."""

  is_permission = False  # whether that is for want of a permission


class NoAnswerError(StorageError):
  """The server did not answer, or not to the end: it may at another try."""


def missing_extra(scheme: str) -> StorageError:
  """Where the client of a cloud is not installed."""
  package, extra = _EXTRAS[scheme]
  return StorageError(
    f'{scheme}:// needs the package {package}: pip install '
    f"'semppl_jax[{extra}]'."
  )


@contextlib.contextmanager
def told(url: str, what: str) -> Iterator[None]:
  """Makes a StorageError of whatever a client raises.

  Args:
    url: the object, or the folder.
    what: cannot be done to it: 'read', 'written', ..

  Raises:
    FileNotFoundError: the bucket is there, the object is not.
    FileExistsError: of a write that must not replace anything.
    OSError: this machine's disk is full, or cannot be written.
    StorageError: all else.
  """
  try:
    yield
  except (StorageError, FileExistsError):
    raise
  except Exception as error:
    if getattr(error, 'errno', None) in _OF_THE_DISK:
      raise
    words = signs(error)
    is_absent = isinstance(error, FileNotFoundError) or 'NoSuchKey' in words
    if is_absent and not set(words) & set(_NO_BUCKET):
      reason = os.strerror(errno.ENOENT)
      raise FileNotFoundError(errno.ENOENT, reason, url) from None
    kind = NoAnswerError if _may_pass(words) else StorageError
    line = kind(_line(url, what, words))
    line.is_permission = ': no permission' in str(line)
    # Not from the error: a trace must not tell what it says.
    raise line from None


def signs(error: BaseException) -> list[str]:
  """Codes, statuses and kinds of an error, and of those that it came from."""
  found: list[str] = []
  kinds: list[str] = []
  seen: set[int] = set()
  one: BaseException | None = error
  while one is not None and id(one) not in seen:
    seen.add(id(one))
    response = getattr(one, 'response', None)
    if isinstance(response, dict):
      found.append(str(response.get('Error', {}).get('Code', '')))
    code = getattr(one, 'code', None)  # gcsfs: the status
    if isinstance(code, int | str) and str(code).isalnum():
      found.append(str(code))
    if str(one).startswith('Forbidden:'):  # gcsfs, of a status 403
      found.append('403')
    kinds += [kind.__name__ for kind in type(one).__mro__[:-3]]
    one = one.__cause__ or one.__context__
  return [word for word in found + kinds if word]


def _may_pass(words: list[str]) -> bool:
  lasting = (
    *_NO_BUCKET, *_EXPIRED, *_NO_CREDENTIALS, *_NOT_ACCEPTED, *_FORBIDDEN,
    'PermissionError',
  )  # fmt: skip
  return any(w in _NO_ANSWER for w in words) and not set(words) & set(lasting)


def _line(url: str, what: str, words: list[str]) -> str:
  scheme, _, rest = url.partition('://')
  bucket = f'{scheme}://{rest.partition("/")[0]}'
  has = lambda known: next((w for w in words if w in known), None)
  if has(_NO_BUCKET):
    return (
      f'{bucket}: there is no such bucket{_where(scheme)}: make it, or mend '
      'the address.'
    )
  cannot = f'{url} cannot be {what}'
  if code := has(_EXPIRED):
    return (
      f'{cannot}: the credentials have expired ({code}): renew them '
      f'({_RENEW[scheme]}), and the same command goes on.'
    )
  if code := has(_NO_CREDENTIALS):
    return f'{cannot}: no credentials were found ({code}): {_SET[scheme]}.'
  if code := has(_NOT_ACCEPTED):
    return (
      f'{cannot}: the credentials are not accepted ({code}): '
      f'{_SET[scheme]}; then the same command goes on.'
    )
  if code := has(_OTHER_REGION):
    return (
      f'{cannot}: the bucket is in another region ({code}): set AWS_REGION.'
    )
  if (code := has(_FORBIDDEN)) or 'PermissionError' in words:
    return (
      f'{cannot}: no permission ({code or "PermissionError"}): the '
      'credentials must be allowed to list the bucket, and to read, write and '
      'delete objects below this address.'
    )
  if code := has(_NO_ANSWER):
    return (
      f'{cannot}: the server{_where(scheme)} does not answer ({code}): when '
      'it does, the same command goes on.'
    )
  return f'{cannot}: {words[0] if words else "unknown error"}.'


def _where(scheme: str) -> str:
  """' at HOST' where it is none of the cloud's own; without a password."""
  names = {
    's3': ('AWS_ENDPOINT_URL_S3', 'AWS_ENDPOINT_URL'),
    'gs': ('STORAGE_EMULATOR_HOST',),
  }[scheme]
  given = next((os.environ[n] for n in names if os.environ.get(n)), '')
  host = given.rpartition('://')[2].rpartition('@')[2].partition('/')[0]
  return f' at {host}' if host else ''
