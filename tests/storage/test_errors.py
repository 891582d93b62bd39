"""One line for what a bucket does not do, and no secret in it."""

import pytest

from semppl_jax import storage
from semppl_jax.storage import clients, objects
from tests.helpers import bucket as bucket_lib
from tests.helpers import proxy as proxy_lib

_SECRET = 'hunter2hunter2'


def line_of(call):
  with pytest.raises(storage.StorageError) as error:
    call()
  text = str(error.value)
  assert '\n' not in text and _SECRET not in text
  assert error.value.__cause__ is None and error.value.__suppress_context__
  return text


def test_no_such_bucket(bucket):
  other = storage.path(f'{bucket.scheme}://bucket-of-nobody/run')
  for call in (
    lambda: objects.check(other),
    lambda: other.write_text('x'),
    lambda: other.exists(),
    lambda: objects.tree(other),
    lambda: objects.create(other, b'x'),
  ):
    text = line_of(call)
    assert '://bucket-of-nobody: there is no such bucket' in text
    assert 'make it, or mend the address' in text


@pytest.mark.parametrize(
  'status, code, words',
  [
    (403, 'AccessDenied', 'no permission (AccessDenied): the credentials must'),
    (400, 'ExpiredToken', 'expired (ExpiredToken): renew them (`aws login`'),
    (403, 'InvalidAccessKeyId', 'not accepted (InvalidAccessKeyId)'),
    (403, 'SignatureDoesNotMatch', 'not accepted (SignatureDoesNotMatch)'),
    (503, 'SlowDown', 'does not answer (SlowDown): when it does, the same'),
    (500, 'InternalError', 'does not answer (InternalError)'),
    (400, 'AuthorizationHeaderMalformed', 'in another region (Authorization'),
    (418, 'Odd', ': Odd.'),
  ],
)
def test_what_the_server_refuses(proxied, status, code, words):
  place, proxy = proxied
  (place / 'there').write_text('x')
  proxy.rule = lambda *unused: proxy_lib.refuse(status, code)
  calls = [
    (lambda: (place / 'there').read_text(), 'read'),
    (lambda: (place / 'there').write_text('y'), 'written'),
    (lambda: (place / 'there').exists(), 'read'),
    (lambda: objects.names(place), 'listed'),
    (lambda: objects.create(place / 'new', b''), 'written'),
    (lambda: objects.replace(place / 'there', b'', '"1"'), 'written'),
    (lambda: (place / 'there').unlink(), 'deleted'),
  ]
  for call, what in calls if code == 'AccessDenied' else calls[:2]:
    text = line_of(call)
    assert words in text and f'cannot be {what}' in text
  proxy.rule = None
  assert (place / 'there').read_text() == 'x'  # goes on


@pytest.mark.parametrize(
  'cut', [proxy_lib.cut_request, proxy_lib.cut_answer, proxy_lib.cut_body]
)
def test_what_is_cut_off_is_no_answer(proxied, cut):
  place, proxy = proxied
  (place / 'there').write_text('x' * 1000)
  proxy.rule = lambda *unused: cut
  text = line_of(lambda: (place / 'there').read_text())
  assert 'does not answer (' in text and '127.0.0.1' in text


def test_a_request_that_is_refused_once_is_repeated(s3_server):
  with (
    proxy_lib.Proxy(s3_server['AWS_ENDPOINT_URL']) as proxy,
    bucket_lib.told(s3_server | {'AWS_ENDPOINT_URL': proxy.endpoint}),
  ):
    place = storage.path(bucket_lib.make('s3')) / 'x'
    for act in (
      proxy_lib.refuse(503, 'SlowDown'),
      proxy_lib.cut_request,
      proxy_lib.cut_answer,
    ):
      first = len(proxy.requests)
      proxy.rule = lambda n, *unused, act=act, f=first: n == f and act
      place.write_text('written')
      first = len(proxy.requests)
      proxy.rule = lambda n, *unused, act=act, f=first: n == f and act
      assert place.read_text() == 'written'


def test_no_credentials(s3_server):
  told = {k: v for k, v in s3_server.items() if 'KEY' not in k}
  with bucket_lib.told(told), pytest.MonkeyPatch.context() as patch:
    patch.delenv('AWS_ACCESS_KEY_ID', raising=False)
    patch.delenv('AWS_SECRET_ACCESS_KEY', raising=False)
    text = line_of(lambda: objects.check(storage.path('s3://buck/run')))
  assert 'no credentials were found (NoCredentialsError): `aws configure`' in (
    text
  )


def test_nobody_listens_and_the_address_has_a_password(s3_server):
  told = s3_server | {
    'AWS_ENDPOINT_URL': f'http://me:{_SECRET}@127.0.0.1:9',
    'AWS_SECRET_ACCESS_KEY': _SECRET,
    'AWS_SESSION_TOKEN': _SECRET,
    'AWS_MAX_ATTEMPTS': '1',
  }
  with bucket_lib.told(told):
    place = storage.path('s3://buck/run')
    clients.of(place)._fs.retries = 1
    text = line_of(lambda: objects.check(place))
  assert 'the server at 127.0.0.1:9 does not answer' in text


@pytest.mark.parametrize(
  'scheme, package', [('s3', 's3fs'), ('gs', 'gcsfs.core')]
)
def test_an_extra_that_is_missing(monkeypatch, scheme, package):
  monkeypatch.setitem(__import__('sys').modules, package, None)
  clients._client.cache_clear()
  text = line_of(lambda: objects.check(storage.path(f'{scheme}://buck/run')))
  assert f"pip install 'semppl_jax[{scheme}]'" in text
