"""Every objective learns: 200 steps of the digits, against no step."""

import json

import pytest

import semppl_jax
from experiments import digits
from semppl_jax import methods

_STEPS = 200


def _train(name, workdir, steps, **settings):
  """Results, and the metrics of the last logged step."""
  cfg = digits.get_config(name)
  cfg.num_epochs = steps * cfg.batch_size / 1500
  cfg.num_devices = 1
  cfg.dataset.validation = 300
  cfg.update_from_flattened_dict(settings)
  results = semppl_jax.pretrain(cfg, str(workdir))
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return results, json.loads(lines[-1])


@pytest.mark.long
@pytest.mark.parametrize('name', methods.METHODS)
def test_digits_are_learnt(name, tmp_path):
  untrained, _ = _train(
    name, tmp_path / 'none', 1, **{'optimizer.learning_rate': 0.0}
  )
  results, last = _train(name, tmp_path / 'run', _STEPS)
  assert results['knn_top1'] > untrained['knn_top1'] + 0.05
  if 'embedding_std' in last:  # where unit embeddings are trained
    # A falling loss is true of a collapse, too.
    assert last['embedding_std'] > 0.3
