"""`semppl-jax label`, on what people have; mistakes are one line."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets as sklearn_datasets

import semppl_jax
from semppl_jax import pretraining
from semppl_jax.errors import UserError
from semppl_jax.evaluation import labelling, run_network
from semppl_jax.tools import label as tool
from semppl_jax.workdir import metrics, run_data
from tests.helpers import tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Handwritten 0s, 1s and 2s: two of each in train/, four in unlabelled/."""
  root = tmp_path_factory.mktemp('digits')
  digits = sklearn_datasets.load_digits()
  for number, name in enumerate(('nought', 'one', 'two')):
    rows = np.flatnonzero(digits.target == number)[:6]
    for i, row in enumerate(rows):
      at = root / ('unlabelled' if i >= 2 else f'train/{name}')
      at.mkdir(parents=True, exist_ok=True)
      pixels = np.uint8(np.rint(digits.images[row] * 255 / 16))
      Image.fromarray(pixels).save(at / f'{name}_{i}.png')
  return root


def test_a_checkpoint_and_a_folder(folder, tmp_path, capsys):
  out = tmp_path / 'a' / 'labels.csv'
  arguments = ['--checkpoint=digits', f'--labels={folder}', f'--out={out}']
  assert tool.main([*arguments, '--next=3']) == 0
  rows = list(csv.DictReader(out.open()))
  assert len(rows) == 18
  asked, given = rows[:12], rows[12:]
  assert all(row['class'] == '' for row in asked)
  right = [row['pseudo_label'] in row['name'] for row in asked]
  assert np.mean(right) > 0.9
  assert {row['class'] for row in given} == {'nought', 'one', 'two'}
  assert asked[0]['name'].startswith('unlabelled/')
  assert asked[0]['nearest_1'].split('/')[0] in ('nought', 'one', 'two')
  chosen = (tmp_path / 'a/labels_next.txt').read_text().split()
  assert len(chosen) == 3 and set(chosen) <= {row['name'] for row in asked}
  said = capsys.readouterr().out
  assert '12 images labelled by 6' in said and 'no probabilities' in said
  assert 'labels_next.txt:' in said and 'share their name' not in said


def test_corrections_are_not_written_over(folder, tmp_path, capsys):
  out = tmp_path / 'labels.csv'
  arguments = ['--checkpoint=digits', f'--labels={folder}', f'--out={out}']
  assert tool.main(arguments) == 0 and tool.main(arguments) == 0
  head, first, *rest = out.read_text().splitlines()
  first = first.replace(',,', ',one,', 1)
  out.write_text('\n'.join([head, first, *rest]).replace(',', ';'))
  capsys.readouterr()
  assert tool.main(arguments) == 2
  assert 'has a class of yours for' in capsys.readouterr().err
  assert out.read_text().splitlines()[1] == first.replace(',', ';')


def test_images_of_one_name_are_told(folder, tmp_path, capsys):
  for deep in 'xy':
    (tmp_path / deep / 'z').mkdir(parents=True)
    shutil.copy(folder / 'unlabelled/one_2.png', tmp_path / deep / 'z/1.png')
  out = tmp_path / 'labels.csv'
  arguments = [f'--labels={folder}', f'--images={tmp_path}', f'--out={out}']
  assert tool.main(['--checkpoint=digits', *arguments]) == 0
  assert '2 images share their name' in capsys.readouterr().out


def test_a_list_of_names_and_classes(folder, tmp_path):
  listed = tmp_path / 'labels.csv'
  listed.write_text('nought_2.png,nought\nunlabelled/one_2.png,one\n')
  found = semppl_jax.label(
    checkpoint='digits', images=folder / 'unlabelled', labels=listed,
    out=tmp_path / 'out.csv',
  )  # fmt: skip
  assert len(found.names) == 10 and set(found.labels) == {'nought', 'one'}
  assert found.probability is None and found.summary['accuracy'] is None
  labelled = {'unlabelled/nought_2.png', 'unlabelled/one_2.png'}
  assert found.nearest[0][0] in labelled
  noughts = [i for i, name in enumerate(found.names) if 'nought' in name]
  assert [found.labels[i] for i in noughts] == ['nought'] * len(noughts)


def test_classes_that_were_written_into_the_table_stay(folder, tmp_path):
  out = tmp_path / 'labels.csv'
  settings = {'checkpoint': 'digits', 'labels': folder, 'out': out}
  semppl_jax.label(**settings)
  untouched = out.read_text()
  semppl_jax.label(**settings)  # nothing of the user's is lost
  assert out.read_text() == untouched
  edited = untouched.replace('one_2.png,,', 'one_2.png,one,')
  assert edited != untouched
  out.write_text(edited)
  with pytest.raises(UserError, match="class of yours for 'unlabelled/one_2"):
    semppl_jax.label(**settings)
  assert out.read_text() == edited
  # As the source of labels, it may be replaced: they are in the new one.
  images = tmp_path / 'all'
  shutil.copytree(folder, images)
  semppl_jax.label(
    checkpoint='digits', images=images, labels=out, out=out
  )  # fmt: skip
  rows = {row['name']: row['class'] for row in csv.DictReader(out.open())}
  assert rows['unlabelled/one_2.png'] == 'one'
  assert sum(map(bool, rows.values())) == 7
  out.write_text('a.png,one\n')
  with pytest.raises(UserError, match='is no table of labels'):
    semppl_jax.label(**settings)
  assert out.read_text() == 'a.png,one\n'


@pytest.mark.parametrize(
  'settings, words',
  [
    ({}, 'either a run or a checkpoint'),
    ({'run': 'x', 'checkpoint': 'digits'}, 'either a run or a checkpoint'),
    ({'run': 'x', 'images': 'y'}, '--images and --labels go with'),
    ({'run': '{tmp}/no'}, 'is not the folder of a run: it has no config'),
    ({'checkpoint': 'digits'}, 'A checkpoint has no labelled images'),
    ({'checkpoint': 'digits', 'labels': '{tmp}/none'}, '--images is missing'),
    (
      {'checkpoint': 'digits', 'labels': '{folder}/unlabelled'},
      'has no image in train/CLASS/',
    ),
    ({'checkpoint': 'digits', 'next_images': -1}, '--next is -1'),
    ({'checkpoint': 'digits', 'out': '{tmp}'}, 'is a folder'),
    ({'checkpoint': 'digits', 'out': '{tmp}/a.json'}, 'must end in .csv'),
    (
      {'checkpoint': 'digits', 'labels': '{folder}', 'next_images': 13},
      '--next is 13, but only 12 images have no label',
    ),
    ({'checkpoint': 'digitz', 'labels': '{folder}'}, 'digitz'),
    (
      {
        'checkpoint': 'digits',
        'labels': '{tmp}/none',
        'images': '{folder}/unlabelled',
      },
      'none cannot be read',
    ),
  ],
)
def test_mistakes(settings, words, folder, tmp_path):
  settings = {
    key: value.format(tmp=tmp_path, folder=folder)
    if isinstance(value, str)
    else value
    for key, value in settings.items()
  }
  with pytest.raises(UserError) as error:
    semppl_jax.label(**settings)
  assert words in str(error.value) and '\n' not in str(error.value)
  assert not (tmp_path / 'no').exists()


def test_an_evaluation_and_data_that_are_gone(tmp_path, capsys):
  metrics.write_json(tmp_path / 'config.json', {'checkpoint': 'x'})
  assert tool.main([f'--run={tmp_path}']) == 2
  assert 'is an evaluation' in capsys.readouterr().err
  cfg = semppl_jax.config.default().to_dict()
  cfg['dataset'] |= {'name': 'folder', 'path': str(tmp_path / 'gone')}
  cfg['labels'] |= {'fraction': 1.0}
  metrics.write_json(tmp_path / 'config.json', cfg)
  assert tool.main([f'--run={tmp_path}']) == 2
  said = capsys.readouterr().err
  assert 'gone' in said and 'is not a folder' in said and said.count('\n') == 1


def test_a_run_of_another_version_is_a_short_line(tmp_path, capsys):
  metrics.write_json(
    tmp_path / 'config.json', tiny.make_config().to_dict() | {'later': 1}
  )
  assert tool.main([f'--run={tmp_path}']) == 2
  said = capsys.readouterr().err
  assert 'settings of another version: Key "later"' in said and len(said) < 200


def test_a_run_whose_images_have_changed(tmp_path, capsys):
  metrics.write_json(tmp_path / 'config.json', tiny.make_config().to_dict())
  metrics.write_json(
    tmp_path / 'data.json', {'fingerprint': 'of others', 'images': 7}
  )
  assert tool.main([f'--run={tmp_path}']) == 2
  said = capsys.readouterr().err
  assert 'was trained on other images (7 then, 40 now)' in said
  (tmp_path / 'data.json').unlink()
  assert tool.main([f'--run={tmp_path}']) == 2
  assert 'There is no checkpoint yet' in capsys.readouterr().err


def test_a_run_whose_calibration_images_would_be_others(tmp_path, capsys):
  cfg = tiny.make_config()
  cfg.labels.calibration = 3
  metrics.write_json(tmp_path / 'config.json', cfg.to_dict())
  run = run_network.prepare(cfg.to_dict())
  begun = run_data.describe(run)
  metrics.write_json(tmp_path / 'data.json', begun)
  assert tool.main([f'--run={tmp_path}']) == 2
  assert 'There is no checkpoint yet' in capsys.readouterr().err
  begun['labels'] -= 1
  metrics.write_json(tmp_path / 'data.json', begun)
  assert tool.main([f'--run={tmp_path}']) == 2
  said = capsys.readouterr().err
  assert 'bring labels.file back' in said and said.count('\n') == 1
  # As many labels, but others; runs of before do not say which they had.
  begun = run_data.describe(run._replace(labels=np.roll(run.labels, 1)))
  metrics.write_json(tmp_path / 'data.json', begun)
  assert tool.main([f'--run={tmp_path}']) == 2
  assert '(9 then, 9 now), so that other images' in capsys.readouterr().err
  del begun['labels_fingerprint']
  metrics.write_json(tmp_path / 'data.json', begun)
  assert tool.main([f'--run={tmp_path}']) == 2
  assert 'There is no checkpoint yet' in capsys.readouterr().err


def test_labels_that_have_changed_are_told(tmp_path, capsys):
  cfg = tiny.make_config()
  metrics.write_json(tmp_path / 'config.json', cfg.to_dict())
  run = run_network.prepare(cfg.to_dict())
  swapped = np.where(
    run.labels == 0, 1, np.where(run.labels == 1, 0, run.labels)
  )
  for labels, warned in ((run.labels, False), (swapped, True)):
    begun = run_data.describe(run._replace(labels=labels))
    metrics.write_json(tmp_path / 'data.json', begun)
    assert tool.main([f'--run={tmp_path}']) == 2
    said = capsys.readouterr().err
    assert 'There is no checkpoint yet' in said
    told = 'was trained with other labels than its settings give now (12 then'
    assert (told in said) == warned and ('Warning' in said) == warned


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A run with checkpoints of steps 3 and 4."""
  workdir = tmp_path_factory.mktemp('run')
  cfg = tiny.make_config(num_epochs=1.6, num_devices=1)
  pretraining.pretrain(cfg, str(workdir))
  return workdir


@pytest.mark.long
def test_which_network_of_which_checkpoint(trained, monkeypatch, tmp_path):
  whole, seen = labelling.of_run, []
  monkeypatch.setattr(
    labelling, 'of_run', lambda found: seen.append(found) or whole(found)
  )
  usual, last, other, earlier = (
    semppl_jax.label(trained, out=tmp_path / 'a.csv', **choice)
    for choice in ({}, {'step': 4}, {'network': 'target'}, {'step': 3})
  )
  assert [found.step for found in seen] == [4, 4, 4, 3]
  networks = [found.run.cfg.evaluation.network for found in seen]
  assert networks == ['online', 'online', 'target', 'online']
  np.testing.assert_array_equal(usual.similarity, last.similarity)
  for found in (other, earlier):
    assert np.abs(usual.similarity - found.similarity).max() > 1e-6
  with pytest.raises(UserError, match='no checkpoint of step 9; .* 3, 4'):
    semppl_jax.label(trained, step=9)


def test_the_network_of_a_checkpoint_is_chosen_too(folder, tmp_path, capsys):
  arguments = ['--checkpoint=digits', f'--labels={folder}', '--network=target']
  assert tool.main([*arguments, f'--out={tmp_path}/a.csv']) == 2
  assert 'target' in capsys.readouterr().err  # which its file does not hold
