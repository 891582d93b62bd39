"""The page: sections in the order of what a reader asks first."""

import datetime
import pathlib
from collections.abc import Callable, Sequence

from semppl_jax import methods, storage
from semppl_jax.errors import UserError
from semppl_jax.report import curves, markup, results, run_files, settings
from semppl_jax.report import seen as seen_lib
from semppl_jax.report.markup import Absent, Html, tag
from semppl_jax.report.run_files import RunFiles
from semppl_jax.utils import files

_STYLE = pathlib.Path(__file__).with_name('style.css')

Section = tuple[str, str, Callable[[], Html]]  # id, title, content


def write(
  folders: Sequence[str],
  out: str | None = None,
  *,
  most: int = 2000,
  tell: Callable[[str], None] = lambda line: None,
) -> pathlib.Path:
  """Writes the report on one run, or on several.

  Args:
    folders: of the runs.
    out: the file; None: report.html, in the folder of a single run or here.
    most: so many images of each kind are looked at.
    tell: is told, line by line, what is done.

  Returns:
    The file.

  Raises:
    UserError: a folder that is no run, or a file that cannot be written.
  """
  runs = run_files.read(folders)
  at_home = runs[0].folder if len(runs) == 1 else pathlib.Path()
  path = storage.path(out) if out else at_home / 'report.html'
  if len(runs) == 1:
    whole = _of_one(runs[0], most, tell)
  else:
    whole = _of_several(runs)
  try:
    files.write_text(path, whole)
  except OSError as error:
    raise UserError(
      f'{path} cannot be written: {error.strerror}. Choose another --out.'
    ) from error
  return path


def _of_one(run: RunFiles, most: int, tell: Callable[[str], None]) -> Html:
  tell(f'{run.name}: data and checkpoint ...')
  seen = seen_lib.look(run, most)
  tell(f'{run.name}: page ...')
  num_classes = seen.run.data.num_classes if seen.run else 0
  sections: list[Section] = [
    ('results', 'Results', lambda: results.scores(run, num_classes)),
    ('curves', 'Curves', lambda: curves.of_one(run)),
    ('tsne', 'Embeddings', lambda: seen_lib.tsne(seen)),
    (
      'gallery',
      'Gallery',
      lambda: seen_lib.gallery(seen),
    ),
    ('doubtful', 'Most doubtful', lambda: seen_lib.doubtful(seen)),
    ('views', 'Views', lambda: seen_lib.views(seen)),
    (
      'confusion',
      'Confusion',
      lambda: seen_lib.confusion(seen),
    ),
    ('settings', 'Settings', lambda: settings.of_one(run)),
    ('environment', 'Environment', lambda: settings.environment([run])),
  ]
  head = markup.join(_facts(run, seen), _section(lambda: results.headline(run)))
  return document(run.name, head, sections, _about(run))


def _of_several(runs: Sequence[RunFiles]) -> Html:
  sections: list[Section] = [
    ('results', 'Results', lambda: results.comparison(runs)),
    (
      'settings',
      'Settings that differ',
      lambda: settings.of_several(runs),
    ),
    ('curves', 'Curves', lambda: curves.of_several(runs)),
    ('environment', 'Environment', lambda: settings.environment(runs)),
  ]
  lines = [reason for run in runs for reason in _incidents(run, True)]
  head = markup.join(
    tag('p', ' · '.join(run.name for run in runs), class_='facts'),
    *(markup.note(line) for line in lines),
  )
  return document(f'{len(runs)} runs compared', head, sections)


def _about(run: RunFiles) -> str:
  """The first line of its method's file: the name, and the paper."""
  module = methods.METHODS.get(str(run.config.get('method')))
  return (module and module.__doc__ or '').partition('\n')[0]


def document(
  title: str, head: Html, sections: Sequence[Section], about: str = ''
) -> Html:
  """A whole page.

  Args:
    title: of it.
    head: below the title.
    sections: their content may raise Absent, whose reason is in its place.
    about: in the footer.
  """
  links = [tag('a', name, href=f'#{anchor}') for anchor, name, _ in sections]
  body = [
    tag('section', tag('h2', name), _section(content), id=anchor)
    for anchor, name, content in sections
  ]
  today = datetime.date.today().isoformat()
  foot = tag('footer', f'Made by semppl_jax on {today}. {about}')
  whole = tag(
    'html',
    tag(
      'head',
      tag('meta', charset='utf-8'),
      tag(
        'meta', name_='viewport', content='width=device-width, initial-scale=1'
      ),
      tag('meta', name_='color-scheme', content='light dark'),
      tag('title', f'{title}: semppl_jax report'),
      tag('style', Html(_STYLE.read_text('utf-8'))),
    ),
    tag(
      'body',
      tag('header', tag('h1', title), head),
      tag('nav', *links, aria_label='Sections'),
      tag('main', *body),
      foot,
    ),
    lang='en',
  )
  return Html(f'<!doctype html>\n{whole}\n')


def _section(content: Callable[[], Html]) -> Html:
  try:
    return content()
  except Absent as reason:
    return tag('p', str(reason), class_='absent')


def _facts(run: RunFiles, seen: seen_lib.Seen) -> Html:
  """A line under the title, and what was unusual."""
  facts = []
  if run.is_evaluation:
    facts.append(f'evaluation: {run.config.get("task", "")}')
  if run.step is not None:
    total = seen.run and seen.run.setup.total_steps
    unfinished = not run.results
    of = f' of {total:,}' if unfinished and total else ''
    facts.append(f'{run.step:,}{of} steps')
    if unfinished:
      facts.append('not finished')
  facts.append(datetime.date.fromtimestamp(run.changed).isoformat())
  dataset = run.config.get('dataset')
  if isinstance(dataset, dict) and dataset.get('name'):
    facts.append(f'data: {dataset["name"]} {dataset.get("path", "")}'.strip())
  if 'num_labels' in run.results:
    facts.append(f'{run.results["num_labels"]} labelled images')
  return markup.join(
    tag('p', ' · '.join(facts), class_='facts'),
    *(markup.note(line) for line in _incidents(run)),
  )


def _incidents(run: RunFiles, named: bool = False) -> list[str]:
  lines = list(run.lacking)
  if run.stop:
    lines.append(
      f'The run was {run.stop}: {run.stop.what}. What the network says here '
      'is that of its last good checkpoint, if it has one.'
    )
  for one in run.rollbacks:
    lines.append(
      f'The watchdog went back from step {one.get("step")} to '
      f'{one.get("back_to")}: {one.get("what")}.'
    )
  if run.unreadable:
    names = ', '.join(str(one.get('name')) for one in run.unreadable[:3])
    more = ', ...' if len(run.unreadable) > 3 else ''
    lines.append(
      f'{len(run.unreadable):,} images could not be decoded: {names}{more}.'
    )
  return [f'{run.name}: {line}' if named else line for line in lines]
