"""The report: a page for each run, and one for several."""

import html.parser
import json
import os
import re
import shutil
import subprocess
import types

import numpy as np
import pytest

from semppl_jax import checkpoint, main, tasks
from semppl_jax.data import sources
from semppl_jax.distributed import parallel
from semppl_jax.errors import CheckpointError
from semppl_jax.evaluation import features as features_lib
from semppl_jax.evaluation import run_network
from semppl_jax.report import __main__ as command
from semppl_jax.report import (
  charts,
  markup,
  page,
  pictures,
  predictions,
  results,
)
from semppl_jax.train import resume
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from semppl_jax.workdir import lock, metrics, panels
from tests.helpers import tiny

_SECTIONS = (
  'results', 'curves', 'tsne', 'gallery', 'doubtful', 'views', 'confusion',
  'settings', 'environment',
)  # fmt: skip
_VOID = ('img', 'meta', 'br', 'wbr')


class _Page(html.parser.HTMLParser):
  """Texts and elements of a page, by its sections; '' is outside of them."""

  def __init__(self, text):
    super().__init__()
    self.texts, self.tags, self.open = {}, [], []
    self.section = ''
    self.feed(text)
    self.close()
    assert not self.open, 'elements that do not end'

  def handle_starttag(self, tag, attrs):
    if tag == 'wbr':  # a name goes on
      self.texts[self.section] = self.texts[self.section].removesuffix('\n')
    if tag not in _VOID:
      self.open.append(tag)
    if tag == 'section':
      self.section = dict(attrs)['id']
    self.tags.append((self.section, tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag
    if tag == 'section':
      self.section = ''

  def handle_data(self, data):
    if self.open and self.open[-1] not in ('style', 'script'):
      self.texts[self.section] = self.texts.get(self.section, '') + data + '\n'

  def all(self, tag, section=None, kind=None):
    """Attributes of the elements of a name, maybe of a section and a class."""
    return [
      attributes
      for where, name, attributes in self.tags
      if name == tag
      and section in (None, where)
      and kind in (None, attributes.get('class'))
    ]


def _report(*folders, **options):
  path = page.write([str(f) for f in folders], **options)
  return _Page(path.read_text('utf-8'))


_STEP = 5
_SCORES = 0.911, 0.822, 0.733, 0.977, None
# Series that have a chart, with their values at steps 1 to 5.
_SERIES = {
  key: [round(0.1 + 0.01 * number + 0.02 * step, 3) for step in range(_STEP)]
  for number, key in enumerate(panels.NAMES)
}


def _filled(run, state):
  """The state with labelled images in its queue: what training leaves."""
  labelled = np.flatnonzero(run.labels >= 0)
  ids = np.resize(labelled, state.memory.ids.shape)
  random = np.random.default_rng(0)
  noise = random.normal(size=state.memory.embeddings.shape).astype(np.float32)
  queue = state.memory._replace(
    embeddings=noise / np.linalg.norm(noise, axis=-1, keepdims=True),
    labels=run.labels[ids],
    ids=ids.astype(np.int32),
    count=np.full_like(state.memory.count, ids.size),
  )
  step = np.full_like(state.step, _STEP)
  return parallel.put_sharded(
    state._replace(memory=queue, step=step), run.devices
  )


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A finished run's folder and results; its network has learnt nothing."""
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  cfg = tiny.make_config(num_devices=1)
  run = run_lib.prepare(cfg)
  state = _filled(run, tiny.first_state(run, 1))
  with lock.claimed(str(workdir), cfg.to_dict()):
    writer = metrics.MetricsWriter(str(workdir), step=0)
    for i in range(_STEP):
      row = {key: values[i] for key, values in _SERIES.items()}
      writer.write(i + 1, row)
    writer.close()
  saver = checkpoint.Checkpointer(str(workdir), keep=1)
  portable = state_lib.to_host(state, run.setup.method, run.devices)
  saver.save(_STEP, portable, resume.History()._asdict())
  saver.close()
  found = {'step': _STEP} | dict(zip(results.SCORES, _SCORES)) | {
    'num_labels': 12, 'seconds': 600.0, 'devices': '2 x abacus',
  }  # fmt: skip
  metrics.write_json(workdir / 'results.json', found)
  return workdir, found


@pytest.fixture(scope='module')
def reported(whole):
  """Its page."""
  return _report(whole[0])


@pytest.fixture
def copy(whole, tmp_path):
  """Makes a copy of the run, without some of its files."""

  def make(name='copy', without=()):
    folder = tmp_path / name
    left_out = shutil.ignore_patterns('plots', 'tensorboard', *without)
    shutil.copytree(whole[0], folder, ignore=left_out)
    return folder

  return make


def _change(folder, name, **changes):
  """Changes a JSON file; `a__b` is a nested name."""
  found = json.loads((folder / name).read_text())
  for key, value in changes.items():
    *above, last = key.split('__')
    inner = found
    for part in above:
      inner = inner[part]
    inner[last] = value
  (folder / name).write_text(json.dumps(found))


def test_every_section_is_there_with_the_right_numbers(whole, reported):
  workdir, found = whole
  assert [a['id'] for a in reported.all('section')] == list(_SECTIONS)
  assert not reported.all('p', kind='absent')
  head = reported.texts['']
  assert f'{found["step"]} steps' in head and 'synthetic' in head
  assert 'not finished' not in head
  for key, (title, explanation) in results.SCORES.items():
    if found.get(key) is not None:
      share = f'{found[key]:.1%}'
      assert f'{title}\n{explanation}\n{share}\n' in reported.texts['results']
      assert f'{title}\n{share}\n' in head
  for words in ('chance, 1 in 3', 'Not measured here: Classifier.'):
    assert words in reported.texts['results']
  assert '12 labelled images' in head and '10 min' in head
  assert '2 x abacus' in reported.texts['environment']
  numbers = reported.texts['curves']
  rows = [_SERIES]
  drawn = panels.numbers(rows) | panels.shares(rows)
  assert {k for series in drawn.values() for k in series} == set(panels.NAMES)
  for title, series in drawn.items():
    assert f'{title}\n' in numbers
    for key, name in series.items():
      first, *_, last = map(charts.number, _SERIES[key])
      assert f'\n{name}\n{first}\n{last}\n{first}\n{last}\n5\n' in numbers
  assert os.path.getsize(workdir / 'report.html') < 500_000


def test_the_most_doubtful_images_are_shown(reported):
  cards = reported.all('div', 'doubtful', 'card unknown')
  text = reported.texts['doubtful']
  assert len(cards) == 12 == text.count('% of the votes')
  assert 'Of 28 unlabelled images' in text
  assert 'Tenth, most doubtful first' in text


def test_the_settings_that_differ_come_first(reported):
  text = reported.texts['settings']
  first, everything = text.split('All ')
  assert 'loss.num_negatives\n4\n10\n' in first
  assert 'loss.alpha' not in first and 'loss.alpha\n0.2\n' in everything


def test_a_page_needs_nothing_but_itself(reported, whole):
  for _, tag, attributes in reported.tags:
    assert tag not in ('script', 'link', 'iframe', 'object')
    for name, value in attributes.items():
      if name == 'href':
        allowed = '#', 'https://arxiv.org/'
        assert tag == 'a' and value.startswith(allowed)
      elif name == 'src':
        assert value.startswith('data:image/')
      else:
        assert 'http' not in value and 'url(' not in value
  text = (whole[0] / 'report.html').read_text()
  style = re.search(r'<style>(.*?)</style>', text, re.DOTALL)[1]
  assert 'prefers-color-scheme: dark' in style
  assert 'url(' not in style and '@import' not in style


def test_a_page_can_be_read_aloud(reported):
  assert reported.all('html')[0]['lang'] == 'en'
  assert reported.all('img') and all(a['alt'] for a in reported.all('img'))
  for attributes in reported.all('svg'):
    hidden = attributes.get('aria-hidden') == 'true'
    assert hidden or attributes['aria-label']
  for attributes in reported.all('div', kind='scroll'):
    assert attributes['aria-label'] and attributes['tabindex'] == '0'
  marks = reported.texts['gallery']
  assert ('✗ Wrong' in marks) or ('✓ Right' in marks)
  assert len(reported.all('div', 'gallery', 'card wrong')) == (
    marks.count('\nwrong\n')
  )


def test_predictions_and_neighbours_are_those_of_evaluation(whole, reported):
  workdir, _ = whole
  settings = json.loads((workdir / 'config.json').read_text())
  run = run_network.prepare(settings)
  found = run_network.restore(run, workdir)
  rows = np.flatnonzero(run.labels < 0)
  support = predictions.labelled(found)
  np.testing.assert_array_equal(support.rows, np.flatnonzero(run.labels >= 0))
  said = predictions.predict(found, run.data.train, rows, support)
  features = features_lib.features(
    found.state, run.setup.method, run.setup.nets, run.cfg,
    sources.Rows(run.data.train, rows), run.devices,
  )  # fmt: skip
  np.testing.assert_array_equal(said.labels, features.votes)
  np.testing.assert_allclose(said.embeddings, features.embeddings, rtol=1e-5)
  right = f'{np.mean(features.votes == run.data.train.labels[rows]):.1%}'
  said_of_both = reported.texts['confusion']
  assert said_of_both.startswith(f'Confusion\n{right}\n of the unlabelled')
  assert ' of the test images: ' in said_of_both
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  cosine = unit(said.embeddings) @ unit(support.embeddings).T
  nearest = support.rows[cosine.argmax(axis=1)]
  np.testing.assert_array_equal(said.neighbours[:, 0], nearest)
  best = -np.sort(-cosine, axis=1)[:, : predictions.NEIGHBOURS]
  np.testing.assert_allclose(said.similarity, best, atol=1e-5)


def _all_files(folder):
  return {
    str(path): path.read_bytes() for path in folder.rglob('*') if path.is_file()
  }


def test_a_damaged_checkpoint_is_passed_over_and_stays(copy):
  folder = copy(without=('report.html',))
  newest = folder / 'checkpoints' / '7'
  shutil.copytree(folder / 'checkpoints' / '5', newest)
  for path in (newest / 'arrays').rglob('*'):
    if path.is_file() and path.parent.name == 'd':
      path.write_bytes(b'')
  before = _all_files(folder)
  run = run_network.prepare(json.loads((folder / 'config.json').read_text()))
  assert run_network.restore(run, folder).step == 5
  assert _all_files(folder) == before
  shutil.rmtree(folder / 'checkpoints' / '5')
  with pytest.raises(CheckpointError, match='7 is damaged'):
    run_network.restore(run, folder)


def test_several_runs_over_each_other(whole, copy, tmp_path):
  worse = copy('worse')
  _change(worse, 'config.json', loss__alpha=0.7)
  _change(worse, 'results.json', knn_top1=0.01, linear_all_top1=0.99)
  found = _report(whole[0], worse, out=str(tmp_path / 'two.html'))
  lines = [a for a in found.all('path', 'curves', 'line')]
  charts_drawn = len(found.all('figure', 'curves', 'chart'))
  assert charts_drawn == len(_SERIES)
  # Two in each, and two in the legend, with other dashes.
  assert len(lines) == 2 * charts_drawn + 2
  assert len({(a['style'], a.get('stroke-dasharray')) for a in lines}) == 2
  assert 'loss.alpha\n0.2\n0.7\n' in found.texts['settings']
  assert 'seed' not in found.texts['settings']
  table = found.texts['results'].replace('\n', ' ')
  assert 'whole 5 91.1%  ★ 82.2%  ★ 73.3%  ★ 97.7% worse' in table
  assert 'worse 5 91.1%  ★ 1.0% 73.3%  ★ 99.0%  ★' in table


@pytest.mark.parametrize(
  'without, absent, reason',
  [
    (('checkpoints',), ('tsne', 'gallery', 'confusion'), 'no checkpoint'),
    (('results.json',), ('results',), 'not finished'),
    (('metrics.jsonl',), ('curves',), 'no metrics.jsonl'),
    (
      ('config.json', 'results.json', 'checkpoints'),
      ('results', 'tsne', 'gallery', 'views', 'confusion', 'settings'),
      'config.json',
    ),
  ],
)
def test_what_a_run_lacks_is_a_line(without, absent, reason, copy, monkeypatch):
  if 'checkpoints' not in without:  # that takes time, and is tested above
    nobody = run_network.Network(None, None, _STEP)
    monkeypatch.setattr(run_network, 'restore', lambda *args: nobody)
    monkeypatch.setattr(page.seen_lib, '_ask', lambda *a: (None, None, ''))
    monkeypatch.setattr(page.seen_lib, '_doubtful', lambda *a: None)
  if 'config.json' not in without:
    monkeypatch.setattr(pictures, 'views_of', lambda run: markup.note('views'))
  found = _report(copy(without=without))
  lacking = {s for s, tag, a in found.tags if a.get('class') == 'absent'}
  assert set(absent) <= lacking
  assert reason in ' '.join(found.texts[section] for section in absent)
  assert ('not finished' in found.texts['']) == ('results.json' in without)


def test_data_that_are_gone_and_settings_of_another_version(copy):
  folder = copy()
  _change(
    folder, 'config.json', dataset__name='arrays', dataset__path='gone.npz'
  )
  found = _report(folder)
  assert 'gone.npz' in found.texts['tsne']
  assert '✗' not in found.texts['gallery'] and found.texts['curves']
  _change(folder, 'config.json', dataset__flavour='sweet')
  assert 'flavour' in _report(folder).texts['views']
  (folder / 'config.json').write_text('{')
  (folder / 'results.json').write_text('[')
  found = _report(folder)
  assert 'config.json cannot be read' in found.texts['']
  assert 'results.json cannot be read' in found.texts['']


def test_an_evaluation_has_a_page(tmp_path):
  settings = {'checkpoint': 'x', 'task': 'knn', 'dataset': {'name': 'digits'}}
  (tmp_path / 'config.json').write_text(json.dumps(settings))
  found = {'step': 3, 'top1': 0.25, 'loss': 1.5}
  (tmp_path / 'results.json').write_text(json.dumps(found))
  text = _report(tmp_path).texts
  assert 'evaluation: knn' in text[''] and '25.0%' in text['results']
  assert 'evaluation' in text['tsne']


def test_the_command_writes_where_it_is_told(whole, tmp_path, capsys):
  both = [str(whole[0])] * 2
  out = tmp_path / 'x.html'
  assert command.main([*both, '--out', str(out)]) == 0
  assert capsys.readouterr().out == f'Written: {out}\n'
  assert _Page(out.read_text('utf-8')).texts['results']
  assert command.main([*both, '--out', str(tmp_path / 'no' / 'x.html')]) == 2
  assert command.main([*both, '--images', '0']) == 2
  lines = capsys.readouterr().err.splitlines()
  assert [line.split(':')[0] for line in lines] == ['error'] * 2


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
  assert command.main([str(tmp_path)]) == 2
  assert command.main([str(tmp_path / 'none')]) == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 2 and all(x.startswith('error: ') for x in lines)
  assert 'is no run' in lines[0]
  assert not list(tmp_path.iterdir())


def test_files_of_another_kind_do_no_harm(tmp_path):
  odd = {'step': 'x', 'knn_top1': 'high', 'seconds': [1], 'num_labels': None}
  (tmp_path / 'results.json').write_text(json.dumps(odd | {'top1': 7}))
  rows = [{'step': 2, 'loss': 'NaN', 'queue_fill': None}, {'step': 3}]
  text = '\n'.join(map(json.dumps, rows)) + '\n{"step": 4, "lo'
  (tmp_path / 'metrics.jsonl').write_text(text)
  settings = {'dataset': 'mine', 'a': {'b': None}, 'c': [[1], '']}
  (tmp_path / 'config.json').write_text(json.dumps(settings))
  found = _report(tmp_path)
  assert '3 steps' in found.texts[''] and '700.0%' in found.texts['results']
  assert 'no series' in found.texts['curves']
  assert 'a.b\nnone\nunknown\n' in found.texts['settings']


def test_what_comes_from_files_is_text(whole, copy, monkeypatch):
  evil = '<script>alert("1")</script>'
  folder = copy('<img src=x>', without=('checkpoints',))
  _change(folder, 'config.json', labels__file=evil)
  _change(folder, 'results.json', devices=evil)
  (folder / 'rollbacks.jsonl').write_text(
    json.dumps({'step': 4, 'back_to': 3, 'what': evil}) + '\n{"cut'
  )
  (folder / 'unreadable.jsonl').write_text(json.dumps({'name': evil}) + '\n')
  found = _report(folder)
  assert not found.all('script') and not [
    a for a in found.all('img') if a['src'] == 'x'
  ]
  for section in ('', 'settings', 'environment'):
    assert evil in found.texts[section]
  assert '<img src=x>' in found.texts['']
  # And the names of classes, wherever they are shown.
  names = [evil, '"><script>', "' onerror='x"]
  truth = np.array([0, 1, 2, 0])
  shown = markup.join(
    results.confusion(truth, truth[::-1], names, evil),
    charts.scatter(np.eye(4, 2), truth, names, title=evil),
    pictures.picture(np.zeros((4, 4, 3)), names[1]),
  )
  parsed = _Page(shown)
  assert not parsed.all('script')
  assert parsed.all('img')[0]['alt'] == names[1]
  assert not any('onerror' in a for _, _, a in parsed.tags)


def test_the_end_of_a_run_says_how_to_make_its_page(monkeypatch, capsys):
  monkeypatch.setattr(tasks, 'of', lambda cfg: lambda *args: {'step': 3})
  main.train_or_evaluate(None, 'my runs/x')
  said = capsys.readouterr().out
  assert said.endswith("python -m semppl_jax.report 'my runs/x'\n")


def test_a_confusion_has_true_classes_in_its_rows():
  truth, guesses = np.array([[0, 1], [0, 1], [1, 1], [-1, 0], [0, -1]]).T
  matrix = results.confusion(truth, guesses, ['cat', 'dog'], 'pets')
  text = _Page(matrix).texts['']
  assert text.startswith('33.3%\n of the pets: 1 of 3 are right.\ncat\ndog\n')
  assert '\ncat\n·\n2\n0.0%\ndog\n·\n1\n100.0%\n' in text


def test_many_classes_become_a_list_of_mistakes():
  truth = np.repeat(np.arange(30), 4)
  guesses = np.where(np.arange(120) < 3, 7, truth)
  names = list('ab' * 15)
  text = _Page(results.confusion(truth, guesses, names, 'x')).texts['']
  assert '97.5%' in text and '117 of 120' in text
  assert text.endswith('Images\na\nb\n3\n')
  none = results.confusion(truth, np.full(120, -1), ['a'], 'test images')
  assert 'None of the test images has both' in none


def test_a_long_line_keeps_its_extremes():
  values = np.zeros(100_000)
  values[31_234] = 9.0
  line = charts.Line('x', 0, np.arange(100_000.0), values)
  steps, mean, low, high = charts._binned(line)
  assert len(steps) <= 200 and high.max() == 9 and low.max() == 0
  assert mean.mean() == pytest.approx(values.mean(), rel=0.01)
  drawn = _Page(charts.line_chart('t', [line]))
  assert len(drawn.all('path', kind='range')) == 1


@pytest.mark.parametrize(
  'low, high, wanted',
  [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3, 4, [-2, 0, 2, 4]), (7, 7.1, None)],
)
def test_ticks_are_round_and_few(low, high, wanted):
  found = charts.ticks(low, high)
  assert 2 <= len(found) <= 6
  assert low <= found[0] and found[-1] <= high + 1e-9
  if wanted:
    assert found == pytest.approx(wanted)


@pytest.mark.long
@pytest.mark.parametrize('width, several', [(390, 0), (1280, 0), (390, 1)])
def test_a_browser_needs_no_sideways_scrolling(width, several, whole, tmp_path):
  browser = shutil.which('chromium') or shutil.which('google-chrome')
  if browser is None:
    pytest.skip('no chromium here')
  page_file = tmp_path / 'page.html'
  folders = [whole[0]] * (1 + several)  # of several, a table is wide
  images = len(_report(*folders, out=str(page_file)).all('img'))
  text = page_file.read_text()
  measure = (
    'const f = document.querySelector("iframe"); f.onload = () => {'
    'const d = f.contentDocument; const w = [...d.querySelectorAll("section")]'
    '.map(e => e.getBoundingClientRect().right);'
    'document.title = [d.documentElement.scrollWidth, Math.max(...w),'
    'd.images.length, [...d.images].filter(i => !i.naturalWidth).length]}'
  )
  frame = markup.tag(
    'iframe', srcdoc=text, style=f'width:{width}px;height:800px;border:0'
  )
  outer = tmp_path / 'outer.html'
  outer.write_text(f'<body>{frame}<script>{measure}</script>')
  done = subprocess.run(
    [
      browser, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom',
      '--virtual-time-budget=3000', f'--user-data-dir={tmp_path / "profile"}',
      f'file://{outer}',
    ],
    capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  found = re.search(r'<title>([\d.,]+)</title>', done.stdout)
  assert found, done.stderr[-2000:]
  scroll, right, shown, broken = map(float, found[1].split(','))
  assert scroll <= width and right <= width
  assert shown == images and broken == 0
  assert images or several


def test_scores_stand_beside_what_needs_no_network():
  found = {
    'knn_top1': 0.5, 'chance_top1': 0.125, 'baseline_pixels_top1': 0.2,
    'baseline_histogram_top1': 0.3, 'test_images': 160,
  }  # fmt: skip
  run = types.SimpleNamespace(results=found)
  text = _Page(results.scores(run, 8)).texts['']
  assert text.startswith('Verdict: ahead of what needs no network: kNN 50.0%')
  for title, value in (('kNN', '50.0%'), ('Pixels', '20.0%')):
    assert f'\n{title}\n' in text and f'\n{value}\n' in text
  assert 'Colours' in text and 'Colours' not in str(
    results.headline(types.SimpleNamespace(results=found, rows=[]))
  )
