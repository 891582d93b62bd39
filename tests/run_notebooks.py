"""Runs notebooks: for the tests, and for the outputs that are committed.

  python -m tests.run_notebooks explore train

writes the outputs into notebooks/NAME.ipynb.
"""

import argparse
import pathlib

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).parent.parent / 'notebooks'
NAMES = tuple(sorted(path.stem for path in FOLDER.glob('*.ipynb')))


def execute(name: str) -> nbformat.NotebookNode:
  """A notebook with fresh outputs; a cell that fails raises CellExecutionError.

  Args:
    name: without folder and ending.
  """
  notebook = nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)
  client = nbclient.NotebookClient(
    notebook,
    timeout=1200,
    kernel_name='python3',
    record_timing=False,  # a run on another day would differ
    resources={'metadata': {'path': str(FOLDER)}},
  )
  return client.execute()


def problems(notebook: nbformat.NotebookNode) -> list[str]:
  """What should not be seen in outputs, one phrase each."""
  found = []
  for cell in notebook.cells:
    if cell.cell_type != 'code':
      continue
    for output in cell.outputs:
      text = str(output.get('text', '')) + str(output.get('data', ''))
      if output.output_type == 'error' or output.get('name') == 'stderr':
        found.append(f'{output.output_type}: {text[:300]}')
      for word in ('Warning', str(FOLDER.parent), '/tmp/', '/home/', '/root/'):
        if word in output.get('text', ''):
          found.append(f'{word} in {output.text[:300]}')
  return found


def main() -> None:
  """Executes and writes; says what should not be there."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('NAME', nargs='*', default=NAMES)
  for name in parser.parse_args().NAME:
    notebook = execute(name)
    nbformat.write(notebook, FOLDER / f'{name}.ipynb')
    print(f'{name}: {"; ".join(problems(notebook)) or "fine"}')


if __name__ == '__main__':
  main()
