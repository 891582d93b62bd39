"""Weights from one format to another, on the command line."""

import pytest

from semppl_jax import errors
from semppl_jax.models import encoders
from semppl_jax.tools import convert
from semppl_jax.weights import load as load_lib
from tests.helpers import golden

TINY = golden.path('release_checkpoint_tiny.pkl')


def test_there_and_back(tmp_path, capsys):
  middle, end = tmp_path / 'a.safetensors', tmp_path / 'b.pkl'
  assert convert.main([TINY, str(middle)]) == 0
  assert convert.main([str(middle), str(end)]) == 0
  shown = capsys.readouterr().out
  assert 'tiny 1x, step 1,000' in shown and f'Written: {end}' in shown
  assert 'cannot use it' not in shown
  first, last = map(load_lib.load_checkpoint, (TINY, end))
  assert load_lib.digest(first) == load_lib.digest(last)
  assert first.architecture == last.architecture and first.step == last.step


@pytest.mark.parametrize('target', ['run', 'x.npz', 'x.ckpt'])
def test_other_targets_are_refused(target, tmp_path, capsys):
  assert convert.main([TINY, str(tmp_path / target)]) == 2
  shown = capsys.readouterr().err
  assert shown.startswith('error: ') and shown.count('\n') == 1
  assert '.safetensors or .pkl' in shown
  assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unasked(tmp_path, capsys):
  target = tmp_path / 'x.pkl'
  target.write_text('mine')
  assert convert.main([TINY, str(target)]) == 2
  assert target.read_text() == 'mine'
  assert '--overwrite' in capsys.readouterr().err
  assert convert.main([TINY, str(target), '--overwrite']) == 0


def test_a_wrong_source_leaves_no_target(tmp_path, capsys):
  assert convert.main([str(tmp_path), str(tmp_path / 'x.pkl')]) == 2
  assert 'is a directory' in capsys.readouterr().err
  assert not list(tmp_path.iterdir())
  with pytest.raises(errors.CheckpointError):
    convert.convert('nowhere', str(tmp_path / 'x.pkl'))


def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys):
  for ending in ('pkl', 'safetensors'):
    assert convert.main([TINY, str(tmp_path / 'none' / f'x.{ending}')]) == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_what_deepminds_code_cannot_build_is_said(tmp_path, capsys):
  found = load_lib.load_checkpoint(TINY, padding='symmetric')
  source = tmp_path / 'x.safetensors'
  load_lib.save_safetensors(source, found)
  assert convert.main([str(source), str(tmp_path / 'x.pkl')]) == 0
  assert 'cannot use it: it has no symmetric padding' in capsys.readouterr().out
  lacking = lambda *a, **k: convert.lacking(
    found._replace(architecture=encoders.Architecture(*a, **k))
  )
  assert 'not 0.01' in convert.lacking(
    found._replace(architecture=encoders.Architecture('tiny'), bn_eps=0.01)
  )
  assert lacking('resnet50', 4) is None
  assert 'no such network' in lacking('resnet50', selective_kernels=True)
  assert 'no such network' in lacking('digits', stem='small')
  assert 'no small stem' in lacking('resnet18', stem='small')
