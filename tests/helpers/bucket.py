"""Stand-ins for object storage on this machine: moto's S3, an emulator of GCS.

Both are servers; what is tested speaks to them by the clouds' own clients.
"""

import contextlib
import logging
import os
import uuid

import pytest

_CREDENTIALS = {
  'AWS_ACCESS_KEY_ID': 'testing',
  'AWS_SECRET_ACCESS_KEY': 'testing',
  'AWS_DEFAULT_REGION': 'us-east-1',
  'AWS_EC2_METADATA_DISABLED': 'true',
  'AWS_CONFIG_FILE': os.devnull,
  'AWS_SHARED_CREDENTIALS_FILE': os.devnull,
}


@contextlib.contextmanager
def s3():
  """The environment of a server, {name: value}; skips where there is none."""
  server = pytest.importorskip('moto.server')
  pytest.importorskip('s3fs')
  logging.getLogger('werkzeug').setLevel(logging.ERROR)  # of each request
  one = server.ThreadedMotoServer('127.0.0.1', 0, verbose=False)
  one.start()
  try:
    host, port = one.get_host_and_port()
    yield _CREDENTIALS | {'AWS_ENDPOINT_URL': f'http://{host}:{port}'}
  finally:
    one.stop()


@contextlib.contextmanager
def gs():
  """The same of Google's; it knows no conditions."""
  server = pytest.importorskip('gcp_storage_emulator.server')
  pytest.importorskip('gcsfs')
  one = server.create_server('127.0.0.1', 0, in_memory=True)
  one.start()
  try:
    port = one._api._httpd.server_address[1]
    yield {
      'STORAGE_EMULATOR_HOST': f'http://127.0.0.1:{port}',
      'NO_GCE_CHECK': 'true',
    }
  finally:
    one.stop()


@contextlib.contextmanager
def told(environment):
  """This process's environment, and clients that know of it."""
  from semppl_jax.storage import clients

  with pytest.MonkeyPatch.context() as patch:
    for name, value in environment.items():
      patch.setenv(name, value)
    clients._client.cache_clear()
    yield
  clients._client.cache_clear()


def make(scheme='s3'):
  """A new bucket; its address."""
  name = f'bucket-{uuid.uuid4().hex[:12]}'
  if scheme == 's3':
    import boto3

    boto3.client('s3').create_bucket(Bucket=name)
  else:
    import requests

    place = f'{os.environ["STORAGE_EMULATOR_HOST"]}/storage/v1/b'
    requests.post(place, json={'name': name}, timeout=5).raise_for_status()
  return f'{scheme}://{name}'
