import pytest

from semppl_jax import storage
from semppl_jax.storage import clients
from tests.helpers import bucket as bucket_lib
from tests.helpers import proxy as proxy_lib


@pytest.fixture(scope='session')
def s3_server():
  with bucket_lib.s3() as environment:
    yield environment


@pytest.fixture(scope='session')
def gs_server():
  with bucket_lib.gs() as environment:
    yield environment


@pytest.fixture
def s3(s3_server):
  """A new bucket."""
  with bucket_lib.told(s3_server):
    yield storage.path(bucket_lib.make('s3'))


@pytest.fixture(params=['s3', 'gs'])
def bucket(request):
  """A new bucket of each cloud."""
  server = request.getfixturevalue(f'{request.param}_server')
  with bucket_lib.told(server):
    yield storage.path(bucket_lib.make(request.param))


@pytest.fixture
def proxied(s3_server):
  """(a new bucket, the proxy before its server); no request is repeated."""
  endpoint = s3_server['AWS_ENDPOINT_URL']
  with proxy_lib.Proxy(endpoint) as proxy:
    told = s3_server | {
      'AWS_ENDPOINT_URL': proxy.endpoint,
      'AWS_MAX_ATTEMPTS': '1',
    }
    with bucket_lib.told(told), pytest.MonkeyPatch.context() as patch:
      place = storage.path(bucket_lib.make('s3'))
      patch.setattr(clients.of(place)._fs, 'retries', 1)
      proxy.requests.clear()
      yield place, proxy
