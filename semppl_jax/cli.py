"""The `semppl-jax` command: one name for all tools.

semppl-jax train --config=digits --workdir=runs/digits

`python -m semppl_jax` is the same.
"""

import importlib
import sys

import semppl_jax
from semppl_jax.train import stop as stop_lib
from semppl_jax.utils.text import nearest_name

# Task -> module with a `main`, what it does.
TASKS = {
  'train': ('main', 'train SemPPL: --config=EXPERIMENT --workdir=DIR'),
  'evaluate': ('main', 'evaluate a checkpoint: --config=eval_... likewise'),
  'compare': ('compare', 'SemPPL and its rivals on your folder: one table'),
  'launch': ('launch', 'train with a process for each GPU: --processes=N ...'),
  'label': ('tools.label', 'labels for all images that have none: --run=DIR'),
  'check': ('check', 'look at a run before it starts: same flags'),
  'report': ('report.__main__', 'a web page of one run or several: DIR ...'),
  'select': ('tools.select', 'which images to label: --checkpoint=RUN ...'),
  'duplicates': (
    'tools.duplicates',
    'copies within training images, and of test images',
  ),
  'embed': ('tools.embed', 'embeddings of many images, with their names'),
  'convert': ('tools.convert', 'weights from format to format: IN OUT'),
  'export': ('tools.export', 'weights for PyTorch: CHECKPOINT FOLDER'),
  'saliency': ('tools.saliency', "make a data set's foreground masks"),
  'to-array-record': (
    'tools.to_array_record',
    'prepare a tfds data set: FOLDER',
  ),
}


def main() -> int | None:
  """Hands the arguments on to a task; returns its exit status."""
  with stop_lib.reader_may_leave():
    return _main()


def _main() -> int | None:
  task, *rest = sys.argv[1:] or ['--help']
  if task in ('-h', '--help', 'help'):
    print(usage())
    return 0
  if task in ('--version', 'version'):
    print(f'semppl-jax {semppl_jax.__version__}')
    return 0
  if task not in TASKS:
    hint = nearest_name(task, TASKS)
    print(f'error: There is no task {task!r}{hint}', file=sys.stderr)
    print(usage(), file=sys.stderr)
    return 2
  sys.argv = [f'semppl-jax {task}', *rest]
  module = importlib.import_module(f'semppl_jax.{TASKS[task][0]}')
  return module.main()


def usage() -> str:
  """What the command can do."""
  width = max(map(len, TASKS))
  lines = [f'  {name:{width}}  {what}' for name, (_, what) in TASKS.items()]
  return '\n'.join(
    ['usage: semppl-jax TASK ..., where TASK is one of', '', *lines, '']
    + ['semppl-jax TASK --help tells more; semppl-jax --version.']
  )


if __name__ == '__main__':
  sys.exit(main())
