"""What is done with objects, each call a request or a few.

An object is written as a whole or not at all, and who reads or lists after a
write sees it: both clouds promise that. The clients are fsspec's, imported
when an address is first used; each retries what a server may do better the
next time, and remembers no listing.
"""

import concurrent.futures
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from semppl_jax.storage import clients, lost
from semppl_jax.storage.address import Address
from semppl_jax.storage.errors import told

_AT_ONCE = 8  # transfers, each of at most 100 MB in memory


class Info(NamedTuple):
  """Of an object."""

  size: int  # bytes
  changed: float  # seconds since 1970
  tag: str  # another one after every write


def check(place: Address) -> None:
  """Asks for what lies at an address, to know that it can be asked for.

  Raises:
    StorageError: no such bucket, no permission, no credentials, no answer.
  """
  with told(str(place), 'read'):
    clients.of(place).first(place.bucket, place.key)


def read(
  place: Address, begin: int | None = None, end: int | None = None
) -> bytes:
  """An object's bytes from `begin` to before `end`; None: all.

  Raises:
    FileNotFoundError: there is none.
    StorageError: here and below, one line about all else.
  """
  with told(str(place), 'read'):
    return clients.of(place).read(place.bucket, place.key, begin, end)


def read_once(
  place: Address, begin: int | None = None, end: int | None = None
) -> bytes:
  """As `read`, but for who tries again by itself, and from many threads.

  Raises:
    FileNotFoundError: there is none.
    NoAnswerError: it may work at another try.
    StorageError: it will not.
  """
  with told(str(place), 'read'):
    client = clients.of(place, hasty=True)
    return client.read(place.bucket, place.key, begin, end)


def write(place: Address, data: bytes) -> None:
  """Puts an object there, in place of one that is."""
  lost.check(place)
  with told(str(place), 'written'):
    clients.of(place).write(place.bucket, place.key, data)


def create(place: Address, data: bytes) -> str:
  """Puts an object where there is none, and returns its tag.

  Raises:
    FileExistsError: there is one; nothing is written.
  """
  with told(str(place), 'written'):
    return clients.of(place).write_if(place.bucket, place.key, data, '')


def replace(place: Address, data: bytes, tag: str) -> str:
  """Puts an object in place of the one with a tag, and returns the new tag.

  Raises:
    FileExistsError: another one is there now; nothing is written.
    FileNotFoundError: none is.
  """
  with told(str(place), 'written'):
    return clients.of(place).write_if(place.bucket, place.key, data, tag)


def stat(place: Address) -> Info | None:
  """Of an object; None: there is none."""
  with told(str(place), 'read'):
    found = clients.of(place).first(place.bucket, place.key)
  return None if found is None or found[0] != place.key else Info(*found[1:])


def is_folder(place: Address) -> bool:
  """Whether an object is below an address; of a bucket, whether it is."""
  with told(str(place), 'read'):
    prefix = f'{place.key}/' if place.key else ''
    found = clients.of(place).first(place.bucket, prefix)
  return found is not None or not place.key


def names(place: Address) -> list[str]:
  """The objects and folders directly below, sorted; of none: none."""
  with told(str(place), 'listed'):
    prefix = f'{place.key}/' if place.key else ''
    found = clients.of(place).listed(place.bucket, prefix, False)
  shorter = (key[len(prefix) :].rstrip('/') for key, *_ in found)
  return sorted({name for name in shorter if name})


def tree(place: Address) -> dict[str, Info]:
  """{path below: Info} of all objects below an address."""
  with told(str(place), 'listed'):
    prefix = f'{place.key}/' if place.key else ''
    found = clients.of(place).listed(place.bucket, prefix, True)
  return {
    key[len(prefix) :]: Info(*rest)
    for key, *rest in sorted(found)
    if not key.endswith('/')  # what a console makes for a folder
  }


def remove(places: Iterable[Address]) -> None:
  """Deletes objects, in this order; those that are not there count as well."""
  for place in places:
    lost.check(place)
    with told(str(place), 'deleted'):
      clients.of(place).remove(place.bucket, place.key)


def remove_tree(place: Address, first: Sequence[str] = ()) -> None:
  """Deletes all objects below an address.

  Args:
    place: the address.
    first: of these, by their paths below; before the others.
  """
  below = tree(place)
  remove(place / name for name in first if name in below)
  _all(
    lambda name: remove([place / name]), [n for n in below if n not in first]
  )


def move_tree(place: Address, to: Address, first: Sequence[str] = ()) -> None:
  """Copies all objects below an address, then deletes them in that order."""
  below = list(tree(place))

  def copy(name):
    lost.check(to)
    with told(str(to / name), 'written'):
      one = clients.of(place)
      one.copy(place.bucket, (place / name).key, (to / name).key)

  _all(copy, below)
  remove_tree(place, first)


def upload(
  folder: pathlib.Path, place: Address, last: Sequence[str] = ()
) -> None:
  """Puts a folder's files below an address.

  Args:
    folder: on the disk.
    place: the address.
    last: of these, by their paths in the folder; after the others, so that who
      finds them finds all.
  """
  found = [
    os.path.relpath(os.path.join(parent, name), folder)
    for parent, _, files in os.walk(folder)
    for name in files
  ]
  _all(
    lambda name: put(folder / name, place / name),
    [name for name in found if name not in last],
  )
  for name in last:
    put(folder / name, place / name)


def put(file: pathlib.Path, place: Address) -> None:
  """Puts a file of the disk's at an address."""
  lost.check(place)
  with told(str(place), 'written'):
    clients.of(place).put(file, place.bucket, place.key)


def download(place: Address, folder: pathlib.Path) -> None:
  """Copies all objects below an address into a folder on the disk."""
  below = list(tree(place))
  for name in below:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
  _all(lambda name: get(place / name, folder / name), below)


def get(place: Address, file: pathlib.Path) -> None:
  """Copies an object to a file on the disk.

  Raises:
    FileNotFoundError: there is no such object.
  """
  with told(str(place), 'read'):
    clients.of(place).get(place.bucket, place.key, file)


def _all(do: Any, names: list[str]) -> None:
  """Several at once; the first error is raised when all have ended."""
  if not names:
    return
  with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
    list(pool.map(do, names))
